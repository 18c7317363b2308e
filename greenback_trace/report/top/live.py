"""A growing file of OTLP JSON lines, or the socket of a program -> what happens now."""

from __future__ import annotations

import os
import stat
from typing import Union

from ..read.inputs import NAMELESS, NothingToReportError
from .live_file import LiveFile
from .live_socket import LiveSocket

#: A source of `Now`.
Live = Union[LiveFile, LiveSocket]


def follow(path: str) -> Live:
    """Follow the socket or the file at *path*.

    Raises:
        NothingToReportError: *path* is empty.
    """
    if not path:
        raise NothingToReportError(NAMELESS)
    try:
        is_socket = stat.S_ISSOCK(os.stat(path).st_mode)
    except OSError:
        is_socket = False  # `LiveFile.read` raises an error that says why
    return LiveSocket(path) if is_socket else LiveFile(path)
