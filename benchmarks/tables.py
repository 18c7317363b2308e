"""Tables of figures and targets."""

from __future__ import annotations

from typing import Callable, Dict, Iterable, List, NamedTuple, Optional, Tuple

from rich.console import Console
from rich.table import Table


class Target(NamedTuple):
    """What a figure, divided by another one, must not exceed or, unless *at_most*, must reach."""

    title: str
    wanted: float
    #: Work, and who does it: an implementation, "plain", or a setup of tracing.
    figure: Tuple[str, str]
    unit: Tuple[str, str]
    at_most: bool = True
    #: It is subtracted from the figure first.
    without: Optional[Tuple[str, str]] = None


class Verdict(NamedTuple):
    """A *measured* figure beside the *wanted* one: a minimum or, if *at_most*, a maximum."""

    title: str
    wanted: float
    at_most: bool
    measured: Optional[float]

    @property
    def met(self) -> Optional[bool]:
        if self.measured is None:
            return None
        return self.measured <= self.wanted if self.at_most else self.measured >= self.wanted


def judge(targets: Iterable[Target], cost: Callable[[str, str], Optional[float]]) -> List[Verdict]:
    """Compare *targets* with what was measured: *cost* gives a figure, None if there is none."""
    verdicts = []
    for target in targets:
        measured = None
        above, below = cost(*target.figure), cost(*target.unit)
        subtracted = 0.0 if target.without is None else cost(*target.without)
        if above is not None and below is not None and subtracted is not None and below > 0:
            measured = (above - subtracted) / below
        verdicts.append(Verdict(target.title, target.wanted, target.at_most, measured))
    return verdicts


def number(value: Optional[float]) -> str:
    if value is None:
        return "-"
    return f"{value:.{3 if abs(value) < 1 else 2 if abs(value) < 10 else 1}f}"


def ratio(value: Optional[float]) -> str:
    return "-" if value is None else f"{value:.{2 if value < 100 else 0}f}"


def new_table(title: str) -> Table:
    return Table(
        title=title,
        title_justify="left",
        title_style="bold",
        box=None,
        padding=(0, 1),
        pad_edge=False,
    )


def show_targets(
    console: Console,
    title: str,
    verdicts: List[Verdict],
    others: Optional[Dict[str, List[Verdict]]] = None,
) -> None:
    """Show those *verdicts* for which something was measured.

    Args:
        console: Where to.
        title: The title of the table.
        verdicts: Where the targets hold.
        others: The same elsewhere, as information, by the name of the place.
    """
    elsewhere = {
        name: {each.title: each.measured for each in found if each.measured is not None}
        for name, found in (others or {}).items()
    }
    verdicts = [
        verdict
        for verdict in verdicts
        if verdict.measured is not None or any(verdict.title in each for each in elsewhere.values())
    ]
    if not verdicts:
        return
    table = new_table(title)
    table.add_column("target", no_wrap=True)
    table.add_column("wanted", justify="right")
    table.add_column("measured", justify="right", style="bold")
    table.add_column("met")
    for name in elsewhere:
        table.add_column(name, justify="right")
    for verdict in verdicts:
        met = verdict.met
        table.add_row(
            verdict.title,
            f"{'<=' if verdict.at_most else '>='} {verdict.wanted:g}",
            "-" if verdict.measured is None else f"{verdict.measured:.3f}",
            "-" if met is None else "[green]yes[/]" if met else "[red]no[/]",
            *(
                f"{found[verdict.title]:.3f}" if verdict.title in found else "-"
                for found in elsewhere.values()
            ),
        )
    console.print()
    console.print(table)
