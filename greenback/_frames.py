"""Frames: which are the program's, and how a stack goes on through portals and greenlets.

Each portal knows what its work waits for (`Portal.resume`, `Portal.awaits`). Only this module
turns that into frames. greenback_trace learns all that it needs of frames, tasks and workers from
here.
"""

from __future__ import annotations

import gc
from types import CodeType, FrameType
from typing import Any, Callable, FrozenSet, Iterator, List, Mapping, Optional, Set

import greenlet
from greenlet import getcurrent

from ._engine.choice import compiled, has_compiled
from ._engine.state import Portal, Worker, homes, portal_of
from ._engine.work import context_of, traceback_of, work
from ._folder import FOLDER
from ._shims.lookalike import is_of_lookalike, steps_of
from ._tasks.libraries import Library, library_of
from ._tree.creator import is_creator

#: The names that greenback_trace uses. Some are defined in other modules of the runtime.
__all__ = [
    "OUTERMOST",
    "Library",
    "around_worker",
    "caller_of_bridge",
    "context_of",
    "frame_around_portal",
    "frames_down_to",
    "frames_from",
    "frames_in_threads",
    "frames_of_step",
    "is_bridge",
    "is_own",
    "is_worker",
    "library_of",
    "outermost_first",
    "outwards",
    "portal_of",
    "stack_of",
    "stepping_portals",
    "suspended_frames",
    "traceback_of",
]

# On PyPy, greenlets are written in Python, and `_greenlet_start` is their outermost function. The
# frame before it does not belong to the greenlet's stack: while the greenlet runs, it is the main
# greenlet's; while the greenlet waits, it is the greenlet's own innermost frame again.
_GREENLET = greenlet.__file__
_GREENLET_START: Optional[CodeType] = getattr(
    getattr(greenlet, "_greenlet_start", None), "__code__", None
)

#: The ids of the code objects at which a greenlet's frames end. Further out is code that runs
#: greenlets, none of the program's. Ids, because hashing a code object takes longer than all else
#: that is done with a frame.
OUTERMOST: FrozenSet[int] = frozenset(
    id(code) for code in (work.__code__, _GREENLET_START) if code is not None
)

#: Stands for the frame that a worker in C does not have; None if workers have one.
around_worker: Optional[FrameType] = compiled.frame_of(work) if has_compiled("work") else None

# How often to read the frames of another thread, which may go on meanwhile.
_TRIES = 3


class HasShim:
    """An object that stands for its ``shim``: in a task, or as an awaitable in a lookalike.

    The ``shim`` takes the steps. `suspended_frames` goes on with it.
    """

    __slots__ = ("shim",)

    shim: Any


# The code of `await_` and of `drive`. Written once, at import, by `_engine/bridge.py`, which
# defines both and imports this module. Functions in C have neither code nor frames: None, then.
_await: Optional[CodeType] = None
_drive: Optional[CodeType] = None


def set_engine(await_: Callable[..., Any], drive: Callable[..., Any]) -> None:
    """Note which function bridges, and which forwards the traps of a portal's work."""
    global _await, _drive, _COMPILED_BRIDGE
    if compiled is not None:
        _COMPILED_BRIDGE = compiled.frame_of(await_)
    _await, _drive = getattr(await_, "__code__", None), getattr(drive, "__code__", None)


# Whose frames


def is_own(frame: FrameType) -> bool:
    """Whether the frame belongs to greenback or greenlet, and not to the program."""
    name = frame.f_code.co_filename
    return (
        name.startswith(FOLDER) or name == _GREENLET or is_of_lookalike(frame) or is_creator(frame)
    )


def is_bridge(frame: FrameType) -> bool:
    """Whether the frame is that of a bridge, `await_`."""
    # By identity: comparing a code object with itself takes a microsecond.
    return frame.f_code is _await


def caller_of_bridge(frame: Optional[FrameType]) -> Optional[FrameType]:
    """The frame that called the innermost bridge around *frame*; None if no bridge is around it.

    Args:
        frame: A frame of the greenlet that is running now, or the innermost frame of a greenlet
            that waits in a bridge.
    """
    # An `await_` in C has no frame. It hands its caller's frame to the listener.
    while frame is not None and not is_bridge(frame):
        frame = frame.f_back
    return None if frame is None else frame.f_back


def caller_of_waiting_bridge(portal: Portal) -> Optional[FrameType]:
    """The frame that called the bridge in which the portal's task waits; None if there is none."""
    frame: Optional[FrameType] = getattr(portal.resume, "gr_frame", None)
    if frame is not None and portal.bridges and portal.bridges[-1][0] is portal.awaits:
        return frame  # the bridge is in C, and has no frame
    return caller_of_bridge(frame)


def _portal_in(frame: FrameType) -> Optional[Portal]:
    """The portal of a frame of `drive`, or of a worker's `work`.

    The frame's local variable is the only way to it that costs nothing. A portal that knew its
    `drive` would keep it alive, and no table says what a worker of another thread runs. The engine
    in C has no such frames.
    """
    found = frame.f_locals.get("portal")
    return found if type(found) is Portal else None


