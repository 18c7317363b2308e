"""A source file -> its functions and imports, and the names in it that may be uses of functions."""

from __future__ import annotations

import ast
from dataclasses import dataclass
from typing import Dict, List, NamedTuple, Optional, Set, Tuple, Union

from .sources import PARTIALS, Function, name_of

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


class Found(NamedTuple):
    """A name that may be a use of a function: see `uses.Use`."""

    node: ast.expr
    call: Optional[ast.Call]
    given_to: Optional[ast.Call]
    place: Place


class SourceFile:
    """What is needed of one source file."""

    def __init__(self, tree: ast.Module) -> None:
        self.tree = tree
        #: By the last name, what may be a use of a function.
        self.found: Dict[str, List[Found]] = {}
        self.functions: Dict[Function, Place] = {}
        #: By name in this file, the module and the name in it, which is empty for a module. That
        #: of a module relative to this one begins with dots.
        self.imported: Dict[str, Tuple[str, str]] = {}
        self.imports_all: Set[str] = set()
        self._collect(tree, Place(), None)

    def is_imported(self, value: ast.expr) -> bool:
        """Whether an expression is a module, or something in one."""
        while isinstance(value, ast.Attribute):
            value = value.value
        return isinstance(value, ast.Name) and value.id in self.imported

    def module_of(self, value: ast.expr) -> str:
        """The name of an imported module that an expression is."""
        if isinstance(value, ast.Attribute):
            return f"{self.module_of(value.value)}.{value.attr}"
        assert isinstance(value, ast.Name)
        module, name = self.imported[value.id]
        return module + name if module.endswith(".") else f"{module}.{name}" if name else module

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
                self.found.setdefault(name, []).append(Found(node.func, node, None, place))
            if isinstance(node.func, ast.Attribute):
                self._collect(node.func.value, place, None)
            elif isinstance(node.func, ast.Call) and name_of(node.func.func) in PARTIALS:
                for argument in node.func.args[:1]:
                    found = Found(argument, node, None, place)
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
            found = Found(node, None, given_to, place)
            self.found.setdefault(name_of(node), []).append(found)
        for child in ast.iter_child_nodes(node):
            self._collect(child, place, None)
