"""The command ``greenback-trace``."""

from __future__ import annotations

import sys
from typing import Tuple

try:
    import click
    from rich.console import Console
except ImportError as error:
    sys.exit(
        f"greenback-trace needs {error.name}, which is not installed; "
        "run: pip install 'greenback[report]'"
    )

from .report._hotspots import show
from .report._load import NothingToReportError, load


@click.group()
def main() -> None:
    """Look at what greenback has traced."""


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
