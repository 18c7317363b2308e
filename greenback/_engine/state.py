"""The state of the runtime: portals, workers, and what each thread owns of them (`Home`)."""

from __future__ import annotations

import os
import threading
import weakref
from typing import TYPE_CHECKING, Any, Callable, Dict, Iterator, List, Optional, Tuple

import greenlet
from greenlet import getcurrent

from .._tasks.libraries import Library, current, running_asyncio_loop, sniffio_thread
from .choice import compiled

if TYPE_CHECKING:
    from .._shims.lookalike import Shown
    from .._tasks.libraries import Task

#: Idle workers kept per thread and nesting level. One takes 20-30 kB on CPython 3.11 and later.
POOL_SIZE = 32
#: A portal opened inside another portal's worker is one level up. Beyond the last level, each
#: portal starts a new greenlet.
POOL_LEVELS = 3
#: A worker keeps the recursion budget of the place where it was born. A worker born with more than
#: this many Python frames below it is used once and never pooled.
POOL_DEPTH = 128


class Worker(greenlet.greenlet):
    """A greenlet that runs the code of one portal after another."""

    __slots__ = ("context", "is_bare", "level", "poolable", "portal", "replaces", "spare")

    #: The portal that the worker works for; `NOWHERE` if it has none, or a closed one.
    portal: Portal
    #: A portal that the worker keeps for reuse: its next function gets it.
    spare: Portal
    level: int
    poolable: bool
    #: The worker is parked in the engine in C, without a frame. greenlet takes such a greenlet for
    #: one that runs, and lets nobody set its context. The worker sets it to `context` when it goes
    #: on, if that is not None, and if its context is still the one that it `replaces`, or that is
    #: None.
    is_bare: bool
    context: Any
    replaces: Any

    def give_context(self, context: Any, replaces: Any = None) -> None:
        """Have the worker go on in *context*, while it is parked.

        Args:
            replaces: A context. If the worker has entered another one, it stays there.
        """
        if self.is_bare:
            self.context, self.replaces = context, replaces
        elif replaces is None or self.gr_context is replaces:
            self.gr_context = context


class Portal:
    """One task's ability to use `await_`, from the opening of the portal to its closing.

    Attributes:
        kind: ``"task"``, ``"run"``, ``"run_sync"``, ``"bestowed"`` or ``"inherited"``.
        task: The task in which it was opened.
        library: Its ``.name`` is ``"asyncio"`` or ``"trio"``.
    """

    __slots__ = (
        "__weakref__",
        "abandoned",
        "args",
        "awaits",
        "bridges",
        "closed",
        "coroutine",
        "current_task",
        "entered",
        "error",
        "function",
        "greenlet",
        "handled",
        "home",
        "hushed",
        "inner",
        "kind",
        "kwds",
        "left",
        "library",
        "mark",
        "note",
        "outer",
        "registered",
        "result",
        "resume",
        "run",
        "scopes",
        "shown",
        "task",
        "worker",
    )

    function: Any
    args: Any
    kwds: Any
    #: The exception that the caller was handling when it opened the portal, and the work that is
    #: run while that exception is handled.
    handled: Optional[BaseException]
    inner: Callable[[Portal], Any]
    #: During this portal's first step, the portal in whose first step it was opened.
    outer: Optional[Portal]

    def __init__(self, kind: str, library: Library) -> None:
        self.kind = kind
        self.task: Any = None
        self.library = library
        # Every bridge checks that the running task is this portal's. These two are kept here for
        # that check.
        self.current_task: Callable[[], Optional[Task]] = library.current_task
        self.mark = library.mark
        #: The thread's Home, while the portal is open.
        self.home: Any = None
        #: The greenlet of `drive`, which waits while the worker runs. Each step can have another
        #: one: an eager task takes its first step in its parent's worker.
        self.greenlet: Any = None
        self.worker: Any = None
        #: The greenlet that gets the answer to the last trap: the worker, or a greenlet that the
        #: task's code has started itself. None before the work begins and after it has ended.
        self.resume: Any = None
        #: The awaitable that yielded the last trap, in that greenlet: the steps of the innermost
        #: bridge, or the coroutine that is the work. When that bridge or work has ended, the
        #: awaitable is over, too.
        self.awaits: Any = None
        #: An exception that the event loop throws in, on its way to the worker. At the end of the
        #: work, the exception that the work raised.
        self.error: Optional[BaseException] = None
        #: The bridges under way in C, which have no frames. See `portal_bridges` in portal.c.
        self.bridges: Tuple[Any, ...] = ()
        #: The first value that the event loop sends. At the end of the work, its result.
        self.result: Any = None
        #: The function that runs the work: a coroutine, or a function with its arguments. If
        #: `run` is None, the worker calls that function directly.
        self.run: Optional[Callable[[Portal], Any]] = None
        self.coroutine: Any = None
        #: Where the coroutine's lookalike shows the task to wait; None if it has no lookalike.
        self.shown: Optional[Shown] = None
        #: Set while hooks run inside the portal: their own bridges are not announced.
        self.hushed = False
        #: For the listener's own use.
        self.note: Any = None
        #: When the last switch into the portal began, and when the last bridge's switch out of it
        #: began, in time.perf_counter_ns(). Only set while there is a listener.
        self.entered = 0
        self.left = 0
        #: Instruments were told that the portal is closed.
        self.closed = False
        #: The portal is in the table of its thread's portals.
        self.registered = False
        #: The worker was killed: no `drive` waits for its result.
        self.abandoned = False
        #: The scopes (see _tree/scopes.py) that the task has inherited this portal from.
        self.scopes: Tuple[Any, ...] = ()

    def __repr__(self) -> str:
        return f"<Portal {self.kind} of {self.task!r}>"


