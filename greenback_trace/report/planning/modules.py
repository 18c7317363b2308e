"""The name of a module in an import -> the source files that it may be."""

from __future__ import annotations

import os
from typing import Dict, List, Sequence


class Modules:
    """The modules of a project. *paths* are the real paths of its sources."""

    def __init__(self, paths: Sequence[str]) -> None:
        self._paths = set(paths)
        #: Paths by the last part of the module's name.
        self._named: Dict[str, List[str]] = {}
        for path in paths:
            self._named.setdefault(_parts(path)[-1], []).append(path)

    def find(self, importer: str, name: str) -> List[str]:
        """The files that *importer* may mean by a name. A relative name begins with dots.

        Files below a directory around the importer come first: a program in that directory would
        find them first, too.
        """
        relative = name.lstrip(".")
        parts = relative.split(".") if relative else []
        around = _parts(importer)
        if not importer.endswith("__init__.py"):
            around.pop()
        level = len(name) - len(relative)
        if level:
            around = around[: len(around) - level + 1]
            return self._at([*around, *parts])
        while os.sep.join([*around, "__init__.py"]) in self._paths:
            around.pop()  # A package is imported from outside of it.
        found = [path for path in self._named.get(parts[-1], ()) if _ends(_parts(path), parts)]
        while len(found) > 1:
            nearest = self._at([*around, *parts])
            if nearest or not around:
                return nearest or found
            around.pop()
        return found

    def _at(self, parts: List[str]) -> List[str]:
        return [path for path in self._named.get(parts[-1], ()) if _parts(path) == parts]


def _parts(path: str) -> List[str]:
    """The directories of a module, and its name. The name of a package is its directory's."""
    parts = os.path.splitext(path)[0].split(os.sep)
    return parts[:-1] if parts[-1] == "__init__" else parts


def _ends(parts: List[str], end: List[str]) -> bool:
    return parts[-len(end) :] == end
