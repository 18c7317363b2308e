"""Opening files that a trace or a directory names, and not the user: regular files only.

Opening a pipe waits for its writer, and a device may be endless or react to being read.
"""

from __future__ import annotations

import errno
import os
import stat
from typing import IO, Optional

#: What reading and parsing a source raise. It may name a codec that is none of texts, or be nested
#: more deeply than the parser, or what walks its tree, can take.
UNREADABLE = (OSError, SyntaxError, ValueError, LookupError, RecursionError, MemoryError)
#: Bytes of a source, at most. Parsed, it takes about a hundred times as many.
_LARGEST_SOURCE = 4 << 20


class NotRegularError(OSError):
    """It is there, but it is not a file to read. The message says why."""


def open_regular(path: str, buffering: int = -1) -> IO[bytes]:
    """Open a file to be read, without ever waiting for it.

    Raises:
        NotRegularError: It is a pipe, a device, a socket or a directory.
        OSError: It cannot be opened.
    """
    # Before it is opened, since that alone can do something to a device; and after it, since the
    # file may be another one by then.
    _require_regular(os.stat(path))
    file = open(path, "rb", buffering=buffering, opener=_open_at_once)  # noqa: SIM115  (returned)
    try:
        _require_regular(os.fstat(file.fileno()))
    except BaseException:
        file.close()
        raise
    return file


def read_source(path: str) -> bytes:
    """What is in a source file.

    Raises:
        NotRegularError: It is not a regular file, or larger than 4 MiB.
        OSError: It cannot be read.
    """
    with open_regular(path) as file:
        content = file.read(_LARGEST_SOURCE + 1)
    if len(content) > _LARGEST_SOURCE:
        raise NotRegularError(errno.EFBIG, f"larger than {_LARGEST_SOURCE >> 20} MiB")
    return content


def why_unreadable(error: BaseException) -> Optional[str]:
    """In words, for whoever named the file; None if it is just not here."""
    if isinstance(error, (FileNotFoundError, NotADirectoryError)):
        return None
    if isinstance(error, OSError):
        return error.strerror or str(error)
    if isinstance(error, (RecursionError, MemoryError)):
        return "nested too deeply"
    text = str(error).partition("\n")[0]
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


def _open_at_once(path: str, flags: int) -> int:
    return os.open(path, flags | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_NOCTTY", 0))


def _require_regular(found: os.stat_result) -> None:
    if not stat.S_ISREG(found.st_mode):
        raise NotRegularError(errno.EINVAL, "not a regular file")
