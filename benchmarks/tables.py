"""Tables of figures and targets."""

from __future__ import annotations

from typing import List, NamedTuple, Optional

from rich.console import Console
from rich.table import Table


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


def show_targets(console: Console, title: str, verdicts: List[Verdict]) -> None:
    table = new_table(title)
    table.add_column("target", no_wrap=True)
    table.add_column("wanted", justify="right")
    table.add_column("measured", justify="right", style="bold")
    table.add_column("met")
    for verdict in verdicts:
        table.add_row(
            verdict.title,
            f"{'<=' if verdict.at_most else '>='} {verdict.wanted:g}",
            "-" if verdict.measured is None else f"{verdict.measured:.3f}",
            "-" if verdict.met is None else "[green]yes[/]" if verdict.met else "[red]no[/]",
        )
    console.print()
    console.print(table)
