"""The hot path: `await_`, opening and closing portals, workers, and `drive`.

A portal has two sides. `drive`, a generator, is the outer one: the event loop runs it as part of
a task. The *worker*, a greenlet, is the inner one: it runs the task's own code. A bridge steps its
awaitable in place, in the greenlet that called `await_`. Only when the awaitable yields a trap
does the bridge switch to the greenlet of `drive`. `drive` yields the trap to the event loop, and
later switches back with the answer.

Starting a greenlet costs ten times as much as a switch, since each greenlet maps a stack for
Python frames. So workers are reused: there is a small pool per thread and nesting level. Comments
below say what a reused worker needs.

This module stays simple enough to compile: no closures, no decorators on hot functions except
`types.coroutine`, no dynamic attributes. The figures are from ``benchmarks/``.
"""

from __future__ import annotations

import collections.abc
import logging
import sys
import types
from inspect import CORO_CREATED, GEN_CREATED, getcoroutinestate, getgeneratorstate
from time import perf_counter_ns
from typing import (
    TYPE_CHECKING,
    Any,
    Awaitable,
    Callable,
    Dict,
    Generator,
    List,
    Optional,
    Tuple,
    TypeVar,
)

import greenlet
from greenlet import getcurrent

from .._folder import FOLDER
from .._frames import set_engine, suspended_frames
from .._tasks.libraries import Library, sniffio_thread
from .._tasks.where import no_portal
from .choice import compiled, has_compiled
from .state import (
    NOWHERE,
    POOL_DEPTH,
    POOL_LEVELS,
    POOL_SIZE,
    Home,
    Portal,
    Raised,
    Worker,
    current_in,
    current_portal,
    enter_loop,
    is_here,
    local,
    portal_in,
    this_home,
)
from .work import (
    ERROR,
    MOVED,
    CoroutineType,
    awaited,
    handled_exception,
    hide_this_frame,
    is_killed_here,
    is_unfinished,
    leave_handler,
    new_work,
    no_caller,
    run_function,
    run_while_handling,
    set_traceback,
    take_error,
    traceback_of,
    without_frames_of,
    work,
)

if TYPE_CHECKING:
    from .._listener.listener import Listener

T = TypeVar("T")

# PyPy has greenlet 0.4 built in. There, contexts belong to the thread and not to greenlets.
_GREENLETS_HAVE_CONTEXT = hasattr(greenlet.greenlet, "gr_context")
if not _GREENLETS_HAVE_CONTEXT:
    from __pypy__ import (  # pyright: ignore[reportMissingImports]
        get_contextvar_context,
        set_contextvar_context,
    )

# A worker in C has no frame. So other threads learn from `Home.stepping` whose step runs.
_NOTES_STEPS = has_compiled("work")


class Begun:
    """The result of `begin` when the portal's work is not over: the caller must `drive` it."""

    __slots__ = ("portal", "trap")

    def __init__(self, portal: Portal, trap: Any) -> None:
        self.portal = portal
        self.trap = trap


class Interrupted:
    """A portal that `begin` has opened and no `drive` runs, and an error to throw into its work."""

    __slots__ = ("error", "portal")

    def __init__(self, portal: Portal, error: BaseException) -> None:
        self.portal = portal
        self.error: Optional[BaseException] = error


#: The result of `begin` when the task already has a portal.
NO_NEED = object()


# The listener that is told of portals and bridges, or None. `set_hooks` writes it, called by
# _listener/listener.py from any thread. So each function here reads it once before it calls it.
_hooks: Optional[Listener] = None


def set_hooks(hooks: Optional[Listener]) -> None:
    """Tell *hooks* of portals and bridges from now on, and no other listener. None tells nobody."""
    global _hooks
    _hooks = hooks
    if compiled is not None:
        compiled.set_hooks(hooks)


# Bridges

#: How far below its `def` the line of `await_` is in which a bridge waits.
LINE_OF_STEPS = 63


