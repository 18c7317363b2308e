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

    __slots__ = ("level", "poolable", "portal", "spare")

    #: The portal that it works for; `_NOWHERE` when there is none that may be used.
    portal: Portal
    #: A portal that the worker brings with it, to be used by the next function that needs one.
    spare: Portal
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
        "drive",
        "error",
        "function",
        "greenlet",
        "handled",
        "home",
        "hushed",
        "inner",
        "kind",
        "kwds",
        "library",
        "mark",
        "outer",
        "registered",
        "result",
        "resume",
        "run",
        "scopes",
        "task",
        "worker",
    )

    def __init__(self, kind: str, library: Library) -> None:
        self.kind = kind
        self.task: Any = None
        self.library = library
        # The check that the running task is this portal's is made by every bridge, so what it
        # needs is kept here.
        self.current_task: Callable[[], Optional[Task]] = library.current_task
        self.mark = library.mark
        self.drive = library.uninterruptible(drive)
        #: The thread's Home, once it is open.
        self.home: Any = None
        #: The greenlet of `drive` while it waits for the worker. It can be another one at every
        #: step: an eager task takes its first step in its parent's worker.
        self.greenlet: Any = None
        self.worker: Any = None
        #: Where the answer to the last trap goes: the worker, or a greenlet that the task's code
        #: has started itself. None once the portal's work is done.
        self.resume: Any = None
        #: What the event loop throws in, on its way to the worker; or what the work raised.
        self.error: Optional[BaseException] = None
        #: What the event loop sends first, and then what the work returned.
        self.result: Any = None
        #: The work: a coroutine, or a function with its arguments. None for `run` stands for
        #: just calling the function.
        self.run: Optional[Callable[[Portal], Any]] = None
        self.coroutine: Any = None
        self.function: Any = None
        self.args: Any = None
        self.kwds: Any = None
        #: The exception that is being handled around the work.
        self.handled: Optional[BaseException] = None
        #: Set while hooks run inside the portal: their own bridges are not announced.
        self.hushed = False
        #: In the table of its thread's portals.
        self.registered = False
        #: While it takes its first step, the portal whose step that is part of.
        self.outer: Optional[Portal] = None
        #: The worker was killed, so that nobody waits for what it returns.
        self.abandoned = False
        #: The scopes (see _tree.py) that the task has inherited this portal from.
        self.scopes: Tuple[Any, ...] = ()

    def __repr__(self) -> str:
        return f"<Portal {self.kind} of {self.task!r}>"


class Raised:
    """What `drive` returns when the work has raised *error*."""

    __slots__ = ("error",)

    def __init__(self, error: BaseException) -> None:
        self.error = error


class Begun:
    """What `begin` returns when the work waits."""

    __slots__ = ("has_begun", "portal", "trap")

    def __init__(self, portal: Portal, trap: Any, has_begun: bool = True) -> None:
        self.portal = portal
        self.trap = trap
        self.has_begun = has_begun


#: What `begin` returns when the task has a portal.
NO_NEED = object()


class Home:
    """What a thread owns: its idle workers, its open portals, and the loop that it runs."""

    __slots__ = (
        "__weakref__", "first_step", "library", "loop", "loop_library", "main", "others", "pool", "pools", "portals",
        "resting",
    )

    def __init__(self) -> None:
        self.pools: Tuple[List[Worker], ...] = tuple([] for _ in range(POOL_LEVELS))
        self.pool = self.pools[0]
        main = getcurrent()
        while main.parent is not None:
            main = main.parent
        self.main = main
        # Strong references to tasks: a weak dictionary costs more than a whole portal, and a task
        # whose code waits in a greenlet could not be collected anyway.
        self.portals: Dict[Any, Portal] = {}
        #: The portal that is taking its first step right now, the innermost one.
        self.first_step: Optional[Portal] = None
        #: Portals that were closed while the shim that drives them stays under its task.
        self.resting: Dict[Any, Portal] = {}
        #: The library that was running when last looked at.
        self.library: Library = _NOWHERE.library
        #: The loop that was running then, by reference, and its library.
        self.loop: Callable[[], Any] = _no_loop
        self.loop_library: Any = None
        #: Loops that have had portals in this thread, and perhaps still have some.
        self.others: List[Tuple[Library, Callable[[], Any]]] = []


