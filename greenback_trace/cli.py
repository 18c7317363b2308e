"""The command ``greenback-trace``."""

from __future__ import annotations

import os
import sys
from datetime import datetime
from typing import Optional, Tuple

try:
    import click
    import rich  # noqa: F401  (the modules below need it)
except ImportError as error:
    sys.exit(
        f"greenback-trace needs {error.name}, which is not installed; "
        "run: pip install 'greenback[report]'"
    )

import greenback

from ._run import NoSuchProgramError
from ._run import run as run_program
from .report import hot_spots, load
from .report import plan as make_plan
from .report.export.export import FORMATS, WEIGHTS
from .report.export.export import export as export_trace
from .report.planning.plan import WEIGHTS as PLAN_WEIGHTS
from .report.read.prometheus import ask_prometheus
from .report.show.choice import SORTS, to_nanoseconds
from .report.show.diff import diff as compare_traces
from .report.show.diff_table import show_diff
from .report.show.explain import NoSuchSectionError, find, show_section, show_sections
from .report.show.fleet import choose_functions, show_fleet
from .report.show.json import as_dict
from .report.show.output import print_json, printing, reporting_errors, writing
from .report.show.plan import show_plan
from .report.show.report import show_report
from .report.show.wording import visible
from .report.top.live import follow


def _print_version(context: click.Context, option: click.Parameter, value: bool) -> None:
    if value and not context.resilient_parsing:
        # Another distribution named greenback has no command, but may be the one that is imported.
        place = os.path.dirname(os.path.abspath(greenback.__file__))
        click.echo(
            f"greenback {greenback.__version__} from {visible(place)}, engine {greenback.engine}"
        )
        context.exit()


