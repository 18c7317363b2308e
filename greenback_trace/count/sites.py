"""Frames -> interned sites.

A site is known by its `key`, made of the id of its code object and the offset of the instruction,
since hashing a code object alone costs 0.2 us, and a tuple of the two half as much again as their
sum. The code object is kept, so that no other one can take over its id.
"""

from __future__ import annotations

import inspect
import os
import sys
import threading
from types import CodeType, FrameType
from typing import Any, Dict, List, Mapping, Optional

import greenback

from .caller import Caller
from .frames import locals_of

#: The flags of functions whose calls return something to await or to iterate with ``async for``.
ASYNC = inspect.CO_COROUTINE | inspect.CO_ITERABLE_COROUTINE | inspect.CO_ASYNC_GENERATOR
#: The sync functions that a chain has at most.
CHAIN_LIMIT = 32
#: Where worker greenlets have their outermost frame. Everything in it counts as not the program's.
RUNTIME = os.path.dirname(greenback.__file__) + os.sep
_ADAPTERS_FILE = RUNTIME + "_adapters.py"

#: Callers that are kept apart, for each site that is.
CALLERS_PER_SITE = 20
#: Sites over the limit that are told apart, for each that is kept.
_LEFT_OUT_PER_SITE = 20

#: ``id(code) + offset * STRIDE`` is the key of a site. From CPython 3.11 on, a code object contains
#: its instructions, so that no other object's id can be that close.
STRIDE = 1 if sys.version_info >= (3, 11) and sys.implementation.name == "cpython" else 1 << 48


def key_of(frame: FrameType) -> int:
    """The key of what *frame* is calling. The hot path has this written out."""
    return id(frame.f_code) + frame.f_lasti * STRIDE


class Site(Caller):
    """A place in the source that called something: `greenback.await_`, or what leads to it.

    Two calls on one line have a site each, since they are known by their instruction, but nobody
    who reads a trace can tell them apart: they are equal, and so counted together.

    Attributes:
        is_async: Whether the function is an async one.
    """

    __slots__ = ("code", "is_async")

    def __init__(
        self, module: str, qualname: str, file: str, line: int, code: Optional[CodeType]
    ) -> None:
        super().__init__(module, qualname, file, line)
        self.code = code
        self.is_async = code is not None and bool(code.co_flags & ASYNC)


#: Stands for all the sites, or chains, that are not kept.
OTHER = Site("", "_OTHER", "", 0, None)


def outside_adapters(frame: FrameType) -> FrameType:
    """*frame*, or the first of its callers that is not a function of greenback's adapters.

    An adapter has no other caller than the portal where a decorator that is written in C calls it.
    Then it is the site itself.
    """
    caller: Optional[FrameType] = frame
    while caller is not None and caller.f_code.co_filename == _ADAPTERS_FILE:
        caller = caller.f_back
    if caller is None or caller.f_code.co_filename.startswith(RUNTIME):
        return frame
    return caller


class Sites:
    """The sites that have been seen, one object each, in all threads."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._lock = threading.RLock()
        # Written under the lock, by any thread.
        self._bridging: Dict[int, Site] = {}
        self._calling: Dict[int, Site] = {}
        #: Those over the limit, with their code, such that its id stays: as many as one can count.
        self._left_out: Dict[int, CodeType] = {}

    def after_fork(self) -> None:
        """Another thread may have held the lock when this process was forked."""
        self._lock = threading.RLock()
        self._left_out = {}

    def count_left_out(self) -> int:
        """The sites that were not kept, as far as they are told apart."""
        return len(self._left_out)

    def bridging(self, frame: FrameType) -> Site:
        """The site of a frame that called `greenback.await_`; `OTHER` if there are too many."""
        key = key_of(frame)
        site = self._bridging.get(key)
        if site is None:
            with self._lock:
                site = self._bridging.get(key)  # another thread may have come first
                if site is None:
                    if len(self._bridging) >= self._limit:
                        if len(self._left_out) < self._limit * _LEFT_OUT_PER_SITE:
                            self._left_out[key] = frame.f_code
                        return OTHER
                    site = self._bridging.setdefault(key, site_of(frame))
        return site

    def calling(self, frame: FrameType) -> Site:
        """The site of a frame further out."""
        key = key_of(frame)
        site = self._calling.get(key)
        if site is None:
            with self._lock:
                if len(self._calling) >= self._limit * CALLERS_PER_SITE:
                    # What is in use is kept by whoever uses it. Code that is compiled again and
                    # again, as that of templates, would otherwise stay for ever.
                    self._calling.clear()
                site = self._calling.setdefault(key, site_of(frame))
        return site


def site_of(frame: FrameType) -> Site:
    code = frame.f_code
    qualname = getattr(code, "co_qualname", None) or _guess_qualname(frame)
    module = frame.f_globals.get("__name__", "?")
    return Site(module, qualname, code.co_filename, frame.f_lineno or 0, code)


def _guess_qualname(frame: FrameType) -> str:
    """The qualified name before Python 3.11, where code objects do not know it.

    The plain name, unless a function that is found under that name, in the module or in the class
    of the first argument, certainly is the one that runs.
    """
    code = frame.f_code
    name = code.co_name
    places: List[Mapping[str, Any]] = [frame.f_globals]
    if code.co_argcount and code.co_varnames:
        first = locals_of(frame).get(code.co_varnames[0])
        # Not isinstance(), which asks the object, and that may be a dead weak proxy.
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
