"""A trace -> tables for a terminal: where a program bridges, and what it costs."""

from __future__ import annotations

import os
import re
from typing import List, Tuple, Union

from rich import box
from rich.console import Console, Group, RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from ._load import Numbers, SiteReport, Trace

_WIDE = 120
_CHAINS_PER_SITE = 3
_BROKEN_LINES = 5
_CALLER = re.compile(r"(?P<function>.*) \((?P<file>.*):(?P<line>\d+)\)", re.DOTALL)


def show(trace: Trace, top: int, console: Console) -> None:
    """Print the sites that took the longest, their sync chains, and the portals."""
    sites = trace.sites[:top]
    is_wide = console.width >= _WIDE
    console.print(_headline(trace))
    if sites:
        console.print()
        console.print(_site_table(sites, is_wide))
        left = trace.sites[top:]
        if left:
            bridges = sum(site.bridges for site in left)
            console.print(
                Text(
                    f"and {len(left)} more {_plural(len(left), 'site')} with {_count(bridges)} "
                    f"{_plural(bridges, 'bridge')}: --top {len(trace.sites)} shows all",
                    style="dim",
                )
            )
        chains = [_site_chains(number, site) for number, site in enumerate(sites, 1) if site.chains]
        if chains:
            console.print()
            console.print(Text("Sync chains", style="bold"))
            console.print(
                Text(
                    "From the outermost sync function to the bridge: what would have to become "
                    "async def for the bridge to go away.",
                    style="dim",
                )
            )
            for chain in chains:
                console.print()
                console.print(chain)
    if trace.portals:
        console.print()
        console.print(_portal_table(trace))
    if trace.broken:
        console.print()
        console.print(_broken_lines(trace))


def _headline(trace: Trace) -> Text:
    total = Numbers()
    for site in trace.sites:
        total.add(site)
    return Text(
        f"{_count(total.bridges)} {_plural(total.bridges, 'bridge')} from {len(trace.sites)} "
        f"{_plural(len(trace.sites), 'site')}: {_count(total.suspended)} suspended, "
        f"{_seconds(total.time)} in total, {_seconds(total.suspended_time)} of it waiting. "
        f"{trace.processes} {'process' if trace.processes == 1 else 'processes'}, "
        f"{_count(trace.spans)} {_plural(trace.spans, 'span')}.",
        style="bold",
    )


def _site_table(sites: List[SiteReport], is_wide: bool) -> Table:
    table = Table(
        box=box.SIMPLE_HEAD,
        pad_edge=False,
        title="Hot spots, the longest total time first",
        title_style="bold",
        title_justify="left",
        expand=False,
    )
    table.add_column("#", justify="right", no_wrap=True)
    table.add_column("function" if is_wide else "function, file:line", overflow="fold")
    if is_wide:
        table.add_column("file:line", overflow="fold")
    for name in ("bridges", "suspended" if is_wide else "susp.", "errors" if is_wide else "err."):
        table.add_column(name, justify="right", no_wrap=True)
    if is_wide:
        table.add_column("cancelled", justify="right", no_wrap=True)
    for name in ("total", "waiting"):
        table.add_column(name, justify="right", no_wrap=True)
    for number, site in enumerate(sites, 1):
        function, place = Text(site.function), Text(_place(site.file, site.line), style="dim")
        where: List[RenderableType] = [function, place] if is_wide else [Group(function, place)]
        numbers = [_count(site.bridges), _count(site.suspended), _count(site.errors)]
        if is_wide:
            numbers.append(_count(site.cancelled))
        numbers += [_seconds(site.time), _seconds(site.suspended_time)]
        table.add_row(str(number), *where, *numbers)
    return table


def _site_chains(number: int, site: SiteReport) -> RenderableType:
    parts: List[RenderableType] = [Text(f"{number}  {site.function}", style="bold")]
    chains = sorted(site.chains.items(), key=lambda item: -item[1].time)
    for chain, numbers in chains[:_CHAINS_PER_SITE]:
        parts.append(_indented(3, _summary(numbers)))
        if not chain:
            parts.append(
                _indented(5, "called directly from an async function: a plain await would do")
            )
        for depth, caller in enumerate(chain):
            function, place = _split(caller)
            parts.append(_indented(5 + 2 * min(depth, 10), function, "  ", (place, "dim")))
    left = chains[_CHAINS_PER_SITE:]
    if left:
        bridges = sum(numbers.bridges for _, numbers in left)
        parts.append(
            _indented(
                3,
                f"and {len(left)} more {_plural(len(left), 'chain')} with {_count(bridges)} "
                f"{_plural(bridges, 'bridge')}",
            )
        )
    return Group(*parts)


def _indented(columns: int, *parts: Union[str, Tuple[str, str]]) -> Padding:
    return Padding(Text.assemble(*parts), (0, 0, 0, columns), expand=False)


def _summary(numbers: Numbers) -> str:
    parts = [
        f"{_count(numbers.bridges)} {_plural(numbers.bridges, 'bridge')}",
        f"{_count(numbers.suspended)} suspended",
        f"{_seconds(numbers.time)} in total",
        f"{_seconds(numbers.suspended_time)} waiting",
    ]
    if numbers.errors:
        parts.append(f"{_count(numbers.errors)} {_plural(numbers.errors, 'error')}")
    if numbers.cancelled:
        parts.append(f"{_count(numbers.cancelled)} cancelled")
    return ", ".join(parts)


def _portal_table(trace: Trace) -> Table:
    table = Table(
        box=box.SIMPLE_HEAD,
        pad_edge=False,
        title="Portals",
        title_style="bold",
        title_justify="left",
    )
    table.add_column("kind")
    table.add_column("opened", justify="right")
    table.add_column("open at the end", justify="right")
    for kind, portals in sorted(trace.portals.items(), key=lambda item: -item[1].opened):
        table.add_row(Text(kind), _count(portals.opened), _count(portals.active))
    return table


def _broken_lines(trace: Trace) -> Text:
    count = len(trace.broken)
    lines = [f"{count} {_plural(count, 'line')} could not be read and left out:"]
    lines += [f"  {line}" for line in trace.broken[:_BROKEN_LINES]]
    if count > _BROKEN_LINES:
        lines.append(f"  and {count - _BROKEN_LINES} more")
    return Text("\n".join(lines), style="yellow")


def _split(caller: str) -> Tuple[str, str]:
    match = _CALLER.fullmatch(caller)
    if match is None:
        return caller, ""
    return match["function"], _place(match["file"], int(match["line"]))


def _place(file: str, line: int) -> str:
    """``file:line``, relative to the current directory or to where packages are installed."""
    if not file:
        return ""
    here = os.getcwd().rstrip(os.sep) + os.sep
    if file.startswith(here):
        file = file[len(here) :]
    _, installed, inside = file.rpartition(f"{os.sep}site-packages{os.sep}")
    if installed:
        file = inside
    return f"{file}:{line}"


def _count(value: float) -> str:
    return f"{value:,.0f}"


def _plural(count: float, word: str) -> str:
    return word if count == 1 else f"{word}s"


def _seconds(value: float) -> str:
    if not value:
        return "0"
    for limit, factor, unit in ((1e-3, 1e6, "us"), (1.0, 1e3, "ms")):
        if value < limit:
            return f"{value * factor:.1f} {unit}"
    return f"{value:,.1f} s"
