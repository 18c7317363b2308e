"""The ways to open a portal, and to ask for one."""

from __future__ import annotations

import collections.abc
import inspect
import sys
import types
from functools import partial
from operator import attrgetter
from typing import (
    TYPE_CHECKING,
    Any,
    Awaitable,
    Callable,
    Generator,
    List,
    Optional,
    TypeVar,
)

import sniffio
from greenlet import getcurrent

from ._bridge import (
    NO_NEED,
    Begun,
    announce,
    await_,
    begin,
    close_interrupted,
    close_portal,
    drive,
    find_portal,
    interrupted_here,
    is_parked,
    open_portal,
    register,
    takes,
    wake_portal,
)
from ._lookalike import Shown, is_of_lookalike, lookalike_of
from ._state import Portal, Raised, current_portal, portal_of, this_home
from ._tasks import Library, is_loop_running, library_of, start_loop
from ._work import (
    context_of,
    handled_exception,
    hide_this_frame,
    interruptible,
    own_codes,
    run_coroutine,
    run_eagerly,
    set_context,
)

if TYPE_CHECKING:
    from typing_extensions import ParamSpec

    from ._tasks import Task

    P = ParamSpec("P")

T = TypeVar("T")


async def ensure_portal() -> None:
    """Give the current task a portal that lasts as long as the task does.

    Does nothing to a task that has one already. In both cases this is a checkpoint: other tasks
    may run, and a cancellation is noticed.

    Raises:
        RuntimeError: The coroutine of this task cannot be replaced safely (on an interpreter on
            which nobody has verified how, say); `with_portal_run` works there.
        sniffio.AsyncLibraryNotFoundError: No async library is running.
    """
    library, task, portal = current_portal()
    if portal is not None:
        await library.checkpoint()
        return
    coroutine = library.coroutine_of(task)
    try:
        open_for_task(library, task, "task")
        await library.checkpoint()
    except BaseException:
        portal = this_home().portals.get(task)
        if portal is not None and portal.worker is None:
            # A signal handler has raised it, in the step in which the task was under way already.
            _close_unused(portal, coroutine, library.coroutine_of(task))
        raise


def bestow_portal(task: Task) -> None:
    """Give *task* a portal that lasts as long as the task does, without its help.

    Does nothing if it has a portal, or is done. The portal works from the next step of the task
    on: a task that bestows a portal on itself must yield to the event loop before it can use it.

    Args:
        task: A task of asyncio or Trio, of the loop that runs in this thread.

    Raises:
        TypeError: *task* is not a task of asyncio or Trio.
        RuntimeError: Its coroutine cannot be replaced safely; see `ensure_portal`.
    """
    bestow(task, "bestowed")


def bestow(task: Task, kind: str) -> None:
    """`bestow_portal`, whatever the kind of the portal is to be called."""
    library = library_of(task)
    # The order matters: on CPython 3.12.1, asking a task that ended in its eager first step for
    # its coroutine is a crash.
    if portal_of(task) is not None or library.is_done(task):
        return
    open_for_task(library, task, kind)
    _watch_self_bestowed(library, task)


def _watch_self_bestowed(library: Library, task: Task) -> None:
    """Note a portal that was bestowed on the running task, and close those that came to nothing."""
    home = this_home()
    unused = []
    for portal in home.self_bestowed:
        if portal.registered and portal.greenlet is None:
            if portal.library.is_done(portal.task):
                close_portal(portal)
            else:
                unused.append(portal)
    if home.portals.get(task) is not None and library.is_running(task):
        unused.append(home.portals[task])
    home.self_bestowed = unused


