"""The frames of a task, through its portals, and what `stackscope` needs to show them."""

from __future__ import annotations

import gc
import os
import types
from typing import Any, Iterator, List, Optional

from ._bridge import await_, drive
from ._portals import _first_answer, _from_now_on, _from_the_start
from ._state import Portal
from ._work import run_coroutine

_HERE = os.path.dirname(await_.__code__.co_filename) + os.sep
# Trio's marks copy a function's code; copies are equal to it.
#: The name that stackscope's own support for upstream's greenback asks for as it is imported,
#: before `install_glue` gets its turn.
_greenback_shim = drive
_AWAIT, _DRIVE = await_.__code__, drive.__code__


def is_own(frame: types.FrameType) -> bool:
    return frame.f_code.co_filename.startswith(_HERE)


def is_bridge(frame: types.FrameType) -> bool:
    return frame.f_code == _AWAIT


def suspended_frames(awaitable: Any) -> Iterator[Optional[types.FrameType]]:
    """The frames below something that is waiting, outermost first.

    None stands for those in a greenlet that the interpreter does not show (PyPy).
    """
    while awaitable is not None:
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
        code = frame.f_code
        if code == _DRIVE:
            yield from portal_frames(frame.f_locals["portal"])
            return
        if code == _from_the_start.__code__:
            unstarted = frame.f_locals.get("unstarted")
            if unstarted is not None and unstarted.coroutine is not None:
                awaitable = unstarted.coroutine
        elif code == _from_now_on.__code__:
            below_code = getattr(getattr(awaitable, "gi_frame", None), "f_code", None)
            if below_code == _first_answer.__code__:
                awaitable = frame.f_locals["portal"].coroutine


def portal_frames(portal: Portal) -> Iterator[Optional[types.FrameType]]:
    """The frames in the greenlets of a portal whose work is waiting."""
    greenlets: List[Any] = []
    greenlet = portal.resume
    while greenlet is not None and greenlet is not portal.greenlet:
        greenlets.append(greenlet)
        if greenlet is portal.worker:
            break
        greenlet = greenlet.parent
    innermost = None
    for greenlet in reversed(greenlets):
        frame = getattr(greenlet, "gr_frame", None)
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
    frames: List[types.FrameType] = []
    while frame is not None:
        frames.append(frame)
        frame = frame.f_back
    return frames[::-1]


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
    """Have stackscope go on inside the portal where it meets `drive`."""
    from stackscope import elaborate_frame  # pyright: ignore[reportMissingImports]

    def elaborate(frame: Any, next_inner: object) -> Any:
        frame.hide = True
        portal = frame.pyframe.f_locals["portal"]
        if isinstance(next_inner, type(frame)) or portal.resume is None:
            return None  # it runs, and stackscope has the frames that follow
        return [item for item in portal_frames(portal) if item is not None and not is_own(item)]

    elaborate_frame.register(drive)(elaborate)
