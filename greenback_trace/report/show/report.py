"""A trace -> tables for a terminal: where a program bridges, and what it costs."""

from __future__ import annotations

from datetime import datetime
from typing import Callable, Dict, List, Optional, Sequence, Tuple, Union

from rich import box
from rich.console import Console, Group, RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from ..._config import Config
from ...misuse.explained import page_of
from ...misuse.finding import SEVERITY
from ..read.durations import Durations
from ..read.trace import Numbers, SiteReport, Trace
from .wording import digits, duration, marks, place_of, plural, visible

#: From so many columns on, a site has one line for all numbers.
_WIDE = 160
_BAR, _WIDE_BAR = 24, 16
_CHAINS_PER_SITE = 3
_BROKEN_LINES = 5
_SLOW_STEPS = 10
_NAMES = 2
#: A share of durations, and how many there have to be for it to say something.
_QUANTILES = ((0.5, "p50", 1), (0.95, "p95", 20), (0.99, "p99", 100))
_SEVERITY_STYLES = {"error": "red", "warning": "yellow", "advice": "dim"}


def show_report(
    trace: Trace, sites: Sequence[SiteReport], top: int, sort: str, console: Console
) -> None:
    """Print the first *sites*, sorted by *sort*, their sync chains, and the rest of the trace.

    If these are not all sites of the trace, nothing but the sites is printed.
    """
    is_part = len(sites) < len(trace.sites)
    shown = sites[:top]
    console.print(_headline(trace, sites))
    if shown:
        console.print()
        console.print(_site_table(shown, sort, console))
        for note in _site_notes(trace, sites, top):
            console.print(Text(note, style="dim"))
        _show_chains(shown, console)
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
    services = ", ".join(
        visible(name) if len(trace.services) == 1 else f"{visible(name)} ({count})"
        for name, count in sorted(trace.services.items(), key=lambda item: (-item[1], item[0]))
    )
    source = (
        f"{trace.processes} {'process' if trace.processes == 1 else 'processes'} of {services}; "
        f"{digits(trace.spans)} {plural(trace.spans, 'span')}{_when(trace)}."
    )
    return Text.assemble((numbers, "bold"), "\n", source)


def _when(trace: Trace) -> str:
    if trace.begin is None or trace.end is None:
        return ""
    begin, end = (datetime.fromtimestamp(each / 1e9) for each in (trace.begin, trace.end))
    until = f"{end:%H:%M:%S}" if begin.date() == end.date() else f"{end:%Y-%m-%d %H:%M:%S}"
    return f"; {begin:%Y-%m-%d %H:%M:%S} to {until}"


def _table(title: str) -> Table:
    return Table(
        box=box.SIMPLE_HEAD,
        pad_edge=False,
        title=title,
        title_style="bold",
        title_justify="left",
        expand=False,
    )


def _site_table(sites: Sequence[SiteReport], sort: str, console: Console) -> Table:
    longest = max(site.time for site in sites)
    bar = _bars(longest, console)
    make = _wide_site_table if console.width >= _WIDE else _narrow_site_table
    by = "the longest total time" if sort == "total" else f"the most {_SORTED_BY.get(sort, sort)}"
    return make(sites, f"Hot spots, {by} first", bar, console)


_SORTED_BY = {
    "waiting": "time waiting",
    "holding": "time holding the loop",
    "p50": "time at p50",
    "p95": "time at p95",
    "p99": "time at p99",
}
_Bar = Callable[[SiteReport, int], Text]


def _wide_site_table(sites: Sequence[SiteReport], title: str, bar: _Bar, console: Console) -> Table:
    table = _table(title)
    table.add_column("#", justify="right", no_wrap=True)
    table.add_column("function\nfile:line", overflow="fold")
    table.add_column("awaits\nin tasks", overflow="fold")
    has_cancelled = any(site.cancelled for site in sites)
    names = ["bridges", "suspended", "errors"]
    names += ["cancelled"] if has_cancelled else []
    names += ["total", "waiting", "holding"]
    for name in names:
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column(_legend(console), no_wrap=True)
    for name in ("mean", *(name for _, name, _ in _QUANTILES)):
        table.add_column(name, justify="right", no_wrap=True)
    for number, site in enumerate(sites, 1):
        cells: List[RenderableType] = [
            str(number),
            _lines(visible(site.function), (place_of(site.file, site.line), "dim")),
            _lines(_names(site.observed.awaitables), (_names(site.observed.tasks), "dim")),
            digits(site.bridges),
            _share(site),
            Text(digits(site.errors), style="red" if site.errors else ""),
        ]
        if has_cancelled:
            cells.append(digits(site.cancelled))
        cells += [duration(site.time), duration(site.suspended_time), duration(site.holding_time)]
        cells += [bar(site, _WIDE_BAR), duration(site.time / site.bridges)]
        table.add_row(*cells, *_quantiles(site.observed.durations))
    return table