async def with_portal_run(
    async_fn: Callable[P, Awaitable[T]], *args: P.args, **kwds: P.kwargs
) -> T:
    """``await async_fn(*args, **kwds)``, with a portal available to it.

    The portal lasts for this call. In a task that has a portal already, that one is used. Adds no
    checkpoint.

    Args:
        async_fn: A function that returns something to await.
        args: Its positional arguments.
        kwds: Its keyword arguments.

    Returns:
        What awaiting it gives.

    Raises:
        sniffio.AsyncLibraryNotFoundError: No async library is running.
        RuntimeError: Another library than asyncio or Trio is.
        BaseException: Whatever *async_fn* raises.
    """
    interrupted = interruption = None
    try:
        result = begin("run", run_coroutine, async_fn, args, kwds)
        if type(result) is Begun:
            result = await _drive_on(result)
    except BaseException as caught:
        interrupted = interrupted_here()
        if interrupted is None:
            raise
        interruption = caught
    if interrupted is not None:
        result = await _drive_interrupted(interrupted, interruption)
        del interrupted, interruption
    if result is NO_NEED:
        return await async_fn(*args, **kwds)
    if type(result) is not Raised:
        return result  # type: ignore[no-any-return]
    error = result.error
    del result  # nothing may lead from the traceback back to the exception
    context = context_of(error)
    try:
        raise error
    finally:
        set_context(error, context)  # which `raise` sets to what is being handled around here
        del error, context


async def with_portal_run_sync(sync_fn: Callable[P, T], *args: P.args, **kwds: P.kwargs) -> T:
    """``sync_fn(*args, **kwds)``, with a portal available to it.

    The cheapest portal there is, if a plain function is all that has to run in it. The portal
    lasts for this call. In a task that has a portal already, that one is used. Adds no checkpoint.

    Args:
        sync_fn: A plain function.
        args: Its positional arguments.
        kwds: Its keyword arguments.

    Returns:
        What it returns.

    Raises:
        sniffio.AsyncLibraryNotFoundError: No async library is running.
        RuntimeError: Another library than asyncio or Trio is.
        BaseException: Whatever *sync_fn* raises.
    """
    interrupted = interruption = None
    try:
        result = begin("run_sync", None, sync_fn, args, kwds)
        if type(result) is Begun:
            result = await _drive_on(result)
    except BaseException as caught:
        interrupted = interrupted_here()
        if interrupted is None:
            raise
        interruption = caught
    if interrupted is not None:
        result = await _drive_interrupted(interrupted, interruption)
        del interrupted, interruption
    if result is NO_NEED:
        return sync_fn(*args, **kwds)
    if type(result) is not Raised:
        return result  # type: ignore[no-any-return]
    error = result.error
    del result  # nothing may lead from the traceback back to the exception
    context = context_of(error)
    try:
        raise error
    finally:
        set_context(error, context)  # which `raise` sets to what is being handled around here
        del error, context


def run(async_fn: Callable[..., Awaitable[T]], *args: Any, backend: str = "asyncio") -> T:
    """Run an async function from sync code, wherever that is, and return what it returns.

    In a task that has a portal, this is ``await_(async_fn(*args))``. Where no event loop runs, it
    starts one, runs the function in it with a portal, and closes it.

    Args:
        async_fn: A function that returns something to await.
        args: Its positional arguments.
        backend: The library whose loop to start where none runs, ``"asyncio"`` or ``"trio"``.

    Raises:
        ValueError: *backend* is neither.
        RuntimeError: An event loop is running in this thread, and the caller has no portal.
        BaseException: Whatever *async_fn* raises.
    """
    if backend not in ("asyncio", "trio"):
        raise ValueError(f"backend must be 'asyncio' or 'trio', not {backend!r}")
    found = find_portal()
    if type(found) is Portal:
        return await_(async_fn(*args))
    if isinstance(found, sniffio.AsyncLibraryNotFoundError) and not is_loop_running():
        return start_loop(backend, with_portal_run, async_fn, *args)  # type: ignore[no-any-return]
    try:
        raise found
    finally:
        del found  # or its traceback, which has this frame, would keep it alive


def has_portal(task: Optional[Task] = None) -> bool:
    """Whether a task can use `await_`. Never raises.

    Args:
        task: The task to ask for; the current one, if none is given.

    Returns:
        For the current task, whether `await_` would work here and now. For another one, whether
        it will when the task runs next.
    """
    try:
        _, this_task, portal = current_portal()
    except RuntimeError:
        this_task = portal = None
    if task is None or task is this_task:
        return portal is not None and portal.greenlet not in (None, getcurrent())
    try:
        return portal_of(task) is not None
    except Exception:
        return False  # it cannot even be hashed, so it is no task


def _drive_on(begun: Begun) -> Any:
    portal, trap = begun.portal, begun.trap
    begun.trap = None  # it is not to live as long as the portal
    return portal.library.uninterruptible(drive)(portal, trap)


