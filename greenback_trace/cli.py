"""The command ``greenback-trace``."""

from __future__ import annotations

import errno
import io
import json
import os
import sys
from contextlib import contextmanager
from datetime import datetime
from typing import Any, Dict, Iterator, Optional, Tuple

try:
    import click
    from rich.console import Console
except ImportError as error:
    sys.exit(
        f"greenback-trace needs {error.name}, which is not installed; "
        "run: pip install 'greenback[report]'"
    )

from ._run import NoSuchProgramError
from ._run import run as run_program
from .report._choice import SORTS, choose, to_nanoseconds
from .report._diff import diff as compare_traces
from .report._diff_table import show_diff
from .report._explain import NoSuchSectionError, find, show_section, show_sections
from .report._export import FORMATS, WEIGHTS
from .report._export import export as export_trace
from .report._hotspots import show
from .report._input import Input
from .report._json import as_dict
from .report._live import follow
from .report._load import NothingToReportError, Selection, load, load_from
from .report._plan import WEIGHTS as PLAN_WEIGHTS
from .report._plan import make_plan
from .report._progress import progress_of
from .report._prometheus import ask_prometheus
from .report._prometheus_table import show_fleet
from .report._roadmap import show_plan
from .report._wording import visible


@contextmanager
def _telling() -> Iterator[None]:
    """Where there is nothing to report, say why, and end with the status 2."""
    try:
        yield
    except NothingToReportError as error:
        for message in error.args:
            click.echo(f"greenback-trace: {visible(message)}", err=True)
        sys.exit(2)


@contextmanager
def _printing() -> Iterator[Console]:
    """What prints tables to standard output."""
    # Names of a trace have letters that the encoding may not have.
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")
    with _writing():
        yield Console(highlight=False)


def _print_json(content: Dict[str, Any]) -> None:
    with _writing():
        click.echo(json.dumps(content, indent=2))


@contextmanager
def _writing(output: str = "-") -> Iterator[None]:
    """Where *output* cannot be written, say why, and end with the status 2.

    Nobody reads a pipe to its end who wants the first lines only: click ends quietly then.
    """
    try:
        yield
    except OSError as error:
        if error.errno == errno.EPIPE:
            raise
        name, advice = visible(output) or "''", ". Name another file with --output"
        if output == "-":
            name, advice = "standard output", ""
            # What is left in the buffer would fail again, with a traceback, at the very end.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        click.echo(f"greenback-trace: {name} cannot be written: {error.strerror}{advice}", err=True)
        sys.exit(2)


@click.group()
def main() -> None:
    """Trace what greenback does, and look at it."""


def _moment(context: click.Context, option: click.Parameter, value: Optional[str]) -> Optional[int]:
    try:
        return None if value is None else to_nanoseconds(value, datetime.now())
    except ValueError:
        raise click.BadParameter(
            f"{value!r} is no time. Write 2026-11-23T14:30 or 30m, for 30 minutes ago; there are "
            "s, m, h and d"
        ) from None