@click.group()
@click.option(
    "--version",
    is_flag=True,
    is_eager=True,
    expose_value=False,
    callback=_print_version,
    help="Print the version, where greenback is imported from, and its engine: c or python.",
)
def main() -> None:
    """See where a program bridges, and what that costs.

    'run' traces a program. 'report', 'plan', 'diff' and 'export' read the trace. 'top' watches a
    program while it runs. 'explain' says what a report or an alert means.
    """


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
    help="Sort sites by this column, highest first.",
)
@click.option(
    "--top",
    type=click.IntRange(1),
    metavar="N",
    help="Show this many sites; by default 20, or all with --json.",
)
@click.option(
    "--function",
    "functions",
    multiple=True,
    metavar="NAME",
    help="Show only sites whose function matches NAME.",
)
@click.option(
    "--path",
    "paths",
    multiple=True,
    metavar="PATH",
    help="Show only sites whose file matches PATH.",
)
@click.option("--service", metavar="NAME", help="Count only processes of the service NAME.")
@click.option("--since", callback=_moment, metavar="TIME", help="Count only what came after TIME.")
@click.option("--until", callback=_moment, metavar="TIME", help="Count only what came up to TIME.")
@click.option("--json", "as_json", is_flag=True, help="Print the report as JSON.")
@click.option(
    "--prometheus", metavar="URL", help="Ask the Prometheus at URL instead of reading files."
)
@click.option(
    "--window",
    metavar="DURATION",
    help="With --prometheus: take rates over DURATION; by default 5m.",
)
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

    FILE is a trace: a file, a directory, a pattern in quotes, or - for standard input. A program
    writes one with GREENBACK_TRACE=1 and GREENBACK_TRACE_FILE set; an OpenTelemetry Collector
    writes one for many programs. The command reads OTLP JSON lines, also compressed by gzip, and
    adds up all files.

    --function and --path match a part of a name; with * or ? they match the whole name. Both can be
    repeated. --service matches the whole name. TIME is a time (2026-11-23T14:30) or an age (30s,
    15m, 2h, 1d).

    With --prometheus, each row is a function that bridges, over all instances that the server
    scrapes.
    """
    if prometheus is not None:
        if files or paths or service or since or until or sort.startswith("p"):
            raise click.UsageError(
                "--prometheus replaces FILE, and goes with --top, --function, --json, --window and "
                "--sort other than p50, p95 and p99: metrics have nothing else."
            )
        _report_fleet(prometheus, "5m" if window is None else window, functions, sort, top, as_json)
        return
    if window is not None:
        raise click.UsageError(
            "--window goes with --prometheus URL: files have no rates. "
            "--since says from when on to count."
        )
    if not files:
        raise click.UsageError("Missing FILE: name a trace, or a server with --prometheus URL.")
    with reporting_errors():
        trace = load(*files, service=service, since=since, until=until, show_progress=True)
        sites = hot_spots(trace, sort=sort, functions=functions, paths=paths)
    if as_json:
        print_json(as_dict(trace, sites[:top]))
    else:
        with printing() as console:
            show_report(trace, sites, top or 20, sort, console)


def _report_fleet(
    url: str,
    window: str,
    names: Tuple[str, ...],
    sort: str,
    top: Optional[int],
    as_json: bool,
) -> None:
    with reporting_errors():
        fleet = ask_prometheus(url, window)
        functions = choose_functions(fleet, names, sort)
    if as_json:
        print_json(fleet.as_dict(functions[:top]))
    else:
        with printing() as console:
            show_fleet(fleet, functions, top or 20, sort, console)


@main.command()
@click.argument("files", nargs=-1, required=True, metavar="FILE...")
@click.option(
    "--format", "kind", required=True, type=click.Choice(FORMATS), help="Write this format."
)
@click.option(
    "-o",
    "--output",
    default="-",
    show_default=True,
    metavar="PATH",
    help="Write to PATH; - is standard output.",
)
@click.option(
    "--weight",
    default=WEIGHTS[0],
    show_default=True,
    type=click.Choice(WEIGHTS),
    help="Draw functions in a flame graph as wide as this.",
)
@click.option(
    "--root",
    "roots",
    multiple=True,
    metavar="PATH",
    type=click.Path(exists=True),
    help="For html: count code below PATH as your own, as in plan. Can be repeated.",
)
def export(
    files: Tuple[str, ...], kind: str, output: str, weight: str, roots: Tuple[str, ...]
) -> None:
    """Write a trace for a viewer, or as a page for a browser.

    FILE is a trace, as for report.

    \b
    speedscope  flame graph of sync chains, for https://www.speedscope.app
    perfetto    timeline of tasks, portals, bridges and steps, for
                https://ui.perfetto.dev
    folded      sync chains as folded stacks, for flamegraph.pl and inferno
    html        page with flame graph, timeline, hot spots and plan

    A flame graph shows exact totals. A timeline shows the spans of the trace.
    """
    with reporting_errors():
        content = export_trace(list(files), kind, weight, roots)
    with writing(output), click.open_file(output, "wb") as file:
        file.write(content)
        file.flush()


@main.command()
@click.argument("files", nargs=-1, required=True, metavar="FILE...")
@click.option(
    "--weight",
    default=PLAN_WEIGHTS[0],
    show_default=True,
    type=click.Choice(PLAN_WEIGHTS),
    help="Order steps by how much of this they remove per function. "
    "Overhead is estimated from counts.",
)
@click.option(
    "--root",
    "roots",
    multiple=True,
    metavar="PATH",
    type=click.Path(exists=True),
    help="Count code below PATH as your own, and search it for callers. Can be repeated. Without "
    "--root, your own code is all code outside site-packages and the standard library, and the "
    "plan searches the project around it.",
)
@click.option("--json", "as_json", is_flag=True, help="Print the plan as JSON.")
def plan(files: Tuple[str, ...], weight: str, roots: Tuple[str, ...], as_json: bool) -> None:
    """Say which functions to make async, in which order.

    FILE is a trace, as for report. Each step is the set of functions that removes the most per
    function. The numbers are exact counts of sync chains, not of spans. If the sources are here,
    each step lists its edits.
    """
    with reporting_errors():
        planned = make_plan(load(*files), weight=weight, roots=roots)
    if as_json:
        print_json(planned.as_dict())
    else:
        with printing() as console:
            show_plan(planned, console)


@main.command()
@click.argument("before", metavar="A")
@click.argument("after", metavar="B")
@click.option(
    "--top",
    default=20,
    show_default=True,
    type=click.IntRange(1),
    metavar="N",
    help="Show this many sites and this many sync chains.",
)
@click.option("--json", "as_json", is_flag=True, help="Print the comparison as JSON.")
def diff(before: str, after: str, top: int, as_json: bool) -> None:
    """Compare two traces of a program, before and after a change.

    A and B are files, directories or patterns in quotes; one of them can be - for standard input.
    The command matches sites by function and name of the file, and sync chains by their functions.
    Lines and directories do not matter.

    \b
    gone            bridges in A, none in B
    new             bridges in B, none in A
    fewer, more     another number of bridges. If A and B opened different
                    numbers of portals, another number per portal, by a
                    factor of 1.2 or more
    faster, slower  another time per bridge, by a factor of 1.2 and by 0.1 ms
                    or more, with 20 bridges in A and in B. Less is noise
    """
    with reporting_errors():
        made = compare_traces(before, after)
    if as_json:
        print_json(made.as_dict())
    else:
        with printing() as console:
            show_diff(made, top, console)


@main.command()
@click.argument("path")
def top(path: str) -> None:
    """Watch a running program: hot spots, held loops, parked tasks.

    PATH is the program's GREENBACK_TRACE_SOCKET, or its GREENBACK_TRACE_FILE. The file has new
    numbers only every 5 seconds, and nothing about tasks.
    """
    # Imported here only: Textual takes a second to import.
    try:
        from .report.top.top import Top
    except ImportError as error:
        sys.exit(
            f"greenback-trace top needs {error.name}, which is not installed; "
            "run: pip install 'greenback[report]'"
        )
    with reporting_errors():
        live = follow(path)
        click.get_current_context().call_on_close(live.close)
        live.read()
    # Textual reads keys from the one and paints on the other. Either can be closed, and then None.
    if not all(each is not None and each.isatty() for each in (sys.__stdin__, sys.__stderr__)):
        click.echo(
            "greenback-trace: top needs a terminal, as standard input and standard error. Without "
            "one: greenback-trace report FILE",
            err=True,
        )
        sys.exit(2)
    # The terminal knows its size. These variables may describe another terminal, or this one before
    # it was resized: a program with GNU readline, for one, passes them to every program it starts.
    # A view higher than the terminal loses its first or last lines.
    for name in ("COLUMNS", "LINES"):
        os.environ.pop(name, None)
    Top(live).run()


@main.command()
@click.argument("kind", required=False)
def explain(kind: Optional[str]) -> None:
    """Explain what a report or an alert points to.

    KIND is a kind of misuse such as lock_held, or an alert such as GreenbackLoopStalled. Without
    KIND, the command lists all of them.
    """
    if kind is None:
        with printing() as console:
            show_sections(console)
        return
    try:
        section = find(kind)
    except NoSuchSectionError as error:
        click.echo(f"greenback-trace: {visible(str(error))}", err=True)
        sys.exit(2)
    with printing() as console:
        show_section(section, console)


@main.command(context_settings={"ignore_unknown_options": True, "allow_interspersed_args": False})
@click.option("-m", "is_module", is_flag=True, help="Run PROG as a module, as python -m does.")
@click.option("--file", metavar="PATH", help="Write the trace to PATH: sets GREENBACK_TRACE_FILE.")
@click.argument("program", metavar="PROG")
@click.argument("arguments", nargs=-1, type=click.UNPROCESSED, metavar="ARGS...")
def run(program: str, arguments: Tuple[str, ...], is_module: bool, file: Optional[str]) -> None:
    """Run a Python program with tracing on.

    This is python PROG ARGS... with GREENBACK_TRACE=1. Options of this command come before PROG.
    Everything after PROG goes to the program. The other variables GREENBACK_TRACE_... keep their
    meaning.
    """
    try:
        run_program(program, arguments, is_module, file)
    except NoSuchProgramError as error:
        click.echo(f"greenback-trace: {error}", err=True)
        sys.exit(2)
