"""The `threading` lock that a hanging step waits for, and its holder.

Both are read from other threads' frames while they wait. The lock is the subject of the ``with`` or
``acquire()`` that the innermost frame is executing. Its holder is the thread or suspended task with
a frame inside a ``with`` of the same lock. Only debug mode knows who called ``acquire()``.
"""

from __future__ import annotations

import sys
import threading
from types import FrameType
from typing import TYPE_CHECKING, Any, Iterator, List, NamedTuple, Optional, Tuple

from greenback._frames import is_own, outwards, suspended_frames

from ..count.frames import current_frames
from ..count.names import task_name
from ..count.sites import site_of
from ..misuse.evidence.blocks import call_around, inside
from ..misuse.evidence.locks import lookup
from ..misuse.evidence.locks.claims import NAMES

if TYPE_CHECKING:
    from ..count.totals import Totals

#: Tasks of which the frames are looked at.
_TASKS = 2_000


class Waits(NamedTuple):
    """What a thread waits for.

    Attributes:
        lock: The type, and how the waiting code names it.
        held_by: Who has it, and where it was acquired. Empty if that is not known.
    """

    lock: str
    held_by: Tuple[str, ...]


def find(innermost: FrameType, task: Any, totals: Totals) -> Optional[Waits]:
    """The lock that the thread of a running frame waits for, if it waits for one.

    Args:
        innermost: The frame.
        task: The task that runs it.
        totals: What has the portals whose tasks may have the lock.
    """
    outer = (each for each in outwards(innermost) if each.f_code.co_filename != threading.__file__)
    frame = next(outer, None)
    call = None if frame is None else call_around(frame, NAMES)
    if frame is None or call is None:
        return None
    found = lookup.lock_of(frame, call.expression)
    if found is None:
        return None
    holders = list(dict.fromkeys(_holders(found, task, totals)))
    return Waits(f"{found.name} {call.expression!r}", tuple(holders))


def _holders(lock: lookup.Found, task: Any, totals: Totals) -> Iterator[str]:
    for who, frames in _stacks(task, totals):
        for frame in frames:
            for block in inside(frame):
                if lookup.is_inside(frame, block, lock):
                    yield f"{who}, in {site_of(frame).function} ({_place(frame, block.line)})"
    yield from lookup.claimants(lock)
    owner = lookup.owner_of(lock)
    if owner:
        yield f"thread {_thread_name(owner)!r}"


def _place(frame: FrameType, line: int) -> str:
    return f"{frame.f_code.co_filename}:{line}"


def _stacks(running: Any, totals: Totals) -> Iterator[Tuple[str, List[FrameType]]]:
    """The possible holders of a lock: suspended tasks and other threads."""
    tasks = [portal.task for portal in list(totals.portals)]
    tasks += _tasks_beside(running)
    seen = {id(running), id(None)}
    for task in tasks[:_TASKS]:
        if id(task) in seen:
            continue
        seen.add(id(task))
        coroutine = task.coro if hasattr(task, "coro") else task.get_coro()
        if getattr(coroutine, "cr_running", getattr(coroutine, "gi_running", False)):
            continue  # it is among the threads
        try:
            frames = [each for each in suspended_frames(coroutine) if each is not None]
        except Exception:  # it goes on meanwhile
            continue
        yield f"task {task_name(task)!r}", [each for each in frames if not is_own(each)]
    for ident, innermost in current_frames().items():
        if ident == threading.get_ident():
            continue
        yield (
            f"thread {_thread_name(ident)!r}",
            [each for each in outwards(innermost) if not is_own(each)],
        )


def _tasks_beside(task: Any) -> List[Any]:
    try:
        if hasattr(task, "_runner"):
            return list(task._runner.tasks)
        return list(sys.modules["asyncio"].all_tasks(task.get_loop()))
    except Exception:  # they change meanwhile
        return []


def _thread_name(ident: int) -> str:
    for thread in threading.enumerate():
        if thread.ident == ident:
            return thread.name
    return str(ident)
