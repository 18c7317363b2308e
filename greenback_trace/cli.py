"""The command ``greenback-trace``."""

from __future__ import annotations

import sys
from typing import Optional, Tuple

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
from .report._hotspots import show
from .report._load import NothingToReportError, load


@click.group()
def main() -> None:
    """Trace what greenback does, and look at it."""


@main.command()
@click.argument("files", nargs=-1, required=True, metavar="FILE...")
@click.option("--top", default=20, show_default=True, type=click.IntRange(1), help="Sites to show.")
def report(files: Tuple[str, ...], top: int) -> None:
    """Show where a program bridged, and what that cost.

    FILE is what a program has written that ran with GREENBACK_TRACE=1 and GREENBACK_TRACE_FILE
    set: OTLP JSON lines. Several files are added up.
    """
    try:
        trace = load(list(files))
    except NothingToReportError as error:
        click.echo(f"greenback-trace: {error}", err=True)
        sys.exit(2)
    show(trace, top, Console(highlight=False))


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
