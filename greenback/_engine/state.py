"""What the runtime keeps: portals, workers, and what each thread owns of them."""

from __future__ import annotations

import os
import threading
import weakref
from typing import TYPE_CHECKING, Any, Callable, Dict, Iterator, List, Optional, Tuple

import greenlet
from greenlet import getcurrent

from .._tasks.libraries import Library, current, running_asyncio_loop, sniffio_thread

if TYPE_CHECKING:
    from .._shims.lookalike import Shown
    from .._tasks.libraries import Task

#: Idle workers kept per thread and nesting level. One takes 20-30 kB on CPython 3.11 and later.
POOL_SIZE = 32
#: A portal inside another portal's worker is one level up. Deeper ones start a fresh greenlet.
POOL_LEVELS = 3
#: A worker keeps the recursion budget of the place where it was born, so one that was born with
#: more frames than this below it is used once and never pooled.
POOL_DEPTH = 128


class Worker(greenlet.greenlet):
    """A greenlet that runs the code of one portal after another."""

    __slots__ = ("level", "poolable", "portal", "spare")

    #: The portal that it works for; `NOWHERE` when there is none that may be used.
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
        "awaits",
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
    #: The exception that is being handled around the work, and the work without it.
    handled: Optional[BaseException]
    inner: Callable[[Portal], Any]
    #: While it takes its first step, the portal whose step that is part of.
    outer: Optional[Portal]

    def __init__(self, kind: str, library: Library) -> None:
        self.kind = kind
        self.task: Any = None
        self.library = library
        # The check that the running task is this portal's is made by every bridge, so what it
        # needs is kept here.
        self.current_task: Callable[[], Optional[Task]] = library.current_task
        self.mark = library.mark
        #: The thread's Home, once it is open.
        self.home: Any = None
        #: The greenlet of `drive` while it waits for the worker. It can be another one at every
        #: step: an eager task takes its first step in its parent's worker.
        self.greenlet: Any = None
        self.worker: Any = None
        #: Where the answer to the last trap goes: the worker, or a greenlet that the task's code
        #: has started itself. None before the portal's work begins and once it is done.
        self.resume: Any = None
        #: What is awaited there, as of the last trap: the steps of the innermost bridge, or the
        #: coroutine that is the work. It is over by the time that what has waited there has ended.
        self.awaits: Any = None
        #: What the event loop throws in, on its way to the worker; or what the work raised.
        self.error: Optional[BaseException] = None
        #: What the event loop sends first, and then what the work returned.
        self.result: Any = None
        #: The work: a coroutine, or a function with its arguments. None for `run` stands for
        #: just calling the function.
        self.run: Optional[Callable[[Portal], Any]] = None
        self.coroutine: Any = None
        #: Where a lookalike of the coroutine shows the task to wait; None if there is none.
        self.shown: Optional[Shown] = None
        #: Set while hooks run inside the portal: their own bridges are not announced.
        self.hushed = False
        #: What whoever listens keeps with it.
        self.note: Any = None
        #: When the last switch into the portal began, and the last one out of it that a bridge
        #: made, as time.perf_counter_ns(). Only set while somebody listens.
        self.entered = 0
        self.left = 0
        #: Instruments were told that it is closed.
        self.closed = False
        #: In the table of its thread's portals.
        self.registered = False
        #: The worker was killed, so that nobody waits for what it returns.
        self.abandoned = False
        #: The scopes (see _tree/scopes.py) that the task has inherited this portal from.
        self.scopes: Tuple[Any, ...] = ()

    def __repr__(self) -> str:
        return f"<Portal {self.kind} of {self.task!r}>"


class Raised:
    """What `drive` returns when the work has raised *error*."""

    __slots__ = ("error",)

    def __init__(self, error: BaseException) -> None:
        self.error = error


