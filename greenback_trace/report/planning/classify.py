"""A sync chain -> whether its functions can become async, and if not, what blocks that.

Names and paths come from the trace. Decorators, generators and functions passed to C code come from
the sources, if these are here.
"""

from __future__ import annotations

import ast
import os
import re
from dataclasses import dataclass, replace
from importlib import metadata
from typing import Dict, List, Optional, Tuple

from ...count.sites import CHAIN_LIMIT
from .project import PACKAGES, Project, is_standard_library
from .sources import CALLBACKS, CALLS_BACK, RUN_SYNC, Frame, Function, Sources, name_of, own_nodes
from .uses import Uses

AWAIT = "await"
CONVERTIBLE = "convertible"
THIRD_PARTY = "third party"
CONSTRUCT = "construct"
UNKNOWN = "unknown"

_COMPARISON = "give the objects a key that is awaited before they are compared"
_ITERATION = "iterate with async for: __aiter__ and __anext__, or an async generator"
_METHOD = "add an async method and await that instead of the operator"
_ATTRIBUTE = "replace the attribute by an async method: await obj.load_name()"
_CONTEXT = "use async with: __aenter__ and __aexit__"
_CONVERSION = "await the value first, and keep it in an attribute"
#: The interpreter calls these methods itself, and does not await what they return.
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
_STANDARD_LIBRARY = "the standard library"


@dataclass(frozen=True)
class Verdict:
    """What can become of a chain.

    Attributes:
        kind: `AWAIT`, `CONVERTIBLE`, `THIRD_PARTY`, `CONSTRUCT` or `UNKNOWN`.
        frame: The function that blocks the chain, if any.
        by: The distribution of that function, or the construct that cannot await.
        idiom: What to write instead.
        stops: The number of outermost functions that stay above a bridge even if all functions
            that can become async do. The caller counts, too.
        caller: The async function that passes the chain's outermost function to C code, if there
            is one. It is not in the chain.
    """

    kind: str
    frame: Optional[Frame] = None
    by: str = ""
    idiom: str = ""
    stops: int = 0
    caller: Optional[Frame] = None


