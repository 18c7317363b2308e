"""The file of a trace: opening it, appending lines, its limit, and the lines dropped."""

from __future__ import annotations

import errno
import logging
import os
import stat
import threading
from typing import IO, Dict, Optional


class LineFile:
    """Appends lines to a file. Gives up with one warning at an error or at the limit.

    Each line is one ``write()`` at the end of the file: so several processes can share the file.

    Args:
        path: The path; ``{pid}`` in it becomes the process number.
        limit: The size in bytes that the file may have at most.
    """

    def __init__(self, path: str, limit: int) -> None:
        self.path = os.path.abspath(path.replace("{pid}", str(os.getpid())))
        #: The number of lines dropped, by reason: ``limit`` or ``write_error``.
        self.dropped: Dict[str, int] = {}
        self._limit = limit
        # The rest is written under the lock, by any thread that writes or closes.
        self._lock = threading.Lock()
        self._file: Optional[IO[bytes]] = None
        self._reason = "write_error"
        try:
            # Without a buffer: lines written before the process is killed are in the file.
            self._file = open(  # noqa: SIM115  (it stays open)
                self.path, "ab", buffering=0, opener=_open_at_once
            )
        except OSError as error:
            self._give_up("write_error", f"cannot be opened ({_said(self.path, error)})")

    def is_open(self) -> bool:
        """Whether lines can be written. False once the file has been given up or closed."""
        return self._file is not None

    def write(self, line: bytes) -> None:
        """Append a line, with its line break. Counts it as dropped if the file takes no more."""
        with self._lock:
            if self._file is None or not self._append(self._file, line):
                self.drop()

    def drop(self) -> None:
        """Count a line as dropped."""
        self.dropped[self._reason] = self.dropped.get(self._reason, 0) + 1

    def close(self) -> None:
        with self._lock:
            self.abandon()

    def abandon(self) -> None:
        """Close the file without the lock: in a forked child, the lock may stay held for ever."""
        file, self._file = self._file, None
        if file is not None:
            file.close()

    def _append(self, file: IO[bytes], line: bytes) -> bool:
        try:
            # Ask the system: other processes may write to the file, too.
            is_full = os.fstat(file.fileno()).st_size + len(line) > self._limit
            if not is_full:
                written = file.write(line)
                if written == len(line):
                    return True
                # The disk had room for a part of the line. Remove that part, unless another process
                # has appended something meanwhile.
                end = file.tell()
                if end == os.fstat(file.fileno()).st_size:
                    file.truncate(end - written)
        except OSError as error:
            self._give_up("write_error", f"cannot be written ({error})")
            return False
        if is_full:
            self._give_up("limit", f"has reached its limit of {self._limit} bytes")
        else:
            self._give_up("write_error", "cannot be written (no space is left)")
        return False

    def _give_up(self, reason: str, why: str) -> None:
        self._reason = reason
        self.abandon()
        logging.getLogger("greenback").warning(
            "GREENBACK_TRACE_FILE: %s %s; the program goes on, and the rest of its trace is lost. "
            "Name a file that can be written, or set GREENBACK_TRACE_FILE_LIMIT",
            self.path,
            why,
        )


def _open_at_once(path: str, flags: int) -> int:
    """Open a file for writing without waiting: an opener for `open`.

    Only its owner can read a new file: a trace shows the functions of a program. To open a named
    pipe usually waits for a reader; this does not. Writes do wait, for example for a full pipe.
    They happen in the pipeline's thread.

    Raises:
        OSError: The file cannot be opened, or is a disk.
    """
    flags |= getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_NOCTTY", 0)
    descriptor = os.open(path, flags, 0o600)
    try:
        if stat.S_ISBLK(os.fstat(descriptor).st_mode):
            raise OSError(errno.EINVAL, "it is a disk", path)
        if hasattr(os, "O_NONBLOCK"):
            os.set_blocking(descriptor, True)
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


def _said(path: str, error: OSError) -> str:
    """Why *path* could not be opened, in clearer words than the system's where needed."""
    if error.errno == errno.ENXIO:
        try:
            mode = os.stat(path).st_mode
        except OSError:
            return str(error)
        if stat.S_ISFIFO(mode):
            return "it is a pipe that nobody reads"
        if stat.S_ISSOCK(mode):
            return "it is a socket"
    return str(error)
