"""Which code is the user's, and which files it is in."""

from __future__ import annotations

import os
import re
import sysconfig
import tempfile
from collections import deque
from functools import lru_cache
from typing import Iterable, Iterator, List, Sequence, Set

from ._sources import Frame, real

PACKAGES = re.compile(r"[\\/](?:site|dist)-packages[\\/](?P<inside>.*)", re.DOTALL)
_STDLIB = re.compile(r"[\\/]lib(?:64)?[\\/](?:python|pypy)3\.\d+[\\/]", re.IGNORECASE)
#: Directories whose sources are nobody's callers, and those that are made from sources.
_NOT_SOURCES = ("__pycache__", "site-packages", "dist-packages", "node_modules")
_MADE = ("build", "dist")
#: What the directory of a virtual environment has in it.
_ENVIRONMENT = {"pyvenv.cfg", "conda-meta"}
_MARKS = ("pyproject.toml", "setup.py", "setup.cfg")
_REPOSITORY = (".git", ".hg")
#: How many sources there are at most without a root, and the directories that are looked through.
_MOST_FILES = 5_000
_MOST_DIRECTORIES = 20_000


class Project:
    """The code that the user can change.

    Args:
        roots: The directories or files of it. Without any, it is what is neither in site-packages
            nor of the standard library, and as sources count those around the functions of the
            trace: in the directory that has their package, in its project and its repository.
        frames: The functions of a trace.

    Attributes:
        directories: Where sources were looked for, without what is in another of them.
        files: The sources, by their real paths, whether the trace names them or not.
        is_whole: Whether these are all that there are.
    """

    def __init__(self, roots: Sequence[str], frames: Iterable[Frame]) -> None:
        self._roots = [os.path.realpath(root) for root in roots]
        own = {real(frame.file) for frame in frames if self.is_own(frame.file)}
        found = {file for file in own if os.path.isfile(file)}
        self.is_whole = True
        if roots:
            tops = self._roots
            found.update(file for top in tops for file in _below(top, set()))
        else:
            tops = _around(found)
            self._add_nearest(tops, found)
        self.directories = _outermost(tops)
        self.files = sorted(found)

    def _add_nearest(self, tops: Sequence[str], found: Set[str]) -> None:
        wide = _wide()
        seen: Set[str] = set()
        for top in tops:
            for file in _sources_in(_entries(top)) if top in wide else _below(top, seen):
                if file in found or not self.is_own(file):
                    continue
                if len(found) >= _MOST_FILES or len(seen) > _MOST_DIRECTORIES:
                    self.is_whole = False
                    return
                found.add(file)

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


def _around(files: Iterable[str]) -> List[str]:
    """The directories that may have callers of what is in files, the nearest ones first."""
    wide = _wide()
    packages: List[str] = []
    projects: List[str] = []
    repositories: List[str] = []
    for directory in sorted({os.path.dirname(file) for file in files}):
        package = ""
        while os.path.exists(os.path.join(directory, "__init__.py")):
            package, directory = directory, os.path.dirname(directory)
        packages += [package, directory] if package else [directory]
        for each in _upwards(directory, wide):
            if _has(each, _MARKS):
                projects.append(each)
                break
        for each in _upwards(directory, wide):
            if _has(each, _REPOSITORY):
                repositories.append(each)
                break
    return list(dict.fromkeys([*packages, *projects, *repositories]))


def _upwards(directory: str, wide: Set[str]) -> Iterator[str]:
    while directory not in wide and directory != os.path.dirname(directory):
        yield directory
        directory = os.path.dirname(directory)


def _wide() -> Set[str]:
    """The directories that are no project, whatever is in them."""
    places = (os.sep, os.path.expanduser("~"), tempfile.gettempdir())
    return {os.path.realpath(place) for place in places}


def _has(directory: str, names: Iterable[str]) -> bool:
    return any(os.path.exists(os.path.join(directory, name)) for name in names)


def _outermost(directories: Iterable[str]) -> List[str]:
    found: List[str] = []
    for directory in sorted(directories):
        if not any(directory.startswith(os.path.join(other, "")) for other in found):
            found.append(directory)
    return found


def _below(top: str, seen: Set[str]) -> Iterator[str]:
    """The sources in a directory that are in none that was *seen*, those near to it first."""
    if os.path.isfile(top):
        yield top
        return
    waiting = deque([top])
    while waiting:
        directory = waiting.popleft()
        entries = _entries(directory)
        if directory in seen or (directory != top and _is_apart(directory, entries)):
            continue
        seen.add(directory)
        waiting += [entry.path for entry in entries if entry.is_dir(follow_symlinks=False)]
        yield from _sources_in(entries)


def _sources_in(entries: List[os.DirEntry[str]]) -> Iterator[str]:
    for entry in entries:
        if entry.name.endswith(".py") and entry.is_file():
            yield real(entry.path)


def _entries(directory: str) -> List[os.DirEntry[str]]:
    try:
        with os.scandir(directory) as entries:
            return sorted(entries, key=lambda entry: entry.name)
    except OSError:
        return []


def _is_apart(directory: str, entries: List[os.DirEntry[str]]) -> bool:
    name = os.path.basename(directory)
    names = {entry.name for entry in entries}
    return (
        name.startswith(".")
        or name in _NOT_SOURCES
        or bool(names & _ENVIRONMENT)
        or (name in _MADE and "__init__.py" not in names)
    )
