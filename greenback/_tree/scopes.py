"""Portals that child tasks inherit.

A child is something else on each library. Trio has a tree of tasks, and a nursery that is opened
inside a scope is closed inside it. asyncio has no tree: a task is a child of the task that creates
it, and may live longer than the scope in which it was created. These tasks inherit:

- Trio: the tasks of nurseries that are opened inside the scope, and their children.
- asyncio: the tasks that are created while the scope is open, by the task that opened it, by
  a task that has inherited from the scope, or by a callback that one of these has scheduled.

A task keeps an inherited portal until it ends. Scopes may overlap: a task inherits if any open
scope covers its creator.
"""

from __future__ import annotations

import contextvars
import weakref
from types import TracebackType
from typing import (
    TYPE_CHECKING,
    Any,
    AsyncContextManager,
    Awaitable,
    Callable,
    ContextManager,
    Dict,
    List,
    Optional,
    Tuple,
    Type,
    TypeVar,
    cast,
)

from .._engine.bridge import rest_portal
from .._engine.state import Portal, current_portal, portal_of
from .._portals import bestow, open_for_task, with_portal_run
from .._tasks.libraries import running_asyncio

if TYPE_CHECKING:
    import asyncio

    import trio.abc
    from typing_extensions import ParamSpec

    from .._tasks.libraries import Library
    from .factory import TaskFactory

    TrioInstrument = trio.abc.Instrument
    P = ParamSpec("P")
else:
    TrioInstrument = object  # Trio checks only the names of the methods

T = TypeVar("T")


async def with_portal_run_tree(
    async_fn: Callable[P, Awaitable[T]], *args: P.args, **kwds: P.kwargs
) -> T:
    """``await async_fn(*args, **kwds)``, with a portal for it and for the tasks that it starts.

    To give portals to all tasks of a program, use
    ``trio.run(greenback.with_portal_run_tree, main)`` or
    ``asyncio.run(greenback.with_portal_run_tree(main))``. Adds no checkpoint.

    Args:
        async_fn: A function that returns an awaitable.
        args: Its positional arguments.
        kwds: Its keyword arguments.

    Returns:
        The value of ``await async_fn(*args, **kwds)``.

    Raises:
        RuntimeError: As `with_portal_run`.
        BaseException: Whatever *async_fn* raises.
    """
    with portals_for_children():
        return await with_portal_run(async_fn, *args, **kwds)


def portals_for_children() -> ContextManager[None]:
    """A context manager that gives portals to the child tasks, but not to the current task.

    Raises:
        RuntimeError: As `ensure_portal`, on entering.
    """
    return _ChildrenScope()


def portals_for_tree() -> AsyncContextManager[None]:
    """An asynchronous context manager that gives portals to the current task and its children.

    If entering has opened the current task's portal, leaving closes it. Entering and leaving let
    other tasks run. On Trio neither is a cancellation point. On asyncio, where nothing can hold a
    cancellation back, both are.

    Raises:
        RuntimeError: As `ensure_portal`, on entering.
    """
    return _TreeScope()


class AutoPortalInstrument(TrioInstrument):
    """A `trio.abc.Instrument` that gives the children of some tasks a portal when they start.

    ``trio.run(main, instruments=[AutoPortalInstrument()])`` gives a portal to every task of the
    run, including Trio's own system tasks. The scopes above share one such instrument in each run.
    """

    def __init__(self) -> None:
        # For each task whose children inherit: for each of its scopes, how many nurseries the task
        # had open on entering. The tasks of later nurseries inherit. Only the thread of the run
        # writes here, and the attributes below.
        self._depths: Dict[trio.lowlevel.Task, List[int]] = {}
        #: How many open scopes use it. The last one removes it if a scope has added it.
        self._scopes = 0
        self._added_by_scope = False

    def before_run(self) -> None:
        """Trio calls this if the instrument was passed to `trio.run`."""
        _instrument_of_run().set(self)

    def task_spawned(self, task: trio.lowlevel.Task) -> None:
        """Trio calls this when a task has been made, before it is scheduled."""
        nursery = task.parent_nursery
        if nursery is not None:  # only Trio's first task has none
            parent = nursery.parent_task
            depths = self._depths.get(parent)
            if not depths or parent.child_nurseries.index(nursery) < min(depths):
                return
        bestow(task, "inherited")
        self._depths[task] = [0]

    def task_exited(self, task: trio.lowlevel.Task) -> None:
        """Trio calls this when a task has ended."""
        self._depths.pop(task, None)


class _ChildrenScope:
    """`portals_for_children`."""

    def __enter__(self) -> None:
        library, task, _ = current_portal()
        enter = _TrioScope if library.name == "trio" else _AsyncioScope
        self._scope = enter(task)

    def __exit__(
        self,
        kind: Optional[Type[BaseException]],
        error: Optional[BaseException],
        traceback: Optional[TracebackType],
    ) -> None:
        self._scope.leave()


