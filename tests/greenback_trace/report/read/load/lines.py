"""Lines of a trace, and ways to change them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Dict, List

from greenback_trace.report.read.trace import Trace

#: What SHOP bridges, in all: three items by two bridges and a refusal in each of 15 orders, and
#: three bridges on each of two days.
BRIDGES = 15 * 7 + 2 * 3


def requests(path: Path, signal: str = "") -> List[Dict[str, Any]]:
    return [
        request
        for request in map(json.loads, path.read_text().splitlines())
        if not signal or signal in request
    ]


def write(path: Path, content: List[Dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(request) + "\n" for request in content))
    return path


def metrics(request: Dict[str, Any]) -> List[Dict[str, Any]]:
    return [
        metric
        for resource in request.get("resourceMetrics", ())
        for scope in resource["scopeMetrics"]
        for metric in scope["metrics"]
    ]


def points(request: Dict[str, Any], names: str = "greenback.") -> List[Dict[str, Any]]:
    return [
        point
        for metric in metrics(request)
        if metric["name"].startswith(names)
        for point in (metric.get("sum") or metric.get("gauge") or metric["histogram"])["dataPoints"]
    ]


def numbers(trace: Trace) -> Any:
    """All that is counted, by site."""
    return {
        (site.function, site.file, site.line): (
            site.ok,
            site.errors,
            site.cancelled,
            site.suspended,
            {chain: each.bridges for chain, each in site.chains.items()},
            site.observed.spans,
            site.observed.awaitables,
            site.observed.error_types,
            site.observed.tasks,
            site.observed.portals,
        )
        for site in trace.sites
    }
