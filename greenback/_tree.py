"""Portals that child tasks inherit.

Who is a child differs: Trio has a tree of tasks, and a nursery that is opened inside a scope is
closed inside it. asyncio has none, so there a task is a child of the task that creates it, and may
live longer than the scope that it was created in.

- Trio: the tasks of nurseries that are opened inside the scope, and their tasks.
- asyncio: the tasks that are created, while the scope is open, by the task that opened it, by
  a task that has inherited from the scope, or by a callback that one of these has scheduled.

A task keeps the portal that it has inherited until it ends. Scopes may overlap; a task inherits if
any scope that covers its creator is open.
"""

from __future__ import annotations

import contextvars
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
)

from ._bridge import open_portal, rest_portal
from ._portals import bestow, open_for_task, shim_for, with_portal_run
from ._state import Portal, current_portal, portal_of
from ._tasks import running_asyncio

if TYPE_CHECKING:
    import asyncio

    import trio.abc
    from typing_extensions import ParamSpec

    from ._tasks import Library

    TrioInstrument = trio.abc.Instrument
    P = ParamSpec("P")
else:
    TrioInstrument = object  # Trio goes by the names of the methods

T = TypeVar("T")


async def with_portal_run_tree(
    async_fn: Callable[P, Awaitable[T]], *args: P.args, **kwds: P.kwargs
) -> T:
    """``await async_fn(*args, **kwds)``, with a portal for it and for the tasks that it starts.

    To give all of a program portals, ``trio.run(greenback.with_portal_run_tree, main)`` or
    ``asyncio.run(greenback.with_portal_run_tree(main))``. Adds no checkpoint.

    Args:
        async_fn: A function that returns something to await.
        args: Its positional arguments.
        kwds: Its keyword arguments.

    Returns:
        What awaiting it gives.

    Raises:
        RuntimeError: As `with_portal_run`.
        BaseException: Whatever *async_fn* raises.
    """
    with portals_for_children():
        return await with_portal_run(async_fn, *args, **kwds)


def portals_for_children() -> ContextManager[None]:
    """A context manager inside which child tasks are given portals; the current task is not.

    Raises:
        RuntimeError: As `ensure_portal`, on entering.
    """
    return _ChildrenScope()


def portals_for_tree() -> AsyncContextManager[None]:
    """An asynchronous context manager that gives portals to the current task and its children.

    The current task's portal is closed on leaving if it was opened on entering. Entering and
    leaving let other tasks run. On Trio neither is a cancellation point; on asyncio, where nothing
    can hold a cancellation back, both are.

    Raises:
        RuntimeError: As `ensure_portal`, on entering.
    """
    return _TreeScope()


class AutoPortalInstrument(TrioInstrument):
    """A `trio.abc.Instrument` that gives the children of some tasks a portal when they start.

    ``trio.run(main, instruments=[AutoPortalInstrument()])`` gives one to every task of the run,
    Trio's own system tasks included. The scopes above use one for each run.
    """

    def __init__(self) -> None:
        # For each task whose children inherit, how many nurseries it had open when they began to:
        # those of later ones do. Written by the thread of the run, as is all of this.
        self._depths: Dict[trio.lowlevel.Task, int] = {}
        #: Open scopes that use it; the last one removes it if a scope has added it.
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
            depth = self._depths.get(parent)
            if depth is None or parent.child_nurseries.index(nursery) < depth:
                return
        bestow(task, "inherited")
        self._depths[task] = 0

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


# Made by the first scope that is entered under Trio.
_run_var: Optional[trio.lowlevel.RunVar[Optional[AutoPortalInstrument]]] = None


def _instrument_of_run() -> trio.lowlevel.RunVar[Optional[AutoPortalInstrument]]:
    """Where a Trio run keeps the instrument that its scopes share."""
    global _run_var
    if _run_var is None:
        import trio

        _run_var = trio.lowlevel.RunVar("greenback.AutoPortalInstrument", default=None)
    return _run_var


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
        self._outermost = task not in instrument._depths
        if self._outermost:
            instrument._depths[task] = len(task.child_nurseries)
            instrument._scopes += 1

    def leave(self) -> None:
        if not self._outermost:
            return
        instrument = self._instrument
        del instrument._depths[self._task]
        instrument._scopes -= 1
        if instrument._added_by_scope and instrument._scopes == 0:
            from trio import lowlevel

            _instrument_of_run().set(None)
            lowlevel.remove_instrument(instrument)


class _AsyncioScope:
    """A task whose children inherit, under asyncio."""

    def __init__(self, task: asyncio.Task[Any]) -> None:
        self.task = task
        self.is_open = True
        self._loop = task.get_loop()
        self._factory = _factory_of(self._loop)
        self._factory.scopes.append(self)
        # A callback has no task, but it has the context of whoever scheduled it.
        self._token = _scopes_here.set((*_scopes_here.get(), self))

    def leave(self) -> None:
        self.is_open = False
        try:
            _scopes_here.reset(self._token)
        except ValueError:
            pass  # left in another context than entered; a closed scope in there does no harm
        self._factory.scopes.remove(self)
        if not self._factory.scopes:
            self._factory.uninstall(self._loop)


_scopes_here: contextvars.ContextVar[Tuple[_AsyncioScope, ...]] = contextvars.ContextVar(
    "greenback.scopes", default=()
)


def _factory_of(loop: asyncio.AbstractEventLoop) -> _TaskFactory:
    installed = loop.get_task_factory()
    if isinstance(installed, _TaskFactory):
        return installed
    factory = _TaskFactory(installed)
    loop.set_task_factory(factory)
    return factory


class _TaskFactory:
    """Makes the tasks of an asyncio loop while a scope is open in it.

    The coroutine is put into a shim before the task exists, because an eager task takes its first
    step before anybody else gets to see it.
    """

    def __init__(self, previous: Optional[Callable[..., Any]]) -> None:
        self.scopes: List[_AsyncioScope] = []
        self._previous = previous

    def uninstall(self, loop: asyncio.AbstractEventLoop) -> None:
        if loop.get_task_factory() is self:
            loop.set_task_factory(self._previous)

    def __call__(self, loop: asyncio.AbstractEventLoop, coro: Any, **kwds: Any) -> Any:
        import asyncio

        scopes = self._scopes_that_cover_the_creator()
        if not scopes or not asyncio.iscoroutine(coro):
            return self._make(loop, coro, kwds)
        portal, shim = shim_for(running_asyncio(), "inherited", coro)
        portal.scopes = scopes
        try:
            task = self._make(loop, shim, kwds)
        except BaseException:
            shim.close()
            raise
        if portal.task is None and isinstance(task, asyncio.Future):
            portal.task = task
            open_portal(portal)
        return task

    def _scopes_that_cover_the_creator(self) -> Tuple[_AsyncioScope, ...]:
        creator = running_asyncio().current_task()
        if creator is None:
            covering = _scopes_here.get()
        else:
            portal = portal_of(creator)
            covering = (() if portal is None else portal.scopes) + tuple(
                scope for scope in self.scopes if scope.task is creator
            )
        return tuple(scope for scope in covering if scope.is_open)

    def _make(self, loop: asyncio.AbstractEventLoop, coro: Any, kwds: Dict[str, Any]) -> Any:
        if self._previous is not None:
            return self._previous(loop, coro, **kwds)
        import asyncio

        return asyncio.Task(coro, loop=loop, **kwds)