@main.command()
@click.argument("files", nargs=-1, metavar="[FILE...]")
@click.option(
    "--sort",
    default=SORTS[0],
    show_default=True,
    type=click.Choice(SORTS),
    help="What the first sites have most of.",
)
@click.option("--top", type=click.IntRange(1), help="Sites to show: 20, or all with --json.")
@click.option(
    "--function", "functions", multiple=True, metavar="NAME", help="Only sites in such functions."
)
@click.option("--path", "paths", multiple=True, metavar="PATH", help="Only sites in such files.")
@click.option("--service", metavar="NAME", help="Only processes of this service.")
@click.option("--since", callback=_moment, metavar="TIME", help="Only what was after that.")
@click.option("--until", callback=_moment, metavar="TIME", help="Only what was before that.")
@click.option("--json", "as_json", is_flag=True, help="Print all of it as JSON.")
@click.option("--prometheus", metavar="URL", help="Ask a Prometheus instead of reading files.")
@click.option("--window", show_default="5m", metavar="TIME", help="With --prometheus: of rates.")
def report(
    files: Tuple[str, ...],
    sort: str,
    top: Optional[int],
    functions: Tuple[str, ...],
    paths: Tuple[str, ...],
    service: Optional[str],
    since: Optional[int],
    until: Optional[int],
    as_json: bool,
    prometheus: Optional[str],
    window: Optional[str],
) -> None:
    """Show where a program bridged, and what that cost.

    FILE is what a program has written that ran with GREENBACK_TRACE=1 and GREENBACK_TRACE_FILE
    set, or what a Collector has gathered: OTLP JSON lines, also compressed by gzip. It can be a
    directory, a pattern in quotes, or - for standard input. Several are added up.

    NAME and PATH are a part of what they are to match, or a pattern with * and ?; both can be
    repeated. TIME is as in 2026-11-23T14:30, or 30m for 30 minutes ago.

    With --prometheus, the numbers are of each calling function, over all instances that it scrapes.
    """
    if prometheus is not None:
        if files or paths or service or since or until or sort.startswith("p"):
            raise click.UsageError(
                "--prometheus is instead of FILE, and goes with --top, --function, --json, "
                "--window and --sort other than p50, p95 and p99: metrics have no more than that."
            )
        _report_fleet(prometheus, "5m" if window is None else window, functions, sort, top, as_json)
        return
    if window is not None:
        raise click.UsageError(
            "--window goes with --prometheus URL: it is of rates, which a file has none of. "
            "--since says from when on to count."
        )
    if not files:
        raise click.UsageError("Missing FILE: name a trace, or a server with --prometheus URL.")
    with _telling():
        source = Input(files)
        with progress_of(source) as progress:
            trace = load_from(source, selection=Selection(service, since, until), progress=progress)
        sites = choose(trace, functions=functions, paths=paths, sort=sort)
    if as_json:
        _print_json(as_dict(trace, sites[:top]))
    else:
        with _printing() as console:
            show(trace, sites, top or 20, sort, console)


def _report_fleet(
    url: str,
    window: str,
    names: Tuple[str, ...],
    sort: str,
    top: Optional[int],
    as_json: bool,
) -> None:
    with _telling():
        fleet = ask_prometheus(url, window)
        functions = fleet.choose(names, sort)
    if as_json:
        _print_json(fleet.as_dict(functions[:top]))
    else:
        with _printing() as console:
            show_fleet(fleet, functions, top or 20, sort, console)


@main.command()
@click.argument("files", nargs=-1, required=True, metavar="FILE...")
@click.option("--format", "kind", required=True, type=click.Choice(FORMATS), help="What to write.")
@click.option(
    "-o", "--output", default="-", metavar="PATH", help="Where to; standard output if it is -."
)
@click.option(
    "--weight",
    default=WEIGHTS[0],
    show_default=True,
    type=click.Choice(WEIGHTS),
    help="What the width of a function in a flame graph stands for.",
)
@click.option(
    "--root",
    "roots",
    multiple=True,
    metavar="PATH",
    type=click.Path(exists=True),
    help="For html: where your own code is, as for greenback-trace plan.",
)
def export(
    files: Tuple[str, ...], kind: str, output: str, weight: str, roots: Tuple[str, ...]
) -> None:
    """Write a trace for other tools, or as a page to look at.

    \b
    speedscope  a flame graph of sync chains, for https://www.speedscope.app
    perfetto    a timeline of tasks, portals, bridges and steps, for https://ui.perfetto.dev
    folded      sync chains as folded stacks, for flamegraph.pl and its like
    html        one page with flame graph, timeline, hot spots and plan, for any browser

    Flame graphs are of exact numbers; a timeline is of the spans that there are.
    """
    with _telling():
        content = export_trace(list(files), kind, weight, roots)
    with _writing(output), click.open_file(output, "wb") as file:
        file.write(content)
        file.flush()


@main.command()
@click.argument("files", nargs=-1, required=True, metavar="FILE...")
@click.option(
    "--weight",
    default=PLAN_WEIGHTS[0],
    show_default=True,
    type=click.Choice(PLAN_WEIGHTS),
    help="What a step is to remove most of. Overhead is estimated from counts.",
)
@click.option(
    "--root",
    "roots",
    multiple=True,
    metavar="PATH",
    type=click.Path(exists=True),
    help="Where your own code is; can be repeated. Without it, what is neither in site-packages "
    "nor of the standard library, and the project around it is looked through for callers.",
)
@click.option("--json", "as_json", is_flag=True, help="Print the plan as JSON.")
def plan(files: Tuple[str, ...], weight: str, roots: Tuple[str, ...], as_json: bool) -> None:
    """Say which functions to make async, in what order, and what that removes.

    Each step is the set of functions that removes the most for each function in it. Numbers are
    from the exact counts of sync chains, not from spans. Where the sources are at hand, each step
    has its edits.
    """
    with _telling():
        planned = make_plan(load(list(files)), weight, roots)
    if as_json:
        _print_json(planned.as_dict())
    else:
        with _printing() as console:
            show_plan(planned, console)


