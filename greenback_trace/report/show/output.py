"""Writes the results of the commands, and reports errors with the exit status 2."""

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
    """If there is nothing to report, print the reason and exit with the status 2."""
    try:
        yield
    except NothingToReportError as error:
        for message in error.args:
            click.echo(f"greenback-trace: {visible(message)}", err=True)
        sys.exit(2)


@contextmanager
def printing() -> Iterator[Console]:
    """Give a console that prints tables to standard output. Errors are those of `writing`."""
    # Names in a trace may have letters that the encoding of the terminal lacks.
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")
    with writing():
        yield Console(highlight=False)


def print_json(content: Dict[str, Any]) -> None:
    """Print *content* to standard output. Errors are those of `writing`."""
    with writing():
        click.echo(json.dumps(content, indent=2))


@contextmanager
def writing(output: str = "-") -> Iterator[None]:
    """If *output* cannot be written, print the reason and exit with the status 2.

    A closed pipe is no error: ``head`` closes it after the first lines. click exits quietly then.
    """
    try:
        yield
    except OSError as error:
        if error.errno == errno.EPIPE:
            raise
        name, advice = visible(output) or "''", ". Name another file with --output"
        if output == "-":
            name, advice = "standard output", ""
            # Otherwise the rest of the buffer would fail again at exit, with a traceback.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        click.echo(f"greenback-trace: {name} cannot be written: {error.strerror}{advice}", err=True)
        sys.exit(2)
