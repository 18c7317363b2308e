"""The difference between two traces -> tables for a terminal."""

from __future__ import annotations

from typing import List, Optional, Sequence, Tuple

from rich.console import Console, RenderableType
from rich.table import Table
from rich.text import Text

from ..read.trace import Numbers
from .diff import (
    FASTER,
    FEWER,
    GONE,
    LEAST_BRIDGES,
    LEAST_SECONDS,
    MORE,
    NEW,
    RATIO,
    SLOWER,
    Change,
    Diff,
    per_bridge,
)
from .wording import digits, duration, plural, visible

_WIDE = 120
_STYLES = {
    GONE: "green",
    NEW: "yellow",
    FASTER: "green",
    SLOWER: "red",
    FEWER: "green",
    MORE: "yellow",
}


def show_diff(diff: Diff, top: int, console: Console) -> None:
    """Print the totals, and the sites and sync chains that have changed."""
    console.print(_headline(diff))
    for note in diff.notes:
        console.print(Text(visible(f"{note}."), style="yellow"))
    console.print()
    console.print(_totals(diff))
    is_wide = console.width >= _WIDE
    separator = "  " if is_wide else "\n"
    _show_changes(
        "Sites",
        "function, file",
        [
            (site, Text.assemble(visible(site.function), separator, (visible(site.file), "dim")))
            for site in diff.sites
        ],
        diff,
        top,
        console,
    )
    if diff.chains:
        direct = ", called from an async function", "dim"
        _show_changes(
            "Sync chains",
            "functions, the outermost first",
            [
                (
                    chain,
                    Text.assemble(
                        visible(" > ".join(chain.functions)), direct if chain.is_direct else ""
                    ),
                )
                for chain in diff.chains
            ],
            diff,
            top,
            console,
        )
    legend = _legend(diff)
    if legend:
        console.print()
        console.print(Text(legend, style="dim"))


def _show_changes(
    title: str,
    column: str,
    changes: Sequence[Tuple[Change, Text]],
    diff: Diff,
    top: int,
    console: Console,
) -> None:
    is_wide = console.width >= _WIDE
    details = "" if is_wide else f": {', '.join(_compared(diff))}"
    changed = [each for each in changes if each[0].verdicts]
    console.print()
    console.print(Text(f"{title}{details}", style="bold"))
    if changed:
        table = _table(diff, is_wide, column)
        for change, name in changed[:top]:
            table.add_row(*_cells(change, diff, is_wide), name)
        console.print(table)
    left, same = len(changed) - top, len(changes) - len(changed)
    if left > 0:
        console.print(Text(f"{left} more changed: --top {len(changed)} shows all.", style="dim"))
    if same:
        console.print(Text(f"{same} as before.", style="dim"))


def _legend(diff: Diff) -> str:
    verdicts = {verdict for change in (*diff.sites, *diff.chains) for verdict in change.verdicts}
    parts: List[str] = []
    if verdicts & {SLOWER, FASTER}:
        parts.append(
            f"slower, faster: each takes {RATIO} times as long, and {duration(LEAST_SECONDS)} "
            f"longer, in the one trace as in the other; {LEAST_BRIDGES} bridges or more in both"
        )
    if verdicts & {FEWER, MORE} and _differ(diff):
        parts.append(f"fewer, more: {RATIO} times as many bridges per portal")
    return "\n".join(parts)


def _headline(diff: Diff) -> Text:
    before, after = diff.before.bridges, diff.after.bridges
    change = (
        "as many as before"
        if before == after
        else f"{digits(abs(after - before))} {'fewer' if after < before else 'more'}"
    )
    share = f" ({after / before - 1:+.1%})" if before and before != after else ""
    return Text(
        f"{digits(after)} {plural(after, 'bridge')} after {digits(before)}: {change}{share}.",
        style="bold",
    )


def _totals(diff: Diff) -> Table:
    table = _plain_table()
    names = ["before", "after", "change"]
    if _differ(diff):
        names += ["before\nper portal", "after\nper portal", "change\nper portal"]
    for name in ["", *names]:
        table.add_column(name, justify="right" if name else "left", no_wrap=True)
    portals = diff.portals
    table.add_row("portals", digits(portals[0]), digits(portals[1]), _percent(*portals))
    for name, text, attribute in (
        ("bridges", _few, "bridges"),
        ("suspended", _few, "suspended"),
        ("errors", _few, "errors"),
        ("time", duration, "time"),
        ("waiting", duration, "suspended_time"),
    ):
        values = getattr(diff.before, attribute), getattr(diff.after, attribute)
        row = [*map(text, values), _percent(*values)]
        if _differ(diff):
            each = values[0] / portals[0], values[1] / portals[1]
            row += [*map(text, each), _percent(*each)]
        table.add_row(name, *row)
    return table


def _plain_table() -> Table:
    return Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="dim")


def _table(diff: Diff, is_wide: bool, name: str) -> Table:
    table = _plain_table()
    table.add_column("", no_wrap=True)
    for what in _compared(diff) if is_wide else [""]:
        for when in ("before", "after"):
            table.add_column(f"{what}\n{when}".strip(), justify="right", no_wrap=True)
    table.add_column(name, overflow="fold")
    return table


def _compared(diff: Diff) -> List[str]:
    return ["bridges", *(["per portal"] if _differ(diff) else []), "time each"]


def _differ(diff: Diff) -> bool:
    """Whether the numbers of portals differ, so that counts can only be compared per portal."""
    return all(diff.portals) and diff.portals[0] != diff.portals[1]


def _cells(change: Change, diff: Diff, is_wide: bool) -> List[RenderableType]:
    """The verdict and the numbers; in a narrow terminal, the numbers are below each other."""
    sides = [
        _side(numbers, portals, diff)
        for numbers, portals in zip((change.before, change.after), diff.portals)
    ]
    verdicts = Text("\n").join([Text(each, style=_STYLES[each]) for each in change.verdicts])
    if is_wide:
        return [verdicts, *(cell for both in zip(*sides) for cell in both)]
    return [verdicts, *("\n".join(side) if side[-1] != "-" else "-" for side in sides)]


def _side(numbers: Optional[Numbers], portals: float, diff: Diff) -> List[str]:
    if numbers is None:
        return ["-"] * len(_compared(diff))
    each = [_few(numbers.bridges / portals)] if _differ(diff) else []
    return [digits(numbers.bridges), *each, duration(per_bridge(numbers))]


def _few(value: float) -> str:
    """A number, with three significant digits if it is small and not whole."""
    return digits(value) if value >= 100 or value == round(value) else f"{value:.3g}"


def _percent(before: float, after: float) -> str:
    if before == after:
        return "="
    return f"{after / before - 1:+.1%}" if before else "new"