@main.command()
@click.argument("before", metavar="A")
@click.argument("after", metavar="B")
@click.option(
    "--top", default=20, show_default=True, type=click.IntRange(1), help="Sites and chains to show."
)
@click.option("--json", "as_json", is_flag=True, help="Print all of it as JSON.")
def diff(before: str, after: str, top: int, as_json: bool) -> None:
    """Compare the traces of a program before and after a change.

    A and B are files, directories, or patterns in quotes; one of them can be - for standard input.
    A site is matched by its function and the name of its file, a sync chain by its functions: lines
    and directories do not matter.

    \b
    gone, new      no bridge in B; none in A
    fewer, more    bridges. If A and B opened different numbers of portals,
                   bridges per portal, and by a factor of 1.2
    faster, slower time per bridge by a factor of 1.2 and by 0.1 ms, with 20
                   bridges in both: less than that is noise
    """
    with _telling():
        made = compare_traces(before, after)
    if as_json:
        _print_json(made.as_dict())
    else:
        with _printing() as console:
            show_diff(made, top, console)


@main.command()
@click.argument("path")
def top(path: str) -> None:
    """Show the hot spots of a program while it runs, who holds its event loop, and what is parked.

    PATH is its GREENBACK_TRACE_SOCKET; or what it writes, GREENBACK_TRACE_FILE, which has new
    numbers every 5 seconds, and nothing of tasks.
    """
    # Only here: a second of imports.
    try:
        from .report._top import Top
    except ImportError as error:
        sys.exit(
            f"greenback-trace top needs {error.name}, which is not installed; "
            "run: pip install 'greenback[report]'"
        )
    with _telling():
        live = follow(path)
        click.get_current_context().call_on_close(live.close)
        live.read()
    # These two are what Textual reads keys from, and paints on. Either can be closed, and None.
    if not all(each is not None and each.isatty() for each in (sys.__stdin__, sys.__stderr__)):
        click.echo(
            "greenback-trace: top needs a terminal, as standard input and standard error. Without "
            "one: greenback-trace report FILE",
            err=True,
        )
        sys.exit(2)
    # The terminal knows its size. What says otherwise was true of another one, or of this one until
    # it was resized: a program with GNU readline, for one, hands these down to all that it starts.
    # A view that is higher than the terminal loses its first lines or its last.
    for name in ("COLUMNS", "LINES"):
        os.environ.pop(name, None)
    Top(live).run()


@main.command()
@click.argument("kind", required=False)
def explain(kind: Optional[str]) -> None:
    """Print what a report or an alert points to.

    KIND is a kind of misuse, such as lock_held, or the name of an alert, such as
    GreenbackLoopStalled. Without KIND, the command lists all of them.
    """
    if kind is None:
        with _printing() as console:
            show_sections(console)
        return
    try:
        section = find(kind)
    except NoSuchSectionError as error:
        click.echo(f"greenback-trace: {visible(str(error))}", err=True)
        sys.exit(2)
    with _printing() as console:
        show_section(section, console)


@main.command(context_settings={"ignore_unknown_options": True, "allow_interspersed_args": False})
@click.option("-m", "is_module", is_flag=True, help="PROG is a module, as for python -m.")
@click.option("--file", metavar="PATH", help="Where to write the trace: GREENBACK_TRACE_FILE.")
@click.argument("program", metavar="PROG")
@click.argument("arguments", nargs=-1, type=click.UNPROCESSED, metavar="ARGS...")
def run(program: str, arguments: Tuple[str, ...], is_module: bool, file: Optional[str]) -> None:
    """Run a Python program with tracing on.

    It runs as under python PROG ARGS... with GREENBACK_TRACE=1; what goes after PROG is its own.
    The other variables GREENBACK_TRACE_... have their meaning.
    """
    try:
        run_program(program, arguments, is_module, file)
    except NoSuchProgramError as error:
        click.echo(f"greenback-trace: {error}", err=True)
        sys.exit(2)
