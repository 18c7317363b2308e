"""The hot path: `await_`, the worker greenlets, and what forwards their traps to the event loop.

A portal is a generator, `drive`, that the event loop runs as part of a task, and a *worker*: a
greenlet in which the task's own code runs. A bridge steps its awaitable in place, in whatever
greenlet it was called in; only when the awaitable yields a trap does it switch to the greenlet of
`drive`, which yields the trap to the event loop and later switches back with the answer.

Starting a greenlet costs ten times what a switch does (each maps a stack for Python frames), so
workers are used again: a small pool per thread and nesting level. What that asks for is noted
where it is done.

This module stays simple enough to compile: no closures, no decorators on hot functions except
`types.coroutine`, no dynamic attributes. The figures are from ``benchmarks/``.
"""

from __future__ import annotations

import collections.abc
import logging
import sys
import threading
import types
import weakref
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

from ._tasks import Library, current, sniffio_thread

if TYPE_CHECKING:
    from ._tasks import Task
    from .instruments import Bridge, Hooks

T = TypeVar("T")

#: Idle workers kept per thread and nesting level. One takes 20-30 kB on CPython 3.11 and later.
POOL_SIZE = 32
#: A portal inside another portal's worker is one level up. Deeper ones start a fresh greenlet.
POOL_LEVELS = 3
#: A worker keeps the recursion budget of the place where it was born, so one that was born with
#: more frames than this below it is used once and never pooled.
POOL_DEPTH = 128

# greenlet 0.4, which PyPy has built in, knows nothing of contexts; there, they belong to the thread.
_GREENLETS_HAVE_CONTEXT = hasattr(greenlet.greenlet, "gr_context")
if not _GREENLETS_HAVE_CONTEXT:
    from __pypy__ import get_contextvar_context, set_contextvar_context

# What the event loop's greenlet sends into a portal instead of an answer when it throws: the
# exception is in `Portal.error`. Throwing it into the greenlet would raise it inside `await_`,
# which could then resume the awaitable only from inside an `except` block, and that changes the
# `__context__` of whatever is raised there.
ERROR = object()


class Worker(greenlet.greenlet):
    """A greenlet that runs the code of one portal after another."""

    __slots__ = ("level", "poolable", "portal")

    #: The portal that it works for; None while it is idle. Written by `drive` only.
    portal: Optional[Portal]
    level: int
    poolable: bool


class Portal:
    """What makes `await_` possible in one task, from when it is opened until it is closed.

    Attributes:
        kind: ``"task"``, ``"run"``, ``"run_sync"``, ``"bestowed"`` or ``"inherited"``.
        task: The task that it was opened in.
        library: ``.name`` is ``"asyncio"`` or ``"trio"``.
    """

    __slots__ = (
        "__weakref__",
        "abandoned",
        "args",
        "coroutine",
        "current_task",
        "error",
        "function",
        "greenlet",
        "handled",
        "hushed",
        "inner",
        "kind",
        "kwds",
        "library",
        "loop_state",
        "mark",
        "opened",
        "result",
        "resume",
        "run",
        "scopes",
        "task",
        "worker",
    )

    def __init__(self, kind: str, library: Library, task: Optional[Task]) -> None:
        self.kind = kind
        self.task = task
        self.library = library
        # The check that the running task is this portal's is made by every bridge, so what it
        # needs is kept here.
        self.current_task: Callable[[], Optional[Task]] = library.current_task
        self.mark = library.mark
        #: The greenlet of `drive` while it waits for the worker. It can be another one at every
        #: step: an eager task takes its first step in its parent's worker.
        self.greenlet: Any = None
        self.worker: Optional[Worker] = None
        #: Where the answer to the last trap goes: the worker, or a greenlet that the task's code
        #: has started itself. None once the portal's work is done.
        self.resume: Any = None
        #: What the event loop throws in, on its way to the worker; or what the work raised.
        self.error: Optional[BaseException] = None
        self.result: Any = None
        #: Set while hooks run inside the portal: their own bridges are not announced.
        self.hushed = False
        self.opened = False
        #: The worker was killed, so that nobody waits for what it returns.
        self.abandoned = False
        self.coroutine: Any = None
        #: The scopes (see _tree.py) that the task has inherited this portal from.
        self.scopes: Tuple[Any, ...] = ()


class LoopState:
    """The portals of one event loop in one thread, counted."""

    __slots__ = ("library", "loop", "portals")

    def __init__(self, library: Library, loop: Any) -> None:
        self.library = library
        self.loop = weakref.ref(loop)
        self.portals = 0


