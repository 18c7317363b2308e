"""The frames of a task, through its portals, and what `stackscope` needs to show them."""

from __future__ import annotations

import gc
import os
import sys
import types
from typing import Any, Iterator, List, Optional, Set

import greenlet

from . import _bridge, _portals, _work
from ._adapters import async_context
from ._bridge import await_, drive
from ._creator import is_creator
from ._lookalike import for_each_lookalike, is_of_lookalike
from ._portals import Steps, TaskCoroutine, _from_now_on, _from_the_start
from ._state import Portal
from ._tasks import _trio
from ._work import run_coroutine

_HERE = os.path.dirname(await_.__code__.co_filename) + os.sep
# On PyPy, greenlets are written in Python. What comes before this outermost function of theirs is
# not theirs: the main greenlet's frames if they run, their own innermost one again if they wait.
_GREENLET = greenlet.__file__
_GREENLET_START = getattr(getattr(greenlet, "_greenlet_start", None), "__code__", None)
#: The name that stackscope's own support for upstream's greenback asks for as it is imported,
#: before `install_glue` gets its turn.
_greenback_shim = drive
_AWAIT = await_.__code__


def is_own(frame: types.FrameType) -> bool:
    """Whether the frame is none of the program's, but of greenback or greenlet."""
    name = frame.f_code.co_filename
    return (
        name.startswith(_HERE) or name == _GREENLET or is_of_lookalike(frame) or is_creator(frame)
    )


def is_bridge(frame: types.FrameType) -> bool:
    return frame.f_code == _AWAIT


def suspended_frames(awaitable: Any) -> Iterator[Optional[types.FrameType]]:
    """The frames below something that is waiting, outermost first.

    None is the last one if a portal's work is running again by now.
    """
    while awaitable is not None:
        if type(awaitable) is TaskCoroutine:
            awaitable = awaitable.shim
        elif type(awaitable) is Steps:
            awaitable = awaitable.iterator
        for prefix, below in (("cr", "cr_await"), ("gi", "gi_yieldfrom"), ("ag", "ag_await")):
            if hasattr(awaitable, below):
                frame = getattr(awaitable, prefix + "_frame")
                awaitable = getattr(awaitable, below)
                break
        else:
            awaitable = _inside(awaitable)
            continue
        if frame is None:
            continue
        yield frame
        if frame.f_code == drive.__code__:
            yield from portal_frames(frame.f_locals["portal"])
            return


def work_ahead(coroutine: Any) -> Any:
    """What the shim of a portal will run from its first step on; None if it has made that."""
    frame = getattr(getattr(coroutine, "shim", coroutine), "cr_frame", None)
    if frame is not None and is_of_lookalike(frame):
        steps = frame.f_locals.get("steps")
        if steps is not None and steps.portal.greenlet is None:
            return steps.coroutine
        return None
    if frame is not None and frame.f_code == _from_the_start.__code__:
        return frame.f_locals["unstarted"].coroutine
    if frame is not None and frame.f_code == _from_now_on.__code__:
        portal = frame.f_locals.get("portal")
        if portal is not None and portal.greenlet is None:
            return portal.coroutine
    return None


def portal_frames(portal: Portal) -> Iterator[Optional[types.FrameType]]:
    """The frames in the greenlets of a portal whose work is waiting."""
    greenlets: List[Any] = []
    waiting = portal.resume
    while waiting is not None and waiting is not portal.greenlet:
        greenlets.append(waiting)
        if waiting is portal.worker:
            break
        waiting = waiting.parent
    innermost = None
    for waiting in reversed(greenlets):
        frame = waiting.gr_frame
        if frame is None:
            yield None
            return
        innermost = frame
        yield from outermost_first(frame)
    if innermost is None:
        return
    if is_bridge(innermost):
        yield from suspended_frames(innermost.f_locals.get("steps"))
    elif innermost.f_code == run_coroutine.__code__:
        yield from suspended_frames(innermost.f_locals.get("coroutine"))


def outermost_first(frame: Optional[types.FrameType]) -> List[types.FrameType]:
    """The frames from the greenlet's outermost one to *frame*."""
    frames: List[types.FrameType] = []
    while frame is not None and frame.f_code is not _GREENLET_START:
        frames.append(frame)
        frame = _caller_of(frame)
    return frames[::-1]


def outwards(frame: Optional[types.FrameType]) -> Iterator[types.FrameType]:
    """The frames from *frame*, of whatever thread, to the outermost one.

    A thread can leave the greenlet meanwhile. On PyPy the frames of a greenlet that waits are
    a ring, of which each is given once.
    """
    met: Set[types.FrameType] = set()
    while frame is not None and frame not in met:
        met.add(frame)
        yield frame
        frame = _caller_of(frame)


def _caller_of(frame: types.FrameType) -> Optional[types.FrameType]:
    try:
        return frame.f_back
    except SystemError:  # PyPy's way to say that another thread has left the frame meanwhile
        return None


def _inside(awaitable: Any) -> Any:
    """The coroutine or generator in a wrapper that has no attribute for it."""
    if type(awaitable).__name__ in (
        "async_generator_asend",
        "async_generator_athrow",
        "coroutine_wrapper",
    ):
        for inner in gc.get_referents(awaitable):
            if hasattr(inner, "ag_frame") or hasattr(inner, "cr_frame"):
                return inner
    return None


def install_glue() -> None:
    """Have stackscope go on inside a portal where it meets a shim, and leave out what is ours."""
    from stackscope import (  # pyright: ignore[reportMissingImports]
        customize,
        elaborate_frame,
        unwrap_context,
        unwrap_stackitem,
    )

    ours: List[Any] = [
        function
        for module in (_bridge, _portals, _work)
        for function in vars(module).values()
        if getattr(function, "__module__", None) == module.__name__
        and isinstance(function, types.FunctionType)
    ]
    if "trio" in sys.modules:
        # Under Trio these are run by copies, which stackscope does not take for the same.
        runs = (_work.run_function, _work.run_coroutine, _work.run_while_handling)
        ours += [_work.interruptible(_trio(None), run) for run in runs]
    for function in ours:
        customize(function, hide=True)

    def elaborate_drive(frame: Any, next_inner: object) -> Any:
        frame.hide = True
        portal = frame.pyframe.f_locals["portal"]
        if isinstance(next_inner, type(frame)) or portal.resume is None:
            return None  # it runs, and stackscope has the frames that follow
        return [item for item in portal_frames(portal) if item is not None and not is_own(item)]

    def elaborate_shim(frame: Any, next_inner: object) -> Any:
        frame.hide = True
        return work_ahead(frame.origin)

    elaborate_frame.register(drive)(elaborate_drive)
    for shim in (_from_the_start, _from_now_on):
        elaborate_frame.register(shim)(elaborate_shim)
    for_each_lookalike(lambda lookalike: elaborate_frame.register(lookalike)(elaborate_shim))
    unwrap_stackitem.register(Steps)(lambda steps: steps.iterator)
    unwrap_stackitem.register(TaskCoroutine)(lambda coroutine: coroutine.shim)
    unwrap_context.register(async_context)(lambda manager, context: manager._cm)