if compiled is not None and not TYPE_CHECKING:
    #: The same attributes in a struct of C, which both engines read and write.
    Portal = compiled.Portal


class Raised:
    """The result of `drive` when the work has raised *error*."""

    __slots__ = ("error",)

    def __init__(self, error: BaseException) -> None:
        self.error = error


class Home:
    """What one thread owns: its idle workers, its open portals, and the loop that it runs."""

    __slots__ = (
        "__weakref__",
        "first_step",
        "library",
        "loop",
        "loop_library",
        "main",
        "names",
        "others",
        "pid",
        "pool",
        "pools",
        "portals",
        "promised",
        "resting",
        "self_bestowed",
        "stepping",
        "thread",
    )

    def __init__(self) -> None:
        #: The process in which this Home was made.
        self.pid = os.getpid()
        self.thread = threading.get_ident()
        self.pools: Tuple[List[Worker], ...] = tuple([] for _ in range(POOL_LEVELS))
        self.pool = self.pools[0]
        main = getcurrent()
        while main.parent is not None:
            main = main.parent
        self.main = main
        #: The attributes of `sniffio.thread_local` in this thread.
        self.names = vars(sniffio_thread)
        #: The open portals, by task. Strong references: a weak dictionary costs more than a whole
        #: portal, and a task whose code waits in a greenlet cannot be collected anyway.
        self.portals: Dict[Any, Portal] = {}
        #: Portals of tasks that have not begun. Weak: a task that is cancelled before its first
        #: step never runs its shim, which would remove the entry.
        self.promised: weakref.WeakKeyDictionary[Any, Portal] = weakref.WeakKeyDictionary()
        #: Portals that a task has bestowed on itself. If the task ends before its next step, its
        #: shim never runs and cannot close the portal. The next `bestow_portal` does.
        self.self_bestowed: List[Portal] = []
        #: The innermost portal that is taking its first step right now.
        self.first_step: Optional[Portal] = None
        #: The innermost portal whose step runs right now. Where workers are in Python, it is kept
        #: only while there is a listener, and an exception that interrupts a switch leaves it set:
        #: to a portal whose task runs no more.
        self.stepping: Optional[Portal] = None
        #: Closed portals whose shims stay in their tasks, by task.
        self.resting: Dict[Any, Portal] = {}
        #: The library that the last look-up found running.
        self.library: Library = NOWHERE.library
        #: The last loop in which a portal was opened, as a weak reference, and its library.
        self.loop: Callable[[], Any] = _no_loop
        self.loop_library: Any = None
        #: The loops before it, which may have left portals behind.
        self.others: List[Tuple[Library, Callable[[], Any]]] = []

    def coroutine_of(self, library: Library, task: Task) -> Any:
        """The coroutine that *task* was made for, even if a shim stands in its place."""
        portal = self.portals.get(task) or self.resting.get(task)
        own = None if portal is None else portal.coroutine
        return library.coroutine_of(task) if own is None else own


def _no_loop() -> None:
    return None


