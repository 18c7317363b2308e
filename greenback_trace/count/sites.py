"""Frames -> interned sites.

The key of a site is the sum of the id of its code object and the offset of its instruction: to hash
a code object alone costs 0.2 us, and a tuple of the two half as much again as their sum. The site
keeps the code object alive, so that no other one gets its id.
"""

from __future__ import annotations

import inspect
import os
import sys
import threading
from dis import opmap
from types import CodeType, FrameType
from typing import Any, Dict, List, Mapping, Optional

import greenback
from greenback._engine.work import work

from .caller import Caller
from .frames import locals_of

#: The flags of functions that return an awaitable or an async iterator.
ASYNC = inspect.CO_COROUTINE | inspect.CO_ITERABLE_COROUTINE | inspect.CO_ASYNC_GENERATOR
#: A chain has at most this many sync functions.
CHAIN_LIMIT = 32
#: The directory of the runtime: the outermost frame of a worker is there. Code below it does not
#: count as the program's.
RUNTIME = os.path.dirname(greenback.__file__) + os.sep
ADAPTERS_FILE = RUNTIME + "_adapters.py"

#: Callers that are counted apart, per site.
CALLERS_PER_SITE = 20
#: Sites over the limit that are counted as left out, per site within it.
_LEFT_OUT_PER_SITE = 20

#: The key of a site is ``id(code) + offset * STRIDE``. From CPython 3.11 on, a code object contains
#: its instructions. So no other object has an id within them, and a stride of 1 is enough.
STRIDE = 1 if sys.version_info >= (3, 11) and sys.implementation.name == "cpython" else 1 << 48


#: The key of bridges that a worker in C begins. No code object has this id.
NO_FRAME = 1
_WORKER = work.__code__

#: From CPython 3.11 on, instructions have inline caches behind them. 3.11 has two for a call.
_CACHE = opmap.get("CACHE")
_PRECALL = opmap.get("PRECALL")
_PRECALL_BYTES = 4


def key_of(frame: FrameType) -> int:
    """The key of the call that *frame* is making. The hot path computes it inline."""
    return id(frame.f_code) + frame.f_lasti * STRIDE


def call_of(frame: FrameType) -> int:
    """The same key for the same call.

    `key_of` can have several: ``f_lasti`` is at another part of the call if that calls a function
    in C, and, on CPython 3.11, if the interpreter has specialised it.
    """
    offset = frame.f_lasti
    if _CACHE is not None and offset >= 0:
        instructions = frame.f_code.co_code
        while instructions[offset] == _CACHE:
            offset -= 2
        if instructions[offset] == _PRECALL:
            offset += _PRECALL_BYTES
    return id(frame.f_code) + offset * STRIDE


class Site(Caller):
    """A call in the source: of `greenback.await_`, or of a function in a sync chain.

    Two calls on one line have a site each, since a site has the key of its instruction. The two are
    equal, and so counted together: a reader of a trace could not tell them apart.

    Attributes:
        code: The code object of the function.
        is_async: Whether the function is async.
    """

    __slots__ = ("code", "is_async")

    def __init__(
        self, module: str, qualname: str, file: str, line: int, code: Optional[CodeType]
    ) -> None:
        super().__init__(module, qualname, file, line)
        self.code = code
        self.is_async = code is not None and bool(code.co_flags & ASYNC)


#: Stands for all sites and chains over the limit.
OTHER = Site("", "_OTHER", "", 0, None)


def outside_adapters(frame: FrameType) -> FrameType:
    """*frame*, or its first caller outside of greenback's adapters.

    If a decorator written in C calls an adapter, the adapter's only caller in Python is the portal.
    Then the adapter itself is the site.
    """
    caller: Optional[FrameType] = frame
    while caller is not None and caller.f_code.co_filename == ADAPTERS_FILE:
        caller = caller.f_back
    if caller is None or caller.f_code.co_filename.startswith(RUNTIME):
        return frame
    return caller


class Sites:
    """All sites seen so far, one object each, for all threads."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._lock = threading.RLock()
        # Written under the lock, by any thread.
        self._bridging: Dict[int, Site] = {}
        self._calling: Dict[int, Site] = {}
        #: The code of sites over the limit, by key. It is kept so that its id stays its own.
        self._left_out: Dict[int, CodeType] = {}

    def after_fork(self) -> None:
        """Replace the lock in a forked child: another thread of the parent may have held it."""
        self._lock = threading.RLock()
        self._left_out = {}

    def count_left_out(self) -> int:
        """The number of sites over the limit, up to `_LEFT_OUT_PER_SITE` times the limit."""
        return len(self._left_out)

    def bridging(self, frame: Optional[FrameType]) -> Site:
        """The site of a frame that called `greenback.await_`; `OTHER` if there are too many.

        None: a worker in C has called it, which has no frame. With the engine in Python, the site
        is the function in which workers run.
        """
        key = NO_FRAME if frame is None else call_of(frame)
        site = self._bridging.get(key)
        if site is None:
            with self._lock:
                site = self._bridging.get(key)  # another thread may have come first
                if site is None:
                    if len(self._bridging) >= self._limit:
                        if len(self._left_out) < self._limit * _LEFT_OUT_PER_SITE:
                            self._left_out[key] = _WORKER if frame is None else frame.f_code
                        return OTHER
                    new = _site_of_worker() if frame is None else site_of(frame)
                    site = self._bridging.setdefault(key, new)
        return site

    def calling(self, frame: FrameType) -> Site:
        """The site of a frame further out in a chain."""
        key = call_of(frame)
        site = self._calling.get(key)
        if site is None:
            with self._lock:
                if len(self._calling) >= self._limit * CALLERS_PER_SITE:
                    # Nodes keep the sites that they use. Without this, code that the program
                    # compiles again and again, such as templates, would stay for ever.
                    self._calling.clear()
                site = self._calling.setdefault(key, site_of(frame))
        return site


def site_of(frame: FrameType) -> Site:
    """A new site for the call that *frame* is making."""
    code = frame.f_code
    qualname = getattr(code, "co_qualname", None) or _guess_qualname(frame)
    module = frame.f_globals.get("__name__", "?")
    return Site(module, qualname, code.co_filename, frame.f_lineno or 0, code)


def _site_of_worker() -> Site:
    code = _WORKER
    return Site(work.__module__, work.__qualname__, code.co_filename, code.co_firstlineno, code)


def _guess_qualname(frame: FrameType) -> str:
    """The qualified name before Python 3.11, where code objects do not have it.

    Look for a function with the plain name in the module and in the class of the first argument. If
    it has the code of *frame*, its qualified name is the answer; else the plain name is.
    """
    code = frame.f_code
    name = code.co_name
    places: List[Mapping[str, Any]] = [frame.f_globals]
    if code.co_argcount and code.co_varnames:
        first = locals_of(frame).get(code.co_varnames[0])
        # Not isinstance(): it asks the object for its class, and a dead weak proxy raises.
        owner: Any = first if issubclass(type(first), type) else type(first)
        places += [vars(base) for base in owner.__mro__]
    for place in places:
        function = _function_in(place.get(name))
        if getattr(function, "__code__", None) is code:
            return str(function.__qualname__)
    return name


def _function_in(found: Any) -> Any:
    if isinstance(found, (classmethod, staticmethod)):
        found = found.__func__
    elif isinstance(found, property):
        found = found.fget
    if hasattr(found, "__code__"):
        return found
    return getattr(found, "__wrapped__", None)
