"""The task factory of an asyncio loop in which scopes are open (see scopes.py)."""

from __future__ import annotations

import asyncio
import os
import sys
from asyncio import base_events
from functools import partial, update_wrapper
from types import CellType, MethodType
from typing import TYPE_CHECKING, Any, Callable, Dict, Optional, cast

from .._engine.state import Portal, this_home
from .._shims.shims import Unstarted, is_shim, shim_from_the_start
from .._tasks.libraries import running_asyncio
from .creator import Template
from .scopes import note_in_context, scopes_of_creator

if TYPE_CHECKING:
    from .scopes import Scopes


class TaskFactory:
    """Makes the tasks of an asyncio loop while scopes are open in it.

    The factory puts the coroutine into a shim before the task exists, because an eager task takes
    its first step before its factory returns it.

    anyio and Sentry inspect a loop's factory to learn which one it is, and anyio takes the task
    constructor out of an eager factory. So this object delegates its attributes to the factory that
    it has replaced, that constructor included. The frame that calls the replaced factory looks like
    the line that creates the task.
    """

    def __init__(self, previous: Optional[Callable[..., Any]]) -> None:
        if previous is not None:
            update_wrapper(cast(Any, self), previous)
        self.previous = previous
        #: How many open scopes use it.
        self.users = 0

    @property
    def __call__(self) -> Callable[..., Any]:
        # The caller of the factory asks for this property. The property's own frame is gone before
        # the function is called, so it is in no stack.
        return MethodType(_create_task.at_creator(sys._getframe(1)), self)

    def __getattr__(self, name: str) -> Any:
        previous = self.__dict__.get("previous")
        if previous is None:
            raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")
        found = getattr(previous, name)
        if name == "__closure__" and found and callable(found[0].cell_contents):
            return (CellType(partial(self._construct, found[0].cell_contents)), *found[1:])
        return found

    def _construct(self, constructor: Callable[..., Any], coro: Any, **kwds: Any) -> Any:
        """Make a task with the constructor of an eager factory."""
        prepared = self.prepare(kwds.get("loop"), coro, kwds)
        if prepared is None:
            return constructor(coro, **kwds)
        try:
            task = constructor(prepared.shim, **kwds)
        except BaseException:
            prepared.undo()
            raise
        return prepared.made(task)

    def prepare(self, loop: Any, coro: Any, kwds: Dict[str, Any]) -> Optional[_Prepared]:
        """A shim for a new task to run in place of *coro*; None if the task inherits no portal."""
        scopes = scopes_of_creator(loop)
        if (
            not scopes
            or not asyncio.iscoroutine(coro)
            # A shim already: an application's factory stands between two of greenback's.
            or is_shim(coro)
        ):
            return None
        note_in_context(kwds.get("context"), scopes)
        return _Prepared(scopes, coro)


class _Prepared:
    """A shim for a task that is about to be made, and the task's portal."""

    __slots__ = ("portal", "shim", "unstarted")

    def __init__(self, scopes: Scopes, coro: Any) -> None:
        self.portal = Portal("inherited", running_asyncio())
        self.portal.scopes = scopes
        self.unstarted = Unstarted()
        self.unstarted.coroutine = coro
        self.shim = shim_from_the_start(self.portal, self.unstarted)

    def undo(self) -> None:
        """No task was made: leave the coroutine to the caller, as if there were no scope."""
        self.unstarted.take()
        self.shim.close()

    def made(self, task: Any) -> Any:
        """The factory returned *task*: note its portal if *task* is a task that has not begun."""
        if self.portal.task is None and isinstance(task, asyncio.Future) and not task.done():
            this_home().promised[task] = self.portal
        return task


def _as_created_by_loop(task: asyncio.Task[Any]) -> None:
    """Have asyncio's debug mode show the same stack as for a task that a loop makes by itself."""
    stack: Any = getattr(task, "_source_traceback", None)
    if stack:
        del stack[-1]  # greenback's entry
        if stack and stack[-1].name == "create_task" and stack[-1].filename == base_events.__file__:
            del stack[-1]  # without a factory, create_task() deletes its own entry


# `TaskFactory.__call__` is a method made of this.
_create_task = Template(
    """
def create_task(factory, loop, coro, **kwds):
    prepared = factory.prepare(loop, coro, kwds)
    if prepared is not None:
        coro = prepared.shim
    try:
        if factory.previous is not None:
            task = factory.previous(loop, coro, **kwds)
        else:
            task = Task(coro, loop=loop, **kwds)
            as_created_by_loop(task)
    except BaseException:
        if prepared is not None:
            prepared.undo()
        raise
    return task if prepared is None else prepared.made(task)
""",
    {"Task": asyncio.Task, "as_created_by_loop": _as_created_by_loop},
    os.path.dirname(asyncio.__file__),
)