class _Nowhere(Library):
    """The library of no task."""

    name = mark = "none"

    def current_task(self) -> Any:
        return self  # which is no portal's task


# The Home of each thread is `local.home`. The first portal of the thread makes it.
local = threading.local()
# All homes, for look-ups from other threads. Each thread adds its own in `this_home`.
_homes: weakref.WeakValueDictionary[int, Home] = weakref.WeakValueDictionary()


def this_home() -> Home:
    """The Home of this thread."""
    try:
        return local.home  # type: ignore[no-any-return]
    except AttributeError:
        home = local.home = Home()
        _homes[id(home)] = home
        return home


def homes() -> Iterator[Home]:
    """The Homes of all threads."""
    # valuerefs() copies in one go. Iterating would fail if another thread adds its Home meanwhile.
    for reference in _homes.valuerefs():
        home = reference()
        if home is not None:
            yield home


def portal_of(task: Any) -> Optional[Portal]:
    """The portal that *task* has, or will have from its first step on, in any thread."""
    portal = _portal_of_home(this_home(), task)
    if portal is None:
        for home in homes():
            portal = _portal_of_home(home, task)
            if portal is not None:
                break
    return None if portal is None or portal.library.is_done(task) else portal


def _portal_of_home(home: Home, task: Any) -> Optional[Portal]:
    return portal_in(home, task) or home.promised.get(task)


def is_here(portal: Portal) -> bool:
    """Whether the portal's task is running here. `await_` has the first half written out inline."""
    try:
        task = portal.current_task()
    except RuntimeError:
        task = None  # no loop is set as running in this thread any more
    if task is portal.task and sniffio_thread.name == portal.mark:
        return True
    # In a forked child, asyncio has unset the running loop. A task that has forked can still await
    # there, so it can bridge.
    return (
        task is None
        and portal.home is not None
        and portal.home.pid != os.getpid()
        and running_asyncio_loop() is None
    )


def current_portal() -> Tuple[Library, Any, Optional[Portal]]:
    """The running library, the running task, and its portal if it has an open one.

    Raises:
        RuntimeError: As `greenback._tasks.libraries.current`.
    """
    me = getcurrent()
    if type(me) is Worker and is_here(me.portal):
        portal = me.portal
        return portal.library, portal.task, portal
    home = this_home()
    library, task = current_in(home)
    found = portal_in(home, task)
    if found is not None and not is_here(found):
        found = None  # in a callback of an asyncio loop that was started inside a Trio task
    return library, task, found


def current_in(home: Home) -> Tuple[Library, Any]:
    """`greenback._tasks.libraries.current`, faster if the same library runs as last time."""
    library = home.library
    if sniffio_thread.name == library.mark:
        try:
            task = library.current_task()
        except RuntimeError:
            task = None  # no loop is running now
        if task is not None:
            return library, task
    library, task = current(home.coroutine_of)
    home.library = library
    return library, task


def portal_in(home: Home, task: Any) -> Optional[Portal]:
    """The open portal of *task* in the thread of *home*, also during its first step."""
    portal = home.portals.get(task)
    if portal is None:
        portal = home.first_step
        while portal is not None and portal.task is not task:
            portal = portal.outer
        if portal is not None and home.resting.get(task) is portal:
            portal = None
    return portal


def enter_loop(home: Home, library: Library, loop: Any) -> List[Portal]:
    """Note which loop the thread runs now. Returns the portals that closed loops have left behind.

    A task of a closed loop is never resumed. While its code waits in a greenlet, the garbage
    collector cannot see that only the greenlet refers to it. Its ``finally`` blocks would not run
    before the end of the process.
    """
    others = home.others
    previous = home.loop()
    if previous is not loop:
        if home.loop_library is not None:
            others.append((home.loop_library, home.loop))
        home.loop_library, home.loop = library, weakref.ref(loop)
    home.others = []
    left_behind: List[Portal] = []
    for its_library, reference in others:
        its_loop = reference()
        if its_loop is loop:
            continue
        its_portals = [
            portal
            for task, portal in (*home.portals.items(), *home.resting.items())
            if portal.library.name == its_library.name and portal.library.loop_of(task) is its_loop
        ]
        if not its_portals:
            continue
        if its_loop is not None and not its_library.is_closed(its_loop):
            home.others.append((its_library, reference))
            continue
        left_behind += its_portals
    return left_behind


# The portal of each greenlet that has none.
NOWHERE = Portal("none", _Nowhere())
