"""A sync chain -> whether its functions can become async, and if not, what is in the way.

Names and paths come from the trace. What they do not tell (a decorator, a generator, a function
that is passed to C code) comes from the sources, where they are at hand.
"""

from __future__ import annotations

import ast
import builtins
import os
import re
import sysconfig
from dataclasses import dataclass, replace
from functools import lru_cache
from importlib import metadata
from typing import Dict, List, Optional, Sequence, Tuple, Union

from .._sites import CHAIN_LIMIT

AWAIT = "await"
CONVERTIBLE = "convertible"
THIRD_PARTY = "third party"
CONSTRUCT = "construct"
UNKNOWN = "unknown"

Function = Union[ast.FunctionDef, ast.AsyncFunctionDef]
Definition = Union[ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef]

_FRAME = re.compile(r"(?P<function>.*) \((?P<file>.*):(?P<line>\d+)\)", re.DOTALL)
_PACKAGES = re.compile(r"[\\/](?:site|dist)-packages[\\/](?P<inside>.*)", re.DOTALL)
_STDLIB = re.compile(r"[\\/]lib(?:64)?[\\/](?:python|pypy)3\.\d+[\\/]", re.IGNORECASE)
#: Before Python 3.12 a comprehension had a frame of its own.
_COMPREHENSIONS = ("<listcomp>", "<setcomp>", "<dictcomp>")

#: On PyPy a partial has a frame. It returns what it has called, so that one can await that.
_PARTIAL = re.compile(r"functools\.(partial\.)?__call__")

_COMPARISON = "give the objects a key that is awaited before they are compared"
_ITERATION = "iterate with async for: __aiter__ and __anext__, or an async generator"
_METHOD = "add an async method and await that instead of the operator"
_ATTRIBUTE = "replace the attribute by an async method: await obj.load_name()"
_CONTEXT = "use async with: __aenter__ and __aexit__"
_CONVERSION = "await the value first, and keep it in an attribute"
#: Methods that the interpreter calls itself, and takes what they return as it is.
_PROTOCOLS: Dict[str, Tuple[str, str]] = {
    **dict.fromkeys(
        ("__init__", "__new__", "__post_init__", "__init_subclass__"),
        ("construction", "await in an async classmethod that builds the object: await C.create()"),
    ),
    **dict.fromkeys(
        ("__getattr__", "__getattribute__", "__setattr__", "__delattr__"),
        ("attribute access", _ATTRIBUTE),
    ),
    **dict.fromkeys(("__get__", "__set__", "__delete__"), ("descriptor", _ATTRIBUTE)),
    **dict.fromkeys(
        ("__eq__", "__ne__", "__lt__", "__le__", "__gt__", "__ge__", "__hash__"),
        ("comparison", _COMPARISON),
    ),
    **dict.fromkeys(
        ("__iter__", "__next__", "__reversed__", "__length_hint__"),
        ("iterator protocol", _ITERATION),
    ),
    **dict.fromkeys(("__enter__", "__exit__"), ("with statement", _CONTEXT)),
    **dict.fromkeys(
        ("__str__", "__repr__", "__format__", "__bytes__", "__bool__", "__int__", "__float__",
         "__index__", "__complex__"),
        ("conversion", _CONVERSION),
    ),
    "__len__": ("len()", "add an async method: await obj.count()"),
    **dict.fromkeys(
        ("__getitem__", "__setitem__", "__delitem__", "__contains__", "__missing__"),
        ("container protocol", "add an async method: await obj.get(key)"),
    ),
    "__aiter__": ("iterator protocol", "await in __anext__, which is async, or be a generator"),
    "__del__": ("finalizer", "close explicitly: async with, or await obj.aclose()"),
}  # fmt: skip
_DECORATORS: Dict[str, Tuple[str, str]] = {
    **dict.fromkeys(
        ("property", "cached_property", "setter", "deleter", "getter"), ("property", _ATTRIBUTE)
    ),
    **dict.fromkeys(
        ("cache", "lru_cache"), ("cache", "it would keep a coroutine: keep the result instead")
    ),
    "contextmanager": ("context manager", "use @asynccontextmanager and async with"),
    **dict.fromkeys(
        ("singledispatch", "singledispatchmethod"),
        ("dispatch", "dispatch on the type first, and await the result"),
    ),
}
_CALLBACK = "await first, and pass the results: keys = [await key(x) for x in xs]"
_IMPORT = "call it from an async main(), not at import"
#: What is written in C and calls what it is passed. The builtin functions do so, too.
_CALLS_BACK = ("reduce", "sort", "accumulate", "groupby", "starmap", "takewhile", "dropwhile")
_STANDARD_LIBRARY = "the standard library"
_TRANSPARENT = ("partial", "partialmethod")


