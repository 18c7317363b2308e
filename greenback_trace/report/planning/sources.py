"""The sync functions that a trace names -> their definitions and calls in the sources."""

from __future__ import annotations

import ast
import builtins
import errno
import os
import re
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Callable, Dict, List, Optional, Sequence, Tuple, Union

from ..read.regular import UNREADABLE, NotRegularError, read_source, why_unreadable

if TYPE_CHECKING:
    from ...count.caller import Caller

Function = Union[ast.FunctionDef, ast.AsyncFunctionDef]
Definition = Union[ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef]

#: Before Python 3.12 a comprehension had a frame of its own.
_COMPREHENSIONS = ("<listcomp>", "<setcomp>", "<dictcomp>")

#: On PyPy a partial has a frame. It returns what it has called, so that one can await that.
_PARTIAL = re.compile(r"functools\.(partial\.)?__call__")

#: What is written in C and calls what it is passed. The builtin functions do so, too.
CALLS_BACK = ("reduce", "sort", "accumulate", "groupby", "starmap", "takewhile", "dropwhile")
#: These and the builtin functions of which one can be sure, as one cannot of print(f).
CALLBACKS = (*CALLS_BACK, "sorted", "map", "filter", "max", "min", "iter", "defaultdict")
#: What calls a sync function in a portal.
RUN_SYNC = "with_portal_run_sync"
_OUTSIDE = "outside of the current project: name its directory as a root"
PARTIALS = ("partial", "partialmethod")


@dataclass(frozen=True)
class Frame:
    """A function that may become async, and the line of the call in it.

    That of a sync chain, but for what has no ``def``: see `frames_of`. ``file`` is empty and
    ``line`` 0 where the trace does not tell.
    """

    function: str
    file: str
    line: int

    @property
    def name(self) -> str:
        return self.function.rpartition(".")[2]

    @property
    def key(self) -> Tuple[str, str]:
        """What tells the function apart, whichever of its lines made the call."""
        return self.function, self.file


def frames_of(chain: Sequence[Caller]) -> Tuple[Frame, ...]:
    """The functions of a chain that have a ``def``, outermost first."""
    frames: List[Frame] = []
    for caller in chain:
        frame = Frame(caller.function, caller.file, caller.line)
        if frame.name in _COMPREHENSIONS:
            # Its function awaits in its place. One that begins the chain is in an async function.
            if frames:
                frames[-1] = Frame(frames[-1].function, frames[-1].file, frame.line)
        elif not _PARTIAL.fullmatch(frame.function):
            frames.append(frame)
    return tuple(frames)