class Classifier:
    """Sorts chains by what can be done about them."""

    def __init__(self, project: Project, sources: Sources, uses: Uses) -> None:
        self._project = project
        self._sources = sources
        self._uses = uses
        self._entries: Dict[Function, Optional[Verdict]] = {}
        self._made: Dict[Function, Optional[Tuple[str, str]]] = {}
        self._distributions: Optional[Dict[str, str]] = None

    def classify(self, frames: Tuple[Frame, ...]) -> Verdict:
        """The verdict on a chain: the outermost function that blocks it, if any."""
        if not frames:
            return Verdict(AWAIT, idiom="its caller is async: write await in place of await_")
        first = self._entry(frames)
        caller = None if first is None else first.caller
        outside = stops = 0 if caller is None else 1
        for place, (frame, callee) in enumerate(zip(frames, (*frames[1:], None)), 1 + outside):
            verdict = self._in_the_way(frame, callee)
            if verdict is not None:
                first = first or verdict
                stops = place
        if first is not None:
            return replace(first, stops=stops, caller=caller)
        if len(frames) >= CHAIN_LIMIT:
            return Verdict(
                UNKNOWN,
                frames[0],
                f"{CHAIN_LIMIT} functions deep",
                "the trace does not have its outer callers: look at them in the sources",
                stops=1,
            )
        return Verdict(CONVERTIBLE)

    def _entry(self, frames: Tuple[Frame, ...]) -> Optional[Verdict]:
        """The verdict if an async function only passes the outermost one to C code.

        None if an async function may call it.
        """
        outermost = frames[0]
        if len(frames) >= CHAIN_LIMIT or not self._project.is_own(outermost.file):
            return None
        definition = self._sources.definition(outermost)
        if definition is None:
            return None
        if definition not in self._entries:
            self._entries[definition] = self._passed_on(outermost, definition)
        return self._entries[definition]

    def _passed_on(self, function: Frame, definition: Function) -> Optional[Verdict]:
        found: Optional[Verdict] = None
        for use in self._uses.of(function.file, definition):
            through = "" if use.given_to is None else name_of(use.given_to.func)
            if through == RUN_SYNC:
                return None
            # A sync user of the function would be in the chain itself.
            if not isinstance(use.place.scope, ast.AsyncFunctionDef) or not use.certain:
                continue
            if use.call is not None:
                return None
            if found is None and through in CALLBACKS:
                caller = Frame(use.place.name, use.file, use.node.lineno)
                by = f"C callback ({through})"
                found = Verdict(CONSTRUCT, caller, by, _CALLBACK, caller=caller)
        return found

    def _in_the_way(self, frame: Frame, callee: Optional[Frame]) -> Optional[Verdict]:
        if not frame.file:
            return Verdict(
                UNKNOWN, frame, "not kept", "trace again with a larger GREENBACK_TRACE_SITES"
            )
        if self._project.is_own(frame.file):
            found = self._construct(frame) or self._callback(frame, callee)
            return None if found is None else Verdict(CONSTRUCT, frame, *found)
        if frame.file.startswith("<frozen importlib"):
            return Verdict(CONSTRUCT, frame, "import", _IMPORT)
        # Generated code, such as the __init__ of a dataclass.
        found = _protocol(frame.name) if frame.file.startswith("<") else None
        if found is not None:
            return Verdict(CONSTRUCT, frame, *found)
        by = self._distribution(frame)
        if by == _STANDARD_LIBRARY and frame.name in CALLS_BACK:  # on PyPy, reduce() for one
            return Verdict(CONSTRUCT, frame, f"C callback ({frame.name})", _CALLBACK)
        # A decorator or a base class of the standard library: the verdict on the callee says more.
        if (
            by == _STANDARD_LIBRARY
            and callee is not None
            and self._project.is_own(callee.file)
            and self._construct(callee) is not None
        ):
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
        if definition not in self._made:
            self._made[definition] = self._made_into(frame, definition)
        return self._made[definition]

    def _made_into(self, frame: Frame, definition: Function) -> Optional[Tuple[str, str]]:
        """The construct that an assignment makes of a function: value = property(load)."""
        for use in self._uses.of(frame.file, definition):
            if use.call is not None or not use.certain:
                continue
            if use.given_to is not None:
                name = _maker(use.given_to)
                if name in _DECORATORS:
                    construct, idiom = _DECORATORS[name]
                    return f"{construct} ({name})", idiom
            if use.place.scope is None and use.place.owner is not None:
                for name in _assigned(use.place.owner, use.node):
                    found = _protocol(name)
                    if found is not None:
                        return found
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
        """Whether a function passes the next one of its chain to C code, instead of calling it."""
        # Python itself calls the functions of operators and attributes. These calls are not in the
        # source either.
        is_called_by_python = callee.name != "<lambda>" and self._construct(callee) is not None
        return not is_called_by_python and self._sources.passed_on(frame, callee) is not None

    def _distribution(self, frame: Frame) -> str:
        match = PACKAGES.search(frame.file)
        path = os.path.realpath(frame.file)
        if match is None and (frame.file.startswith("<frozen") or is_standard_library(path)):
            return _STANDARD_LIBRARY
        inside = match["inside"] if match is not None else frame.function.replace(".", "/")
        top = re.split(r"[\\/]", inside)[0]
        if self._distributions is None:
            self._distributions = _top_levels()
        return self._distributions.get(top) or top.partition(".py")[0]


def _maker(call: ast.Call) -> str:
    """The name of the function called; ``lru_cache`` for ``lru_cache(maxsize=1)(f)``."""
    called: ast.AST = call
    while isinstance(called, ast.Call):
        called = called.func
    return name_of(called)


def _assigned(owner: ast.ClassDef, value: ast.expr) -> List[str]:
    """The names that the body of a class assigns a value to."""
    return [
        name_of(target)
        for statement in owner.body
        if isinstance(statement, ast.Assign) and statement.value is value
        for target in statement.targets
    ]


def _protocol(name: str) -> Optional[Tuple[str, str]]:
    if name in _PROTOCOLS:
        construct, idiom = _PROTOCOLS[name]
        return f"{construct} ({name})", idiom
    if name.startswith("__") and name.endswith("__") and name != "__call__":
        return f"operator ({name})", _METHOD
    return None


def _top_levels() -> Dict[str, str]:
    """The distribution of each entry directly in site-packages.

    ``importlib.metadata.packages_distributions`` has this only since Python 3.10.
    """
    found: Dict[str, str] = {}
    for distribution in metadata.distributions():
        name = distribution.metadata["Name"]
        for file in distribution.files or ():
            found.setdefault(file.parts[0], name)
    return found
