"""How far a report has read, while it reads."""

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

#: What is read before one has looked.
_SMALL = 20_000_000


@contextmanager
def progress_of(source: Input) -> Iterator[Optional[Callable[[int], None]]]:
    """What reading is to call, if a terminal is there to see and there is much to read."""
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