# Frames of work that waits


def is_compiled_drive(awaitable: Any) -> bool:
    """Whether *awaitable* is a result of `drive` in C, or stands so in a task."""
    return _COMPILED_DRIVE is not None and issubclass(type(awaitable), _COMPILED_DRIVE)


#: The type of `drive` in C.
_COMPILED_DRIVE: Any = None if compiled is None else compiled.drive
#: Stands for the frame of each `await_` in C.
_COMPILED_BRIDGE: Any = None


def suspended_frames(awaitable: Any) -> Iterator[Optional[FrameType]]:
    """The frames below an awaitable that waits, outermost first.

    If a portal's work is running again by now, the last item is None.
    """
    while awaitable is not None:
        if issubclass(type(awaitable), HasShim):
            awaitable = awaitable.shim
        if is_compiled_drive(awaitable):
            if awaitable.portal is not None:
                yield from portal_frames(awaitable.portal)
            return
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
        portal = portal_of_drive(frame)
        if portal is not None:
            yield from portal_frames(portal)
            return


def portal_of_drive(frame: FrameType) -> Optional[Portal]:
    """The portal of *frame* if that is a frame of `drive`; None if it is not."""
    # By equality: for Trio's marks, `drive` runs with a copy of its code.
    return _portal_in(frame) if frame.f_code == _drive else None


def portal_frames(portal: Portal) -> Iterator[Optional[FrameType]]:
    """The frames in the greenlets of a portal whose work is waiting."""
    greenlets: List[Any] = []
    waiting = portal.resume
    while waiting is not None and waiting is not portal.greenlet:
        greenlets.append(waiting)
        if waiting is portal.worker:
            break
        waiting = waiting.parent
    for waiting in reversed(greenlets):
        frame = waiting.gr_frame
        if frame is None and not (type(waiting) is Worker and waiting.is_bare):
            yield None
            return
        frames = outermost_first(frame)
        yield from with_bridges(frames, portal) if waiting is portal.worker else frames
    awaits = portal.awaits
    if greenlets and portal.resume is greenlets[0]:
        yield from suspended_frames(awaits)


def work_ahead(coroutine: Any) -> Any:
    """The task's own coroutine, if *coroutine* is a shim that has not taken its first step.

    None otherwise.
    """
    is_shim = issubclass(type(coroutine), HasShim) or is_compiled_drive(coroutine)
    shim = coroutine if is_shim else steps_of(coroutine)
    if shim is None or shim.portal is None:
        return None
    # A portal has no greenlet before its first step.
    return shim.coroutine if shim.portal.greenlet is None else None


def stack_of(coroutine: Any) -> Any:
    """The object that has the frames of a task which runs *coroutine*.

    That is *coroutine*, the shim inside of it, or the task's own coroutine if the shim has not
    begun.
    """
    return work_ahead(coroutine) or getattr(coroutine, "shim", coroutine)


def _inside(awaitable: Any) -> Any:
    """The coroutine or generator inside a wrapper without an attribute for it."""
    if type(awaitable).__name__ in (
        "async_generator_asend",
        "async_generator_athrow",
        "coroutine_wrapper",
    ):
        for inner in gc.get_referents(awaitable):
            if hasattr(inner, "ag_frame") or hasattr(inner, "cr_frame"):
                return inner
    return None


# From frame to frame


def with_bridges(frames: List[FrameType], portal: Portal) -> List[FrameType]:
    """*frames* with a frame for each bridge of the portal that is under way in C.

    Args:
        frames: Frames of the portal's worker, outermost first.
    """
    for steps, caller in portal.bridges:
        below = getattr(steps, "cr_frame", None) or getattr(steps, "gi_frame", None)
        if below is not None and below in frames:
            place = frames.index(below)
        elif caller is not None and caller in frames:
            place = frames.index(caller) + 1
        else:
            place = len(frames)  # the innermost one, which waits
        frames.insert(place, _COMPILED_BRIDGE)
    return frames


def outermost_first(frame: Optional[FrameType]) -> List[FrameType]:
    """The frames from the greenlet's outermost one to *frame*."""
    frames: List[FrameType] = []
    while frame is not None and frame.f_code is not _GREENLET_START:
        frames.append(frame)
        frame = _caller_of(frame)
    return frames[::-1]


def outwards(frame: Optional[FrameType]) -> Iterator[FrameType]:
    """The frames from *frame*, of any thread, to the outermost one.

    Another thread can leave the greenlet meanwhile. On PyPy the frames of a waiting greenlet form
    a ring; each is given once.
    """
    met: Set[FrameType] = set()
    while frame is not None and frame not in met:
        met.add(frame)
        yield frame
        frame = _caller_of(frame)


def _caller_of(frame: FrameType) -> Optional[FrameType]:
    try:
        return frame.f_back
    except SystemError:  # PyPy raises this if another thread has left the frame meanwhile
        return None


# Frames of code that runs