class _TreeScope:
    """`portals_for_tree`."""

    _library: Library
    _opened: Optional[Portal] = None

    async def __aenter__(self) -> None:
        self._children = _ChildrenScope()
        self._children.__enter__()
        try:
            self._library, task, portal = current_portal()
            if portal is None:
                open_for_task(self._library, task, "task")
                self._opened = portal_of(task)
            await self._library.shielded_checkpoint()
        except BaseException:
            self._leave()
            raise

    async def __aexit__(
        self,
        kind: Optional[Type[BaseException]],
        error: Optional[BaseException],
        traceback: Optional[TracebackType],
    ) -> None:
        self._leave()
        await self._library.shielded_checkpoint()

    def _leave(self) -> None:
        self._children.__exit__(None, None, None)
        if self._opened is not None and self._opened.registered:
            rest_portal(self._opened)


# Holds one entry, written by the first scope that is entered under Trio, in any thread. It is a
# dictionary because its `setdefault` gives two threads the same entry.
_run_vars: Dict[str, trio.lowlevel.RunVar[Optional[AutoPortalInstrument]]] = {}


def _instrument_of_run() -> trio.lowlevel.RunVar[Optional[AutoPortalInstrument]]:
    """The variable in which each Trio run keeps the instrument that its scopes share."""
    name = "greenback.AutoPortalInstrument"
    found = _run_vars.get(name)
    if found is None:
        import trio

        found = _run_vars.setdefault(name, trio.lowlevel.RunVar(name, default=None))
    return found


class _TrioScope:
    """A task whose children inherit, under Trio."""

    def __init__(self, task: Any) -> None:
        from trio import lowlevel

        self._task = task
        instrument = _instrument_of_run().get()
        if instrument is None:
            instrument = AutoPortalInstrument()
            lowlevel.add_instrument(instrument)
            _instrument_of_run().set(instrument)
            instrument._added_by_scope = True
        self._instrument = instrument
        self._depth = len(task.child_nurseries)
        instrument._depths.setdefault(task, []).append(self._depth)
        instrument._scopes += 1

    def leave(self) -> None:
        instrument = self._instrument
        depths = instrument._depths.get(self._task)
        if depths is not None:  # otherwise the task has ended without leaving the scope
            depths.remove(self._depth)
            if not depths:
                del instrument._depths[self._task]
        instrument._scopes -= 1
        if instrument._added_by_scope and instrument._scopes == 0:
            from trio import lowlevel

            _instrument_of_run().set(None)
            lowlevel.remove_instrument(instrument)


class _AsyncioScope:
    """A task whose children inherit, under asyncio."""

    def __init__(self, task: asyncio.Task[Any]) -> None:
        # Both are weak: an open scope must not keep its task alive, which would leave it.
        self.task = weakref.ref(task)
        loop = task.get_loop()
        self._loop = weakref.ref(loop)
        self._factory = _install_factory(loop)
        self._factory.users += 1
        _open_scopes.setdefault(loop, []).append(self)
        # A callback has no task, but it has the context of the code that scheduled it.
        self._token = _scopes_here.set((*_scopes_here.get(), self))

    def leave(self) -> None:
        try:
            _scopes_here.reset(self._token)
        except ValueError:
            pass  # left in another context than entered; a closed scope in a context does no harm
        loop = self._loop()
        scopes = None if loop is None else _open_scopes.get(loop)
        if loop is None or scopes is None:
            return
        scopes.remove(self)
        if not scopes:
            del _open_scopes[loop]
        self._factory.users -= 1
        if self._factory.users == 0 and loop.get_task_factory() is self._factory:
            loop.set_task_factory(self._factory.previous)


Scopes = Tuple[_AsyncioScope, ...]
_scopes_here: contextvars.ContextVar[Scopes] = contextvars.ContextVar(
    "greenback.scopes", default=()
)
# The open scopes of each loop. Written by the thread of the loop.
_open_scopes: weakref.WeakKeyDictionary[Any, List[_AsyncioScope]] = weakref.WeakKeyDictionary()


def _install_factory(loop: asyncio.AbstractEventLoop) -> TaskFactory:
    from .factory import TaskFactory  # here, since that module imports asyncio

    installed = loop.get_task_factory()
    if isinstance(installed, TaskFactory):
        return installed
    factory = TaskFactory(installed)
    loop.set_task_factory(cast(Any, factory))
    return factory


def scopes_of_creator(loop: asyncio.AbstractEventLoop) -> Scopes:
    """The open scopes of *loop* that cover the code that is running now."""
    scopes = _open_scopes.get(loop)
    if not scopes:
        return ()
    try:
        creator = running_asyncio().current_task()
    except RuntimeError:
        return ()  # the loop is not running
    if creator is None:
        return tuple(scope for scope in _scopes_here.get() if scope in scopes)
    portal = portal_of(creator)
    inherited = () if portal is None else portal.scopes
    return tuple(scope for scope in scopes if scope.task() is creator or scope in inherited)


def note_in_context(context: Optional[contextvars.Context], scopes: Scopes) -> None:
    """Note *scopes* in the context of a task that does not get its creator's, for its callbacks."""
    if context is not None and context.get(_scopes_here) != scopes:
        try:
            context.run(_scopes_here.set, scopes)
        except RuntimeError:
            pass  # the context is in use: by code of a task, whose scopes are found by the task
