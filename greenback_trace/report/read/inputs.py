"""The files that a user names -> lines of OTLP JSON."""

from __future__ import annotations

import glob
import gzip
import io
import os
import sys
import zlib
from functools import partial
from typing import IO, Any, Callable, Iterator, List, Optional, Sequence, Tuple, Union, cast

from .regular import NotRegularError, open_regular

#: Files of a directory are read if their names end so. The first bytes of a file, not its name,
#: tell whether it is compressed.
_SUFFIXES = (".json", ".jsonl", ".ndjson", ".json.gz", ".jsonl.gz", ".ndjson.gz")
#: Bytes of a line, at most. A Collector writes batches of some megabytes, so a longer line is no
#: trace; it is not kept in memory.
_LONGEST = 64 << 20
_GZIP = b"\x1f\x8b"
_TELL_EVERY = 1 << 20
STDIN = "-"

NAMELESS = (
    "the name of a file is empty: is a variable of your shell not set? Name the file that a "
    "program has written with GREENBACK_TRACE=1 and GREENBACK_TRACE_FILE set"
)

#: The file, the number of the line, and its content as bytes, or the reason why it has none as str.
Line = Tuple[str, int, Union[bytes, str]]


class NothingToReportError(ValueError):
    """The files have nothing to report. The messages say what to do."""


class Input:
    """The lines of all files that *paths* name.

    Args:
        paths: Files, directories, patterns as in a shell, and ``-`` for standard input. A file
            that is named twice is read once.

    Raises:
        NothingToReportError: A path does not exist, or a directory has no trace in it.
    """

    def __init__(self, paths: Sequence[str]) -> None:
        self.files: List[str] = []
        #: Files that the user named one by one may be pipes. Files found in a directory may not.
        self._named = set(paths)
        seen = set()
        for path in paths:
            for file in _expanded(path):
                identity = file if file == STDIN else os.path.realpath(file)
                if identity not in seen:
                    seen.add(identity)
                    self.files.append(file)
        #: The size of all files in bytes, as they are on disk. None if one is not a regular file.
        self.size: Optional[int] = sum(map(_size, self.files))
        if not all(file != STDIN and os.path.isfile(file) for file in self.files):
            self.size = None

    def lines(self, progress: Optional[Callable[[int], None]] = None) -> Iterator[Line]:
        """All lines, one after another.

        Args:
            progress: Called now and then with how many bytes of `size` have been read.

        Raises:
            NothingToReportError: A file cannot be read.
        """
        done = 0
        for name in self.files:
            tell = None if progress is None else partial(_tell, progress, done)
            try:
                if name == STDIN:
                    stdin = io.BufferedReader(cast(io.RawIOBase, sys.stdin.buffer), _TELL_EVERY)
                    try:
                        yield from _lines("standard input", stdin, tell)
                    finally:
                        stdin.detach()  # the process's standard input stays open
                else:
                    is_named = name in self._named
                    with _open(name) if is_named else open_regular(name, _TELL_EVERY) as file:
                        yield from _lines(name, file, tell)
            except NotRegularError as error:
                yield name, 1, f"{error.strerror}, which is read only if it is named itself"
            except OSError as error:
                raise NothingToReportError(_unreadable(name, error)) from None
            done += _size(name)


def _open(name: str) -> IO[bytes]:
    return open(name, "rb", buffering=_TELL_EVERY)


def _lines(name: str, file: Any, tell: Optional[Callable[[int], None]]) -> Iterator[Line]:
    is_compressed = file.peek(2)[:2] == _GZIP
    content: IO[bytes] = (
        io.BufferedReader(_Unpacked(gzip.GzipFile(fileobj=file)), _TELL_EVERY)
        if is_compressed
        else file
    )
    number = read = told = 0
    is_rest = False
    while True:
        try:
            line = content.readline(_LONGEST)
        except (EOFError, zlib.error, gzip.BadGzipFile) as error:
            yield name, number + 1, f"the compressed data end or are damaged here ({error})"
            return
        if not line:
            return
        read += len(line)
        if tell is not None and read - told >= _TELL_EVERY:
            told = read
            tell(file.tell() if is_compressed and file.seekable() else read)
        is_whole = line.endswith(b"\n") or len(line) < _LONGEST
        if is_rest:
            is_rest = not is_whole
            continue
        number += 1
        if is_whole:
            yield name, number, line
        else:
            is_rest = True
            yield name, number, f"longer than {_LONGEST >> 20} MiB"


class _Unpacked(io.RawIOBase):
    """The content of a compressed file up to where it breaks off.

    `gzip.GzipFile.read` would raise if the end is missing, and return nothing.
    """

    def __init__(self, file: gzip.GzipFile) -> None:
        self._file = file

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        content = self._file.read1(len(buffer))
        buffer[: len(content)] = content
        return len(content)


def _tell(progress: Callable[[int], None], before: int, read: int) -> None:
    progress(before + read)


def _expanded(path: str) -> List[str]:
    if path == STDIN:
        return [path]
    if os.path.isdir(path):
        found = sorted(
            os.path.join(directory, name)
            for directory, _, names in os.walk(path)
            for name in names
            if name.endswith(_SUFFIXES)
        )
        if not found:
            raise NothingToReportError(
                f"{path}: a directory without a trace. Name one with files that end in "
                f"{', '.join(_SUFFIXES[:3])}, or these with .gz"
            )
        return found
    if not os.path.exists(path) and glob.has_magic(path):
        found = sorted(each for each in glob.glob(path, recursive=True) if not os.path.isdir(each))
        if not found:
            raise NothingToReportError(
                f"{path}: no file has such a name. Name the files that programs have written "
                "with GREENBACK_TRACE=1 and GREENBACK_TRACE_FILE set"
            )
        return found
    try:
        os.stat(path)
    except OSError as error:
        raise NothingToReportError(_unreadable(path, error)) from None
    return [path]


def _size(path: str) -> int:
    try:
        return 0 if path == STDIN else os.path.getsize(path)
    except OSError:
        return 0


def _unreadable(path: str, error: OSError) -> str:
    if not path:
        return NAMELESS
    return (
        f"{path} cannot be read: {error.strerror or error}. Name the file that a program has "
        "written with GREENBACK_TRACE=1 and GREENBACK_TRACE_FILE set"
    )
