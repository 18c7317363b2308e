"""A function -> where the user's sources use it, whether the trace has been there or not.

Python does not say what ``x.get()`` calls. What ``x`` is follows from the sources where it is made
or annotated in plain sight; where it is not, a use is a guess.
"""

from __future__ import annotations

import ast
import os
from typing import Iterator, NamedTuple, Optional, Sequence, Tuple

from .classes import Classes
from .parsed import Class, ParsedFiles
from .source_file import Found, Place
from .sources import PARTIALS, Function, Sources, name_of, own_nodes, real


class Use(NamedTuple):
    """A call of a function, or an expression that passes it on, in which case there is no call.

    Attributes:
        given_to: The call that it is an argument of, if it is passed on to one.
        certain: Whether it can be no other function.
    """

    file: str
    node: ast.expr
    call: Optional[ast.Call]
    given_to: Optional[ast.Call]
    place: Place
    certain: bool


class Uses:
    """Finds uses in files, which are named by their real paths."""

    def __init__(self, sources: Sources, paths: Sequence[str]) -> None:
        self._parsed = ParsedFiles(sources, paths)
        self._classes = Classes(self._parsed)

    def of(self, path: str, function: Function) -> Iterator[Use]:
        """The uses of the function that is defined by a node in a file."""
        self._parsed.parse_those_with([function.name])
        home = real(path)
        if home not in self._parsed.files:
            return
        around = self._place(home, function)
        for other, file in sorted(self._parsed.files.items()):
            if around.scopes and other != home:
                continue
            names = [function.name]
            names += [
                alias
                for alias, (_, name) in file.imported.items()
                if name == function.name and alias != name
            ]
            for found in (each for name in names for each in file.found.get(name, ())):
                if _is_method(function, around):
                    certain = self._is_of_class(home, other, found, around)
                else:
                    certain = self._is_of_module(home, other, found, function, around)
                if certain is not None:
                    yield from self._through_partial(Use(other, *found, certain))

    def _through_partial(self, use: Use) -> Iterator[Use]:
        """A use; in place of one that makes a partial in a function, those of that."""
        scope = use.place.scope
        names = [
            target.id
            for node in (() if scope is None or not is_partial(use) else own_nodes(scope))
            if isinstance(node, ast.Assign) and node.value is use.given_to
            for target in node.targets
            if isinstance(target, ast.Name)
        ]
        if not names:
            yield use
        depth = len(use.place.scopes)
        for found in (
            each for name in names for each in self._parsed.files[use.file].found.get(name, ())
        ):
            if isinstance(found.node, ast.Name) and found.place.scopes[:depth] == use.place.scopes:
                yield Use(use.file, *found, use.certain)

    def overrides(self, path: str, function: Function) -> Iterator[Tuple[str, str, Function]]:
        """The methods that are called in the place of one: file, class, definition."""
        self._parsed.parse_those_with([function.name])
        around = self._place(real(path), function)
        if not _is_method(function, around) or around.owner is None:
            return
        own = Class(real(path), around.owner)
        for each in [each for named in self._parsed.classes.values() for each in named]:
            methods = [
                node
                for node in each.node.body
                if isinstance(node, ast.FunctionDef) and node.name == function.name
            ]
            if methods and each != own and self._classes.lineage(each) & self._classes.lineage(own):
                yield from ((each.path, each.node.name, method) for method in methods)

    def decorated(self, path: str, function: Function) -> Iterator[Tuple[str, Function]]:
        """The functions that one is put in the place of, since it is what a decorator returns."""
        self._parsed.parse_those_with([function.name])
        around = self._place(real(path), function)
        names = {each.name for each in around.scopes if isinstance(each, ast.FunctionDef)}
        self._parsed.parse_those_with(names)
        for file, content in self._parsed.files.items() if names else ():
            for node in content.functions:
                for decorator in node.decorator_list:
                    called = decorator.func if isinstance(decorator, ast.Call) else decorator
                    if name_of(called) in names:
                        yield file, node

    def _place(self, path: str, function: Function) -> Place:
        file = self._parsed.files.get(path)
        return Place() if file is None else file.functions.get(function, Place())

    def _is_of_class(self, home: str, path: str, found: Found, around: Place) -> Optional[bool]:
        """Whether it is certain that a use is that of a class's method; None if it is not."""
        owner = around.owner
        if isinstance(found.node, ast.Name):
            # In the body of the class it goes by its bare name.
            return True if found.place == around else None
        if not isinstance(found.node, ast.Attribute) or owner is None:
            return None
        file = self._parsed.files[path]
        value = found.node.value
        made = self._classes.class_of(file, value, found.place)
        if made is not None:
            lineages = [self._classes.lineage(each) for each in self._classes.meant(path, made)]
            own = self._classes.lineage(Class(home, owner))
            return True if any(lineage & own for lineage in lineages) else None
        if isinstance(value, ast.Name) and value.id in file.imported:
            _, name = file.imported[value.id]
            return name == owner.name if name else None
        # What is only passed on by a name is too often something else: x.get = 1.
        return False if found.call is not None else None

    def _is_of_module(
        self, home: str, path: str, found: Found, function: Function, around: Place
    ) -> Optional[bool]:
        """Whether it is certain that a use is that of a function; None if it is not one."""
        if around.scopes:
            # A function within a function has its name in there.
            is_inside = found.place.scopes[: len(around.scopes)] == around.scopes
            return True if is_inside and isinstance(found.node, ast.Name) else None
        file = self._parsed.files[path]
        if isinstance(found.node, ast.Name):
            if path == home:
                return None if _hides(found.place, function) else True
            if found.node.id in file.imported:
                module, name = file.imported[found.node.id]
                return self._has(home, path, module, function) if name == function.name else None
            modules = [self._parsed.modules.find(path, each) for each in file.imports_all]
            return False if any(home in each for each in modules) else None
        if path == home or not isinstance(found.node, ast.Attribute):
            return None
        if file.is_imported(found.node.value):
            return self._has(home, path, file.module_of(found.node.value), function)
        # It may have been imported by its name in a string, or be passed.
        is_named = name_of(found.node.value) in (home.split(os.sep)[-2], _stem(home))
        return False if is_named else None

    def _has(self, home: str, path: str, module: str, function: Function) -> Optional[bool]:
        """Whether it is certain that a module, as a file imports it, has a function of another.

        None if it has not.
        """
        modules = self._parsed.modules.find(path, module)
        if home in modules:
            return len(modules) == 1
        for each in modules:
            file = self._parsed.files.get(each)
            if file is not None and (function.name in file.imported or file.imports_all):
                return False  # It may have it from there.
        return None


def _is_method(function: Function, around: Place) -> bool:
    return around.owner is not None and function in around.owner.body


def is_partial(use: Use) -> bool:
    """Whether a use makes a partial of the function."""
    made = use.given_to
    return made is not None and name_of(made.func) in PARTIALS and made.args[:1] == [use.node]


def _stem(path: str) -> str:
    return os.path.splitext(os.path.basename(path))[0]


def _hides(place: Place, function: Function) -> bool:
    """Whether a name is that of something in a function around it."""
    for scope in place.scopes:
        arguments = getattr(scope, "args", None)
        if isinstance(arguments, ast.arguments) and any(
            each.arg == function.name
            for each in (*arguments.args, *arguments.kwonlyargs, arguments.vararg, arguments.kwarg)
            if each is not None
        ):
            return True
        if isinstance(scope, (ast.FunctionDef, ast.AsyncFunctionDef)):
            for node in own_nodes(scope):
                if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
                    bound = node.name
                else:
                    bound = name_of(node) if isinstance(getattr(node, "ctx", 0), ast.Store) else ""
                if bound == function.name and not isinstance(node, ast.Attribute):
                    return True
    return False