def _narrow_site_table(
    sites: Sequence[SiteReport], title: str, bar: _Bar, console: Console
) -> Table:
    table = _table(title)
    table.leading = 1
    legend = _legend(console)
    table.add_column("#", justify="right", no_wrap=True)
    table.add_column(f"function\nfile:line\nawaits, in tasks\n{legend}", overflow="fold", ratio=1)
    for names in ("bridges\nsuspended\nerrors", "total\nwaiting\nholding"):
        table.add_column(names, justify="right", no_wrap=True)
    durations = "\n".join(["mean", *(name for _, name, _ in _QUANTILES)])
    table.add_column(durations, justify="right", no_wrap=True)
    for number, site in enumerate(sites, 1):
        awaits = _names(site.observed.awaitables)
        tasks = _names(site.observed.tasks)
        table.add_row(
            str(number),
            Group(
                Text(visible(site.function)),
                Text(place_of(site.file, site.line), style="dim"),
                *([Text(f"{awaits}, in {tasks}" if tasks else awaits)] if awaits else []),
                bar(site, _BAR),
            ),
            _lines(
                digits(site.bridges),
                _share(site),
                (digits(site.errors) if site.errors else "", "red"),
            ),
            _lines(duration(site.time), duration(site.suspended_time), duration(site.holding_time)),
            _lines(duration(site.time / site.bridges), *_quantiles(site.observed.durations)),
        )
    return table


def _lines(*lines: Union[str, Tuple[str, str]]) -> Text:
    parts: List[Union[str, Tuple[str, str]]] = []
    for line in lines:
        parts += ["\n", line] if parts else [line]
    return Text.assemble(*parts)


def _bars(longest: float, console: Console) -> _Bar:
    """Bars of the total time: what it waited, and what it held the loop."""
    held, waited, little = marks(console)

    def bar(site: SiteReport, width: int) -> Text:
        if not site.time or not longest:
            return Text("")
        length = round(width * site.time / longest)
        if not length:
            return Text(little)
        holding = round(length * site.holding_time / site.time)
        if not holding and site.holding_time > site.time / 100 and length > 1:
            holding = 1
        return Text.assemble((waited * (length - holding), "cyan"), (held * holding, "yellow"))

    return bar


def _legend(console: Console) -> str:
    held, waited, _ = marks(console)
    return f"{waited} waiting {held} holding"


def _names(names: Dict[str, int]) -> str:
    most = sorted(names.items(), key=lambda item: (-item[1], item[0]))
    left = len(most) - _NAMES
    return ", ".join(visible(name) for name, _ in most[:_NAMES]) + (f" +{left}" if left > 0 else "")


def _share(site: SiteReport) -> str:
    return f"{site.suspended / site.bridges:.0%}"


def _quantiles(durations: Durations) -> List[str]:
    return [
        _optional_seconds(durations.quantile(share) if durations.count >= least else None)
        for share, _, least in _QUANTILES
    ]


def _optional_seconds(value: Optional[float]) -> str:
    return "-" if value is None else duration(value)


def _site_notes(trace: Trace, sites: Sequence[SiteReport], top: int) -> List[str]:
    notes = []
    left = sites[top:]
    if left:
        bridges = sum(site.bridges for site in left)
        notes.append(
            f"and {len(left)} more {plural(len(left), 'site')} with {digits(bridges)} "
            f"{plural(bridges, 'bridge')}: --top {len(sites)} shows all"
        )
    bridges = sum(site.bridges for site in sites)
    spans = sum(site.observed.spans for site in sites)
    if trace.is_sampled:
        notes.append(
            "Some processes have written no metrics: their numbers are those of spans, and less "
            "than what has been if spans were left out."
        )
    if not spans:
        notes.append(
            "No spans: without them there are no percentiles of a site, awaitables and tasks."
        )
    elif spans < bridges:
        notes.append(
            f"Percentiles, awaitables and tasks are those of {digits(spans)} spans, a sample with "
            "more slow and failed bridges than there are. The other numbers are exact."
        )
    return notes