def await_(aw: Awaitable[T]) -> T:
    """Wait for *aw* from sync code: ``await_(aw)`` does what ``await aw`` would do.

    The current task must have a portal: see `ensure_portal`, `with_portal_run` and their
    relatives. The event loop runs other tasks while *aw* waits. If *aw* does not wait, nothing
    else runs.

    Args:
        aw: Anything that can be awaited.

    Returns:
        What ``await aw`` would evaluate to.

    Raises:
        RuntimeError: The current task has no portal, or the portal was bestowed on it but the task
            has not yielded to the event loop since; or another async library is running.
        sniffio.AsyncLibraryNotFoundError: No async library is running.
        TypeError: *aw* cannot be awaited.
        BaseException: Whatever *aw* raises. In all other cases, `await_` closes *aw* if it is a
            coroutine, so that Python does not warn that it was never awaited. A coroutine that
            another function awaits stays open.
    """
    # A bridge calls the same hooks from its start to its end, even if instruments come and go.
    hooks = _hooks
    portal: Any = NOWHERE
    bridge: Any = None
    # A coroutine stepped by send() ends with a StopIteration. Making and catching it costs as much
    # as all the rest of a bridge. A for loop over a generator ends without one.
    box: List[T] = []
    steps: Any = None
    answer: Any = None
    handled: Optional[BaseException] = None
    left = 0
    chain: Any = None
    interruption: Optional[BaseException] = None
    while True:
        try:
            try:
                if steps is None:
                    me: Any = getcurrent()
                    # A worker knows its portal: checking that costs less than a look-up by task.
                    if type(me) is Worker:
                        portal = me.portal
                    try:
                        is_here = (
                            portal.current_task() is portal.task
                            and sniffio_thread.name == portal.mark
                        )
                    except RuntimeError:
                        is_here = False  # no loop is set as running in this thread any more
                    if not is_here:
                        portal = find_portal()
                        if type(portal) is not Portal:
                            raise portal
                    if hooks is not None and not portal.hushed:
                        bridge = hooks.start_bridge(
                            portal, aw, sys._getframe().f_back or no_caller()
                        )
                    if type(aw) is not CoroutineType or aw.cr_await is not None:
                        aw = awaited(aw)
                    chain = steps = _step(aw, box)
                else:
                    chain, interruption = _Interrupted(steps, interruption), None
                for trap in chain:
                    while True:
                        if bridge is not None:
                            if hooks.suspend_bridge is not None:  # type: ignore[union-attr]
                                _announce_suspension(hooks.suspend_bridge, bridge, steps)  # type: ignore[union-attr]
                            left = portal.left = perf_counter_ns()
                        portal.awaits = steps
                        portal.resume = me
                        if _GREENLETS_HAVE_CONTEXT:
                            answer = portal.greenlet.switch(trap)
                        else:
                            context = get_contextvar_context()
                            answer = portal.greenlet.switch(trap)
                            set_contextvar_context(context)
                        trap = None
                        if bridge is not None:
                            hooks.resume_bridge(bridge, portal, left)  # type: ignore[union-attr]
                            left = 0
                        if answer is None:
                            break  # the for loop's own next step sends None
                        if answer is ERROR:
                            # For `leave_handler`, if the awaitable lets the error out.
                            handled = handled_exception()
                            trap = steps.throw(take_error(portal))
                            handled = None
                        else:
                            trap = steps.send(answer)
                            # An answer of Trio's may hold an exception. Its traceback would keep
                            # the frames alive that raised it.
                            answer = None
            except StopIteration:
                pass  # the last step was a send() or a throw(), and the awaitable returned
            if bridge is not None:
                hooks.finish_bridge(bridge, None, 0)  # type: ignore[union-attr]
            return box[0]
        except BaseException as error:
            if steps is not None and _is_left_waiting(steps, aw, error):
                # A signal handler raised *error* in this frame, while the awaitable waits. An
                # `await` would throw it into the awaitable, which may catch it and go on.
                interruption = error
                trap = answer = None
                left = 0
                continue
            try:
                if steps is None:
                    discard(aw)  # the bridge was refused
                else:
                    portal.awaits = None
                _hide_steps(portal, error)
                leave_handler(error, handled)
            finally:  # also if a signal handler raises in the lines above
                if bridge is not None:
                    hooks.finish_bridge(bridge, error, left)  # type: ignore[union-attr]
            # The error's traceback holds this frame, so none of these variables may lead back to
            # the error. They do: the task keeps its error, and so does a future that has failed.
            aw = portal = me = bridge = steps = chain = answer = handled = None  # type: ignore[assignment]
            raise


@types.coroutine
def _step(aw: Any, box: List[Any]) -> Generator[Any, Any, None]:
    box.append((yield from aw))