class Home(threading.local):
    """What a thread owns: its idle workers and the event loops that it has had portals in."""

    def __init__(self) -> None:
        self.pools: Tuple[List[Worker], ...] = tuple([] for _ in range(POOL_LEVELS))
        main = getcurrent()
        while main.parent is not None:
            main = main.parent
        self.main = main
        self.state: Optional[LoopState] = None
        self.left: List[LoopState] = []


_home = Home()
# The open portals of all threads. A key is added and removed by the thread of its task (or by
# who bestows a portal on it). Strong references: a weak dictionary costs more than a whole portal,
# and a task whose code waits in a greenlet could not be collected anyway.
_portals: Dict[Any, Portal] = {}
# Portals that were closed while the shim that drives them stays under its task.
_resting: Dict[Any, Portal] = {}
# The instruments' hooks, or None when nobody listens. Written by instruments.py.
_hooks: Optional[Hooks] = None


def set_hooks(hooks: Optional[Hooks]) -> None:
    global _hooks
    _hooks = hooks


def await_(aw: Awaitable[T]) -> T:
    """Wait for *aw* from sync code: ``await_(aw)`` does what ``await aw`` would do.

    The current task must have a portal: see `ensure_portal`, `with_portal_run` and their
    relatives. The event loop runs other tasks while *aw* waits; when it does not wait, nothing
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
        BaseException: Whatever *aw* raises. In all the other cases, a coroutine that was passed is
            closed, so that Python does not warn that it was never awaited.
    """
    me = getcurrent()
    portal = me.portal if type(me) is Worker else None
    if (
        portal is None
        or portal.current_task() is not portal.task
        or sniffio_thread.name != portal.mark
    ):
        portal = find_portal()
        if type(portal) is not Portal:
            _discard(aw)
            try:
                raise portal
            finally:
                portal = None  # or its traceback, which has this frame, would keep it alive
    bridge: Optional[Bridge] = None
    if _hooks is not None and not portal.hushed:
        bridge = _hooks.start_bridge(portal, aw, sys._getframe(1))
    if type(aw) is not types.CoroutineType or aw.cr_await is not None:
        aw = _awaited(aw)
    # A coroutine that is sent into ends with a StopIteration, whose making and catching costs as
    # much as all the rest of a bridge. A for loop over a generator needs none.
    box: List[T] = []
    steps = _step(aw, box)
    aw = None  # type: ignore[assignment]  # a failed future would keep this frame, and so itself
    try:
        for trap in steps:
            while True:
                if bridge is not None and _hooks is not None:
                    _hooks.suspend_bridge(bridge)
                portal.resume = me
                if _GREENLETS_HAVE_CONTEXT:
                    answer = portal.greenlet.switch(trap)
                else:
                    context = get_contextvar_context()
                    answer = portal.greenlet.switch(trap)
                    set_contextvar_context(context)
                trap = None
                if bridge is not None and _hooks is not None:
                    _hooks.resume_bridge(bridge)
                if answer is None:
                    break  # the for loop sends the None
                if answer is ERROR:
                    trap = steps.throw(_take_error(portal))
                else:
                    trap = steps.send(answer)
    except StopIteration:
        pass  # the last step was a send() or a throw(), and the awaitable has returned
    except BaseException as error:
        _hide_steps(portal, error)
        if bridge is not None and _hooks is not None:
            _hooks.finish_bridge(bridge, error)
        # The traceback has this frame: nothing in it may lead back to the task and its exception.
        portal = me = bridge = steps = None  # type: ignore[assignment]
        raise
    if bridge is not None and _hooks is not None:
        _hooks.finish_bridge(bridge, None)
    return box[0]


@types.coroutine
def _step(aw: Any, box: List[Any]) -> Generator[Any, Any, None]:
    box.append((yield from aw))


async def _awaited(aw: Any) -> Any:
    return await aw


_STEP_CODES = frozenset({_step.__code__, _awaited.__code__})


def _hide_steps(portal: Portal, error: BaseException) -> None:
    """Take the helpers of `await_` out of the traceback of what went through it."""
    mine = error.__traceback__
    assert mine is not None
    below = mine.tb_next
    if below is None and isinstance(error, greenlet.GreenletExit):
        # Raised by the switch itself: this greenlet is being killed, and must not be used again.
        portal.abandoned = True
    while below is not None and below.tb_frame.f_code in _STEP_CODES:
        below = below.tb_next
    mine.tb_next = below


def _take_error(portal: Portal) -> BaseException:
    error = portal.error
    assert error is not None
    portal.error = None
    return error


def _discard(aw: Any) -> None:
    """Close a coroutine that nobody will await, so that Python does not warn of it."""
    if isinstance(aw, collections.abc.Coroutine) or (
        # What the methods of an async generator return is not registered as a Coroutine.
        hasattr(aw, "__await__") and hasattr(aw, "send") and hasattr(aw, "close")
    ):
        aw.close()


