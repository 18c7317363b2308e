"""Errors where no bridge can start: each says where the caller is, and what to do there."""

from __future__ import annotations

import gc
import threading
from types import CellType
from typing import TYPE_CHECKING, Any, Callable, Dict, Iterator, List, Optional

import sniffio

if TYPE_CHECKING:
    from types import FrameType

    from .._engine.state import Portal

    _FramesBelow = Callable[[Any], Iterator[Optional[FrameType]]]

_NO_LOOP = (
    "no event loop is running here (unknown async library, or not in async context): start one "
    "with 'greenback.run(async_fn, *args)', or call this from a task that has a portal"
)
_WORKER_THREAD = (
    "this is a worker thread: no event loop runs in {thread!r}, and a portal belongs to a task of "
    "the loop's own thread (unknown async library, or not in async context); run the async code in "
    "that loop, with 'asyncio.run_coroutine_threadsafe(coroutine, loop).result()', "
    "'anyio.from_thread.run(async_fn)' or 'trio.from_thread.run(async_fn)', or start a loop in "
    "this thread with 'greenback.run(async_fn, *args)'"
)
_CALLBACK = (
    "this is a callback of a running event loop, not a task, so nothing can wait here "
    "(unknown async library, or not in async context): start a task from the callback, with "
    "'asyncio.ensure_future(greenback.with_portal_run_sync(function))'"
)
_PLAYWRIGHT = (
    "this is inside Playwright's sync API, which runs an event loop of its own in this thread, out "
    "of greenback's reach (unknown async library, or not in async context): use "
    "'playwright.async_api' and pass its coroutines to 'greenback.await_', or call this in another "
    "thread"
)
_NO_PORTAL = (
    "you must create a greenback portal for this task in order to use greenback.await_(); "
    "try 'await greenback.ensure_portal()' or 'await greenback.with_portal_run(async_fn, *args)'"
)
_PARENT_HAS_ONE = (
    "; {parent}, which waits for this one, has a portal, but a portal serves its own task alone. "
    "Most often a framework has started the present task. Create a portal in this task, too, or "
    "have child tasks inherit portals, with 'async with greenback.portals_for_tree()'"
)
_OTHER_LIBRARY = (
    "greenback does not support {name}: it bridges to asyncio and Trio. If one of these runs here, "
    "some code has set sniffio's thread_local.name or current_async_library_cvar to {name!r}"
)


def nothing_running(loop: Any, is_playwright: bool) -> sniffio.AsyncLibraryNotFoundError:
    """The error to raise if no task is running.

    Args:
        loop: The asyncio loop that is set as running in this thread; None if there is none.
        is_playwright: The loop runs in a greenlet of Playwright's, and the caller in another one.
    """
    return sniffio.AsyncLibraryNotFoundError(_why_nothing_is_running(loop, is_playwright))


def _why_nothing_is_running(loop: Any, is_playwright: bool) -> str:
    if loop is not None:
        return _PLAYWRIGHT if is_playwright else _CALLBACK
    thread = threading.current_thread()
    if thread is threading.main_thread():
        return _NO_LOOP
    return _WORKER_THREAD.format(thread=thread.name)


def other_library(name: str) -> RuntimeError:
    """The error to raise if a library other than asyncio and Trio is running."""
    return RuntimeError(_OTHER_LIBRARY.format(name=name))


def no_portal(task: Any, portals: Dict[Any, Portal], frames_below: _FramesBelow) -> RuntimeError:
    """The error to raise in a task that has no portal.

    Args:
        task: The task.
        portals: The open portals of its thread, by task.
        frames_below: `greenback._frames.suspended_frames`. It is passed, since its module imports
            this one by way of others.
    """
    try:
        parent = _parent_of(task, portals, frames_below)
    except Exception:  # the program's objects may fail when inspected; the error below matters
        parent = None
    if parent is None:
        return RuntimeError(_NO_PORTAL)
    return RuntimeError(_NO_PORTAL + _PARENT_HAS_ONE.format(parent=_name_of(parent)))


def _name_of(task: Any) -> str:
    name = getattr(task, "get_name", None)  # asyncio's tasks have this; Trio's have `name`
    return f"the task {task.name if name is None else name()!r}"


# Limits of the search for a task among the objects that other tasks wait for: how many portals are
# searched, and how many objects for each.
_PORTALS = 100
_OBJECTS = 2_000


def _parent_of(task: Any, portals: Dict[Any, Portal], frames_below: _FramesBelow) -> Optional[Any]:
    """A task that has a portal and waits for *task*; None if none is found."""
    nursery = getattr(task, "parent_nursery", None)
    while nursery is not None:
        parent = nursery.parent_task
        if parent in portals:
            return parent
        nursery = parent.parent_nursery
    # asyncio has no tree of tasks. If another task waits for this one, it refers to it: by a local
    # variable, or by a task group, a gather() or a list in one.
    for other in list(portals)[-_PORTALS:]:
        if other is not task and _refers_to(other, task, frames_below):
            return other
    return None


def _refers_to(waiting: Any, task: Any, frames_below: _FramesBelow) -> bool:
    level: List[Any] = [getattr(waiting, "_fut_waiter", None)]
    for frame in frames_below(waiting.get_coro()):
        if frame is not None:
            level += frame.f_locals.values()
    left = _OBJECTS
    for _ in range(_DEPTH):
        below: List[Any] = []
        for each in level:
            if each is task:
                return True
            if _is_to_be_looked_into(each) and left > 0:
                inner = gc.get_referents(each)
                left -= len(inner)
                below += inner
        level = below
    return any(each is task for each in level)


#: How many references deep to search: from a task group to its dictionary, the set in there, and
#: the task.
_DEPTH = 3


def _is_to_be_looked_into(thing: Any) -> bool:
    kind = type(thing)
    if kind in (list, tuple, set, dict, CellType):
        return True
    # Not into a loop, which refers to all tasks, nor into another task or its context.
    module = kind.__module__
    name = kind.__name__
    return name == "_GatheringFuture" or (name == "TaskGroup" and module.startswith(_GROUPS))


#: The packages whose task groups are searched.
_GROUPS = ("asyncio", "anyio")