def _is_left_waiting(steps: Any, aw: Any, error: BaseException) -> bool:
    """Whether *error* was raised outside of the awaitable, which still waits."""
    if issubclass(type(error), greenlet.GreenletExit):
        return False  # this greenlet is being killed, so the awaitable is to be closed
    if steps.gi_frame is None or steps.gi_running:
        return False
    if getgeneratorstate(steps) == GEN_CREATED:
        discard(aw)
        steps.close()
        return False
    return True


class _Interrupted:
    """The remaining traps of *steps*, after throwing *error* into it."""

    __slots__ = ("error", "steps")

    def __init__(self, steps: Any, error: Optional[BaseException]) -> None:
        self.steps = steps
        self.error = error

    def __iter__(self) -> _Interrupted:
        return self

    def __next__(self) -> Any:
        error, self.error = self.error, None
        if error is None:
            return self.steps.send(None)
        try:
            hide_this_frame(error)  # the frame of `await_`: the error passes it a second time
            return self.steps.throw(error)
        finally:
            del error


def _announce_suspension(
    suspend_bridge: Callable[[Any], None], bridge: Any, steps: Generator[Any, Any, None]
) -> None:
    """Tell the listener that a bridge suspends. The listener can refuse that by raising."""
    try:
        suspend_bridge(bridge)
        return
    except BaseException as error:
        refused = error
    try:
        steps.close()
        raise refused
    finally:
        del refused


_STEP_CODES = frozenset({_step.__code__, _Interrupted.__next__.__code__, awaited.__code__})


def _hide_steps(portal: Portal, error: BaseException) -> None:
    """Take the frames of `await_`'s helpers out of the traceback of *error*.

    Also note it in the portal if the error kills the greenlet: `portal.abandoned`.
    """
    mine = traceback_of(error)
    if mine is None:
        return  # the interpreter had no memory for a traceback
    below = mine.tb_next
    if is_killed_here(error):
        portal.abandoned = True
    while below is not None and below.tb_frame.f_code in _STEP_CODES:
        below = below.tb_next
    mine.tb_next = below


def discard(aw: Any) -> None:
    """Close a coroutine that will not be awaited, so that Python does not warn of it."""
    if type(aw) is CoroutineType and getcoroutinestate(aw) != CORO_CREATED:
        return  # another function awaits the coroutine, or the coroutine is over
    if isinstance(aw, collections.abc.Coroutine) or (
        # asend() and the like of an async generator return objects that are not registered as
        # Coroutine.
        hasattr(aw, "__await__") and hasattr(aw, "send") and hasattr(aw, "close")
    ):
        aw.close()


def find_portal() -> Any:
    """The current task's portal, looked up by task. The error to raise if there is none."""
    try:
        library, task, portal = current_portal()
    except RuntimeError as error:
        return error.with_traceback(None)
    if portal is None:
        return no_portal(task, this_home().portals, suspended_frames)
    if portal.greenlet is None or portal.greenlet is getcurrent():
        return RuntimeError(
            "you must yield to the event loop first: greenback.bestow_portal() was called on "
            "the current task, and its portal can be used from the task's next step on; try "
            f"'await {library.name}.sleep(0)'"
        )
    return portal


# Portals for functions