def _no_loop() -> None:
    return None


class _Nowhere(Library):
    """The library of no task."""

    name = mark = "none"

    def current_task(self) -> Any:
        return self  # which is no portal's task


# The Home of each thread is `_local.home`, made by the first portal in it.
_local = threading.local()
# All homes, for the questions that are asked from other threads.
_homes: weakref.WeakSet[Home] = weakref.WeakSet()
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
    portal = me.portal if type(me) is Worker else _NOWHERE
    try:
        is_here = portal.current_task() is portal.task and sniffio_thread.name == portal.mark
    except RuntimeError:
        is_here = False  # somebody has taken the running loop away
    if not is_here:
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


def current_portal() -> Tuple[Library, Any, Optional[Portal]]:
    """The library, the task, and its portal if it has one that is open.

    Raises:
        RuntimeError: As `greenback._tasks.current`.
    """
    me = getcurrent()
    if type(me) is Worker:
        portal = me.portal
        if portal.current_task() is portal.task and sniffio_thread.name == portal.mark:
            return portal.library, portal.task, portal
    library, task = current()
    found = _portal_in(this_home(), task)
    if found is not None and (
        # Not so in a callback of an asyncio loop that was started inside a Trio task.
        found.current_task() is not task
        or sniffio_thread.name != found.mark
    ):
        found = None
    return library, task, found


def _portal_in(home: Home, task: Any) -> Optional[Portal]:
    portal = home.portals.get(task)
    if portal is None:
        portal = home.first_step
        while portal is not None and portal.task is not task:
            portal = portal.outer
    return portal


def this_home() -> Home:
    try:
        return _local.home  # type: ignore[no-any-return]
    except AttributeError:
        home = _local.home = Home()
        _homes.add(home)
        return home


def portal_of(task: Any) -> Optional[Portal]:
    """The open portal of *task*, in whatever thread it runs."""
    portal = _portal_in(this_home(), task)
    if portal is None:
        for home in list(_homes):
            portal = home.portals.get(task)
            if portal is not None:
                break
    return portal


def begin(
    kind: str,
    run: Optional[Callable[[Portal], Any]],
    function: Callable[..., Any],
    args: Tuple[Any, ...],
    kwds: Dict[str, Any],
) -> Any:
    """Open a portal for a function in the current task, and run it until it waits or ends.

    What `finish` gives if it has ended; a `Begun` if it waits, or must be driven in another way;
    `NO_NEED` if the task has a portal, and the function has not been called.

    Raises:
        RuntimeError: As `greenback._tasks.current`.
    """
    # Written out, where `_begin_slowly` calls one function for each thing: that takes half as
    # long again.
    try:
        home = _local.home
    except AttributeError:
        home = this_home()
    me = getcurrent()
    library = home.library
    if (
        _hooks is not None
        or not _GREENLETS_HAVE_CONTEXT
        or me is not home.main
        or not home.pool
        or home.portals
        or home.others
        or home.first_step is not None
        or sniffio_thread.name != library.mark
        or handled_exception() is not None
    ):
        return _begin_slowly(home, me, kind, run, function, args, kwds)
    try:
        task = library.current_task()
    except RuntimeError:
        task = None  # no loop is running now
    portal = home.pool[-1].spare
    if task is None or portal.library is not library:
        return _begin_slowly(home, me, kind, run, function, args, kwds)
    worker = home.pool.pop()
    portal.kind = kind
    portal.task = task
    portal.run = run
    portal.function = function
    portal.args = args
    portal.kwds = kwds
    portal.greenlet = me
    home.first_step = portal
    worker.gr_context = me.gr_context
    try:
        trap = worker.switch(portal)
    except BaseException:
        portal.abandoned = True
        finish(portal)
        raise
    home.first_step = None
    if portal.resume is not None:
        _register(portal, home)
        return Begun(portal, trap)
    if portal.abandoned or portal.error is not None:
        return finish(portal)
    result = portal.result
    portal.task = portal.greenlet = portal.result = None
    portal.function = portal.args = portal.kwds = None
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
    if type(me) is Worker:
        portal = me.portal
        if portal.current_task() is portal.task and sniffio_thread.name == portal.mark:
            return NO_NEED
    library, task = current()
    home.library = library
    if _portal_in(home, task) is not None:
        return NO_NEED
    loop = library.loop()
    if home.others or loop is not home.loop():
        _enter_loop(home, library, loop)
    worker = _take_worker(home, me)
    portal = worker.spare
    if _hooks is not None or portal.library is not library:
        # Instruments may keep a portal, or use it as a key: they get a new one each time.
        portal = Portal(kind, library)
        portal.home = home
        portal.worker = worker
        worker.portal = portal
        if _hooks is None and not library.holds_back_ctrl_c:
            worker.spare = portal
    portal.kind = kind
    portal.task = task
    portal.run = run
    portal.function, portal.args, portal.kwds = function, args, kwds
    portal.greenlet = me
    handled = handled_exception()
    if library.holds_back_ctrl_c or handled is not None:
        _adapt_to_surroundings(portal, handled)
    if library.holds_back_ctrl_c:
        return Begun(portal, None, False)
    trap = first_step(portal)
    return finish(portal) if portal.resume is None else Begun(portal, trap)


