"""Shims: a task with a portal runs one in place of its own coroutine."""

from __future__ import annotations

import collections.abc
import inspect
import sys
import types
from functools import partial
from operator import attrgetter
from typing import Any, Callable, Generator, List, Optional

from .._engine.bridge import close_interrupted, is_parked, open_portal, takes
from .._engine.choice import compiled, has_compiled
from .._engine.chosen import drive, drive_of
from .._engine.state import Portal, Raised, current_portal, this_home
from .._engine.work import (
    context_of,
    handled_exception,
    hide_this_frame,
    run_coroutine,
    run_eagerly,
    set_context,
)
from .._frames import HasShim, caller_of_waiting_bridge, is_own, suspended_frames
from .lookalike import Shown, lookalike_of, steps_of


def shim_from_the_start(portal: Portal, unstarted: Unstarted) -> Any:
    """The shim for a task that has not begun.

    Args:
        portal: The task's portal, not open yet.
        unstarted: Holds the task's own coroutine.
    """
    portal.run = portal.run or run_coroutine
    coroutine = unstarted.coroutine
    looks_the_same = _lookalike(portal, coroutine, partial(_first_steps, portal, unstarted))
    if looks_the_same is not None:
        return looks_the_same
    shim = portal.library.uninterruptible(_from_the_start)(portal, unstarted)
    _take_name(shim, coroutine)
    return TaskCoroutine(shim, portal, coroutine)


def shim_from_now_on(portal: Portal) -> Any:
    """The shim for a task that is under way. The portal has the task's own coroutine."""
    coroutine = portal.coroutine
    shim: Any = None
    try:
        shim = _lookalike(portal, coroutine, partial(_next_steps, portal))
        if shim is not None:
            assert portal.shown is not None
            portal.shown.must_move(coroutine)
            shim.send(None)
            return shim
        if TaskDrive is not None and portal.library.name == "asyncio":
            return compiled.drive_from_now_on(portal, coroutine)
        shim = portal.library.uninterruptible(_from_now_on)(portal)
        shim.send(None)
        _take_name(shim, coroutine)
        return TaskCoroutine(shim, portal, coroutine)
    except BaseException:
        if shim is not None:
            shim.close()
        raise


def is_shim(coroutine: Any) -> bool:
    """Whether *coroutine* is a shim."""
    return type(coroutine) in (TaskCoroutine, TaskDrive) or steps_of(coroutine) is not None


def _lookalike(portal: Portal, coroutine: Any, start: Callable[[], Any]) -> Any:
    """A shim that tools take for *coroutine*; None if *coroutine* can have no lookalike.

    Args:
        portal: The portal of the task.
        coroutine: The task's own coroutine.
        start: Returns the iterator that takes the first steps.
    """
    if portal.library.name != "asyncio" or type(coroutine) is not types.CoroutineType:
        return None
    lookalike = lookalike_of(coroutine.cr_code)
    if lookalike is None:
        return None
    shown = portal.shown = Shown(lookalike)
    shim = lookalike.function(Steps(portal, shown, coroutine, start))
    _take_name(shim, coroutine)
    return shim


def _take_name(shim: Any, coroutine: Any) -> None:
    try:
        shim.__name__, shim.__qualname__ = coroutine.__name__, coroutine.__qualname__
    except AttributeError:
        pass  # a coroutine of another type, which has no name


