"""The public functions that open portals or ask for one."""

from __future__ import annotations

import inspect
import types
from typing import TYPE_CHECKING, Any, Awaitable, Callable, Optional, TypeVar

import sniffio
from greenlet import getcurrent

from ._engine.bridge import (
    NO_NEED,
    Begun,
    Interrupted,
    announce,
    close_portal,
    find_portal,
    interrupted_here,
    register,
    wake_portal,
)
from ._engine.chosen import await_, begin, drive, drive_of, open_for_running_task
from ._engine.state import Portal, Raised, current_in, current_portal, portal_of, this_home
from ._engine.work import context_of, run_coroutine, set_context
from ._shims.shims import Unstarted, shim_from_now_on, shim_from_the_start
from ._tasks.libraries import Library, is_loop_running, library_of, start_loop

if TYPE_CHECKING:
    from typing_extensions import ParamSpec

    from ._tasks.libraries import Task

    P = ParamSpec("P")

T = TypeVar("T")


async def ensure_portal() -> None:
    """Give the current task a portal that lasts as long as the task does.

    If the task has one already, that stays. In both cases this is a checkpoint: other tasks may
    run, and a cancellation is noticed.

    Raises:
        RuntimeError: The coroutine of this task cannot be replaced safely, for example because the
            self-test failed on this interpreter. `with_portal_run` works there.
        sniffio.AsyncLibraryNotFoundError: No async library is running.
    """
    try:
        library = open_for_running_task("task")
        if library is not None:
            await library.checkpoint()
            return
    except BaseException:
        _undo_ensuring()
        raise
    library, task, portal = current_portal()
    if portal is not None:
        await library.checkpoint()
        return
    try:
        open_for_task(library, task, "task")
        await library.checkpoint()
    except BaseException:
        _undo_ensuring()
        raise


def _undo_ensuring() -> None:
    """Close the portal that `ensure_portal` has opened, if its step has ended in an error.

    A signal handler has raised the error then.
    """
    home = this_home()
    try:
        library, task = current_in(home)
    except RuntimeError:
        return
    portal = home.portals.get(task)
    if portal is not None and portal.kind == "task" and portal.worker is None:
        _close_unused(portal, portal.coroutine, library.coroutine_of(task))


def bestow_portal(task: Task) -> None:
    """Give *task* a portal that lasts as long as the task does, from outside of the task.

    Does nothing if the task has a portal or is done. The portal works from the next step of the
    task on. So a task that bestows a portal on itself must yield to the event loop before it uses
    the portal.

    Args:
        task: A task of asyncio or Trio, of the loop that runs in this thread.

    Raises:
        TypeError: *task* is not a task of asyncio or Trio.
        RuntimeError: The task's coroutine cannot be replaced safely; see `ensure_portal`.
    """
    bestow(task, "bestowed")


def bestow(task: Task, kind: str) -> None:
    """`bestow_portal`, for a portal of the given kind."""
    library = library_of(task)
    # Ask whether the task is done before asking for its coroutine: on CPython 3.12.1, the latter
    # crashes with a task that ended in its eager first step.
    if portal_of(task) is not None or library.is_done(task):
        return
    open_for_task(library, task, kind)
    _watch_self_bestowed(library, task)


