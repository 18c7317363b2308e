"""The user's source files, each parsed when something in it is asked for."""

from __future__ import annotations

import ast
import io
import re
import tokenize
from typing import Dict, Iterable, List, NamedTuple, Sequence

from ..read.regular import UNREADABLE, read_source
from .modules import Modules
from .source_file import SourceFile
from .sources import Sources

_WORD = re.compile(r"[^\W\d]\w*")
_CLASS = re.compile(r"^[ \t]*class[ \t]+(\w+)", re.MULTILINE)


class Class(NamedTuple):
    """A class of the user's, and the file that defines it."""

    path: str
    node: ast.ClassDef


class ParsedFiles:
    """Source files, which are named by their real paths.

    Attributes:
        files: The files that are parsed, by their paths.
        classes: The classes in these, by name.
        modules: All files, by the names of their modules.
    """

    def __init__(self, sources: Sources, paths: Sequence[str]) -> None:
        self.files: Dict[str, SourceFile] = {}
        self.classes: Dict[str, List[Class]] = {}
        self.modules = Modules(paths)
        self._sources = sources
        #: By word, the files that have it. To parse one takes ten times as long as to read it, and
        #: many times its size in memory: only those are that have the name of what is asked for.
        self._having: Dict[str, List[str]] = {}
        #: By the name of a class, the files that have one.
        self._defining: Dict[str, List[str]] = {}
        for path in paths:
            try:
                text = _text(path)
            except UNREADABLE as error:
                sources.reject(path, error)
                continue
            for word in set(_WORD.findall(text)):
                self._having.setdefault(word, []).append(path)
            for name in set(_CLASS.findall(text)):
                self._defining.setdefault(name, []).append(path)

    def parse_those_with(self, names: Iterable[str]) -> None:
        """Parse the files that have one of the words in them."""
        for name in names:
            self._parse(self._having.pop(name, ()))

    def parse_class(self, name: str) -> None:
        """Parse the files that define a class of that name."""
        self._parse(self._defining.get(name, ()))

    def has_class(self, name: str) -> bool:
        """Whether a file defines a class of that name, be it parsed or not."""
        return name in self._defining

    def _parse(self, paths: Iterable[str]) -> None:
        for path in paths:
            tree = None if path in self.files else self._sources.tree(path)
            if tree is not None:
                try:
                    self.files[path] = SourceFile(tree)
                except RecursionError as error:
                    self._sources.reject(path, error)
                    continue
                for node in ast.walk(tree):
                    if isinstance(node, ast.ClassDef):
                        self.classes.setdefault(node.name, []).append(Class(path, node))


def _text(path: str) -> str:
    content = io.BytesIO(read_source(path))
    encoding, _ = tokenize.detect_encoding(content.readline)
    content.seek(0)
    return io.TextIOWrapper(content, encoding).read()