def _adapt_to_surroundings(portal: Portal, handled: Optional[BaseException]) -> None:
    """Have the work of a portal see what it would see if it were called where the portal is."""
    library = portal.library
    run = run_function if portal.run is None else portal.run
    if library.holds_back_ctrl_c and not library.is_protected_from_ctrl_c():
        run = interruptible(library, run)
    if handled is not None:
        portal.handled, portal.inner = handled, run
        run = run_while_handling
    portal.run = run


def interruptible(library: Library, run: Callable[[Portal], Any]) -> Callable[[Portal], Any]:
    """*run*, such that Ctrl-C is let through to what it runs."""
    copy = _interruptible.get(run)
    if copy is None:
        copy = _interruptible[run] = library.interruptible(run)
        own_codes.add(copy.__code__)
    return copy


def open_portal(portal: Portal) -> None:
    """Make *portal* the one of its task, whatever greenlet or thread asks."""
    home = portal.home = this_home()
    _register(portal, home)
    if _hooks is not None:
        _hooks.open_portal(portal)


def _register(portal: Portal, home: Home) -> None:
    library = portal.library
    loop = library.loop()
    if home.others or loop is not home.loop():
        _enter_loop(home, library, loop)
    home.portals[portal.task] = portal
    portal.registered = True


def close_portal(portal: Portal) -> None:
    """Undo `open_portal`. Where the work goes on, it goes on without being able to bridge."""
    portal.registered = False
    del portal.home.portals[portal.task]
    if _hooks is not None:
        _hooks.close_portal(portal)


def rest_portal(portal: Portal) -> None:
    """Close a portal whose shim stays under its task, such that it can be opened again."""
    close_portal(portal)
    portal.home.resting[portal.task] = portal
    if portal.worker is not None:
        portal.worker.portal = _NOWHERE


def wake_portal(task: Any) -> bool:
    """Open the portal that rests in *task* again, if there is one."""
    portal = this_home().resting.pop(task, None)
    if portal is None:
        return False
    open_portal(portal)
    if portal.worker is not None:
        portal.worker.portal = portal
    return True


def _take_worker(home: Home, me: Any) -> Worker:
    """An idle worker, or a new one, to be used from the greenlet *me*."""
    if me is home.main:
        level = 0
    elif type(me) is Worker:
        level = me.level + 1
    else:
        level = POOL_LEVELS  # somebody else's greenlet; how deep it is nobody knows
    if level < POOL_LEVELS:
        pool = home.pools[level]
        if pool:
            worker = pool.pop()
            if level:
                # Where an exception goes that kills the worker: to whom it works for.
                worker.parent = me
            return worker
    worker = Worker(_work)
    worker.level = level
    worker.poolable = level < POOL_LEVELS and not _stack_is_deeper_than(POOL_DEPTH)
    worker.portal = worker.spare = _NOWHERE
    return worker