def _watch_self_bestowed(library: Library, task: Task) -> None:
    """Note a portal that was bestowed on the running task, and close earlier ones left unused."""
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

    The portal lasts for this call. If the task has a portal already, the call uses that one. Adds
    no checkpoint.

    Args:
        async_fn: A function that returns an awaitable.
        args: Its positional arguments.
        kwds: Its keyword arguments.

    Returns:
        The value of ``await async_fn(*args, **kwds)``.

    Raises:
        sniffio.AsyncLibraryNotFoundError: No async library is running.
        RuntimeError: A library other than asyncio or Trio is running.
        BaseException: Whatever *async_fn* raises.
    """
    # A waiting task keeps this frame, so there are few variables, and nothing in them is needless.
    try:
        result = begin("run", run_coroutine, async_fn, args, kwds)
        kind = type(result)
        if kind is drive:
            result = await result
        elif kind is Begun:
            result = _drive_on(result)
            result = await result
        elif kind is not Raised and result is not NO_NEED:
            return result  # type: ignore[no-any-return]
    except BaseException as caught:
        result = None  # a `drive` that has begun is closed, as what an `await` steps would be
        result = interrupted_here(caught)
        if result is None:
            raise
    if type(result) is Interrupted:
        result = await _drive_interrupted(result)
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
        set_context(error, context)  # `raise` set it to the exception that the caller handles
        del error, context


async def with_portal_run_sync(sync_fn: Callable[P, T], *args: P.args, **kwds: P.kwargs) -> T:
    """``sync_fn(*args, **kwds)``, with a portal available to it.

    This is the cheapest portal, for work that is one plain function. The portal lasts for this
    call. If the task has a portal already, the call uses that one. Adds no checkpoint.

    Args:
        sync_fn: A plain function.
        args: Its positional arguments.
        kwds: Its keyword arguments.

    Returns:
        The result of *sync_fn*.

    Raises:
        sniffio.AsyncLibraryNotFoundError: No async library is running.
        RuntimeError: A library other than asyncio or Trio is running.
        BaseException: Whatever *sync_fn* raises.
    """
    # A waiting task keeps this frame, so there are few variables, and nothing in them is needless.
    try:
        result = begin("run_sync", None, sync_fn, args, kwds)
        kind = type(result)
        if kind is drive:
            result = await result
        elif kind is Begun:
            result = _drive_on(result)
            result = await result
        elif kind is not Raised and result is not NO_NEED:
            return result  # type: ignore[no-any-return]
    except BaseException as caught:
        result = None  # a `drive` that has begun is closed, as what an `await` steps would be
        result = interrupted_here(caught)
        if result is None:
            raise
    if type(result) is Interrupted:
        result = await _drive_interrupted(result)
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
        set_context(error, context)  # `raise` set it to the exception that the caller handles
        del error, context


def run(async_fn: Callable[..., Awaitable[T]], *args: Any, backend: str = "asyncio") -> T:
    """Run an async function from sync code, inside or outside of an event loop. Returns its result.

    In a task that has a portal, this is ``await_(async_fn(*args))``. If no event loop runs in this
    thread, `run` starts one, runs the function in it with a portal, and closes the loop.

    Args:
        async_fn: A function that returns an awaitable.
        args: Its positional arguments.
        backend: The library whose loop to start if none runs, ``"asyncio"`` or ``"trio"``.

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
        del found  # its traceback holds this frame, which would keep it alive


def has_portal(task: Optional[Task] = None) -> bool:
    """Whether a task can use `await_`. Never raises.

    Args:
        task: The task; by default the current one.

    Returns:
        For the current task, whether `await_` would work here and now. For another task, whether
        `await_` will work when that task runs next.
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
        return False  # the object cannot be hashed, so it is not a task


def _drive_on(begun: Begun) -> Any:
    portal, trap = begun.portal, begun.trap
    begun.trap = None  # the caller keeps `begun` as long as the portal; the trap must not live on
    return drive_of(portal.library)(portal, trap)


def _drive_interrupted(interrupted: Interrupted) -> Any:
    """Drive the portal, and throw the error into its work first."""
    portal, error = interrupted.portal, interrupted.error
    interrupted.error = None  # the error's traceback leads to the caller, which keeps `interrupted`
    return drive_of(portal.library)(portal, None, error)


def open_for_task(library: Library, task: Task, kind: str) -> None:
    """Open a portal for *task*. The event loop runs the task through it from its next step on."""
    if wake_portal(task):
        return
    coroutine = library.coroutine_of(task)
    ctrl_c = library.holds_back_ctrl_c and not library.is_protected_from_ctrl_c(task)
    portal = Portal(kind, library)
    portal.run = library.interruptible(run_coroutine) if ctrl_c else run_coroutine
    portal.task = task
    if kind != "task" and _is_new(coroutine):
        _open_for_new(portal, task, coroutine)
    else:
        _open_for_old(portal, coroutine)


# Both functions below enter the portal in a table before its shim stands in the task. So other code
# finds it: for example a signal handler that is about to open a portal for the same task.


def _open_for_new(portal: Portal, task: Task, coroutine: Any) -> None:
    library, promised = portal.library, this_home().promised
    portal.task = None  # the keys of `promised`, tasks, are weak: its values must not hold them
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
    shim: Any = None
    try:
        shim = shim_from_now_on(portal)
        portal.home = home  # not earlier: an interrupted shim closes a portal that has a Home
        if home.portals.setdefault(task, portal) is not portal:
            portal.home = None  # the shim is dropped without a step, and has no portal to close
            return
        register(portal, home)
        library.replace_coroutine(task, coroutine, shim)
        announce(portal)
    except BaseException:
        _close_unused(portal, coroutine, shim)
        raise


def _close_unused(portal: Portal, coroutine: Any, shim: Any) -> None:
    """Undo the opening of a portal that was not used, and whose shim was not stepped."""
    task = portal.task
    _put_back(portal.library, task, coroutine, shim)
    if portal.home is not None and portal.home.portals.get(task) is portal:
        close_portal(portal)
    portal.registered = False
    portal.home = None
    if shim is not None:
        shim.close()


def _put_back(library: Library, task: Task, coroutine: Any, shim: Any) -> None:
    """Give the task its own coroutine again if its shim was already in place."""
    if shim is not None and library.coroutine_of(task) is shim:
        library.replace_coroutine(task, shim, coroutine)


def _is_new(coroutine: Any) -> bool:
    return (
        type(coroutine) is types.CoroutineType
        and inspect.getcoroutinestate(coroutine) == inspect.CORO_CREATED
    )
