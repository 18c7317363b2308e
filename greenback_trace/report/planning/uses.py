"""A function -> where the user's sources use it, whether the trace has been there or not.

Python does not say what ``x.get()`` calls. What ``x`` is follows from the sources where it is made
or annotated in plain sight; where it is not, a use is a guess.
"""

from __future__ import annotations

import ast
import io
import os
import re
import tokenize
from dataclasses import dataclass
from typing import Dict, Iterable, Iterator, List, NamedTuple, Optional, Sequence, Set, Tuple, Union

from ..read.regular import UNREADABLE, read_source
from .modules import Modules
from .sources import PARTIALS, Function, Sources, name_of, own_nodes, real

_LITERALS = (
    ast.Dict, ast.DictComp, ast.List, ast.ListComp, ast.Set, ast.SetComp, ast.Tuple, ast.Constant,
    ast.JoinedStr,
)  # fmt: skip
_WORD = re.compile(r"[^\W\d]\w*")
_CLASS = re.compile(r"^[ \t]*class[ \t]+(\w+)", re.MULTILINE)
#: What something is that is of no class of the user's.
_FOREIGN = ""

Scope = Union[Function, ast.Lambda, ast.GeneratorExp]


@dataclass(frozen=True)
class Place:
    """Where an expression is: the functions around it, and the class that these are in."""

    scopes: Tuple[Scope, ...] = ()
    owner: Optional[ast.ClassDef] = None

    @property
    def scope(self) -> Optional[Scope]:
        return self.scopes[-1] if self.scopes else None

    @property
    def name(self) -> str:
        """The names of the class and of the functions in it, with dots."""
        found = [] if self.owner is None else [self.owner.name]
        found += [getattr(scope, "name", "<lambda>") for scope in self.scopes]
        return ".".join(found)


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


class _Found(NamedTuple):
    node: ast.expr
    call: Optional[ast.Call]
    given_to: Optional[ast.Call]
    place: Place


class _Class(NamedTuple):
    path: str
    node: ast.ClassDef


class _File:
    """What is needed of one source file."""

    def __init__(self, tree: ast.Module) -> None:
        self.tree = tree
        #: By the last name, what may be a use of a function.
        self.found: Dict[str, List[_Found]] = {}
        self.functions: Dict[Function, Place] = {}
        #: By name in this file, the module and the name in it, which is empty for a module. That
        #: of a module relative to this one begins with dots.
        self.imported: Dict[str, Tuple[str, str]] = {}
        self.imports_all: Set[str] = set()
        self._collect(tree, Place(), None)

    def _collect(self, node: ast.AST, place: Place, given_to: Optional[ast.Call]) -> None:
        if isinstance(node, ast.Import):
            for alias in node.names:
                top = alias.name.partition(".")[0]
                self.imported[alias.asname or top] = alias.name if alias.asname else top, ""
        elif isinstance(node, ast.ImportFrom):
            module = "." * node.level + (node.module or "")
            for alias in node.names:
                if alias.name == "*":
                    self.imports_all.add(module)
                else:
                    self.imported[alias.asname or alias.name] = module, alias.name
        elif isinstance(node, ast.ClassDef):
            for child in (*node.bases, *node.decorator_list, *node.keywords):
                self._collect(child, place, None)
            for statement in node.body:
                self._collect(statement, Place(place.scopes, node), None)
            return
        elif isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            self.functions[node] = place
            for child in (*node.decorator_list, node.args):
                self._collect(child, place, None)
            for statement in node.body:
                self._collect(statement, Place((*place.scopes, node), place.owner), None)
            return
        elif isinstance(node, ast.Lambda):
            place = Place((*place.scopes, node), place.owner)
        elif isinstance(node, ast.GeneratorExp):
            first = node.generators[0].iter
            self._collect(first, place, None)
            place = Place((*place.scopes, node), place.owner)
            for child in (node.elt, *node.generators[0].ifs, *node.generators[1:]):
                self._collect(child, place, None)
            return
        elif isinstance(node, ast.Call):
            name = name_of(node.func)
            if name:
                self.found.setdefault(name, []).append(_Found(node.func, node, None, place))
            if isinstance(node.func, ast.Attribute):
                self._collect(node.func.value, place, None)
            elif isinstance(node.func, ast.Call) and name_of(node.func.func) in PARTIALS:
                for argument in node.func.args[:1]:
                    found = _Found(argument, node, None, place)
                    self.found.setdefault(name_of(argument), []).append(found)
                for argument in [*node.func.args[1:], *(each.value for each in node.func.keywords)]:
                    self._collect(argument, place, None)
            elif not isinstance(node.func, ast.Name):
                self._collect(node.func, place, None)
            # What a partial is given to, it passes its function on to.
            taker = given_to if name in PARTIALS and given_to is not None else node
            for argument in node.args:
                self._collect(argument, place, taker)
            for keyword in node.keywords:
                self._collect(keyword.value, place, taker)
            return
        elif isinstance(node, (ast.Name, ast.Attribute)) and isinstance(node.ctx, ast.Load):
            found = _Found(node, None, given_to, place)
            self.found.setdefault(name_of(node), []).append(found)
        for child in ast.iter_child_nodes(node):
            self._collect(child, place, None)


