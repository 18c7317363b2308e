"""The stack of a task, through its portals.

The stack has the async and sync functions of the task, outermost first, down to the await that the
task is parked in, or to the function that is running. Frames of greenback are left out; a line
marks each bridge.

The stack cannot have the work of the event loop or of a thread for the task, nor a greenlet of the
task that runs in another thread. Without the GIL, a task of another thread has no stack at all; the
text says so.
"""

from __future__ import annotations

import linecache
import sys
import types
from typing import Any, Iterator, List, Optional

from greenback._frames import (
    frames_down_to,
    frames_in_threads,
    is_bridge,
    is_own,
    library_of,
    portal_of,
    stack_of,
    suspended_frames,
)

from ..count.frames import can_look_at, current_frames


def format_task(task: Any) -> str:
    """The stack of a task of asyncio or Trio as text, in the form of a traceback.

    Args:
        task: A task in any state, of any thread. If another thread runs the task, its stack can
            change meanwhile; without the GIL, the text then has no stack.

    Raises:
        TypeError: *task* is not a task of asyncio or Trio.
    """
    library = library_of(task)
    # Not repr(task): in asyncio, it has the coroutine, which is greenback's shim.
    get_name = getattr(task, "get_name", None)
    name = f"{library.name} task {(get_name() if get_name else task.name)!r}"
    if library.is_done(task):
        return f"{name} has finished: it has no stack.\n"
    portal = portal_of(task)
    through = "" if portal is None else f", with a portal ({portal.kind})"
    if not can_look_at(library, task):
        return f"Stack of {name}{through}:\n  (without the GIL, only its own thread can read it)\n"
    coroutine = stack_of(library.coroutine_of(task))
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
    """The frames of a task that another thread runs, outermost first, with greenback's own.

    Empty if the task is not running, or if this thread cannot see it.
    """
    library = library_of(task)
    if not can_look_at(library, task):
        return []
    coroutine = stack_of(library.coroutine_of(task))
    return (_running_frames(_frame_of(coroutine)) or []) if _runs(coroutine) else []


def is_running(task: Any) -> bool:
    """Whether a thread is making a step of *task* right now. The task has not ended."""
    return _runs(library_of(task).coroutine_of(task))


def line_of(frame: types.FrameType) -> str:
    """The lines of a traceback for one frame, with the source if there is one."""
    code, number = frame.f_code, frame.f_lineno or frame.f_code.co_firstlineno
    text = f'  File "{code.co_filename}", line {number}, in {code.co_name}\n'
    source = linecache.getline(code.co_filename, number, frame.f_globals).strip()
    return f"{text}    {source}\n" if source else text


def _runs(coroutine: Any) -> bool:
    return bool(getattr(coroutine, "cr_running", getattr(coroutine, "gi_running", False)))


def _frame_of(coroutine: Any) -> Any:
    return getattr(coroutine, "cr_frame", getattr(coroutine, "gi_frame", None))


def _running_frames(first: Any) -> Optional[List[types.FrameType]]:
    """The frames from *first*, which a thread is running, to the innermost one; None if unseen."""
    frames = frames_down_to(sys._getframe(2), first)
    if frames[0] is first:
        return frames
    return frames_in_threads(first, current_frames)