class TaskCoroutine(HasShim):
    """A shim with the attributes of the task's own coroutine.

    For Trio, and for asyncio where the task's coroutine can have no lookalike (see lookalike.py).
    Code that inspects the task sees the same as without a portal: asyncio's repr() and
    print_stack(), anyio, Trio's iter_await_frames(). The methods are those of the shim inside, so
    a step costs no more on Trio; on asyncio it costs one look-up and one call more.
    """

    __slots__ = (
        "__name__",
        "__qualname__",
        "__weakref__",
        "close",
        "coroutine",
        "portal",
        "send",
        "throw",
    )

    def __init__(self, shim: Any, portal: Portal, coroutine: Any) -> None:
        self.shim = shim
        self.portal = portal
        self.coroutine = coroutine
        self.__name__, self.__qualname__ = shim.__name__, shim.__qualname__
        self.send, self.throw, self.close = shim.send, shim.throw, shim.close

    def __await__(self) -> Generator[Any, Any, Any]:
        return self.shim.__await__()  # type: ignore[no-any-return]

    @property
    def cr_running(self) -> bool:
        return self.shim.cr_running  # type: ignore[no-any-return]

    @property
    def cr_suspended(self) -> bool:
        return self.shim.cr_suspended  # type: ignore[no-any-return]

    @property
    def cr_origin(self) -> Any:
        return self.shim.cr_origin

    @property
    def cr_code(self) -> Any:
        frame = self.cr_frame
        return getattr(self.coroutine, "cr_code", None) if frame is None else frame.f_code

    @property
    def cr_frame(self) -> Optional[types.FrameType]:
        """The frame of the task's own code.

        asyncio goes on from here with ``f_back``. So for asyncio this is the frame that called
        `await_`, if the task waits there. Trio goes on with ``cr_await``. So for Trio this is the
        frame of the task's outermost function.
        """
        frame: Optional[types.FrameType] = self.shim.cr_frame
        if frame is None:
            return None
        waits = getattr(self.portal.resume, "gr_frame", None) is not None
        if waits and self.portal.library.name == "asyncio" and not self.cr_running:
            if sys.implementation.name == "pypy":
                return frame  # on PyPy the frames of a waiting greenlet form a ring
            caller = caller_of_waiting_bridge(self.portal)
            if caller is not None:
                return caller
        return getattr(self.coroutine, "cr_frame", None) or frame

    @property
    def cr_await(self) -> Any:
        """The frames below ``cr_frame``, for Trio."""
        if self.cr_running or self.portal.library.name == "asyncio":
            return None
        frames = [
            frame
            for frame in suspended_frames(self.shim)
            if frame is not None and not is_own(frame)
        ]
        return FramesBelow(frames[1:]) if len(frames) > 1 else None


if has_compiled("drive"):

    class _TaskDrive(compiled.drive):  # type: ignore[misc]
        """As `TaskCoroutine`, for the engine in C: it takes the steps itself, without a frame."""

        __slots__ = ()

        @property
        def shim(self) -> Any:
            return self

        @property
        def cr_running(self) -> bool:
            return self.gi_running  # type: ignore[no-any-return]

        @property
        def cr_suspended(self) -> bool:
            return self.portal is not None and not self.gi_running

        @property
        def cr_origin(self) -> Any:
            return self.coroutine.cr_origin

        @property
        def cr_code(self) -> Any:
            return self.coroutine.cr_code

        @property
        def cr_frame(self) -> Optional[types.FrameType]:
            """As `TaskCoroutine.cr_frame`, for asyncio."""
            portal = self.portal
            if portal is None:
                return None
            caller = None if self.gi_running else caller_of_waiting_bridge(portal)
            return caller or self.coroutine.cr_frame

        @property
        def cr_await(self) -> Any:
            return None

    TaskDrive: Any = _TaskDrive
    compiled.set_task_drive(_TaskDrive)
else:
    TaskDrive = None