class Sources:
    """The sources that the chains are from, as far as they can be read and parsed.

    Args:
        may_read: Says of a path whether it may be opened.

    Attributes:
        unreadable: By their real paths, why those that are here cannot be.
    """

    def __init__(self, may_read: Callable[[str], bool]) -> None:
        self._may_read = may_read
        self.unreadable: Dict[str, str] = {}
        self._trees: Dict[str, Optional[ast.Module]] = {}
        self._definitions: Dict[Frame, Optional[Function]] = {}
        self._defined: Dict[str, List[Definition]] = {}
        self._calls: Dict[Optional[ast.AST], List[ast.Call]] = {}

    def tree(self, file: str) -> Optional[ast.Module]:
        # One tree for a file, by whichever path: nodes are compared by identity.
        file = real(file)
        if file not in self._trees:
            try:
                if not self._may_read(file) and os.path.isfile(file):
                    raise NotRegularError(errno.EACCES, _OUTSIDE)
                self._trees[file] = ast.parse(read_source(file), file)
            except UNREADABLE as error:
                self.reject(file, error)
        return self._trees[file]

    def reject(self, file: str, error: BaseException) -> None:
        """Do without a file, and keep why, if it is here."""
        file = real(file)
        self._trees[file] = None
        why = why_unreadable(error)
        if why is not None:
            self.unreadable.setdefault(file, why)

    def definition(self, frame: Frame) -> Optional[Function]:
        """The ``def`` of a frame: the innermost one of its name around its line."""
        if frame not in self._definitions:
            self._definitions[frame] = self._find(frame)
        return self._definitions[frame]

    def _find(self, frame: Frame) -> Optional[Function]:
        found = self._around(frame)
        return None if isinstance(found, ast.ClassDef) else found

    def _around(self, frame: Frame) -> Optional[Definition]:
        found: Optional[Definition] = None
        for node in self._definitions_in(frame.file):
            if (
                node.name == frame.name
                and node.lineno <= frame.line <= (node.end_lineno or 0)
                and (found is None or node.lineno > found.lineno)
            ):
                found = node
        return found

    def _definitions_in(self, file: str) -> List[Definition]:
        file = real(file)
        if file not in self._defined:
            tree = self.tree(file)
            self._defined[file] = [
                node
                for node in (ast.walk(tree) if tree is not None else ())
                if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef))
            ]
        return self._defined[file]

    def is_class(self, frame: Frame) -> bool:
        """Whether a frame is that of a ``class`` statement."""
        return isinstance(self._around(frame), ast.ClassDef)

    def calls(self, frame: Frame) -> List[ast.Call]:
        """The calls of a frame around its line, the innermost first."""
        scope = self.definition(frame) or self.tree(frame.file)
        if scope not in self._calls:
            if isinstance(scope, ast.Module):
                nodes = list(ast.walk(scope))
            else:
                nodes = [] if scope is None else own_nodes(scope)
            self._calls[scope] = [node for node in nodes if isinstance(node, ast.Call)]
        found = [
            call
            for call in self._calls[scope]
            if call.lineno <= frame.line <= (call.end_lineno or 0)
        ]
        return sorted(
            found,
            key=lambda call: (
                -call.lineno,
                call.end_lineno,
                -call.col_offset,
                call.end_col_offset,
            ),
        )

    def calls_of(self, frame: Frame, callee: Frame, names: Sequence[str] = ()) -> List[ast.Call]:
        """The calls in a frame that are those of its callee.

        Args:
            names: What the callee is called besides its own name.
        """
        calls = self.calls(frame)
        found = [
            call
            for call in calls
            if name_of(call.func) in (callee.name, *names) or _is_partial(call.func, callee.name)
        ]
        if not found:
            others = [call for call in calls if not _is_of_c(call)]
            found = others if len(others) == 1 else []
        return found

    def passed_on(self, frame: Frame, callee: Frame) -> Optional[Tuple[str, Optional[ast.expr]]]:
        """What C code a frame passes its callee to, which calls it, and the argument.

        Between a frame and the next there is no Python frame. None if the frame calls the callee.
        """
        if self.tree(frame.file) is None:
            return None
        calls = self.calls(frame)
        if any(name_of(call.func) == callee.name for call in calls):
            return None
        for call in calls:
            if name_of(call.func) in PARTIALS:
                continue
            for argument in [*call.args, *(keyword.value for keyword in call.keywords)]:
                is_lambda = callee.name == "<lambda>" and isinstance(argument, ast.Lambda)
                if is_lambda or name_of(argument) == callee.name:
                    return name_of(call.func), argument
        if any(not _is_of_c(call) for call in calls):
            return None
        through = [name_of(call.func) for call in calls if name_of(call.func) not in PARTIALS]
        if through:
            return through[0], None
        return ("an iterator", None) if self._iterates(frame) else None

    def bridges_in(self, frame: Frame) -> str:
        """The function in C that a frame passes what ``autoawait`` returns to; empty if none."""
        for call in self.calls(frame):
            for argument in [*call.args, *(keyword.value for keyword in call.keywords)]:
                if isinstance(argument, ast.Call) and name_of(argument.func) == "autoawait":
                    return name_of(call.func) if _is_of_c(call) else ""
        return ""

    def _iterates(self, frame: Frame) -> bool:
        """Whether a frame takes the next item of an iterator in its line."""
        definition = self.definition(frame)
        return definition is not None and any(
            isinstance(node, (ast.For, ast.comprehension))
            and node.iter.lineno <= frame.line <= (node.iter.end_lineno or 0)
            for node in own_nodes(definition)
        )


def _is_partial(node: ast.expr, name: str) -> bool:
    return (
        isinstance(node, ast.Call)
        and name_of(node.func) in PARTIALS
        and bool(node.args)
        and name_of(node.args[0]) == name
    )


def _is_of_c(call: ast.Call) -> bool:
    """Whether a call is one of a function in C that may call what it is passed."""
    name = name_of(call.func)
    if name in PARTIALS or name in CALLS_BACK:
        return True
    return isinstance(call.func, ast.Name) and hasattr(builtins, name)


@lru_cache(maxsize=None)
def real(file: str) -> str:
    return os.path.realpath(file)


def name_of(node: ast.AST) -> str:
    """The last name of ``name`` or ``a.b.name``; empty for anything else."""
    if isinstance(node, ast.Attribute):
        return node.attr
    return node.id if isinstance(node, ast.Name) else ""


def own_nodes(function: ast.AST) -> List[ast.AST]:
    """The nodes that run in the frame of a function, without those of functions inside it."""
    found: List[ast.AST] = []
    waiting: List[ast.AST] = list(getattr(function, "body", ()))
    while waiting:
        node = waiting.pop()
        found.append(node)
        if isinstance(node, ast.GeneratorExp):
            waiting.append(node.generators[0].iter)
        elif not isinstance(
            node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda, ast.ClassDef)
        ):
            waiting += ast.iter_child_nodes(node)
    return found