def begin(
    kind: str,
    run: Optional[Callable[[Portal], Any]],
    function: Callable[..., Any],
    args: Tuple[Any, ...],
    kwds: Dict[str, Any],
) -> Any:
    """Open a portal for a function in the current task, and run it until it waits or ends.

    Returns:
        The result of `finish` if the function has ended. A `Begun` if it waits, or if its first
        step must not be taken here. `NO_NEED` if the task already has a portal; then the function
        was not called.

    Raises:
        RuntimeError: As `greenback._tasks.libraries.current`.
    """
    # The common case, written out inline. `_begin_slowly` calls one function per step instead, and
    # takes half as long again.
    try:
        home = local.home
    except AttributeError:
        home = this_home()
    me = getcurrent()
    library = home.library
    if (
        _hooks is not None
        or not _GREENLETS_HAVE_CONTEXT
        or _NOTES_STEPS
        or me is not home.main
        or not home.pool
        or home.portals
        or home.others
        or home.first_step is not None
        or library.holds_back_ctrl_c
        or sniffio_thread.name != library.mark
        or handled_exception() is not None
    ):
        return _begin_slowly(home, me, kind, run, function, args, kwds)
    try:
        task = library.current_task()
    except RuntimeError:
        task = None  # no loop is running now
    worker = home.pool[-1]
    portal = worker.spare
    if task is None or portal.library is not library or not worker:
        return _begin_slowly(home, me, kind, run, function, args, kwds)
    home.pool.pop()
    portal.home = home
    portal.worker = worker
    portal.kind = kind
    portal.task = task
    portal.run = run
    portal.function = function
    portal.args = args
    portal.kwds = kwds
    portal.greenlet = me
    try:
        home.first_step = portal
        worker.give_context(me.gr_context)
        trap = worker.switch(portal)
        if portal.resume is not None:
            register(portal, home)
            return Begun(portal, trap)
    except BaseException:
        if not is_parked(portal):
            portal.abandoned = True
            finish(portal)
        else:
            register(portal, home)  # so that `interrupted_here` finds it
        raise
    finally:
        home.first_step = None
    if portal.error is not None or not worker.poolable:
        return finish(portal)
    result = portal.result
    portal.home = portal.worker = portal.task = portal.greenlet = portal.result = None
    portal.function = portal.args = portal.kwds = None
    if not worker.is_bare:
        worker.gr_context = None
    home.pool.append(worker)
    return result


def _begin_slowly(
    home: Home,
    me: Any,
    kind: str,
    run: Optional[Callable[[Portal], Any]],
    function: Callable[..., Any],
    args: Tuple[Any, ...],
    kwds: Dict[str, Any],
) -> Any:
    """`begin` for every case, one function call per step."""
    if type(me) is Worker and is_here(me.portal):
        return NO_NEED
    library, task = current_in(home)
    if portal_in(home, task) is not None:
        return NO_NEED
    loop = library.loop()
    if home.others or loop is not home.loop():
        _look_at_loop(home, library, loop)
    worker = take_worker(home, me)
    portal = worker.spare
    if _hooks is not None or portal.library is not library:
        # Instruments may keep a portal, or use it as a dictionary key. So with instruments, each
        # portal is a new object.
        portal = Portal(kind, library)
        worker.portal = portal
        if _hooks is None or (compiled is not None and compiled.is_told_in_c()):
            worker.spare = portal
    portal.home = home
    portal.worker = worker
    portal.kind = kind
    portal.task = task
    portal.run = run
    portal.function, portal.args, portal.kwds = function, args, kwds
    portal.greenlet = me
    handled = handled_exception()
    if library.holds_back_ctrl_c or handled is not None:
        _adapt_to_surroundings(portal, handled)
    if library.holds_back_ctrl_c:
        # The first step must be taken where Ctrl-C is held back: in `drive`, not here.
        return Begun(portal, None)
    try:
        trap = first_step(portal)
        return finish(portal) if portal.resume is None else Begun(portal, trap)
    except BaseException:
        if portal.home is not None and not is_parked(portal):
            portal.abandoned = True
            finish(portal)
        raise


def _adapt_to_surroundings(portal: Portal, handled: Optional[BaseException]) -> None:
    """Give the portal's work the surroundings of its caller: Ctrl-C, and the handled exception."""
    library = portal.library
    run = run_function if portal.run is None else portal.run
    if library.holds_back_ctrl_c and not library.is_protected_from_ctrl_c():
        run = library.interruptible(run)
    if handled is not None:
        portal.handled, portal.inner = handled, run
        run = run_while_handling
    portal.run = run


# Opening and closing portals


def open_portal(portal: Portal) -> None:
    """Make *portal* the portal of its task, for look-ups from all greenlets and threads."""
    home = portal.home = this_home()
    register(portal, home)
    announce(portal)


def announce(portal: Portal) -> None:
    """Tell the listener that *portal* is open."""
    hooks = _hooks
    if hooks is not None:
        hooks.open_portal(portal)


def register(portal: Portal, home: Home) -> None:
    """Enter *portal* in the table of its thread."""
    library = portal.library
    loop = library.loop_of(portal.task)
    if home.others or loop is not home.loop():
        _look_at_loop(home, library, loop)
    home.portals[portal.task] = portal
    portal.registered = True


def close_portal(portal: Portal) -> None:
    """Undo `open_portal`. If the portal's work goes on, it can bridge no more."""
    portal.home.portals.pop(portal.task, None)
    hooks = _hooks
    if hooks is not None:
        _close_announced(portal, hooks)
    # Last: after an interruption of this function, it shows that the portal is not closed yet.
    portal.registered = False