class Steps(HasShim):
    """The awaitable inside a lookalike: it takes the steps of the portal.

    The methods are those of the iterator that takes the steps, so no Python code runs in between.
    asyncio's call graph of its own process follows this object through the portal.
    """

    __slots__ = ("__next__", "__weakref__", "coroutine", "portal", "shown", "start")

    def __init__(
        self, portal: Portal, shown: Shown, coroutine: Any, start: Callable[[], Any]
    ) -> None:
        self.portal = portal
        self.shown = shown
        self.coroutine = coroutine
        self.start: Optional[Callable[[], Any]] = start
        #: The iterator that takes the steps.
        self.shim = None

    def __await__(self) -> Steps:
        start = self.start
        iterator: Any
        if start is not None:
            self.start = None
            iterator = start()
        else:
            shown = self.shown
            trap, shown.trap = shown.trap, None
            iterator = drive(self.portal, trap)
        self.shim = iterator
        self.__next__ = iterator.__next__
        return self

    def take(self, error: BaseException) -> bool:
        """Throw *error*, which a signal handler raised outside of `drive`, into the work.

        Returns whether the work takes it. If so, the lookalike awaits this object once more.
        """
        portal, iterator = self.portal, self.shim
        if not takes(portal, error):
            close_interrupted(portal, portal.coroutine)
            return False
        hide_this_frame(error)  # the lookalike's frame
        if is_parked(portal) and _is_suspended(iterator):
            self.start = partial(_steps_after, iterator, error)
        else:
            self.start = partial(drive, portal, None, error)
        return True

    # asyncio sends nothing but None, and for None the interpreter calls `__next__`.
    send = property(attrgetter("shim.send"))
    throw = property(attrgetter("shim.throw"))
    close = property(attrgetter("shim.close"))

    @property
    def cr_frame(self) -> types.FrameType:
        return self._below().cr_frame

    @property
    def cr_await(self) -> Optional[FramesBelow]:
        """The frames below the task's own.

        Raises:
            AttributeError: There are none. asyncio takes this for the end of the stack.
        """
        return self._below().cr_await

    def _below(self) -> FramesBelow:
        frames = [
            frame for frame in suspended_frames(self) if frame is not None and not is_own(frame)
        ]
        if len(frames) < 2:
            raise AttributeError("cr_await")
        return FramesBelow(frames[1:])


def _is_suspended(driver: Any) -> bool:
    """Whether the result of `drive`, or of a generator around it, waits for an answer."""
    if isinstance(driver, types.GeneratorType):
        return inspect.getgeneratorstate(driver) == inspect.GEN_SUSPENDED
    return bool(driver.gi_suspended)


class FramesBelow:
    """Frames with the attributes of an awaited coroutine."""

    __slots__ = ("frames",)

    def __init__(self, frames: List[types.FrameType]) -> None:
        self.frames = frames

    @property
    def cr_frame(self) -> types.FrameType:
        return self.frames[0]

    @property
    def cr_await(self) -> Optional[FramesBelow]:
        return FramesBelow(self.frames[1:]) if len(self.frames) > 1 else None


# asyncio makes tasks only of objects that are registered as Coroutine.
collections.abc.Coroutine.register(TaskCoroutine)  # pyright: ignore[reportAttributeAccessIssue]
if TaskDrive is not None:
    collections.abc.Coroutine.register(TaskDrive)  # pyright: ignore[reportAttributeAccessIssue]


class Unstarted:
    """Holds the coroutine of a task until the task's shim begins.

    A task can be cancelled or dropped before its first step. Its shim is closed then, and this
    object closes the coroutine, so that Python does not warn that it was never awaited.

    It is made empty, and gets the coroutine afterwards. Otherwise an interruption while it is made
    would drop it, and so close the coroutine of a task that goes on.
    """

    __slots__ = ("coroutine",)

    def __init__(self) -> None:
        self.coroutine: Any = None

    def take(self) -> Any:
        coroutine, self.coroutine = self.coroutine, None
        return coroutine

    def __del__(self) -> None:
        coroutine = getattr(self, "coroutine", None)  # __init__ may have been interrupted
        if coroutine is not None:
            coroutine.close()


# The two shims below run the task's coroutine in the portal's worker. They are coroutines, not
# generators, since Trio and anyio read the attributes of a task's coroutine. anyio also asks
# whether the coroutine has begun, so the shim of a task that has not begun has not begun either.


