"""The functions of a step -> what to change in which line, and what would break.

The calls of the trace are known. Others are found in the sources: where these do not settle which
function is meant, the edit says that it is a guess.
"""

from __future__ import annotations

import ast
from dataclasses import dataclass
from typing import Dict, List, Optional, Sequence, Set, Tuple

from .classify import Classifier
from .project import Project
from .source_file import Place
from .sources import RUN_SYNC, Frame, Function, Sources, name_of, own_nodes, real
from .uses import Use, Uses, is_partial

DEF = "def"
AWAIT = "await"
UNWRAP = "unwrap"
WRAP = "wrap"
PORTAL = "portal"
BREAKS = "breaks"

_BRIDGE = "await_"
_UNWRAPPED = "await_(...) becomes await ..."
_ADAPTERS = {
    "async_context": "with async_context(...) becomes async with ...",
    "async_iter": "for ... in async_iter(...) becomes async for ... in ...",
}

Key = Tuple[str, str]


@dataclass(frozen=True)
class Edit:
    """One change of one line.

    Attributes:
        kind: ``"def"``, ``"await"``, ``"unwrap"`` (``await_(x)`` becomes ``await x``), ``"wrap"``
            (a caller that stays sync has to write ``await_(f())``, or ``autoawait(f)`` where it
            passes it on), ``"portal"`` (of the function that opens one), or ``"breaks"`` (a caller
            outside the trace would get a coroutine in place of its result).
        what: What to do, in words.
        certain: Whether it follows from the trace or from a name that can mean nothing else.
        column: Where the expression or the ``def`` begins; -1, as the rest, if it was not found.
        end_line: Where it ends.
    """

    file: str
    line: int
    kind: str
    what: str
    certain: bool = True
    column: int = -1
    end_line: int = -1
    end_column: int = -1