def first_step(portal: Portal) -> Any:
    """Run the portal's work until it waits for the first time or ends, and return its trap.

    ``portal.resume`` is None afterwards if it has ended; `finish` is to be called then.
    """
    worker = portal.worker
    home = portal.home
    me = portal.greenlet
    if worker is None:
        # Of a task, and open since before its first step.
        me = portal.greenlet = getcurrent()
        worker = portal.worker = _take_worker(home, me)
        worker.portal = portal
    elif _hooks is not None:
        _hooks.open_portal(portal)
    # A portal whose work never waits is gone before anything else gets to run, but for what it
    # calls itself: until it has waited it is not in the thread's table, but in this chain.
    outer = portal.outer = home.first_step
    home.first_step = portal
    portal.resume = worker
    try:
        if _GREENLETS_HAVE_CONTEXT:
            worker.gr_context = me.gr_context
            if _hooks is None:
                return worker.switch(portal)
        return _observed_switch(portal, worker, portal)
    except BaseException:
        portal.abandoned = True
        raise
    finally:
        home.first_step = outer
        if portal.abandoned:
            finish(portal)
        elif portal.resume is not None and not portal.registered:
            _register(portal, home)


def finish(portal: Portal) -> Any:
    """Close the portal after its work has ended, and put the worker back.

    Returns what the work returned, or `Raised` with what it raised.
    """
    home, worker, result = portal.home, portal.worker, portal.result
    if portal.error is not None:
        result = Raised(portal.error)
        portal.error = None
    if portal.registered:
        close_portal(portal)
    elif home.resting or _hooks is not None:
        if home.resting.pop(portal.task, None) is None and _hooks is not None:
            _hooks.close_portal(portal)
    # Neither an idle worker nor its spare portal may keep anything of the work alive.
    portal.task = portal.greenlet = portal.result = portal.outer = None
    portal.function = portal.args = portal.kwds = None
    if worker.spare is not portal:
        portal.worker = None
        worker.portal = worker.spare
    if portal.resume is None and not portal.abandoned:
        pool = home.pools[worker.level]
        if len(pool) < POOL_SIZE:
            if _GREENLETS_HAVE_CONTEXT:
                worker.gr_context = None
            if worker.level:
                worker.parent = home.main
            pool.append(worker)
    else:
        portal.worker = portal.resume = None  # a way around in which the worker would keep itself
    return result


@types.coroutine
def drive(begun: Begun) -> Generator[Any, Any, Any]:
    """Run the portal's work, forwarding its traps to the event loop, and close the portal.

    Returns what the work returned, or `Raised` with what it raised: raising it again is left to
    the caller, whose frame the traceback is to show.
    """
    portal = begun.portal
    trap = begun.trap if begun.has_begun else first_step(portal)
    if portal.resume is None:
        return finish(portal)
    begun.trap = None
    worker, me, target = portal.worker, portal.greenlet, portal.resume
    try:
        if _GREENLETS_HAVE_CONTEXT:
            context = me.gr_context
        while target is not None:
            try:
                answer = yield trap
            except BaseException as error:
                assert error.__traceback__ is not None
                error.__traceback__ = error.__traceback__.tb_next  # this frame
                portal.error = error
                answer = ERROR
            trap = None
            # The step may run in another greenlet than the one before, ...
            now = getcurrent()
            if now is not me:
                me = portal.greenlet = worker.parent = now
            if _GREENLETS_HAVE_CONTEXT:
                # ... and in another context, where somebody has replaced the task's. What its
                # code has entered by Context.run() is its own.
                if now.gr_context is not context:
                    if worker.gr_context is context:
                        worker.gr_context = now.gr_context
                    context = now.gr_context
                if _hooks is None:
                    trap = target.switch(answer)
                else:
                    trap = _observed_switch(portal, target, answer)
            else:
                trap = _observed_switch(portal, target, answer)
            target = portal.resume
    except BaseException:
        # Closed before the work was over, or the worker is dead.
        finish(portal)
        raise
    return finish(portal)


