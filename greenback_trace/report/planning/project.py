"""Which code is the user's, and in which files it is."""

from __future__ import annotations

import os
import re
import sysconfig
import tempfile
from collections import deque
from dataclasses import replace
from functools import lru_cache
from itertools import takewhile
from typing import Collection, Dict, Iterable, Iterator, List, Sequence, Set

from .sources import Frame, real

PACKAGES = re.compile(r"[\\/](?:site|dist)-packages[\\/](?P<inside>.*)", re.DOTALL)
_STDLIB = re.compile(r"[\\/]lib(?:64)?[\\/](?:python|pypy)3\.\d+[\\/]", re.IGNORECASE)
#: Directories without callers, and directories that are built from sources.
_NOT_SOURCES = ("__pycache__", "site-packages", "dist-packages", "node_modules")
_MADE = ("build", "dist")
#: The directory of a virtual environment has one of these in it.
_ENVIRONMENT = {"pyvenv.cfg", "conda-meta"}
_MARKS = ("pyproject.toml", "setup.py", "setup.cfg")
_REPOSITORY = (".git", ".hg")
#: Without a root: sources to take at most, and directories to search at most.
_MOST_FILES = 5_000
_MOST_DIRECTORIES = 20_000


class Project:
    """The code that the user can change.

    Args:
        roots: The directories or files of the user's code. Without any, all code outside
            site-packages and the standard library is the user's. The sources are then those around
            the functions of the trace: in the directory of their package, in its project, and in
            its repository.
        frames: The functions of a trace.

    Attributes:
        directories: Where the sources are searched, without directories inside another one.
        files: The real paths of the sources, whether the trace names them or not.
        is_whole: Whether *files* has all sources.
        missing: The user's files that the trace names and that do not exist here. A file found
            below a root is not missing, wherever it was when the program was traced.
    """

    def __init__(self, roots: Sequence[str], frames: Collection[Frame]) -> None:
        self._roots = [os.path.realpath(root) for root in roots]
        #: Somebody else may have written the trace, so the trace does not decide what is read.
        self._readable = self._roots or [_current()]
        self.is_whole = True
        below = {file for root in self._roots for file in _below(root, set())}
        lost = {frame for frame in frames if _is_lost(frame.file)}
        #: Paths here, by the path in the trace.
        self._moved = _found_again(lost, below)
        self.missing = sorted({frame.file for frame in lost} - set(self._moved))
        files = {self.here(frame).file for frame in frames}
        found = {
            real(file)
            for file in files
            if self.is_own(file) and self.may_read(file) and os.path.isfile(file)
        }
        tops = self._roots or _around(found)
        found |= below
        if not roots:
            self._add_nearest(tops, found)
        self.directories = _outermost(tops)
        self.files = sorted(found)

    def here(self, frame: Frame) -> Frame:
        """A function of the trace, with the path of its file here."""
        return replace(frame, file=self._moved.get(frame.file, frame.file))

    def _add_nearest(self, tops: Sequence[str], found: Set[str]) -> None:
        wide = _wide()
        seen: Set[str] = set()
        for top in tops:
            for file in _sources_in(_entries(top)) if top in wide else _below(top, seen):
                if file in found or not self.is_own(file) or not self.may_read(file):
                    continue
                if len(found) >= _MOST_FILES or len(seen) > _MOST_DIRECTORIES:
                    self.is_whole = False
                    return
                found.add(file)

    def is_own(self, file: str) -> bool:
        """Whether the user can change a file."""
        if not file or file.startswith("<"):
            return False
        path = real(file)
        if self._roots:
            return _is_below(path, self._roots)
        return not _is_others(path)

    def may_read(self, file: str) -> bool:
        """Whether a source may be opened: it is below a root, or installed.

        Without roots, it may also be in the current project.
        """
        path = real(file)
        return _is_below(path, self._readable) or _is_others(path)


def _is_below(path: str, directories: Iterable[str]) -> bool:
    return any(path == each or path.startswith(os.path.join(each, "")) for each in directories)


def _current() -> str:
    """The repository around the current directory, or else its project, or else itself."""
    here = os.path.realpath(os.getcwd())
    for names in (_REPOSITORY, _MARKS):
        for each in _upwards(here, _wide()):
            if _has(each, names):
                return each
    return here


def _is_others(path: str) -> bool:
    return PACKAGES.search(path) is not None or is_standard_library(path)


def is_standard_library(path: str) -> bool:
    """Whether a real path is in the standard library of this Python, or of another one."""
    return path.startswith(_stdlib()) or _STDLIB.search(path) is not None


@lru_cache(maxsize=None)
def _stdlib() -> str:
    return os.path.realpath(sysconfig.get_paths()["stdlib"]) + os.sep


def _is_lost(file: str) -> bool:
    is_file = bool(file) and not file.startswith("<")
    return is_file and not os.path.exists(file) and not _is_others(real(file))


def _found_again(lost: Iterable[Frame], files: Iterable[str]) -> Dict[str, str]:
    """The paths here of files that the trace has elsewhere.

    A file is found if one of *files* alone shares the longest end of its path. They share at least
    the parts in the name of the module: shop/orders.py for shop.orders.
    """
    named: Dict[str, List[str]] = {}
    for file in files:
        named.setdefault(os.path.basename(file), []).append(file)
    found: Dict[str, str] = {}
    for frame in lost:
        parts = re.split(r"[\\/]", frame.file)
        shared = {file: _shared(parts, file.split(os.sep)) for file in named.get(parts[-1], ())}
        most = max(shared.values(), default=0)
        best = [file for file, count in shared.items() if count == most]
        if len(best) == 1 and most >= _module_parts(frame.function, parts):
            found[frame.file] = best[0]
    return found


def _shared(one: List[str], other: List[str]) -> int:
    """How many parts at their ends two paths have in common."""
    pairs = zip(reversed(one), reversed(other))
    return sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], pairs))


def _module_parts(function: str, parts: List[str]) -> int:
    """How many parts of a path the module of a function names."""
    names = [*parts[:-1], parts[-1].partition(".")[0]]
    is_package = names[-1] == "__init__"
    if is_package:
        names.pop()
    counts = range(len(names), 0, -1)
    count = next((n for n in counts if function.startswith(".".join(names[-n:]) + ".")), 1)
    return count + is_package


def _around(files: Iterable[str]) -> List[str]:
    """The directories that may have callers of functions in *files*, nearest first."""
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
    """Directories that are never a project, whatever they contain."""
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
    """The sources below *top*, nearest first, without directories already *seen*."""
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