@dataclass(frozen=True)
class Frame:
    """One function of a sync chain, and the line of the call in it.

    ``file`` is empty and ``line`` 0 where the trace does not tell.
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


@dataclass(frozen=True)
class Verdict:
    """What becomes of a chain.

    Attributes:
        kind: `AWAIT`, `CONVERTIBLE`, `THIRD_PARTY`, `CONSTRUCT` or `UNKNOWN`.
        frame: What is in the way, if anything is.
        by: Its distribution, or the construct.
        idiom: What to write instead.
        stops: How many functions of the chain, from the outside, at least stay above a bridge,
            even if all that can be async are.
    """

    kind: str
    frame: Optional[Frame] = None
    by: str = ""
    idiom: str = ""
    stops: int = 0


def frames_of(chain: Sequence[str]) -> Tuple[Frame, ...]:
    """The functions of a chain as the file has it, outermost first."""
    frames: List[Frame] = []
    for each in chain:
        match = _FRAME.fullmatch(each)
        if match is None:
            frames.append(Frame(each, "", 0))
            continue
        frame = Frame(match["function"], match["file"], int(match["line"]))
        if frame.name in _COMPREHENSIONS:
            # Its function awaits in its place. One that begins the chain is in an async function.
            if frames:
                frames[-1] = Frame(frames[-1].function, frames[-1].file, frame.line)
        elif not _PARTIAL.fullmatch(frame.function):
            frames.append(frame)
    return tuple(frames)


class Sources:
    """The sources that the chains are from, as far as they can be read and parsed."""

    def __init__(self) -> None:
        self._trees: Dict[str, Optional[ast.Module]] = {}
        self._definitions: Dict[Frame, Optional[Function]] = {}
        self._defined: Dict[str, List[Definition]] = {}
        self._calls: Dict[Optional[ast.AST], List[ast.Call]] = {}

    def tree(self, file: str) -> Optional[ast.Module]:
        # One tree for a file, by whichever path: nodes are compared by identity.
        file = real(file)
        if file not in self._trees:
            try:
                with open(file, "rb") as source:
                    self._trees[file] = ast.parse(source.read(), file)
            except (OSError, SyntaxError, ValueError):
                self._trees[file] = None
        return self._trees[file]

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
            if name_of(call.func) in _TRANSPARENT:
                continue
            for argument in [*call.args, *(keyword.value for keyword in call.keywords)]:
                is_lambda = callee.name == "<lambda>" and isinstance(argument, ast.Lambda)
                if is_lambda or name_of(argument) == callee.name:
                    return name_of(call.func), argument
        if any(not _is_of_c(call) for call in calls):
            return None
        through = [name_of(call.func) for call in calls if name_of(call.func) not in _TRANSPARENT]
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
        and name_of(node.func) in _TRANSPARENT
        and bool(node.args)
        and name_of(node.args[0]) == name
    )


def _is_of_c(call: ast.Call) -> bool:
    """Whether a call is one of a function in C that may call what it is passed."""
    name = name_of(call.func)
    if name in _TRANSPARENT or name in _CALLS_BACK:
        return True
    return isinstance(call.func, ast.Name) and hasattr(builtins, name)


class Classifier:
    """Sorts chains by what can be done about them.

    Args:
        roots: The directories or files of the user's own code. Without any, it is what is neither
            in site-packages nor of the standard library.
    """

    def __init__(self, roots: Sequence[str], sources: Sources) -> None:
        self._roots = [os.path.realpath(root) for root in roots]
        self._sources = sources
        self._distributions: Optional[Dict[str, str]] = None
        self._stdlib = os.path.realpath(sysconfig.get_paths()["stdlib"]) + os.sep

    def is_own(self, file: str) -> bool:
        """Whether a file is one that the user can change."""
        if not file or file.startswith("<"):
            return False
        path = real(file)
        if self._roots:
            return any(path == root or path.startswith(root + os.sep) for root in self._roots)
        return _PACKAGES.search(path) is None and not self._is_stdlib(path)

    def classify(self, frames: Tuple[Frame, ...]) -> Verdict:
        """What becomes of a chain: the first thing in the way, seen from the outside."""
        if not frames:
            return Verdict(AWAIT, idiom="its caller is async: write await in place of await_")
        first: Optional[Verdict] = None
        stops = 0
        for place, (frame, callee) in enumerate(zip(frames, (*frames[1:], None)), 1):
            verdict = self._in_the_way(frame, callee)
            if verdict is not None:
                first = first or verdict
                stops = place
        if first is not None:
            return replace(first, stops=stops)
        if len(frames) >= CHAIN_LIMIT:
            return Verdict(
                UNKNOWN,
                frames[0],
                f"{CHAIN_LIMIT} functions deep",
                "the trace does not have its outer callers: look at them in the sources",
                stops=1,
            )
        return Verdict(CONVERTIBLE)

    def _in_the_way(self, frame: Frame, callee: Optional[Frame]) -> Optional[Verdict]:
        if not frame.file:
            return Verdict(
                UNKNOWN, frame, "not kept", "trace again with a larger GREENBACK_TRACE_SITES"
            )
        if self.is_own(frame.file):
            found = self._construct(frame) or self._callback(frame, callee)
            return None if found is None else Verdict(CONSTRUCT, frame, *found)
        if frame.file.startswith("<frozen importlib"):
            return Verdict(CONSTRUCT, frame, "import", _IMPORT)
        # Such as the __init__ of a dataclass.
        found = _protocol(frame.name) if frame.file.startswith("<") else None
        if found is not None:
            return Verdict(CONSTRUCT, frame, *found)
        by = self._distribution(frame)
        if by == _STANDARD_LIBRARY and frame.name in _CALLS_BACK:  # on PyPy, reduce() for one
            return Verdict(CONSTRUCT, frame, f"C callback ({frame.name})", _CALLBACK)
        # A decorator or a base class of the standard library's: the callee says more.
        is_between = by == _STANDARD_LIBRARY and callee is not None and self.is_own(callee.file)
        if is_between and callee is not None and self._construct(callee) is not None:
            return None
        return Verdict(
            THIRD_PARTY, frame, by, f"use an async interface of {by}, or keep the bridge"
        )

    def _construct(self, frame: Frame) -> Optional[Tuple[str, str]]:
        name = frame.name
        found = _protocol(name)
        if found is not None:
            return found
        if name == "<module>":
            return "module level", _IMPORT
        if name == "<genexpr>":
            return "generator expression", "make a list: f([await g(x) for x in xs])"
        if name == "<lambda>":
            return "lambda", "write an async def; what calls it has to await it"
        return self._in_source(frame)

    def _in_source(self, frame: Frame) -> Optional[Tuple[str, str]]:
        definition = self._sources.definition(frame)
        if definition is None:
            if self._sources.is_class(frame):
                return "class body", "await before the class statement, and use the result in it"
            return None
        for decorator in definition.decorator_list:
            called = decorator.func if isinstance(decorator, ast.Call) else decorator
            name = name_of(called)
            if name in _DECORATORS:
                construct, idiom = _DECORATORS[name]
                return f"{construct} (@{name})", idiom
        if any(isinstance(node, (ast.Yield, ast.YieldFrom)) for node in own_nodes(definition)):
            return "generator", _ITERATION
        return None

    def _callback(self, frame: Frame, callee: Optional[Frame]) -> Optional[Tuple[str, str]]:
        if callee is None:
            through = self._sources.bridges_in(frame)
            return (f"C callback ({through})", _CALLBACK) if through else None
        if not self.is_callback(frame, callee):
            return None
        found = self._sources.passed_on(frame, callee)
        return None if found is None else (f"C callback ({found[0]})", _CALLBACK)

    def is_callback(self, frame: Frame, callee: Frame) -> bool:
        """Whether a frame does not call the next one of its chain, but passes it to C code."""
        # What Python calls for an operator or an attribute has no call in the source either.
        is_called_by_python = callee.name != "<lambda>" and self._construct(callee) is not None
        return not is_called_by_python and self._sources.passed_on(frame, callee) is not None

    def _is_stdlib(self, path: str) -> bool:
        return path.startswith(self._stdlib) or _STDLIB.search(path) is not None

    def _distribution(self, frame: Frame) -> str:
        match = _PACKAGES.search(frame.file)
        path = os.path.realpath(frame.file)
        if match is None and (frame.file.startswith("<frozen") or self._is_stdlib(path)):
            return _STANDARD_LIBRARY
        inside = match["inside"] if match is not None else frame.function.replace(".", "/")
        top = re.split(r"[\\/]", inside)[0]
        if self._distributions is None:
            self._distributions = _top_levels()
        return self._distributions.get(top) or top.partition(".py")[0]


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


def _protocol(name: str) -> Optional[Tuple[str, str]]:
    if name in _PROTOCOLS:
        construct, idiom = _PROTOCOLS[name]
        return f"{construct} ({name})", idiom
    if name.startswith("__") and name.endswith("__") and name != "__call__":
        return f"operator ({name})", _METHOD
    return None


def _top_levels() -> Dict[str, str]:
    """What is directly in site-packages -> its distribution.

    ``importlib.metadata.packages_distributions`` would do it, from Python 3.10 on.
    """
    found: Dict[str, str] = {}
    for distribution in metadata.distributions():
        name = distribution.metadata["Name"]
        for file in distribution.files or ():
            found.setdefault(file.parts[0], name)
    return found