def _observed_switch(portal: Portal, target: Any, answer: Any) -> Any:
    """A step, when somebody listens or when greenlets do not know of contexts."""
    hooks = _hooks
    if not _GREENLETS_HAVE_CONTEXT:
        context = get_contextvar_context()
    if hooks is not None:
        hooks.start_step(portal)
    trap = target.switch(answer)
    if hooks is not None:
        hooks.finish_step(portal)
    if not _GREENLETS_HAVE_CONTEXT:
        set_contextvar_context(context)
    return trap


def _work(portal: Any) -> None:
    """What a worker runs: the work of one portal after another."""
    while True:
        try:
            run = portal.run
            if run is None:
                # A call with ** makes a dictionary, so it is worth a look.
                if portal.kwds:
                    portal.result = portal.function(*portal.args, **portal.kwds)
                else:
                    portal.result = portal.function(*portal.args)
            else:
                portal.result = run(portal)
        except BaseException as error:
            if portal.abandoned:
                raise
            error.__traceback__ = _without_own_frames(error.__traceback__)
            portal.error = error
        portal.resume = run = None
        # A debugger that stepped out of the work would go on to step through a stranger's.
        if not portal.worker.poolable or sys._getframe().f_trace is not None:
            portal.abandoned = True
            return
        # While it is parked, this frame must keep nothing alive, and not itself either: the
        # garbage collector cannot look into the stack of a greenlet.
        employer = portal.greenlet
        portal = None
        portal = employer.switch()


def run_function(portal: Portal) -> Any:
    """The work of a `with_portal_run_sync` that needs a frame of its own."""
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
    handled, inner = portal.handled, portal.inner
    assert handled is not None
    portal.handled = portal.inner = None
    context, traceback = handled.__context__, handled.__traceback__
    try:
        raise handled
    except BaseException:
        handled.__context__, handled.__traceback__ = context, traceback
        del handled, context, traceback
        return inner(portal)


# What a traceback from a worker begins with. Code objects are equal if they do the same, so this
# holds for the copies that a library makes of these functions, too.
own_codes = {
    function.__code__ for function in (_work, run_function, run_coroutine, run_while_handling, _awaited)
}


# Written by the first portal of each kind under Trio, from any thread.
_interruptible: Dict[Callable[[Portal], Any], Callable[[Portal], Any]] = {}

if sys.version_info >= (3, 11):
    handled_exception = sys.exception
else:

    def handled_exception() -> Optional[BaseException]:
        return sys.exc_info()[1]


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


def _enter_loop(home: Home, library: Library, loop: Any) -> None:
    """Note which loop the thread runs now, and close what closed loops have left behind.

    A task of a closed loop is never resumed, and while its code waits in a greenlet the garbage
    collector cannot see that nobody else refers to it, so that its ``finally`` blocks would wait
    for the end of the process.
    """
    others = home.others
    previous = home.loop()
    if previous is not loop:
        if home.loop_library is not None:
            others.append((home.loop_library, home.loop))
        home.loop_library, home.loop = library, weakref.ref(loop)
    home.others = []
    for its_library, reference in others:
        its_loop = reference()
        if its_loop is loop:
            continue
        its_portals = [
            portal for portal in (*home.portals.values(), *home.resting.values())
            if portal.library.name == its_library.name
            and portal.library.loop_of(portal.task) is its_loop
        ]
        if not its_portals:
            continue
        if its_loop is not None and not its_library.is_closed(its_loop):
            home.others.append((its_library, reference))
            continue
        for portal in its_portals:
            _sweep(portal)


def _sweep(portal: Portal) -> None:
    task = portal.task
    try:
        portal.library.coroutine_of(task).close()
    except Exception:
        logging.getLogger("greenback").exception(
            "closing %r, which a closed event loop had left behind, failed", task
        )
    if portal.registered:
        close_portal(portal)


# The portal of greenlets that have none.
_NOWHERE = Portal("none", _Nowhere())
