"""The stack of a task, through its portals.

Shown are the async and sync functions of the task, outermost first, down to the await that it is
parked in, or to what it is running. The frames of greenback itself are left out; a line marks
each bridge. Not shown: what the event loop or a thread does for the task, what runs in
a greenlet of the task's own in another thread, and, without the GIL, any task of another thread;
the text says so there.
"""

from __future__ import annotations

import linecache
import sys
import types
from typing import Any, Iterator, List, Optional

import greenlet

from greenback._stackscope import (
    is_bridge,
    is_own,
    outermost_first,
    outwards,
    suspended_frames,
    work_ahead,
)
from greenback._state import portal_of
from greenback._tasks import library_of
from greenback._work import work

from ._frames import can_look_at, current_frames

#: How often the frames of a thread are read that goes on meanwhile.
_TRIES = 3


def format_task(task: Any) -> str:
    """The stack of a task of asyncio or Trio as text, in the manner of a traceback.

    Args:
        task: A task in whatever state, of whatever thread. That of a task that another thread
            runs can change while it is looked at; without the GIL, nothing is told of it.

    Raises:
        TypeError: *task* is not a task of asyncio or Trio.
    """
    library = library_of(task)
    # Not its repr(): that of asyncio's shows the coroutine, and so greenback's shim.
    get_name = getattr(task, "get_name", None)
    name = f"{library.name} task {(get_name() if get_name else task.name)!r}"
    if library.is_done(task):
        return f"{name} has finished: it has no stack.\n"
    portal = portal_of(task)
    through = "" if portal is None else f", with a portal ({portal.kind})"
    if not can_look_at(library, task):
        return f"Stack of {name}{through}:\n  (without the GIL, only its own thread can read it)\n"
    coroutine = library.coroutine_of(task)
    coroutine = work_ahead(coroutine) or getattr(coroutine, "shim", coroutine)
    lines = [f"Stack of {name}{through}, outermost first:\n"]
    frames: Iterator[Optional[types.FrameType]]
    if _runs(coroutine):
        running = _running_frames(_frame_of(coroutine))
        if running is None:
            lines.append("  (it is running where this thread cannot see it)\n")
            running = []
        frames = iter(running)
    else:
        frames = suspended_frames(coroutine)
    for frame in frames:
        if frame is None:
            lines.append("  (it has been resumed while this was written)\n")
        elif is_bridge(frame):
            lines.append("  --- bridge: greenback.await_ ---\n")
        elif not is_own(frame):
            lines.append(line_of(frame))
    return "".join(lines)


def running_stack(task: Any) -> List[types.FrameType]:
    """The frames of a task that another thread runs, outermost first, greenback's included.

    Empty if it is not running, or where this thread cannot see it.
    """
    library = library_of(task)
    if not can_look_at(library, task):
        return []
    coroutine = library.coroutine_of(task)
    coroutine = work_ahead(coroutine) or getattr(coroutine, "shim", coroutine)
    return (_running_frames(_frame_of(coroutine)) or []) if _runs(coroutine) else []


def is_running(task: Any) -> bool:
    """Whether a thread is making a step of *task*, which has not ended, right now."""
    return _runs(library_of(task).coroutine_of(task))


def line_of(frame: types.FrameType) -> str:
    code, number = frame.f_code, frame.f_lineno or frame.f_code.co_firstlineno
    text = f'  File "{code.co_filename}", line {number}, in {code.co_name}\n'
    source = linecache.getline(code.co_filename, number, frame.f_globals).strip()
    return f"{text}    {source}\n" if source else text


def _runs(coroutine: Any) -> bool:
    return bool(getattr(coroutine, "cr_running", getattr(coroutine, "gi_running", False)))


def _frame_of(coroutine: Any) -> Any:
    return getattr(coroutine, "cr_frame", getattr(coroutine, "gi_frame", None))


def _running_frames(first: Any) -> Optional[List[types.FrameType]]:
    """The frames from *first*, which a thread is running, to the innermost one."""
    current: Any = greenlet.getcurrent()
    frames = outermost_first(sys._getframe(2))
    while first not in frames and current.parent is not None:
        current = current.parent
        frames = outermost_first(current.gr_frame) + frames
    if first in frames:
        return frames[frames.index(first) :]
    for _ in range(_TRIES):
        for thread, innermost in current_frames().items():
            # Not `outermost_first`: from another thread, PyPy shows the main greenlet only below.
            inside = frames = [*outwards(innermost)][::-1]
            while first not in frames and frames[0].f_code == work.__code__:
                employer = frames[0].f_locals.get("portal")
                around = getattr(getattr(employer, "greenlet", None), "gr_frame", None)
                if around is None:
                    break
                frames = outermost_first(around) + frames
            if first not in frames:
                continue
            # What is around was read after what is inside. In between, the thread can have parked
            # that, and have begun a step of another task.
            now = [*outwards(current_frames().get(thread))]
            if now and now[-1] is inside[0]:
                return frames[frames.index(first) :]
    return None
