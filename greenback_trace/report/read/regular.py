"""Opens regular files only: for files that a trace or a directory names, and not the user.

Opening a pipe waits for its writer. A device may be endless, or react to being read.
"""

from __future__ import annotations

import errno
import os
import stat
from typing import IO, Optional

#: Reading and parsing a source raise these. A source may name a codec that decodes no text, or be
#: nested too deeply for the parser or for the code that walks the tree.
UNREADABLE = (OSError, SyntaxError, ValueError, LookupError, RecursionError, MemoryError)
#: Bytes of a source, at most. The parsed source takes about a hundred times as much memory.
_LARGEST_SOURCE = 4 << 20


class NotRegularError(OSError):
    """The path exists, but is not a file to read. The message says why."""


def open_regular(path: str, buffering: int = -1) -> IO[bytes]:
    """Open a file for reading, without ever waiting for it.

    Raises:
        NotRegularError: The path is a pipe, a device, a socket or a directory.
        OSError: The file cannot be opened.
    """
    # Check before opening, since opening alone can affect a device. Check again afterwards, since
    # another file may have taken the path in between.
    _require_regular(os.stat(path))
    file = open(path, "rb", buffering=buffering, opener=_open_at_once)  # noqa: SIM115  (returned)
    try:
        _require_regular(os.fstat(file.fileno()))
    except BaseException:
        file.close()
        raise
    return file


def read_source(path: str) -> bytes:
    """The content of a source file.

    Raises:
        NotRegularError: The path is not a regular file, or the file is larger than 4 MiB.
        OSError: The file cannot be read.
    """
    with open_regular(path) as file:
        content = file.read(_LARGEST_SOURCE + 1)
    if len(content) > _LARGEST_SOURCE:
        raise NotRegularError(errno.EFBIG, f"larger than {_LARGEST_SOURCE >> 20} MiB")
    return content


def why_unreadable(error: BaseException) -> Optional[str]:
    """The reason why a file cannot be read, in words. None if the file does not exist."""
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
