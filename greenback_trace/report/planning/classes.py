"""An expression -> the class of the user's that it is of, where the sources show it plainly."""

from __future__ import annotations

import ast
from typing import Dict, List, Optional, Set

from .parsed import Class, ParsedFiles
from .source_file import Place, SourceFile
from .sources import name_of, own_nodes

_LITERALS = (
    ast.Dict, ast.DictComp, ast.List, ast.ListComp, ast.Set, ast.SetComp, ast.Tuple, ast.Constant,
    ast.JoinedStr,
)  # fmt: skip
#: What something is that is of no class of the user's.
_FOREIGN = ""


class Classes:
    """The classes in the user's files."""

    def __init__(self, parsed: ParsedFiles) -> None:
        self._parsed = parsed
        self._lineages: Dict[Class, Set[Class]] = {}

    def class_of(self, file: SourceFile, value: ast.expr, place: Place) -> Optional[str]:
        """The name of the class that an expression is of; None if that cannot be seen."""
        if isinstance(value, _LITERALS):
            return _FOREIGN
        if isinstance(value, ast.Call):
            name = name_of(value.func)
            if name == "super" and place.owner is not None:
                return place.owner.name
            return name if self._parsed.has_class(name) else None
        if isinstance(value, ast.Name):
            if value.id in ("self", "cls") and place.owner is not None:
                return place.owner.name
            if self._parsed.has_class(value.id):
                return value.id
            scopes: List[ast.AST] = [*reversed(place.scopes), file.tree]
            for scope in scopes:
                found = self._bound(scope, value.id)
                if found is not None:
                    return found
        elif isinstance(value, ast.Attribute) and name_of(value.value) == "self":
            return self._attribute(value.attr, place.owner)
        return None

    def meant(self, path: str, name: str, module: str = "") -> List[Class]:
        """What a file may mean by the name of a class, of a module that it imports or its own."""
        self._parsed.parse_class(name)
        file = self._parsed.files.get(path)
        found = self._parsed.classes.get(name, [])
        here = [each for each in found if each.path == path]
        if not module:
            if here:
                return here
            if file is None or name not in file.imported:
                return found
            module, name = file.imported[name]
        if not name:
            return []
        self._parsed.parse_class(name)
        found = self._parsed.classes.get(name, [])
        modules = self._parsed.modules.find(path, module)
        there = [each for each in found if each.path in modules]
        # A module can have it from another one.
        return there or (found if modules else [])

    def lineage(self, own: Class) -> Set[Class]:
        """A class and those of the project that it is derived from."""
        if own not in self._lineages:
            found: Set[Class] = set()
            waiting = [own]
            while waiting:
                each = waiting.pop()
                if each in found:
                    continue
                found.add(each)
                file = self._parsed.files[each.path]
                for base in each.node.bases:
                    module = ""
                    if isinstance(base, ast.Attribute) and file.is_imported(base.value):
                        module = file.module_of(base.value)
                    waiting += self.meant(each.path, name_of(base), module)
            self._lineages[own] = found
        return self._lineages[own]

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
        return name if self._parsed.has_class(name) else None

    def _annotated(self, annotation: ast.expr) -> Optional[str]:
        if isinstance(annotation, ast.Constant) and isinstance(annotation.value, str):
            name = annotation.value.rpartition(".")[2]
        else:
            name = name_of(annotation)
        return name if self._parsed.has_class(name) else None
