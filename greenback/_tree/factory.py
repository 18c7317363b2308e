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

    The coroutine is put into a shim before the task exists, because an eager task takes its first
    step before anybody else gets to see it.

    anyio and Sentry inspect the factory of a loop to know which one it is, and anyio takes the
    task constructor out of an eager one. So this object delegates its attributes, that constructor
    included, to the factory that it has replaced. The frame from which it calls that one looks like
    the line that creates the task.
    """

    def __init__(self, previous: Optional[Callable[..., Any]]) -> None:
        if previous is not None:
            update_wrapper(cast(Any, self), previous)
        self.previous = previous
        #: The scopes that it was installed for, or met.
        self.users = 0

    @property
    def __call__(self) -> Callable[..., Any]:
        # Asked for by whoever calls it, and gone again before that is called.
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
        """Make a task with what an eager factory would make it with."""
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
        """What a new task is to run in place of *coro*; None if it is to have no portal."""
        scopes = scopes_of_creator(loop)
        if (
            not scopes
            or not asyncio.iscoroutine(coro)
            # An application's factory can come between two of ours.
            or is_shim(coro)
        ):
            return None
        note_in_context(kwds.get("context"), scopes)
        return _Prepared(scopes, coro)


class _Prepared:
    """A shim for a task that is about to be made, and its portal."""

    __slots__ = ("portal", "shim", "unstarted")

    def __init__(self, scopes: Scopes, coro: Any) -> None:
        self.portal = Portal("inherited", running_asyncio())
        self.portal.scopes = scopes
        self.unstarted = Unstarted()
        self.unstarted.coroutine = coro
        self.shim = shim_from_the_start(self.portal, self.unstarted)

    def undo(self) -> None:
        """No task was made; the caller still has the coroutine, as if there were no scope."""
        self.unstarted.take()
        self.shim.close()

    def made(self, task: Any) -> Any:
        """*task* was made, or whatever a factory gives in place of one."""
        if self.portal.task is None and isinstance(task, asyncio.Future) and not task.done():
            this_home().promised[task] = self.portal
        return task


def _as_created_by_loop(task: asyncio.Task[Any]) -> None:
    """Show in asyncio's debug mode what it shows of a task that a loop has made by itself."""
    stack: Any = getattr(task, "_source_traceback", None)
    if stack:
        del stack[-1]  # ours
        if stack and stack[-1].name == "create_task" and stack[-1].filename == base_events.__file__:
            del stack[-1]  # which it takes out itself


# What `TaskFactory.__call__` gives, as a method.
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