class Home:
    """What a thread owns: its idle workers, its open portals, and the loop that it runs."""

    __slots__ = (
        "__weakref__",
        "first_step",
        "library",
        "loop",
        "loop_library",
        "main",
        "others",
        "pid",
        "pool",
        "pools",
        "portals",
        "promised",
        "resting",
        "self_bestowed",
        "stepping",
    )

    def __init__(self) -> None:
        #: The process that it was made in.
        self.pid = os.getpid()
        self.pools: Tuple[List[Worker], ...] = tuple([] for _ in range(POOL_LEVELS))
        self.pool = self.pools[0]
        main = getcurrent()
        while main.parent is not None:
            main = main.parent
        self.main = main
        # Strong references to tasks: a weak dictionary costs more than a whole portal, and a task
        # whose code waits in a greenlet could not be collected anyway.
        self.portals: Dict[Any, Portal] = {}
        #: Portals of tasks that have not begun. Weak: a task that is cancelled before its first
        #: step never gets to run anything of ours.
        self.promised: weakref.WeakKeyDictionary[Any, Portal] = weakref.WeakKeyDictionary()
        #: Portals that a task has bestowed on itself. If it ends before its next step, its shim
        #: never runs, and it takes somebody else to close them.
        self.self_bestowed: List[Portal] = []
        #: The portal that is taking its first step right now, the innermost one.
        self.first_step: Optional[Portal] = None
        #: The portal whose step runs right now, the innermost one, while somebody listens. What
        #: interrupts a switch leaves it as it was: a portal of a task that runs no more.
        self.stepping: Optional[Portal] = None
        #: Portals that were closed while the shim that drives them stays under its task.
        self.resting: Dict[Any, Portal] = {}
        #: The library that was running when last looked at.
        self.library: Library = NOWHERE.library
        #: The loop that was running then, by reference, and its library.
        self.loop: Callable[[], Any] = _no_loop
        self.loop_library: Any = None
        #: Loops that have had portals in this thread, and perhaps still have some.
        self.others: List[Tuple[Library, Callable[[], Any]]] = []

    def coroutine_of(self, library: Library, task: Task) -> Any:
        """What *task* was made for. A shim in its place waits while that runs in a greenlet."""
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


# The Home of each thread is `local.home`, made by the first portal in it.
local = threading.local()
# All homes, for the questions that are asked from other threads.
_homes: weakref.WeakValueDictionary[int, Home] = weakref.WeakValueDictionary()


def this_home() -> Home:
    try:
        return local.home  # type: ignore[no-any-return]
    except AttributeError:
        home = local.home = Home()
        _homes[id(home)] = home
        return home


def homes() -> Iterator[Home]:
    """Those of all threads."""
    # valuerefs() copies in one go; iterating would fail where another thread adds its own.
    for reference in _homes.valuerefs():
        home = reference()
        if home is not None:
            yield home


def portal_of(task: Any) -> Optional[Portal]:
    """The portal that *task* has, or will have from its first step on, in whatever thread."""
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
    """Whether the portal's task is what is running. `await_` has this written out."""
    try:
        task = portal.current_task()
    except RuntimeError:
        task = None  # somebody has taken the running loop away
    if task is portal.task and sniffio_thread.name == portal.mark:
        return True
    # In a forked child, asyncio has done so. A task that has forked can await there all the same,
    # so it can bridge.
    return (
        task is None
        and portal.home is not None
        and portal.home.pid != os.getpid()
        and running_asyncio_loop() is None
    )


def current_portal() -> Tuple[Library, Any, Optional[Portal]]:
    """The library, the task, and its portal if it has one that is open.

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
    """`greenback._tasks.libraries.current`, which need not look around if nothing has changed."""
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
    portal = home.portals.get(task)
    if portal is None:
        portal = home.first_step
        while portal is not None and portal.task is not task:
            portal = portal.outer
        if portal is not None and home.resting.get(task) is portal:
            portal = None
    return portal


def enter_loop(home: Home, library: Library, loop: Any) -> List[Portal]:
    """Note which loop the thread runs now, and find the portals that closed ones have left behind.

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


# The portal of greenlets that have none.
NOWHERE = Portal("none", _Nowhere())
