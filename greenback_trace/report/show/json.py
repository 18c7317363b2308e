"""A trace -> the JSON of ``report --json``. docs/report.rst describes its fields."""

from __future__ import annotations

from datetime import datetime, timezone
from typing import Any, Dict, Optional, Sequence

from ..read.durations import Durations
from ..read.trace import Numbers, SiteReport, Trace


def as_dict(trace: Trace, sites: Sequence[SiteReport]) -> Dict[str, Any]:
    """The totals of *trace*, with *sites*, which may be a part of its sites."""
    return {
        "begin": _time(trace.begin),
        "end": _time(trace.end),
        "processes": trace.processes,
        "services": trace.services,
        "engines": trace.engines,
        "spans": trace.spans,
        "is_sampled": trace.is_sampled,
        "total": _numbers(trace.total),
        "sites": [_site(site) for site in sites],
        "portals": {
            kind: {
                "opened": int(portals.opened),
                "active": int(portals.active),
                "lifetime": _durations(portals.lifetimes),
                "spans": portals.spans,
                "slow_steps": portals.slow_steps,
            }
            for kind, portals in trace.portals.items()
        },
        "bridge_duration": _durations(trace.bridge_durations),
        "step_duration": _durations(trace.step_durations),
        "steps": int(trace.steps),
        "step_time": trace.step_time,
        "slow_steps": {function: int(count) for function, count in trace.slow_steps.items()},
        "misuses": [
            {"kind": kind, "function": function, "count": int(count)}
            for (kind, function), count in trace.misuses.items()
        ],
        "dropped": [
            {"item": item, "reason": reason, "count": int(count)}
            for (item, reason), count in trace.dropped.items()
        ],
        "broken_lines": trace.broken_lines,
        "broken": trace.broken,
    }


def _site(site: SiteReport) -> Dict[str, Any]:
    observed = site.observed
    return {
        "function": site.function,
        "file": site.file,
        "line": site.line,
        **_numbers(site),
        "spans": observed.spans,
        "duration": _durations(observed.durations),
        "awaitables": observed.awaitables,
        "error_types": observed.error_types,
        "tasks": observed.tasks,
        "portals": observed.portals,
        "chains": [
            {"chain": list(map(str, chain)), **_numbers(numbers)}
            for chain, numbers in sorted(site.chains.items(), key=lambda item: -item[1].time)
        ],
    }


def _numbers(numbers: Numbers) -> Dict[str, float]:
    return {
        "bridges": int(numbers.bridges),
        "ok": int(numbers.ok),
        "errors": int(numbers.errors),
        "cancelled": int(numbers.cancelled),
        "suspended": int(numbers.suspended),
        "time": numbers.time,
        "suspended_time": numbers.suspended_time,
        "holding_time": numbers.holding_time,
    }


def _durations(durations: Durations) -> Dict[str, Optional[float]]:
    return {
        "count": int(durations.count),
        "p50": durations.quantile(0.5),
        "p95": durations.quantile(0.95),
        "p99": durations.quantile(0.99),
    }


def _time(nanoseconds: Optional[int]) -> Optional[str]:
    if nanoseconds is None:
        return None
    return datetime.fromtimestamp(nanoseconds / 1e9, timezone.utc).isoformat()