def find_portal() -> Any:
    """The current task's portal, found without the help of the greenlet; or what to raise."""
    try:
        library, _, portal = current_portal()
    except RuntimeError as error:
        return error.with_traceback(None)
    if portal is None:
        return no_portal_error()
    if portal.greenlet is None or portal.greenlet is getcurrent():
        return RuntimeError(
            "you must yield to the event loop first: greenback.bestow_portal() was called on "
            "the current task, and its portal can be used from the task's next step on; try "
            f"'await {library.name}.sleep(0)'"
        )
    return portal


def no_portal_error() -> RuntimeError:
    return RuntimeError(
        "you must create a greenback portal for this task in order to use greenback.await_(); "
        "try 'await greenback.ensure_portal()' or "
        "'await greenback.with_portal_run(async_fn, *args)'"
    )


def current_portal() -> Tuple[Library, Task, Optional[Portal]]:
    """The library, the task, and its portal if it has one that is open.

    Raises:
        RuntimeError: As `greenback._tasks.current`.
    """
    me = getcurrent()
    if type(me) is Worker:
        portal = me.portal
        if (
            portal is not None
            and portal.current_task() is portal.task
            and sniffio_thread.name == portal.mark
        ):
            return portal.library, portal.task, portal
    library, task = current()
    portal = _portals.get(task)
    if portal is not None and (
        # Not so in a callback of an asyncio loop that was started inside a Trio task.
        portal.current_task() is not task
        or sniffio_thread.name != portal.mark
    ):
        portal = None
    return library, task, portal


def portal_of(task: Task) -> Optional[Portal]:
    """The open portal of *task*, in whatever thread it runs."""
    return _portals.get(task)


def open_portal(portal: Portal) -> None:
    """Make *portal* the one of its task."""
    home = _home
    loop = portal.library.loop()
    state = home.state
    if state is None or state.loop() is not loop:
        state = _enter_loop(home, portal.library, loop)
    state.portals += 1
    portal.loop_state = state
    portal.opened = True
    _portals[portal.task] = portal
    if portal.worker is not None:  # it was resting
        portal.worker.portal = portal
        del _resting[portal.task]
    if _hooks is not None:
        _hooks.open_portal(portal)


def close_portal(portal: Portal) -> None:
    """Undo `open_portal`. Where the work goes on, it goes on without being able to bridge."""
    portal.opened = False
    portal.loop_state.portals -= 1
    del _portals[portal.task]
    if portal.worker is not None:
        portal.worker.portal = None
    if _hooks is not None:
        _hooks.close_portal(portal)


def rest_portal(portal: Portal) -> None:
    """Close a portal whose shim stays under its task, such that it can be opened again."""
    close_portal(portal)
    _resting[portal.task] = portal


def resting_portal(task: Task) -> Optional[Portal]:
    return _resting.get(task)


@types.coroutine
def drive(portal: Portal) -> Generator[Any, Any, None]:
    """Run the portal's work, forwarding its traps to the event loop, and close the portal.

    Returns when the work is done, with what came out of it in ``portal.result`` or
    ``portal.error``: raising it is left to the caller, whose frame the traceback is to show.
    """
    me = getcurrent()
    home = _home
    level = me.level + 1 if type(me) is Worker else 0 if me is home.main else POOL_LEVELS
    pool = home.pools[level] if level < POOL_LEVELS else None
    if pool:
        worker = pool.pop()
        if level:
            # Where an exception goes that kills the worker, so it must be whom it works for.
            worker.parent = me
    else:
        worker = Worker(_work)
        worker.level = level
        worker.poolable = pool is not None and not _stack_is_deeper_than(POOL_DEPTH)
    worker.portal = portal
    portal.worker = worker
    context = None
    target = worker
    answer: Any = portal
    try:
        while True:
            # The step may run in another greenlet than the one before.
            now = getcurrent()
            if now is not portal.greenlet:
                portal.greenlet = now
                if worker.parent is not now:
                    worker.parent = now
            if _GREENLETS_HAVE_CONTEXT:
                # The worker works in the task's context, also where somebody replaces that
                # between two steps. What the task's code enters by Context.run() is its own.
                if now.gr_context is not context:
                    if worker.gr_context is context:
                        worker.gr_context = now.gr_context
                    context = now.gr_context
                if _hooks is None:
                    trap = target.switch(answer)
                else:
                    _hooks.start_step(portal)
                    trap = target.switch(answer)
                    if _hooks is not None:
                        _hooks.finish_step(portal)
            else:
                trap = _switch_keeping_context(portal, target, answer)
            target = portal.resume
            if target is None:
                break
            answer = None
            try:
                answer = yield trap
            except BaseException as error:
                assert error.__traceback__ is not None
                error.__traceback__ = error.__traceback__.tb_next  # this frame
                portal.error = error
                answer = ERROR
            trap = None
    finally:
        if portal.opened:
            close_portal(portal)
        elif _resting:
            _resting.pop(portal.task, None)
        portal.greenlet = portal.worker = portal.resume = None
        if not worker.dead and pool is not None and target is None:
            worker.portal = None
            if _GREENLETS_HAVE_CONTEXT:
                worker.gr_context = None
            if level:
                worker.parent = home.main
            pool.append(worker)


