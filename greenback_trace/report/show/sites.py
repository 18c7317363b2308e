"""The sites of a trace -> a table of hot spots, and the sync chains that lead to them."""

from __future__ import annotations

from typing import Callable, Dict, List, Optional, Sequence, Tuple, Union

from rich import box
from rich.console import Console, Group, RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from ..read.durations import Durations
from ..read.trace import Numbers, SiteReport, Trace
from .wording import digits, duration, marks, place_of, plural, visible

#: From this width on, a site's numbers are in one line.
_WIDE = 160
_BAR, _WIDE_BAR = 24, 16
_CHAINS_PER_SITE = 3
_NAMES = 2
#: A share of durations, its name, and how many durations it needs to say something.
QUANTILES = ((0.5, "p50", 1), (0.95, "p95", 20), (0.99, "p99", 100))
_SORTED_BY = {
    "waiting": "time waiting",
    "holding": "time holding the loop",
    "p50": "time at p50",
    "p95": "time at p95",
    "p99": "time at p99",
}
_Bar = Callable[[SiteReport, int], Text]


def show_sites(
    trace: Trace, sites: Sequence[SiteReport], top: int, sort: str, console: Console
) -> None:
    """Print the first *top* sites with their notes and sync chains. There must be a site."""
    shown = sites[:top]
    console.print(_site_table(shown, sort, console))
    for note in _site_notes(trace, sites, top):
        console.print(Text(note, style="dim"))
    _show_chains(shown, console)


def titled_table(title: str) -> Table:
    """An empty table with a title above it."""
    return Table(
        box=box.SIMPLE_HEAD,
        pad_edge=False,
        title=title,
        title_style="bold",
        title_justify="left",
        expand=False,
    )


def quantiles(durations: Durations) -> List[str]:
    """The `QUANTILES` of durations, or a hyphen for each that has too few durations."""
    return [
        _optional_seconds(durations.quantile(share) if durations.count >= least else None)
        for share, _, least in QUANTILES
    ]


def _site_table(sites: Sequence[SiteReport], sort: str, console: Console) -> Table:
    longest = max(site.time for site in sites)
    bar = _bars(longest, console)
    make = _wide_site_table if console.width >= _WIDE else _narrow_site_table
    by = "the longest total time" if sort == "total" else f"the most {_SORTED_BY.get(sort, sort)}"
    return make(sites, f"Hot spots, {by} first", bar, console)


def _wide_site_table(sites: Sequence[SiteReport], title: str, bar: _Bar, console: Console) -> Table:
    table = titled_table(title)
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
    for name in ("mean", *(name for _, name, _ in QUANTILES)):
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
        table.add_row(*cells, *quantiles(site.observed.durations))
    return table


def _narrow_site_table(
    sites: Sequence[SiteReport], title: str, bar: _Bar, console: Console
) -> Table:
    table = titled_table(title)
    table.leading = 1
    legend = _legend(console)
    table.add_column("#", justify="right", no_wrap=True)
    table.add_column(f"function\nfile:line\nawaits, in tasks\n{legend}", overflow="fold", ratio=1)
    for names in ("bridges\nsuspended\nerrors", "total\nwaiting\nholding"):
        table.add_column(names, justify="right", no_wrap=True)
    durations = "\n".join(["mean", *(name for _, name, _ in QUANTILES)])
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
            _lines(duration(site.time / site.bridges), *quantiles(site.observed.durations)),
        )
    return table


def _lines(*lines: Union[str, Tuple[str, str]]) -> Text:
    parts: List[Union[str, Tuple[str, str]]] = []
    for line in lines:
        parts += ["\n", line] if parts else [line]
    return Text.assemble(*parts)


def _bars(longest: float, console: Console) -> _Bar:
    """A function that draws a site's total time as a bar: time waiting, then time holding."""
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
