"""What Prometheus says of a fleet -> a table for a terminal."""

from __future__ import annotations

from typing import List, Sequence, cast

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from ..read.inputs import NothingToReportError
from ..read.prometheus import Fleet, FunctionReport
from ..read.trace import Numbers, Trace
from .choice import choose
from .wording import digits, duration, plural, visible

_WIDE = 120


def choose_functions(fleet: Fleet, names: Sequence[str], sort: str) -> List[FunctionReport]:
    """The functions whose name matches one of *names*, if there are any, in the order of *sort*.

    Raises:
        NothingToReportError: No function matches.
    """
    trace = Trace(sites=list(fleet.functions))
    try:
        # `choose` returns some of the objects that it is given.
        return cast("List[FunctionReport]", choose(trace, functions=names, paths=(), sort=sort))
    except NothingToReportError:
        raise NothingToReportError(
            f"{fleet.url}: none of {len(fleet.functions)} functions has such a name. Change "
            f"--function; the one with the longest total time is {fleet.functions[0].function}"
        ) from None


def show_fleet(
    fleet: Fleet, functions: Sequence[FunctionReport], top: int, sort: str, console: Console
) -> None:
    """Print the first *functions*, which are sorted by *sort*, over all instances."""
    total = Numbers()
    for function in functions:
        total.add(function)
    whole = "" if len(functions) == len(fleet.functions) else f" of {len(fleet.functions)}"
    console.print(
        Text(
            f"{digits(total.bridges)} {plural(total.bridges, 'bridge')} from {len(functions)}"
            f"{whole} {plural(len(fleet.functions), 'function')} in {fleet.instances} "
            f"{plural(fleet.instances, 'instance')}: {_share(total)} suspended, "
            f"{duration(total.time)} in total, {duration(total.suspended_time)} of it waiting.",
            style="bold",
        )
    )
    console.print(
        "Counted since each instance began, by those that are up. "
        f"Per second: over the last {fleet.window}."
    )
    console.print()
    console.print(_table(functions[:top], sort, console.width >= _WIDE))
    left = functions[top:]
    if left:
        bridges = sum(function.bridges for function in left)
        console.print(
            Text(
                f"and {len(left)} more {plural(len(left), 'function')} with {digits(bridges)} "
                f"{plural(bridges, 'bridge')}: --top {len(functions)} shows all",
                style="dim",
            )
        )
    console.print(
        Text("Metrics have no sync chains. These, and a plan, are in trace files.", style="dim")
    )


def _table(functions: Sequence[FunctionReport], sort: str, is_wide: bool) -> Table:
    table = Table(
        box=box.SIMPLE_HEAD,
        pad_edge=False,
        title=f"Functions by {sort}, the most first",
        title_style="bold",
        title_justify="left",
    )
    table.add_column("#", justify="right", no_wrap=True)
    table.add_column("function", overflow="fold")
    names = [
        "bridges",
        "per s",
        "suspended",
        "total",
        "waiting",
        "errors",
        "cancelled",
        "instances",
    ]
    if not is_wide:
        names = ["bridges", "per s", "susp.", "total", "err.", "inst."]
    for name in names:
        table.add_column(name, justify="right", no_wrap=True)
    for number, function in enumerate(functions, 1):
        cells = [digits(function.bridges), _rate(function), _share(function)]
        cells.append(duration(function.time))
        if is_wide:
            cells.append(duration(function.suspended_time))
        cells.append(digits(function.errors))
        if is_wide:
            cells.append(digits(function.cancelled))
        table.add_row(
            str(number), Text(visible(function.function)), *cells, str(function.instances)
        )
    return table


def _rate(function: FunctionReport) -> str:
    return digits(function.rate) if function.rate >= 100 else f"{function.rate:.3g}"


def _share(numbers: Numbers) -> str:
    return f"{numbers.suspended / numbers.bridges:.0%}" if numbers.bridges else "-"