def _drive_interrupted(portal: Portal, error: Optional[BaseException]) -> Any:
    """Drive on what `interrupted_here` has found, with what was raised meanwhile thrown in."""
    return portal.library.uninterruptible(drive)(portal, None, error)


def open_for_task(library: Library, task: Task, kind: str) -> None:
    """Open a portal and have the event loop run *task* through it from its next step on."""
    if wake_portal(task):
        return
    coroutine = library.coroutine_of(task)
    ctrl_c = library.holds_back_ctrl_c and not library.is_protected_from_ctrl_c(task)
    portal = Portal(kind, library)
    portal.run = interruptible(library, run_coroutine) if ctrl_c else run_coroutine
    portal.task = task
    if kind != "task" and _is_new(coroutine):
        _open_for_new(portal, task, coroutine)
    else:
        _open_for_old(portal, coroutine)


# In both, the portal is found by others before its shim is put in place: by a signal handler, say,
# that wants to open one, too.


def _open_for_new(portal: Portal, task: Task, coroutine: Any) -> None:
    library, promised = portal.library, this_home().promised
    portal.task = None  # `promised` is weak in its keys, and this would be a way to them
    unstarted = shim = None
    try:
        if promised.setdefault(task, portal) is not portal:
            return
        unstarted = Unstarted()
        unstarted.coroutine = coroutine
        shim = shim_from_the_start(portal, unstarted)
        library.replace_coroutine(task, coroutine, shim)
    except BaseException:
        _put_back(library, task, coroutine, shim)
        if promised.get(task) is portal:
            del promised[task]
        if unstarted is not None:
            unstarted.take()
        if shim is not None:
            shim.close()
        raise


def _open_for_old(portal: Portal, coroutine: Any) -> None:
    library, task = portal.library, portal.task
    portal.coroutine = coroutine
    home = this_home()
    inner: Any = None
    shim: Any = None
    try:
        shim = _lookalike(portal, coroutine, partial(_next_steps, portal))
        if shim is not None:
            assert portal.shown is not None
            portal.shown.must_move(coroutine)
            shim.send(None)
        else:
            inner = library.uninterruptible(_from_now_on)(portal)
            inner.send(None)
            _take_name(inner, coroutine)
            shim = TaskCoroutine(inner, portal, coroutine)
        portal.home = home  # not before: a shim that is interrupted takes it for a portal to close
        if home.portals.setdefault(task, portal) is not portal:
            portal.home = None  # its shim, which nobody will step, has nothing to close
            return
        register(portal, home)
        library.replace_coroutine(task, coroutine, shim)
        announce(portal)
    except BaseException:
        _close_unused(portal, coroutine, shim)
        if inner is not None:
            inner.close()
        raise


def _close_unused(portal: Portal, coroutine: Any, shim: Any) -> None:
    """Undo the opening of a portal that has not been used, nor its shim been stepped."""
    task = portal.task
    _put_back(portal.library, task, coroutine, shim)
    if portal.home is not None and portal.home.portals.get(task) is portal:
        close_portal(portal)
    portal.registered = False
    portal.home = None
    if shim is not None:
        shim.close()


def _put_back(library: Library, task: Task, coroutine: Any, shim: Any) -> None:
    """Where a signal handler has raised too late, give the task its own coroutine again."""
    if shim is not None and library.coroutine_of(task) is shim:
        library.replace_coroutine(task, shim, coroutine)


def _is_new(coroutine: Any) -> bool:
    return (
        type(coroutine) is types.CoroutineType
        and inspect.getcoroutinestate(coroutine) == inspect.CORO_CREATED
    )


def shim_from_the_start(portal: Portal, unstarted: Unstarted) -> Any:
    """What a new task is to run in place of its coroutine."""
    portal.run = portal.run or run_coroutine
    coroutine = unstarted.coroutine
    looks_the_same = _lookalike(portal, coroutine, partial(_first_steps, portal, unstarted))
    if looks_the_same is not None:
        return looks_the_same
    shim = portal.library.uninterruptible(_from_the_start)(portal, unstarted)
    _take_name(shim, coroutine)
    return TaskCoroutine(shim, portal, coroutine)