async def _from_the_start(portal: Portal, unstarted: Unstarted) -> Any:
    """The shim of a task that has not begun."""
    alone = interruption = None
    while True:
        try:
            if interruption is None:
                alone = _begin_task(portal, unstarted)
            if alone is None:
                drives = drive_of(portal.library)
                result: Any = await drives(portal, None, interruption)
            break
        except BaseException as raised:
            if not takes(portal, raised):
                close_interrupted(portal, portal.coroutine or unstarted.coroutine)
                raise
            interruption = raised
    if alone is not None:
        return await alone
    if type(result) is not Raised:
        return result
    error = result.error
    del portal, result, interruption
    context = context_of(error)
    try:
        raise error
    except BaseException:
        # The traceback has this frame by now. From 3.11 on, `raise` takes the traceback from the
        # exception, so changing it there keeps this frame out of it.
        set_context(error, context)
        hide_this_frame(error)
        raise
    finally:
        del error, context


def _first_steps(portal: Portal, unstarted: Unstarted) -> Any:
    """`_from_the_start` for a lookalike: the iterator that takes the first steps."""
    try:
        alone = _begin_task(portal, unstarted)
    except BaseException as error:
        if not takes(portal, error):
            close_interrupted(portal, portal.coroutine or unstarted.coroutine)
        raise
    if alone is None:
        return drive(portal)
    portal.shown = None
    return alone.__await__()


@types.coroutine
def _steps_after(driver: Any, error: BaseException) -> Generator[Any, Any, Any]:
    """Throw *error* into a `drive` that waits, and forward its traps from then on."""
    try:
        trap = driver.throw(error)
        while True:
            try:
                answer = yield trap
            except BaseException as thrown:
                trap = driver.throw(thrown)
            else:
                trap = driver.send(answer)
    except StopIteration as stop:
        return stop.value
    finally:
        del error


def _begin_task(portal: Portal, unstarted: Unstarted) -> Any:
    """Open the portal of a task that begins.

    Returns:
        None, or the task's coroutine if the task must run it without this portal: because the
        task has another portal, or because no task is known to be running.
    """
    portal.coroutine = unstarted.coroutine
    unstarted.coroutine = None
    promised = this_home().promised
    try:
        _, portal.task, existing = current_portal()
    except RuntimeError:
        # From Python 3.14 on, asyncio does not name a task that is written in Python while it runs.
        for task in [task for task, its_portal in promised.items() if its_portal is portal]:
            del promised[task]
        return portal.coroutine
    promised.pop(portal.task, None)
    if existing is not None:
        existing.scopes += portal.scopes
        return portal.coroutine
    handled = handled_exception()
    if handled is not None and type(portal.coroutine) is types.CoroutineType:
        # An eager task: its creator handles that exception.
        assert portal.run is not None
        portal.handled, portal.inner, portal.run = handled, portal.run, run_eagerly
    open_portal(portal)
    return None


@types.coroutine
def _first_answer() -> Generator[None, Any, Any]:
    return (yield)


async def _from_now_on(portal: Portal) -> Any:
    """The shim of a task that is under way.

    `shim_from_now_on` takes its first step before the shim is put into the task. A coroutine that
    has not begun takes no other value than None, and the loop may send such a task another one.
    """
    interruption = None
    is_in_place = False
    while True:
        # One `try` block covers all: PyPy can be interrupted between two of them.
        try:
            if not is_in_place:
                portal.result = await _first_answer()
                is_in_place = True
            drives = drive_of(portal.library)
            result: Any = await drives(portal, None, interruption)
            break
        except BaseException as raised:
            if not is_in_place:
                if not portal.registered:
                    raise  # the shim was not put into the task, or the task ended without it
                is_in_place = True
            elif not takes(portal, raised):
                close_interrupted(portal, portal.coroutine)
                raise
            interruption = raised
    if type(result) is not Raised:
        return result
    error = result.error
    del portal, result, interruption
    context = context_of(error)
    try:
        raise error
    except BaseException:
        set_context(error, context)
        hide_this_frame(error)
        raise
    finally:
        del error, context


@types.coroutine
def _next_steps(portal: Portal) -> Generator[Any, Any, Any]:
    """`_from_now_on` for a lookalike: the iterator that takes the steps."""
    interruption = None
    try:
        portal.result = yield
    except BaseException as thrown:
        if not portal.registered:
            raise
        interruption = thrown
    driver: Any = drive(portal, None, interruption)
    del interruption
    return (yield from driver)