def _close_announced(portal: Portal, hooks: Listener) -> None:
    """Tell the listener that *portal* is closed.

    An instrument may keep the portal, so no worker reuses it. Hooks in C keep none.
    """
    worker = portal.worker
    keeps = compiled is None or not compiled.is_told_in_c()
    if keeps and worker is not None and worker.spare is portal:
        worker.spare = NOWHERE
    hooks.close_portal(portal)


def rest_portal(portal: Portal) -> None:
    """Close a portal whose shim stays in its task. `wake_portal` opens it again."""
    close_portal(portal)
    portal.home.resting[portal.task] = portal
    if portal.worker is not None:
        portal.worker.portal = NOWHERE


def wake_portal(task: Any) -> bool:
    """Open the resting portal of *task* again. Returns whether there was one."""
    resting = this_home().resting
    if not resting or task not in resting:
        return False
    portal = resting.pop(task)
    open_portal(portal)
    if portal.worker is not None:
        portal.worker.portal = portal
    return True


# Workers


def take_worker(home: Home, me: Any) -> Worker:
    """An idle worker, or a new one, that works for the greenlet *me*."""
    if me is home.main:
        level = 0
    elif type(me) is Worker:
        level = me.level + 1
    else:
        level = POOL_LEVELS  # a greenlet of the program's own, of unknown depth
    if level < POOL_LEVELS:
        pool = home.pools[level]
        while pool:
            worker = pool.pop()
            if not worker:
                # Dead: a greenlet that earlier work had started raised an exception, which went
                # to its parent, this worker.
                continue
            if level:
                # An exception that kills the worker goes to its parent: the greenlet that it
                # works for.
                worker.parent = me
            return worker
    worker = Worker(new_work)
    worker.level = level
    worker.poolable = level < POOL_LEVELS and not _stack_is_deeper_than(POOL_DEPTH)
    worker.portal = worker.spare = NOWHERE
    worker.is_bare = False
    worker.context = worker.replaces = None
    return worker


# Steps


def first_step(portal: Portal) -> Any:
    """Run the portal's work until it waits for the first time or ends, and return its trap.

    Afterwards ``portal.resume`` is None if the work has ended. The caller must call `finish` then.
    """
    worker = portal.worker
    home = portal.home
    me = portal.greenlet
    hooks = _hooks
    # During a portal's first step, nothing else in the thread runs, except what the work calls
    # itself. If the work never waits, the portal is gone after that. So a portal is in this chain
    # at first, and enters the thread's table only when its work waits for the first time.
    outer = portal.outer = home.first_step
    try:
        if worker is None:
            # The portal of a task that was opened before the task's first step.
            if hooks is not None:
                hooks.enter_portal(portal)
            me = portal.greenlet = getcurrent()
            worker = portal.worker = take_worker(home, me)
            worker.portal = portal
        elif hooks is not None:
            hooks.open_portal(portal)
        home.first_step = portal
        if _GREENLETS_HAVE_CONTEXT:
            worker.give_context(me.gr_context)
        # For a worker that has not begun, see `work`. One in C finds its portal itself.
        first: Any = portal if worker else [portal] if new_work is work else None
        if _hooks is None and _GREENLETS_HAVE_CONTEXT and not _NOTES_STEPS:
            trap = worker.switch(first)
        else:
            trap = observed_switch(portal, worker, first)
        if portal.resume is not None:
            register_once(portal, home)
        return trap
    except BaseException:
        if is_parked(portal):
            register_once(portal, home)
        else:
            portal.abandoned = True
        raise
    finally:
        home.first_step = outer


def register_once(portal: Portal, home: Home) -> None:
    if not portal.registered and home.resting.get(portal.task) is not portal:
        register(portal, home)  # a second time if the first was interrupted


# Interruptions
#
# A signal handler can raise on the outer side of a portal. That exception is thrown into the
# portal's work, just as it would be raised in a coroutine that the event loop steps. Dropping the
# work instead would lose its `finally` blocks.


def is_parked(portal: Portal) -> bool:
    """Whether the portal's work waits for an answer from the event loop."""
    return portal.resume is not None and bool(portal.resume)