def _lookalike(portal: Portal, coroutine: Any, start: Callable[[], Any]) -> Any:
    """A coroutine object that tools take for *coroutine*; None if there is to be none.

    Args:
        portal: The portal that *coroutine* is the work of.
        coroutine: The task's own.
        start: Gives the iterator that makes the first steps.
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


def is_shim(coroutine: Any) -> bool:
    """Whether it is what a task is given to run in place of its own coroutine."""
    if type(coroutine) is TaskCoroutine:
        return True
    frame = coroutine.cr_frame if type(coroutine) is types.CoroutineType else None
    return frame is not None and is_of_lookalike(frame)


def _take_name(shim: Any, coroutine: Any) -> None:
    try:
        shim.__name__, shim.__qualname__ = coroutine.__name__, coroutine.__qualname__
    except AttributeError:
        pass  # a coroutine of another make, without a name to take over


class TaskCoroutine:
    """What a task is given to run: its shim, with the looks of the coroutine that it had.

    For Trio; and for asyncio where no lookalike can be had (see _lookalike.py). Whoever looks at
    the task sees what it would see without a portal: asyncio's repr() and print_stack(), anyio,
    Trio's iter_await_frames(). The methods are the shim's own, so that a step of Trio's costs what
    it did; one of asyncio's gains a look-up and a call.
    """

    __slots__ = (
        "__name__",
        "__qualname__",
        "__weakref__",
        "close",
        "coroutine",
        "portal",
        "send",
        "shim",
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
        """Where the task's own code is.

        For asyncio, which goes on with ``f_back``: what calls `await_`, if the task waits there.
        For Trio, which goes on with ``cr_await``: the task's outermost function.
        """
        frame: Optional[types.FrameType] = self.shim.cr_frame
        if frame is None:
            return None
        waiting = getattr(self.portal.resume, "gr_frame", None)
        if waiting is not None and self.portal.library.name == "asyncio" and not self.cr_running:
            if sys.implementation.name == "pypy":
                return frame  # the frames of a waiting greenlet are a circle there
            if waiting.f_code == await_.__code__:
                return waiting.f_back  # type: ignore[no-any-return]
        return getattr(self.coroutine, "cr_frame", None) or frame

    @property
    def cr_await(self) -> Any:
        """What Trio follows from ``cr_frame`` on."""
        from ._stackscope import is_own, suspended_frames  # which imports this module

        if self.cr_running or self.portal.library.name == "asyncio":
            return None
        frames = [
            frame
            for frame in suspended_frames(self.shim)
            if frame is not None and not is_own(frame)
        ]
        return FramesBelow(frames[1:]) if len(frames) > 1 else None


class Steps:
    """What a lookalike awaits: the steps of a portal, from one of the places it waits at.

    The methods are those of the iterator that makes the steps, so that nothing in Python comes
    between. In the same process, asyncio's call graph goes on here, through the portal.
    """

    __slots__ = ("__next__", "__weakref__", "coroutine", "iterator", "portal", "shown", "start")

    def __init__(
        self, portal: Portal, shown: Shown, coroutine: Any, start: Callable[[], Any]
    ) -> None:
        self.portal = portal
        self.shown = shown
        self.coroutine = coroutine
        self.start: Optional[Callable[[], Any]] = start
        self.iterator: Any = None

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
        self.iterator = iterator
        self.__next__ = iterator.__next__
        return self

    def take(self, error: BaseException) -> bool:
        """Take what a signal handler has raised outside of a drive, to throw it into the work."""
        portal, iterator = self.portal, self.iterator
        if not takes(portal, error):
            close_interrupted(portal, portal.coroutine)
            return False
        hide_this_frame(error)  # the lookalike's
        if is_parked(portal) and inspect.getgeneratorstate(iterator) == inspect.GEN_SUSPENDED:
            self.start = partial(_steps_after, iterator, error)
        else:
            self.start = partial(drive, portal, None, error)
        return True

    # asyncio sends nothing but None, for which the interpreter takes `__next__`.
    send = property(attrgetter("iterator.send"))
    throw = property(attrgetter("iterator.throw"))
    close = property(attrgetter("iterator.close"))

    @property
    def cr_frame(self) -> types.FrameType:
        return self._below().cr_frame

    @property
    def cr_await(self) -> Optional[FramesBelow]:
        """Raises AttributeError where the task's own coroutine is the innermost that can be seen:
        that is how asyncio finds the end.
        """
        return self._below().cr_await

    def _below(self) -> FramesBelow:
        from ._stackscope import is_own, suspended_frames  # which imports this module

        frames = [
            frame for frame in suspended_frames(self) if frame is not None and not is_own(frame)
        ]
        if len(frames) < 2:
            raise AttributeError("cr_await")
        return FramesBelow(frames[1:])


class FramesBelow:
    """Frames in the place of what a coroutine awaits."""

    __slots__ = ("frames",)

    def __init__(self, frames: List[types.FrameType]) -> None:
        self.frames = frames

    @property
    def cr_frame(self) -> types.FrameType:
        return self.frames[0]

    @property
    def cr_await(self) -> Optional[FramesBelow]:
        return FramesBelow(self.frames[1:]) if len(self.frames) > 1 else None


# asyncio takes nothing else.
collections.abc.Coroutine.register(TaskCoroutine)  # pyright: ignore[reportAttributeAccessIssue]


class Unstarted:
    """A coroutine on its way into a shim that has not begun.

    A task can be cancelled, or dropped, before its first step. Its coroutine has then been dealt
    with, in Python's eyes, as soon as the shim has been: it is not to warn of its own.

    It is made empty: one that is dropped at once, because making it was interrupted, would close
    the coroutine of a task that goes on.
    """

    __slots__ = ("coroutine",)

    def __init__(self) -> None:
        self.coroutine: Any = None

    def take(self) -> Any:
        coroutine, self.coroutine = self.coroutine, None
        return coroutine

    def __del__(self) -> None:
        coroutine = getattr(self, "coroutine", None)  # making it may have been interrupted
        if coroutine is not None:
            coroutine.close()


# Two shims take the place of a task's coroutine and have the portal's worker run that. They are
# coroutines, not generators, since Trio and anyio look at the attributes of what a task runs; and
# anyio asks whether it has begun, so the shim of a task that has not begun has not either.


async def _from_the_start(portal: Portal, unstarted: Unstarted) -> Any:
    alone = interruption = None
    while True:
        try:
            if interruption is None:
                alone = _begin_task(portal, unstarted)
            if alone is None:
                drives = portal.library.uninterruptible(drive)
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
        # Entered with this frame in the traceback. From 3.11 on, raising again takes the
        # traceback from the exception, so that this frame can be kept out of it.
        set_context(error, context)
        hide_this_frame(error)
        raise
    finally:
        del error, context


def _first_steps(portal: Portal, unstarted: Unstarted) -> Any:
    """`_from_the_start`, for a lookalike."""
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
    """Throw into a `drive` that waits, and go on with it."""
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
    """Open the portal of a task that begins; or give the coroutine, to be run without it."""
    portal.coroutine = unstarted.coroutine
    unstarted.coroutine = None
    promised = this_home().promised
    try:
        _, portal.task, existing = current_portal()
    except RuntimeError:
        # Nothing is known to be running: of a task written in Python, from Python 3.14 on.
        for task in [task for task, its_portal in promised.items() if its_portal is portal]:
            del promised[task]
        return portal.coroutine
    promised.pop(portal.task, None)
    if existing is not None:
        existing.scopes += portal.scopes
        return portal.coroutine
    handled = handled_exception()
    if handled is not None and type(portal.coroutine) is types.CoroutineType:
        # An eager task: what created it is handling it.
        assert portal.run is not None
        portal.handled, portal.inner, portal.run = handled, portal.run, run_eagerly
    open_portal(portal)
    return None


@types.coroutine
def _first_answer() -> Generator[None, Any, Any]:
    return (yield)


async def _from_now_on(portal: Portal) -> Any:
    """For a task that is under way.

    The first step is made before it is put in place: a coroutine that has not begun takes no
    other value than None, and such a task may be sent another.
    """
    interruption = None
    is_in_place = False
    while True:
        # Nothing is between two `try` blocks: PyPy can be interrupted there.
        try:
            if not is_in_place:
                portal.result = await _first_answer()
                is_in_place = True
            drives = portal.library.uninterruptible(drive)
            result: Any = await drives(portal, None, interruption)
            break
        except BaseException as raised:
            if not is_in_place:
                if not portal.registered:
                    raise  # it was not put in place, or its task has ended without it
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
    """`_from_now_on`, for a lookalike."""
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


own_codes.update(function.__code__ for function in (_first_answer, _from_now_on, _next_steps))
