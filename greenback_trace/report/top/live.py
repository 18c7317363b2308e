"""A growing file of OTLP JSON lines, or the socket of a program -> what happens now."""

from __future__ import annotations

import os
import stat
from typing import Union

from ..read.inputs import NAMELESS, NothingToReportError
from .live_file import LiveFile
from .live_socket import LiveSocket

#: Where to learn what happens now.
Live = Union[LiveFile, LiveSocket]


def follow(path: str) -> Live:
    """Whatever *path* is, a socket or a file.

    Raises:
        NothingToReportError: It is empty.
    """
    if not path:
        raise NothingToReportError(NAMELESS)
    try:
        is_socket = stat.S_ISSOCK(os.stat(path).st_mode)
    except OSError:
        is_socket = False  # the file's business, which says why
    return LiveSocket(path) if is_socket else LiveFile(path)
