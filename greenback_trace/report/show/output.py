"""What the commands write, and how they end where that fails."""

from __future__ import annotations

import errno
import io
import json
import os
import sys
from contextlib import contextmanager
from typing import Any, Dict, Iterator

import click
from rich.console import Console

from ..read.inputs import NothingToReportError
from .wording import visible


@contextmanager
def reporting_errors() -> Iterator[None]:
    """Where there is nothing to report, say why, and end with the status 2."""
    try:
        yield
    except NothingToReportError as error:
        for message in error.args:
            click.echo(f"greenback-trace: {visible(message)}", err=True)
        sys.exit(2)


@contextmanager
def printing() -> Iterator[Console]:
    """What prints tables to standard output."""
    # Names of a trace have letters that the encoding may not have.
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")
    with writing():
        yield Console(highlight=False)


def print_json(content: Dict[str, Any]) -> None:
    with writing():
        click.echo(json.dumps(content, indent=2))


@contextmanager
def writing(output: str = "-") -> Iterator[None]:
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
