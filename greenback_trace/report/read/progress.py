"""A bar on the terminal that shows how much of the files is read."""

from __future__ import annotations

from contextlib import contextmanager
from typing import Callable, Iterator, Optional

from rich.console import Console
from rich.progress import (
    BarColumn,
    DownloadColumn,
    Progress,
    TextColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)

from .inputs import Input

#: Bytes that are read too quickly for a bar to be of use.
_SMALL = 20_000_000


@contextmanager
def progress_of(source: Input) -> Iterator[Optional[Callable[[int], None]]]:
    """Show a bar, and give the function that moves it.

    Gives None, and shows no bar, without a terminal or for less than 20 MB.
    """
    console = Console(stderr=True)
    if not console.is_terminal or (source.size is not None and source.size < _SMALL):
        yield None
        return
    columns = [
        TextColumn("Reading"),
        BarColumn(),
        DownloadColumn(),
        TransferSpeedColumn(),
        TimeRemainingColumn(),
    ]
    with Progress(*columns, console=console, transient=True) as progress:
        task = progress.add_task("", total=source.size)
        yield lambda read: progress.update(task, completed=read)