def _show_chains(sites: Sequence[SiteReport], console: Console) -> None:
    chains = [_site_chains(number, site) for number, site in enumerate(sites, 1) if site.chains]
    console.print()
    if not chains:
        console.print(
            Text(
                "No sync chains: the metrics of an application's own SDK count per function.",
                style="dim",
            )
        )
        return
    console.print(Text("Sync chains", style="bold"))
    console.print(
        Text(
            "From the outermost sync function to the bridge: what would have to become async def "
            "for the bridge to go away.",
            style="dim",
        )
    )
    for chain in chains:
        console.print()
        console.print(chain)


def _site_chains(number: int, site: SiteReport) -> RenderableType:
    parts: List[RenderableType] = [Text(f"{number}  {visible(site.function)}", style="bold")]
    chains = sorted(site.chains.items(), key=lambda item: -item[1].time)
    for chain, numbers in chains[:_CHAINS_PER_SITE]:
        parts.append(_indented(3, _summary(numbers)))
        if not chain:
            parts.append(
                _indented(5, "called directly from an async function: a plain await would do")
            )
        for depth, caller in enumerate(chain):
            function = visible(caller.function)
            place = place_of(caller.file, caller.line)
            parts.append(_indented(5 + 2 * min(depth, 10), function, "  ", (place, "dim")))
    left = chains[_CHAINS_PER_SITE:]
    if left:
        bridges = sum(numbers.bridges for _, numbers in left)
        parts.append(
            _indented(
                3,
                f"and {len(left)} more {plural(len(left), 'chain')} with {digits(bridges)} "
                f"{plural(bridges, 'bridge')}",
            )
        )
    return Group(*parts)


def _indented(columns: int, *parts: Union[str, Tuple[str, str]]) -> Padding:
    return Padding(Text.assemble(*parts), (0, 0, 0, columns), expand=False)


def _summary(numbers: Numbers) -> str:
    parts = [
        f"{digits(numbers.bridges)} {plural(numbers.bridges, 'bridge')}",
        f"{digits(numbers.suspended)} suspended",
        f"{duration(numbers.time)} in total",
        f"{duration(numbers.suspended_time)} waiting",
    ]
    if numbers.errors:
        parts.append(f"{digits(numbers.errors)} {plural(numbers.errors, 'error')}")
    if numbers.cancelled:
        parts.append(f"{digits(numbers.cancelled)} cancelled")
    return ", ".join(parts)


def _portal_table(trace: Trace) -> Optional[Table]:
    if not trace.portals:
        return None
    table = _table("Portals")
    table.add_column("kind")
    for name in ("opened", "still open", "lifetime p50", "p95", "p99", "slow steps"):
        table.add_column(name, justify="right")
    for kind, portals in sorted(trace.portals.items(), key=lambda item: -item[1].opened):
        table.add_row(
            Text(visible(kind)),
            digits(portals.opened),
            digits(portals.active),
            *_quantiles(portals.lifetimes),
            digits(portals.slow_steps) if portals.spans else "-",
        )
    return table


def _duration_table(trace: Trace) -> Optional[Table]:
    if not trace.bridge_durations.count and not trace.step_durations.count:
        return None
    table = _table("All durations")
    table.add_column("of")
    for name in ("number", *(name for _, name, _ in _QUANTILES)):
        table.add_column(name, justify="right")
    for name, durations in (
        ("a bridge", trace.bridge_durations),
        ("a step, which holds the loop", trace.step_durations),
    ):
        if durations.count:
            table.add_row(name, digits(durations.count), *_quantiles(durations))
    return table


def _slow_step_table(trace: Trace) -> Optional[Table]:
    if not trace.slow_steps:
        return None
    table = _table("Slow steps")
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
    table = _table("Misuse")
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