def takes(portal: Portal, error: BaseException) -> bool:
    """Whether *error*, raised on the outer side, can still be thrown into the portal's work."""
    if portal.home is None or issubclass(type(error), greenlet.error):
        return False
    if portal.error is not None and issubclass(type(error), (RecursionError, MemoryError)):
        return False  # throwing raised this error, and would raise it again
    return is_parked(portal) or is_unfinished(portal.coroutine)


def interrupted_here(error: BaseException) -> Optional[Interrupted]:
    """The portal that `begin` opened in this greenlet and no `drive` runs; None if there is none.

    Args:
        error: What the caller has caught. It was raised before its `drive` could start.
    """
    home = this_home()
    me = getcurrent()
    portal = home.first_step
    if portal is not None and portal.greenlet is me:
        home.first_step = portal.outer
        if not is_parked(portal):
            finish(portal)
            return None
        register_once(portal, home)
        return Interrupted(portal, error)
    try:
        portal = home.portals.get(current_in(home)[1])
    except RuntimeError:
        return None
    if portal is not None and portal.greenlet is me and is_parked(portal):
        return Interrupted(portal, error)
    return None


def close_interrupted(portal: Portal, coroutine: Any) -> None:
    """Close a task's portal after an error that its work does not take (see `takes`)."""
    if portal.home is not None:
        finish(portal)
    if type(coroutine) is CoroutineType and getcoroutinestate(coroutine) == CORO_CREATED:
        coroutine.close()  # as if the error had been raised before the coroutine's first line


def interrupt(portal: Portal, error: BaseException) -> Any:
    """Throw *error* into the portal's work, and return the next trap."""
    home = portal.home
    if home.portals.get(portal.task) is portal:
        portal.registered = True  # `register` was interrupted before its last line
    set_traceback(error, without_frames_of(FOLDER, traceback_of(error)))
    portal.error = error
    if not is_parked(portal):
        # The worker has not begun to run the task's coroutine. The task may have begun it.
        portal.result = ERROR
        portal.worker = portal.resume = None
        portal.abandoned = False
        return first_step(portal)
    if home.first_step is portal:
        home.first_step = portal.outer
    register_once(portal, home)
    me = getcurrent()
    if portal.greenlet is not me:
        portal.greenlet = portal.worker.parent = me
    return observed_switch(portal, portal.resume, ERROR)


# From the first step to the end


def finish(portal: Portal) -> Any:
    """Close the portal after its work has ended, and put the worker back into its pool.

    Returns:
        The work's result, or a `Raised` with the work's error.
    """
    home, worker, result = portal.home, portal.worker, portal.result
    if portal.error is not None:
        result = Raised(portal.error)
        portal.error = None
    if home.first_step is portal:  # an interruption kept `first_step` from resetting it
        home.first_step = portal.outer
    is_told = False
    try:
        if portal.registered:
            close_portal(portal)
        elif home.resting and home.resting.get(portal.task) is portal:
            del home.resting[portal.task]
        else:
            hooks = _hooks
            if hooks is not None:
                _close_announced(portal, hooks)
        is_told = True
    finally:
        if not is_told:  # a signal handler interrupted it
            close_portal(portal)
        is_over = portal.resume is None and not portal.abandoned
        # An idle worker and its spare portal must keep nothing of the work alive. Nor may they
        # keep the worker itself or its thread's Home alive: a thread may end with a parked
        # worker, and the garbage collector cannot look into a parked greenlet.
        portal.home = portal.worker = portal.task = portal.greenlet = portal.result = None
        portal.function = portal.args = portal.kwds = portal.outer = portal.resume = None
        portal.awaits = None
        if worker is not None:
            worker.portal = worker.spare
            if is_over and worker.poolable:
                pool = home.pools[worker.level]
                if len(pool) < POOL_SIZE:
                    if _GREENLETS_HAVE_CONTEXT and not worker.is_bare:
                        worker.gr_context = None
                    if worker.parent is not home.main:
                        worker.parent = home.main
                    pool.append(worker)
    return result