def _switch_keeping_context(portal: Portal, target: Any, answer: Any) -> Any:
    context = get_contextvar_context()
    if _hooks is not None:
        _hooks.start_step(portal)
    trap = target.switch(answer)
    if _hooks is not None:
        _hooks.finish_step(portal)
    set_contextvar_context(context)
    return trap


def _work(portal: Any) -> None:
    """What a worker runs: the work of one portal after another."""
    while True:
        try:
            portal.result = portal.run(portal)
        except BaseException as error:
            if portal.abandoned:
                raise
            error.__traceback__ = _without_own_frames(error.__traceback__)
            portal.error = error
        portal.resume = None
        worker = portal.worker
        if (
            not worker.poolable
            or len(_home.pools[worker.level]) >= POOL_SIZE
            # A debugger that stepped out of the work would go on to step through a stranger's.
            or sys._getframe().f_trace is not None
        ):
            return
        # While it is parked, this frame must keep nothing alive, and not itself either: the
        # garbage collector cannot look into the stack of a greenlet.
        worker = None
        employer = portal.greenlet
        portal = None
        portal = employer.switch()
        employer = None


def run_function(portal: Portal) -> Any:
    """The work of a `with_portal_run_sync`."""
    return portal.function(*portal.args, **portal.kwds)


def run_coroutine(portal: Portal) -> Any:
    """The work of all other portals: what an event loop does with a coroutine, trap by trap."""
    coroutine = portal.coroutine
    if coroutine is None:
        coroutine = portal.function(*portal.args, **portal.kwds)
        if type(coroutine) is not types.CoroutineType or coroutine.cr_await is not None:
            coroutine = _awaited(coroutine)
    answer, portal.result = portal.result, None
    try:
        while True:
            if answer is ERROR:
                trap = coroutine.throw(_take_error(portal))
            else:
                trap = coroutine.send(answer)
            portal.resume = portal.worker
            answer = portal.greenlet.switch(trap)
            trap = None
    except StopIteration as stop:
        return stop.value


def run_while_handling(portal: Portal) -> Any:
    """Work that was started inside an `except` block, with that exception being handled.

    A greenlet starts with none, and then what is raised in it would lack its `__context__`.
    """
    handled = portal.handled
    assert handled is not None
    portal.handled = None
    context, traceback = handled.__context__, handled.__traceback__
    try:
        raise handled
    except BaseException:
        handled.__context__, handled.__traceback__ = context, traceback
        del handled, context, traceback
        return portal.inner(portal)


# What a traceback from a worker begins with. Code objects are equal if they do the same, so this
# holds for the copies that a library makes of these functions, too.
own_codes = {
    function.__code__ for function in (_work, run_function, run_coroutine, run_while_handling, _awaited)
}


def _without_own_frames(traceback: Optional[types.TracebackType]) -> Optional[types.TracebackType]:
    while traceback is not None and traceback.tb_frame.f_code in own_codes:
        traceback = traceback.tb_next
    return traceback


def _stack_is_deeper_than(frames: int) -> bool:
    try:
        sys._getframe(frames + 1)
    except ValueError:
        return False
    return True


def _enter_loop(home: Home, library: Library, loop: Any) -> LoopState:
    """Note that the thread runs another loop now, and close what closed loops have left behind.

    A task of a closed loop is never resumed, and while its code waits in a greenlet the garbage
    collector cannot see that nobody else refers to it, so that its ``finally`` blocks would wait
    for the end of the process.
    """
    known = home.left
    if home.state is not None:
        known.append(home.state)
    home.state = LoopState(library, loop)
    home.left = []
    for state in known:
        its_loop = state.loop()
        if its_loop is loop:
            home.state = state
        elif its_loop is None or state.library.is_closed(its_loop):
            _sweep(state)
        elif state.portals:
            home.left.append(state)
    return home.state


def _sweep(state: LoopState) -> None:
    if not state.portals:
        return
    for portal in [portal for portal in list(_portals.values()) if portal.loop_state is state]:
        try:
            state.library.coroutine_of(portal.task).close()
        except Exception:
            logging.getLogger("greenback").exception(
                "closing %r, which a closed event loop had left behind, failed", portal.task
            )
        if portal.opened:
            close_portal(portal)