class Uses:
    """Finds uses in files, which are named by their real paths."""

    def __init__(self, sources: Sources, paths: Sequence[str]) -> None:
        self._sources = sources
        self._modules = Modules(paths)
        #: Those that were parsed.
        self._files: Dict[str, _File] = {}
        #: By word, the files that have it. To parse one takes ten times as long as to read it, and
        #: many times its size in memory: only those are that have the name of what is asked for.
        self._having: Dict[str, List[str]] = {}
        #: By the name of a class, the files that have one.
        self._defining: Dict[str, List[str]] = {}
        #: Those of the files that were parsed, by name.
        self._classes: Dict[str, List[_Class]] = {}
        self._lineages: Dict[_Class, Set[_Class]] = {}
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

    def _read(self, names: Iterable[str]) -> None:
        """Parse what has one of the names."""
        for name in names:
            self._parse(self._having.pop(name, ()))

    def _parse(self, paths: Iterable[str]) -> None:
        for path in paths:
            tree = None if path in self._files else self._sources.tree(path)
            if tree is not None:
                try:
                    self._files[path] = _File(tree)
                except RecursionError as error:
                    self._sources.reject(path, error)
                    continue
                for node in ast.walk(tree):
                    if isinstance(node, ast.ClassDef):
                        self._classes.setdefault(node.name, []).append(_Class(path, node))

    def of(self, path: str, function: Function) -> Iterator[Use]:
        """The uses of the function that is defined by a node in a file."""
        self._read([function.name])
        home = real(path)
        if home not in self._files:
            return
        around = self._place(home, function)
        for other, file in sorted(self._files.items()):
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
        for found in (each for name in names for each in self._files[use.file].found.get(name, ())):
            if isinstance(found.node, ast.Name) and found.place.scopes[:depth] == use.place.scopes:
                yield Use(use.file, *found, use.certain)

    def overrides(self, path: str, function: Function) -> Iterator[Tuple[str, str, Function]]:
        """The methods that are called in the place of one: file, class, definition."""
        self._read([function.name])
        around = self._place(real(path), function)
        if not _is_method(function, around) or around.owner is None:
            return
        own = _Class(real(path), around.owner)
        for each in [each for named in self._classes.values() for each in named]:
            methods = [
                node
                for node in each.node.body
                if isinstance(node, ast.FunctionDef) and node.name == function.name
            ]
            if methods and each != own and self._lineage(each) & self._lineage(own):
                yield from ((each.path, each.node.name, method) for method in methods)

    def decorated(self, path: str, function: Function) -> Iterator[Tuple[str, Function]]:
        """The functions that one is put in the place of, since it is what a decorator returns."""
        self._read([function.name])
        around = self._place(real(path), function)
        names = {each.name for each in around.scopes if isinstance(each, ast.FunctionDef)}
        self._read(names)
        for file, content in self._files.items() if names else ():
            for node in content.functions:
                for decorator in node.decorator_list:
                    called = decorator.func if isinstance(decorator, ast.Call) else decorator
                    if name_of(called) in names:
                        yield file, node

    def _place(self, path: str, function: Function) -> Place:
        file = self._files.get(path)
        return Place() if file is None else file.functions.get(function, Place())

    def _is_of_class(self, home: str, path: str, found: _Found, around: Place) -> Optional[bool]:
        """Whether it is certain that a use is that of a class's method; None if it is not."""
        owner = around.owner
        if isinstance(found.node, ast.Name):
            # In the body of the class it goes by its bare name.
            return True if found.place == around else None
        if not isinstance(found.node, ast.Attribute) or owner is None:
            return None
        file = self._files[path]
        value = found.node.value
        made = self._class_of(file, value, found.place)
        if made is not None:
            lineages = [self._lineage(each) for each in self._meant(path, made)]
            own = self._lineage(_Class(home, owner))
            return True if any(lineage & own for lineage in lineages) else None
        if isinstance(value, ast.Name) and value.id in file.imported:
            _, name = file.imported[value.id]
            return name == owner.name if name else None
        # What is only passed on by a name is too often something else: x.get = 1.
        return False if found.call is not None else None

    def _is_of_module(
        self, home: str, path: str, found: _Found, function: Function, around: Place
    ) -> Optional[bool]:
        """Whether it is certain that a use is that of a function; None if it is not one."""
        if around.scopes:
            # A function within a function has its name in there.
            is_inside = found.place.scopes[: len(around.scopes)] == around.scopes
            return True if is_inside and isinstance(found.node, ast.Name) else None
        file = self._files[path]
        if isinstance(found.node, ast.Name):
            if path == home:
                return None if _hides(found.place, function) else True
            if found.node.id in file.imported:
                module, name = file.imported[found.node.id]
                return self._has(home, path, module, function) if name == function.name else None
            modules = [self._modules.find(path, each) for each in file.imports_all]
            return False if any(home in each for each in modules) else None
        if path == home or not isinstance(found.node, ast.Attribute):
            return None
        if _is_imported(file, found.node.value):
            return self._has(home, path, _module(file, found.node.value), function)
        # It may have been imported by its name in a string, or be passed.
        is_named = name_of(found.node.value) in (home.split(os.sep)[-2], _stem(home))
        return False if is_named else None

    def _has(self, home: str, path: str, module: str, function: Function) -> Optional[bool]:
        """Whether it is certain that a module, as a file imports it, has a function of another.

        None if it has not.
        """
        modules = self._modules.find(path, module)
        if home in modules:
            return len(modules) == 1
        for each in modules:
            file = self._files.get(each)
            if file is not None and (function.name in file.imported or file.imports_all):
                return False  # It may have it from there.
        return None

    def _class_of(self, file: _File, value: ast.expr, place: Place) -> Optional[str]:
        """The name of the class that an expression is of; None if that cannot be seen."""
        if isinstance(value, _LITERALS):
            return _FOREIGN
        if isinstance(value, ast.Call):
            name = name_of(value.func)
            if name == "super" and place.owner is not None:
                return place.owner.name
            return name if name in self._defining else None
        if isinstance(value, ast.Name):
            if value.id in ("self", "cls") and place.owner is not None:
                return place.owner.name
            if value.id in self._defining:
                return value.id
            scopes: List[ast.AST] = [*reversed(place.scopes), file.tree]
            for scope in scopes:
                found = self._bound(scope, value.id)
                if found is not None:
                    return found
        elif isinstance(value, ast.Attribute) and name_of(value.value) == "self":
            return self._attribute(value.attr, place.owner)
        return None

    def _bound(self, scope: ast.AST, name: str) -> Optional[str]:
        if isinstance(scope, (ast.FunctionDef, ast.AsyncFunctionDef)):
            for argument in (*scope.args.args, *scope.args.kwonlyargs):
                if argument.arg == name and argument.annotation is not None:
                    return self._annotated(argument.annotation)
        for node in own_nodes(scope):
            if isinstance(node, ast.Assign):
                if any(isinstance(each, ast.Name) and each.id == name for each in node.targets):
                    return self._made(node.value)
            elif isinstance(node, ast.AnnAssign):
                if name_of(node.target) == name:
                    return self._annotated(node.annotation)
            elif isinstance(node, ast.withitem) and node.optional_vars is not None:
                if name_of(node.optional_vars) != name:
                    continue
                return self._made(node.context_expr)
        return None

    def _attribute(self, name: str, owner: Optional[ast.ClassDef]) -> Optional[str]:
        for node in owner.body if owner is not None else ():
            if isinstance(node, ast.AnnAssign) and name_of(node.target) == name:
                return self._annotated(node.annotation)
            if not isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
                continue
            for each in own_nodes(node):
                if not isinstance(each, (ast.Assign, ast.AnnAssign)):
                    continue
                targets = each.targets if isinstance(each, ast.Assign) else [each.target]
                if not any(
                    isinstance(target, ast.Attribute)
                    and target.attr == name
                    and name_of(target.value) == "self"
                    for target in targets
                ):
                    continue
                if isinstance(each, ast.AnnAssign):
                    return self._annotated(each.annotation)
                if isinstance(each.value, ast.Name):
                    return self._bound(node, each.value.id)
                return self._made(each.value)
        return None

    def _made(self, value: ast.expr) -> Optional[str]:
        if isinstance(value, _LITERALS):
            return _FOREIGN
        name = name_of(value.func) if isinstance(value, ast.Call) else ""
        return name if name in self._defining else None

    def _annotated(self, annotation: ast.expr) -> Optional[str]:
        if isinstance(annotation, ast.Constant) and isinstance(annotation.value, str):
            name = annotation.value.rpartition(".")[2]
        else:
            name = name_of(annotation)
        return name if name in self._defining else None

    def _meant(self, path: str, name: str, module: str = "") -> List[_Class]:
        """What a file may mean by the name of a class, of a module that it imports or its own."""
        self._parse(self._defining.get(name, ()))
        file = self._files.get(path)
        found = self._classes.get(name, [])
        here = [each for each in found if each.path == path]
        if not module:
            if here:
                return here
            if file is None or name not in file.imported:
                return found
            module, name = file.imported[name]
        if not name:
            return []
        self._parse(self._defining.get(name, ()))
        found = self._classes.get(name, [])
        modules = self._modules.find(path, module)
        there = [each for each in found if each.path in modules]
        # A module can have it from another one.
        return there or (found if modules else [])

    def _lineage(self, own: _Class) -> Set[_Class]:
        """A class and those of the project that it is derived from."""
        if own not in self._lineages:
            found: Set[_Class] = set()
            waiting = [own]
            while waiting:
                each = waiting.pop()
                if each in found:
                    continue
                found.add(each)
                file = self._files[each.path]
                for base in each.node.bases:
                    module = ""
                    if isinstance(base, ast.Attribute) and _is_imported(file, base.value):
                        module = _module(file, base.value)
                    waiting += self._meant(each.path, name_of(base), module)
            self._lineages[own] = found
        return self._lineages[own]


def _text(path: str) -> str:
    content = io.BytesIO(read_source(path))
    encoding, _ = tokenize.detect_encoding(content.readline)
    content.seek(0)
    return io.TextIOWrapper(content, encoding).read()


def _is_method(function: Function, around: Place) -> bool:
    return around.owner is not None and function in around.owner.body


def is_partial(use: Use) -> bool:
    """Whether a use makes a partial of the function."""
    made = use.given_to
    return made is not None and name_of(made.func) in PARTIALS and made.args[:1] == [use.node]


def _is_imported(file: _File, value: ast.expr) -> bool:
    """Whether an expression is a module, or something in one."""
    while isinstance(value, ast.Attribute):
        value = value.value
    return isinstance(value, ast.Name) and value.id in file.imported


def _module(file: _File, value: ast.expr) -> str:
    """The name of an imported module that an expression is."""
    if isinstance(value, ast.Attribute):
        return f"{_module(file, value.value)}.{value.attr}"
    assert isinstance(value, ast.Name)
    module, name = file.imported[value.id]
    return module + name if module.endswith(".") else f"{module}.{name}" if name else module


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