def is_worker(some_greenlet: Any) -> bool:
    """Whether a greenlet is a worker."""
    return type(some_greenlet) is Worker


def frames_from(frame: FrameType) -> List[FrameType]:
    """The frames from *frame* out to the portal's outermost one, innermost first.

    Greenlets that the task's code has started itself are part of the stack. After their frames
    come the frames of the greenlet that started them.

    Args:
        frame: A frame of the greenlet that is running now.
    """
    frames: List[FrameType] = []
    here: Any = getcurrent()
    outer: Optional[FrameType] = frame
    while True:
        while outer is not None and id(outer.f_code) not in OUTERMOST:
            frames.append(outer)
            outer = outer.f_back
        if is_worker(here) or here.parent is None:
            return frames
        here = here.parent
        outer = here.gr_frame


def frame_around_portal() -> Optional[FrameType]:
    """The innermost frame outside of the portal that this code runs in; None outside of portals."""
    current: Any = getcurrent()
    while current is not None and not is_worker(current):
        current = current.parent
    return None if current is None or current.parent is None else current.parent.gr_frame


def frames_down_to(frame: FrameType, first: Optional[FrameType]) -> List[FrameType]:
    """The frames of this thread down to *frame*, outermost first, through its greenlets.

    Args:
        frame: A frame of the greenlet that is running now.
        first: The outermost frame to return. If it is not among the frames, all are returned.
    """
    current: Any = getcurrent()
    frames = _of_greenlet(current, frame)
    while first not in frames and current.parent is not None:
        current = current.parent
        frames = _of_greenlet(current, current.gr_frame) + frames
    return frames[frames.index(first) :] if first in frames else frames


def _of_greenlet(some_greenlet: Any, frame: Optional[FrameType]) -> List[FrameType]:
    """The frames of a greenlet of this thread, outermost first, with its bridges.

    Args:
        frame: Its innermost frame.
    """
    frames = outermost_first(frame)
    return with_bridges(frames, some_greenlet.portal) if is_worker(some_greenlet) else frames


def frames_in_threads(
    first: Optional[FrameType], current_frames: Callable[[], Mapping[int, FrameType]]
) -> Optional[List[FrameType]]:
    """The frames from *first* to the innermost one, of a task that another thread is running.

    None if this thread cannot see them.

    Args:
        first: The outermost frame of the task.
        current_frames: `sys._current_frames`, or a function in its place.
    """
    for _ in range(_TRIES):
        for thread, innermost in current_frames().items():
            # `outermost_first` would stop too early: from another thread, PyPy shows the frames of
            # the main greenlet only beyond `_greenlet_start`.
            frames = [*outwards(innermost)][::-1]
            outermost = frames[0]
            portal = _running_in(thread, outermost)
            while first not in frames and portal is not None:
                around = getattr(portal.greenlet, "gr_frame", None)
                if around is None:
                    break
                frames = outermost_first(around) + with_bridges(frames, portal)
                portal = _running_in(thread, frames[0], portal)
            if first not in frames:
                continue
            # The frames around were read after the frames inside. In between, the thread may have
            # parked the inner ones, and begun a step of another task.
            now = [*outwards(current_frames().get(thread))]
            if now and now[-1] is outermost:
                if portal is not None:
                    frames = with_bridges(frames, portal)
                return frames[frames.index(first) :]
    return None


def _running_in(
    thread: int, outermost: FrameType, inner: Optional[Portal] = None
) -> Optional[Portal]:
    """The portal in whose worker *outermost* is the outermost frame, in another thread.

    Args:
        inner: The portal of the worker inside, if these frames are around it.
    """
    if outermost.f_code == work.__code__:
        return _portal_in(outermost)
    # A worker in C has no frame of its own. Its steps are noted.
    if inner is not None:
        around = inner.greenlet
        return around.portal if is_worker(around) else None
    for home in homes():
        if home.thread == thread:
            return home.stepping
    return None


def frames_of_step(portal: Portal, innermost: FrameType) -> List[FrameType]:
    """The frames from the task's outermost async function, or further out, to *innermost*.

    Args:
        portal: A portal whose step is running, in any thread.
        innermost: A frame of that step.
    """
    frames = outermost_first(innermost)
    if all(frame.f_code is not work.__code__ for frame in frames):
        # The task's code runs a greenlet of its own. Or the worker is one in C, and runs now: then
        # it gives no frame here.
        outer = outermost_first(getattr(portal.worker, "gr_frame", None))
        frames = [frame for frame in outer if frame not in frames] + frames
    outer = outermost_first(getattr(portal.greenlet, "gr_frame", None))
    outer = [frame for frame in outer if frame not in frames]
    return outer + with_bridges(frames, portal)


def stepping_portals() -> Iterator[Portal]:
    """The portals whose steps are running: the innermost one of each thread.

    The engine in Python notes them only while there is a listener. An interruption can leave a
    portal here whose task runs no more: see `Home.stepping`.
    """
    for home in homes():
        portal = home.stepping
        if portal is not None:
            yield portal