class Editor:
    """Finds the edits of one step after another; an edit of an earlier step is not repeated."""

    def __init__(
        self,
        sources: Sources,
        project: Project,
        classifier: Classifier,
        uses: Uses,
        chains: Sequence[Tuple[Frame, ...]],
    ) -> None:
        self._sources = sources
        self._project = project
        self._classifier = classifier
        self._uses = uses
        #: By the key of each of the two functions of a call, caller and callee; without a callee
        #: where the call is one of ``await_``.
        self._edges: Dict[Key, Set[Tuple[Frame, Optional[Frame]]]] = {}
        for chain in chains:
            for frame, callee in zip(chain, (*chain[1:], None)):
                for each in (frame, callee):
                    if each is not None:
                        self._edges.setdefault(each.key, set()).add((frame, callee))
        #: Where the functions begin that are async by now: file and line.
        self._async: Set[Tuple[str, int]] = set()
        #: Calls in functions that are still sync, of functions that are async by now.
        self._broken: List[Tuple[Use, str]] = []
        #: Calls that an earlier step has put into ``await_``.
        self._wrapped: Set[ast.AST] = set()
        self._said: Set[Tuple[object, ...]] = set()

    def edits(
        self, functions: Sequence[Frame], done: Set[Key], sites: Sequence[Frame]
    ) -> Tuple[List[Edit], List[Edit]]:
        """The edits that make *functions* async, and the callers that would break.

        Args:
            functions: Those of the step.
            done: The keys of all functions that are async after it.
            sites: Calls of ``await_`` in functions that are async already.
        """
        edits = [edit for site in sites for edit in self._unwrapped_at(site)]
        for function in functions:
            edits += self._definition(function)
        others = [other for each in functions for other in self._dragged_along(each, edits)]
        seen: Set[ast.AST] = set()
        new = {function.key for function in functions}
        for frame, callee in sorted(
            {edge for key in new for edge in self._edges.get(key, ())}, key=repr
        ):
            if callee is None:
                if frame.key in new and not self._has_bridges(frame):
                    edits += self._unwrapped_at(frame)
            elif callee.key in done:
                edits += self._edge(frame, callee, done, seen)
        breaks: List[Edit] = []
        for use, name in self._broken:
            if self._is_async(use.file, use.place):
                self._wrapped.add(use.node if use.call is None else use.call)
                edits.append(self._awaited(use, name))
        for function in functions:
            node = self._sources.definition(function)
            if node is not None:
                is_decorator = bool(self._other_names(function))
                for use in self._uses.of(function.file, node):
                    is_returned = is_decorator and use.call is None
                    if use.node not in seen and use.call not in seen and not is_returned:
                        self._used(use, name_of(use.node), edits, breaks)
        for file, node in others:
            for use in self._uses.of(file, node):
                if use.node not in seen and use.call not in seen:
                    self._used(use, name_of(use.node), edits, breaks)
        return self._new(edits), self._new(breaks)

    def _definition(self, function: Frame) -> List[Edit]:
        node = self._sources.definition(function)
        if node is None:
            what = f"async def {function.name}, around this line"
            return [Edit(real(function.file), function.line, DEF, what)]
        file = real(function.file)
        edits: List[Edit] = []
        if (file, node.lineno) not in self._async:
            self._async.add((file, node.lineno))
            edits.append(_at(file, node, DEF, f"async def {function.name}"))
        for each in own_nodes(node):
            if isinstance(each, ast.Call):
                name = name_of(each.func)
                if name == _BRIDGE:
                    edits.append(_at(file, each, UNWRAP, _UNWRAPPED))
                elif name in _ADAPTERS:
                    edits.append(Edit(file, each.lineno, UNWRAP, _ADAPTERS[name]))
        return edits

    def _has_bridges(self, frame: Frame) -> bool:
        node = self._sources.definition(frame)
        return node is not None and any(
            isinstance(each, ast.Call) and name_of(each.func) in (_BRIDGE, *_ADAPTERS)
            for each in own_nodes(node)
        )

    def _unwrapped_at(self, site: Frame) -> List[Edit]:
        file = real(site.file)
        calls = self._sources.calls(site)
        found = [
            _at(file, call, UNWRAP, _UNWRAPPED) for call in calls if name_of(call.func) == _BRIDGE
        ]
        found += [
            Edit(file, call.lineno, UNWRAP, _ADAPTERS[name_of(call.func)])
            for call in calls
            if name_of(call.func) in _ADAPTERS
        ]
        if not found:
            known = self._sources.tree(file) is not None
            what = "await the async function that this line bridges to" if known else _UNWRAPPED
            found = [Edit(file, site.line, UNWRAP, what)]
        return found

    def _edge(self, frame: Frame, callee: Frame, done: Set[Key], seen: Set[ast.AST]) -> List[Edit]:
        """The edits of a call of the trace, whose callee is async now."""
        file = real(frame.file)
        if not self._project.is_own(frame.file):
            return self._called_by_others(frame, callee)
        if self._classifier.is_callback(frame, callee):
            passed = self._sources.passed_on(frame, callee)
            what = f"autoawait({callee.name}) in place of {callee.name}, for now"
            if passed is None or passed[1] is None:
                return [Edit(file, frame.line, WRAP, what)]
            seen.add(passed[1])
            return [_at(file, passed[1], WRAP, what)]
        calls = self._sources.calls_of(frame, callee, self._names_in(frame, callee))
        is_async = frame.key in done
        edits: List[Edit] = []
        for call in calls:
            seen.update(ast.walk(call.func))
            seen.add(call)
            name = name_of(call.func) or callee.name
            if not is_async:
                self._wrapped.add(call)
                edits.append(_at(file, call, WRAP, f"await_({name}(...)) for now"))
                continue
            what = f"await {name}(...)"
            if call in self._wrapped:
                what = f"await_({name}(...)) becomes {what}"
            others = self._sync_callees(frame, call, done)
            if others:
                what += f" if it is awaitable: {', '.join(others)} is called here, and sync still"
            edits.append(_at(file, call, AWAIT, what))
        if not calls:
            what = (
                f"await {callee.name}(...)" if is_async else f"await_({callee.name}(...)) for now"
            )
            edits.append(Edit(file, frame.line, AWAIT if is_async else WRAP, what))
        return edits

    def _called_by_others(self, frame: Frame, callee: Frame) -> List[Edit]:
        node = self._sources.definition(callee)
        if node is None:
            return []
        if any(use.call is None for use in self._uses.of(callee.file, node)):
            return []  # it is passed on to them, which is said where that is done
        what = f"{frame.function} calls {callee.name}: keep a sync one for it, which bridges"
        return [_at(real(callee.file), node, WRAP, what)]

    def _other_names(self, callee: Frame) -> List[str]:
        """What a function is called that a decorator returns."""
        node = self._sources.definition(callee)
        if node is None:
            return []
        return [decorated.name for _, decorated in self._uses.decorated(callee.file, node)]

    def _names_in(self, frame: Frame, callee: Frame) -> List[str]:
        """What a function is called in another one besides its name."""
        node, scope = self._sources.definition(callee), self._sources.definition(frame)
        names = self._other_names(callee)
        if node is not None and scope is not None:
            for use in self._uses.of(callee.file, node):
                if use.call is not None and use.place.scope is scope:
                    names.append(name_of(use.node))
        return names

    def _sync_callees(self, frame: Frame, call: ast.Call, done: Set[Key]) -> List[str]:
        return sorted(
            {
                other.name
                for at, other in self._edges.get(frame.key, ())
                if other is not None
                and at.key == frame.key
                and at.line == frame.line
                and other.key not in done
                and call in self._sources.calls_of(at, other, self._other_names(other))
            }
        )

    def _used(self, use: Use, name: str, edits: List[Edit], breaks: List[Edit]) -> None:
        """The edit of a use that the trace has not been at."""
        if use.call is None:
            given_to = "" if use.given_to is None else name_of(use.given_to.func)
            if given_to == RUN_SYNC and use.given_to is not None:
                what = f"{RUN_SYNC}({name}, ...) becomes with_portal_run({name}, ...)"
                edits.append(_at(use.file, use.given_to.func, PORTAL, what))
            else:
                where = _where(use.place)
                if use.given_to is None:
                    what = f"{where} has {name} without a call: await where it is called"
                elif is_partial(use):
                    what = f"{where} makes a partial of {name}: await where it is called"
                else:
                    what = f"{where} passes {name} on: autoawait({name}), for now"
                breaks.append(_at(use.file, use.node, BREAKS, what, use.certain))
        elif self._is_async(use.file, use.place):
            edits.append(self._awaited(use, name))
        else:
            self._broken.append((use, name))
            what = f"{_where(use.place)} calls {name} and stays sync"
            breaks.append(_at(use.file, use.call, BREAKS, what, use.certain))

    def _awaited(self, use: Use, name: str) -> Edit:
        return _at(use.file, use.call or use.node, AWAIT, f"await {name}(...)", use.certain)

    def _dragged_along(self, function: Frame, edits: List[Edit]) -> List[Tuple[str, Function]]:
        """Make async what is used in the same way as a function that is so now.

        Returns:
            The file and the definition of what has other callers than the function itself.
        """
        node = self._sources.definition(function)
        if node is None:
            return []
        for file, owner, method in self._uses.overrides(function.file, node):
            if (file, method.lineno) not in self._async:
                self._async.add((file, method.lineno))
                what = f"async def {method.name}, since {owner}.{method.name} is called like it"
                edits.append(_at(file, method, DEF, what))
        found = []
        for file, decorated in self._uses.decorated(function.file, node):
            if (file, decorated.lineno) not in self._async:
                self._async.add((file, decorated.lineno))
                what = f"async def {decorated.name}, since {node.name} awaits it now"
                edits.append(_at(file, decorated, DEF, what))
                found.append((file, decorated))
        return found

    def _is_async(self, file: str, place: Place) -> bool:
        scope = place.scope
        return isinstance(scope, ast.AsyncFunctionDef) or (
            isinstance(scope, ast.FunctionDef) and (file, scope.lineno) in self._async
        )

    def _new(self, edits: List[Edit]) -> List[Edit]:
        found: List[Edit] = []
        for edit in sorted(edits, key=lambda each: (each.file, each.line, each.kind, each.column)):
            key = edit.file, edit.line, edit.column, edit.kind, edit.what
            if key not in self._said:
                self._said.add(key)
                found.append(edit)
        return found


def _at(file: str, node: ast.AST, kind: str, what: str, certain: bool = True) -> Edit:
    assert isinstance(node, (ast.expr, ast.stmt))
    return Edit(
        file,
        node.lineno,
        kind,
        what,
        certain,
        node.col_offset,
        node.end_lineno or node.lineno,
        node.end_col_offset or node.col_offset,
    )


def _where(place: Place) -> str:
    scope = place.scope
    if scope is None:
        return "the module" if place.owner is None else f"the body of {place.owner.name}"
    if isinstance(scope, ast.GeneratorExp):
        return "a generator expression"
    return "a lambda" if isinstance(scope, ast.Lambda) else scope.name
