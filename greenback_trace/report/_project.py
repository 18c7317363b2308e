"""Which code is the user's, and which files it is in."""

from __future__ import annotations

import os
import re
import sysconfig
from functools import lru_cache
from typing import Iterable, Iterator, List, Sequence

from ._sources import Frame, real

PACKAGES = re.compile(r"[\\/](?:site|dist)-packages[\\/](?P<inside>.*)", re.DOTALL)
_STDLIB = re.compile(r"[\\/]lib(?:64)?[\\/](?:python|pypy)3\.\d+[\\/]", re.IGNORECASE)
#: Directories whose sources are nobody's callers.
_NOT_SOURCES = ("__pycache__", "site-packages", "dist-packages", "node_modules")


class Project:
    """The code that the user can change.

    Args:
        roots: The directories or files of it. Without any, it is what is neither in site-packages
            nor of the standard library.
        frames: The functions of a trace.

    Attributes:
        files: Its sources, by their real paths, whether the trace names them or not.
    """

    def __init__(self, roots: Sequence[str], frames: Iterable[Frame]) -> None:
        self._roots = [os.path.realpath(root) for root in roots]
        own = {frame.file for frame in frames if self.is_own(frame.file)}
        tops = [*(roots or sorted(map(_top, own))), *own]
        self.files: List[str] = sorted({real(file) for file in _below(tops)})

    def is_own(self, file: str) -> bool:
        """Whether a file is one that the user can change."""
        if not file or file.startswith("<"):
            return False
        path = real(file)
        if self._roots:
            return any(path == root or path.startswith(root + os.sep) for root in self._roots)
        return PACKAGES.search(path) is None and not is_standard_library(path)


def is_standard_library(path: str) -> bool:
    """Whether a real path is that of a module of the standard library, of this Python's or any."""
    return path.startswith(_stdlib()) or _STDLIB.search(path) is not None


@lru_cache(maxsize=None)
def _stdlib() -> str:
    return os.path.realpath(sysconfig.get_paths()["stdlib"]) + os.sep


def _top(file: str) -> str:
    """The package that a file is in, the outermost one; or the file itself."""
    directory = os.path.dirname(os.path.realpath(file))
    top = file
    while os.path.exists(os.path.join(directory, "__init__.py")):
        top = directory
        directory = os.path.dirname(directory)
    return top


def _below(tops: Sequence[str]) -> Iterator[str]:
    for top in tops:
        if os.path.isfile(top):
            yield top
        for directory, names, files in os.walk(top):
            names[:] = [
                name for name in names if name not in _NOT_SOURCES and not name.startswith(".")
            ]
            yield from (os.path.join(directory, file) for file in files if file.endswith(".py"))
