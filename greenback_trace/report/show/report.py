"""A trace -> tables for a terminal: where a program bridges, and what that costs."""

from __future__ import annotations

from datetime import datetime
from typing import Mapping, Optional, Sequence, Tuple

from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text

from ..._config import Config
from ...misuse.explained import page_of
from ...misuse.finding import SEVERITY
from ..read.trace import Numbers, SiteReport, Trace
from .sites import QUANTILES, quantiles, show_sites, titled_table
from .wording import digits, duration, plural, visible

_BROKEN_LINES = 5
_SLOW_STEPS = 10
_SEVERITY_STYLES = {"error": "red", "warning": "yellow", "advice": "dim"}


def show_report(
    trace: Trace, sites: Sequence[SiteReport], top: int, sort: str, console: Console
) -> None:
    """Print the first *top* sites with their sync chains, then the rest of the trace.

    If *sites* are not all sites of the trace, only the sites are printed.
    """
    is_part = len(sites) < len(trace.sites)
    console.print(_headline(trace, sites))
    if sites:
        console.print()
        show_sites(trace, sites, top, sort, console)
    if not is_part:
        for table in (
            _portal_table(trace),
            _duration_table(trace),
            _slow_step_table(trace),
            _misuse_table(trace),
        ):
            if table is not None:
                console.print()
                console.print(table)
        if trace.dropped:
            console.print()
            console.print(_dropped(trace))
    if trace.broken_lines:
        console.print()
        console.print(_broken_lines(trace))


def _headline(trace: Trace, sites: Sequence[SiteReport]) -> Text:
    total = Numbers()
    for site in sites:
        total.add(site)
    whole = "" if len(sites) == len(trace.sites) else f" of {len(trace.sites)}"
    numbers = (
        f"{digits(total.bridges)} {plural(total.bridges, 'bridge')} from {len(sites)}{whole} "
        f"{plural(len(trace.sites), 'site')}: {digits(total.suspended)} suspended, "
        f"{duration(total.time)} in total, {duration(total.suspended_time)} of it waiting."
    )
    processes = "process" if trace.processes == 1 else "processes"
    engines = f", {plural(len(trace.engines), 'engine')} " if trace.engines else ""
    source = (
        f"{trace.processes} {processes} of {_by_count(trace.services, trace.processes)}"
        f"{engines}{_by_count(trace.engines, trace.processes)}; "
        f"{digits(trace.spans)} {plural(trace.spans, 'span')}{_when(trace)}."
    )
    return Text.assemble((numbers, "bold"), "\n", source)


def _by_count(names: Mapping[str, int], total: int) -> str:
    """The names, the most frequent one first, each with its count if that is not *total*."""
    return ", ".join(
        visible(name) if count == total else f"{visible(name)} ({count})"
        for name, count in sorted(names.items(), key=lambda item: (-item[1], item[0]))
    )


def _when(trace: Trace) -> str:
    if trace.begin is None or trace.end is None:
        return ""
    begin, end = (datetime.fromtimestamp(each / 1e9) for each in (trace.begin, trace.end))
    until = f"{end:%H:%M:%S}" if begin.date() == end.date() else f"{end:%Y-%m-%d %H:%M:%S}"
    return f"; {begin:%Y-%m-%d %H:%M:%S} to {until}"


def _portal_table(trace: Trace) -> Optional[Table]:
    if not trace.portals:
        return None
    table = titled_table("Portals")
    table.add_column("kind")
    for name in ("opened", "still open", "lifetime p50", "p95", "p99", "slow steps"):
        table.add_column(name, justify="right")
    for kind, portals in sorted(trace.portals.items(), key=lambda item: -item[1].opened):
        table.add_row(
            Text(visible(kind)),
            digits(portals.opened),
            digits(portals.active),
            *quantiles(portals.lifetimes),
            digits(portals.slow_steps) if portals.spans else "-",
        )
    return table


def _duration_table(trace: Trace) -> Optional[Table]:
    if not trace.bridge_durations.count and not trace.step_durations.count:
        return None
    table = titled_table("All durations")
    table.add_column("of")
    for name in ("number", *(name for _, name, _ in QUANTILES)):
        table.add_column(name, justify="right")
    for name, durations in (
        ("a bridge", trace.bridge_durations),
        ("a step, which holds the loop", trace.step_durations),
    ):
        if durations.count:
            table.add_row(name, digits(durations.count), *quantiles(durations))
    return table


def _slow_step_table(trace: Trace) -> Optional[Table]:
    if not trace.slow_steps:
        return None
    table = titled_table("Slow steps")
    table.add_column("function that held the loop", overflow="fold")
    table.add_column("steps", justify="right")
    most = sorted(trace.slow_steps.items(), key=lambda item: (-item[1], item[0]))
    for function, count in most[:_SLOW_STEPS]:
        table.add_row(Text(visible(function)), digits(count))
    left = most[_SLOW_STEPS:]
    if left:
        count = sum(count for _, count in left)
        table.add_row(Text(f"{len(left)} more", style="dim"), Text(digits(count), style="dim"))
    return table


def _misuse_table(trace: Trace) -> Optional[RenderableType]:
    if not trace.misuses:
        return None
    table = titled_table("Misuse")
    table.add_column("kind")
    table.add_column("severity")
    table.add_column("function", overflow="fold")
    table.add_column("times", justify="right")
    severities = list(_SEVERITY_STYLES)

    def order(item: Tuple[Tuple[str, str], float]) -> Tuple[int, float]:
        severity = SEVERITY.get(item[0][0], "error")
        return severities.index(severity), -item[1]

    for (kind, function), count in sorted(trace.misuses.items(), key=order):
        severity = SEVERITY.get(kind, "?")
        style = _SEVERITY_STYLES.get(severity, "")
        table.add_row(
            Text(visible(kind)), Text(severity, style=style), Text(visible(function)), digits(count)
        )
    docs = Config.from_env().docs
    source = "greenback-trace explain KIND" if docs is None else page_of(docs)
    return Group(table, Text(f"What a kind is, and what to do about it: {source}", style="dim"))


def _dropped(trace: Trace) -> Text:
    lines = ["Left out by tracing; counts and times are exact nevertheless:"]
    lines += [
        f"  {digits(count)} {plural(count, visible(item))} ({visible(reason)})"
        for (item, reason), count in sorted(trace.dropped.items(), key=lambda each: -each[1])
    ]
    return Text("\n".join(lines), style="yellow")


def _broken_lines(trace: Trace) -> Text:
    count = trace.broken_lines
    lines = [f"{digits(count)} {plural(count, 'line')} could not be read and left out:"]
    lines += [f"  {visible(line)}" for line in trace.broken[:_BROKEN_LINES]]
    if count > _BROKEN_LINES:
        lines.append(f"  and {digits(count - _BROKEN_LINES)} more")
    return Text("\n".join(lines), style="yellow")