@types.coroutine
def drive(
    portal: Portal, trap: Any = None, interruption: Optional[BaseException] = None
) -> Generator[Any, Any, Any]:
    """Run the portal's work, forward its traps to the event loop, and close the portal.

    Args:
        portal: The portal.
        trap: The result of `first_step`, if the caller has called it already.
        interruption: An exception of a signal handler, to be thrown into the work first.

    Returns:
        The work's result. A `Raised` with the work's error: the caller raises it, because the
        traceback is to show the caller's frame. Or `MOVED`: the task now waits at another line,
        and the caller drives on from there with ``portal.shown.trap``.
    """
    is_closing = False
    while True:
        try:
            if interruption is not None:
                trap, interruption = interrupt(portal, interruption), None
            elif portal.resume is None:
                trap = first_step(portal)
            worker, me, target = portal.worker, portal.greenlet, portal.resume
            shown = portal.shown
            if _GREENLETS_HAVE_CONTEXT:
                context = me.gr_context
            while target is not None:
                # A task that yields None does not wait: it runs in the loop's next iteration.
                if (
                    shown is not None
                    and trap is not None
                    and not is_closing
                    and shown.must_move(portal.coroutine)
                ):
                    shown.trap = trap
                    return MOVED
                try:
                    answer = yield trap
                except BaseException as error:
                    hide_this_frame(error)
                    portal.error = error
                    answer = ERROR
                    is_closing = issubclass(type(error), GeneratorExit)
                trap = None
                # This step may run in another greenlet than the last one, ...
                now = getcurrent()
                if now is not me:
                    me = portal.greenlet = worker.parent = now
                if _GREENLETS_HAVE_CONTEXT:
                    # ... and in another context, if code outside has replaced the task's context.
                    # A context that the work has entered by Context.run() stays the work's.
                    if now.gr_context is not context:
                        worker.give_context(now.gr_context, context)
                        context = now.gr_context
                    if _hooks is None and not _NOTES_STEPS:
                        trap = target.switch(answer)
                    else:
                        trap = observed_switch(portal, target, answer)
                else:
                    trap = observed_switch(portal, target, answer)
                answer = None
                target = portal.resume
            if not is_closing:
                # Without a variable: a traceback may hold this frame, and a variable would lead
                # from there back to the exception.
                return finish(portal)
            result = finish(portal)
            break
        except BaseException as error:
            if not takes(portal, error):
                # The coroutine was closed before its work was over, or the worker is dead.
                if portal.home is not None:
                    finish(portal)
                raise
            interruption = error
            trap = answer = None
    if type(result) is Raised and not issubclass(type(result.error), GeneratorExit):
        # A generator that is being closed cannot return a result, so the error is raised here.
        try:
            raise result.error
        except BaseException as error:
            hide_this_frame(error)
            raise
        finally:
            del result
    return result


set_engine(await_, drive)


def observed_switch(portal: Portal, target: Any, answer: Any) -> Any:
    """A step that a listener or other threads are to see, or where greenlets have no contexts."""
    if not _GREENLETS_HAVE_CONTEXT:
        context = get_contextvar_context()
    hooks = _hooks
    if hooks is None and _NOTES_STEPS:
        home = portal.home
        outer = home.stepping
        home.stepping = portal
        try:
            trap = target.switch(answer)
        finally:
            home.stepping = outer
    elif hooks is None:
        trap = target.switch(answer)
    else:
        if hooks.start_step is not None:
            hooks.start_step(portal)
        home = portal.home
        outer = home.stepping
        home.stepping = portal
        portal.entered = perf_counter_ns()
        trap = target.switch(answer)
        home.stepping = outer
        hooks.finish_step(portal)
    if not _GREENLETS_HAVE_CONTEXT:
        set_contextvar_context(context)
    return trap


def _stack_is_deeper_than(frames: int) -> bool:
    try:
        sys._getframe(frames + 1)
    except ValueError:
        return False
    return True


# Closed loops


def _look_at_loop(home: Home, library: Library, loop: Any) -> None:
    """Note which loop the thread runs now, and close the portals that closed loops have left."""
    for portal in enter_loop(home, library, loop):
        _sweep(portal)


def _sweep(portal: Portal) -> None:
    """Close the coroutine of a task that a closed loop has left behind, and its portal."""
    task, home = portal.task, portal.home
    try:
        if not portal.library.is_done(task):
            portal.library.coroutine_of(task).close()
    except BaseException:  # no code here could handle it, and other tasks are still to be closed
        logging.getLogger("greenback").exception(
            "closing %r, which a closed event loop had left behind, failed", task
        )
    if portal.registered:
        close_portal(portal)
    else:
        home.resting.pop(task, None)
