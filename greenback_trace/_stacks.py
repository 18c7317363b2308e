"""The stack of a task, through its portals.

Shown are the async and sync functions of the task, outermost first, down to the await that it is
parked in, or to what it is running. The frames of greenback itself are left out; a line marks
each bridge. Not shown: what the event loop or a thread does for the task, what runs in a greenlet
of the task's own in another thread, and, on an interpreter whose greenlets have no frames (PyPy),
what waits in a portal; the text says so there.
"""

from __future__ import annotations

import linecache
import sys
import types
from typing import Any, Iterator, List, Optional

import greenlet

from greenback._stackscope import is_bridge, is_own, outermost_first, suspended_frames
from greenback._state import Portal, portal_of
from greenback._tasks import library_of


def format_task(task: Any) -> str:
    """The stack of a task of asyncio or Trio as text, in the manner of a traceback.

    Args:
        task: A task in whatever state, of whatever thread. That of a task that another thread
            runs can change while it is looked at.

    Raises:
        TypeError: *task* is not a task of asyncio or Trio.
    """
    library = library_of(task)
    if library.is_done(task):
        return f"{task!r} has finished: it has no stack.\n"
    portal = portal_of(task)
    through = "" if portal is None else f", with a portal ({portal.kind})"
    coroutine = library.coroutine_of(task)
    lines = [f"Stack of {task!r}{through} (outermost first):\n"]
    frames: Iterator[Optional[types.FrameType]]
    if _is_running(coroutine):
        running = _running_frames(_frame_of(coroutine), portal)
        if running is None:
            lines.append("  (it is running where this thread cannot see it)\n")
            running = []
        frames = iter(running)
    else:
        frames = suspended_frames(coroutine)
    for frame in frames:
        if frame is None:
            lines.append("  (the rest is in a greenlet whose frames this interpreter hides)\n")
        elif is_bridge(frame):
            lines.append("  --- bridge: greenback.await_ ---\n")
        elif not is_own(frame) and frame.f_code is not format_task.__code__:
            lines.append(_line(frame))
    return "".join(lines)


def _line(frame: types.FrameType) -> str:
    code, number = frame.f_code, frame.f_lineno or frame.f_code.co_firstlineno
    text = f'  File "{code.co_filename}", line {number}, in {code.co_name}\n'
    source = linecache.getline(code.co_filename, number, frame.f_globals).strip()
    return f"{text}    {source}\n" if source else text


def _is_running(coroutine: Any) -> bool:
    return bool(getattr(coroutine, "cr_running", getattr(coroutine, "gi_running", False)))


def _frame_of(coroutine: Any) -> Any:
    return getattr(coroutine, "cr_frame", getattr(coroutine, "gi_frame", None))


def _running_frames(first: Any, portal: Optional[Portal]) -> Optional[List[types.FrameType]]:
    """The frames from *first*, which a thread is running, to the innermost one."""
    frames: List[types.FrameType] = []
    current: Any = greenlet.getcurrent()
    frame: Optional[types.FrameType] = sys._getframe(2)
    while current is not None:
        frames = outermost_first(frame) + frames
        if first in frames:
            return frames[frames.index(first) :]
        current = current.parent
        frame = getattr(current, "gr_frame", None)
    for innermost in sys._current_frames().values():
        frames = outermost_first(innermost)
        works_for = frames[0].f_locals.get("portal")
        if portal is not None and works_for is not None and id(works_for) == id(portal):
            frames = outermost_first(getattr(portal.greenlet, "gr_frame", None)) + frames
        if first in frames:
            return frames[frames.index(first) :]
    return None
