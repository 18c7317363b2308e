"""The file that lines are appended to: opening it, its limit, and the lines that were dropped."""

from __future__ import annotations

import errno
import logging
import os
import stat
import threading
from typing import IO, Dict, Optional


class LineFile:
    """Appends lines to a file, and gives up, with one warning, when it cannot or may not.

    A line is one ``write()`` at the end of the file, so that several processes can share it.
    """

    def __init__(self, path: str, limit: int) -> None:
        self.path = os.path.abspath(path.replace("{pid}", str(os.getpid())))
        #: Lines not written, by the reason: ``limit`` or ``write_error``.
        self.dropped: Dict[str, int] = {}
        self._limit = limit
        # Written under the lock, by whoever writes or closes.
        self._lock = threading.Lock()
        self._file: Optional[IO[bytes]] = None
        self._reason = "write_error"
        try:
            # Without a buffer, so that what is written is there when the process is killed.
            self._file = open(  # noqa: SIM115  (kept)
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
        """Count a line that is not written."""
        self.dropped[self._reason] = self.dropped.get(self._reason, 0) + 1

    def close(self) -> None:
        with self._lock:
            self.abandon()

    def abandon(self) -> None:
        """Close the file without the lock: in a forked child, somebody may have held that."""
        file, self._file = self._file, None
        if file is not None:
            file.close()

    def _append(self, file: IO[bytes], line: bytes) -> bool:
        try:
            # Other processes may write to it, too.
            is_full = os.fstat(file.fileno()).st_size + len(line) > self._limit
            if not is_full:
                written = file.write(line)
                if written == len(line):
                    return True
                # No more than a part of the line has found room. Take that back, unless another
                # process has added something by now.
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
    """Open a file for writing, without waiting for anybody: an opener for `open`.

    A new file can be read by its owner only: a trace shows what a program is made of. Opening a
    pipe with a name waits until somebody reads it, which this does not. The file that is returned
    waits when it is written, as a pipe that is full makes it: that is up to the pipeline's thread.

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
    """Why *path* could not be opened, where the system's own words do not tell."""
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
