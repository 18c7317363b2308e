"""Tasks with portals of all kinds, parked."""

from __future__ import annotations

import asyncio
import os
import sys
from typing import Any, List

import trio
import trio.testing

import greenback
from greenback_trace import format_task

PYPY = sys.implementation.name == "pypy"


#: Files of the tests and of their tasks.
HERE = os.path.dirname(__file__)


def names(text: str) -> List[str]:
    """The functions of the tests in a stack, and its bridges."""
    found = []
    for line in text.splitlines():
        if "--- bridge" in line:
            found.append("BRIDGE")
        elif ", in " in line and HERE in line:
            found.append(line.rpartition(", in ")[2])
    return found


async def leaf(event: Any) -> None:
    await event.wait()


def sync(event: Any) -> None:
    greenback.await_(leaf(event))


async def middle(event: Any) -> None:
    sync(event)


def outer_sync(event: Any) -> None:
    greenback.await_(middle(event))


async def ensured(event: Any) -> None:
    await greenback.ensure_portal()
    sync(event)


async def nested(event: Any) -> None:
    await greenback.ensure_portal()
    outer_sync(event)


async def run(event: Any) -> None:
    await greenback.with_portal_run(middle, event)


async def run_sync(event: Any) -> None:
    await greenback.with_portal_run_sync(sync, event)


async def plain(event: Any) -> None:
    await leaf(event)


async def only_portal(event: Any) -> None:
    await greenback.ensure_portal()
    await leaf(event)


async def steps(number: int = 5) -> None:
    """Let the other tasks of asyncio run until all of them wait."""
    for _ in range(number):
        await asyncio.sleep(0)


def parked(async_fn: Any, look: Any = format_task) -> Any:
    """Call *look* with an asyncio task that waits in *async_fn*, and return the result."""

    async def main() -> Any:
        event = asyncio.Event()
        task = asyncio.ensure_future(async_fn(event))
        await steps()
        try:
            return look(task)
        finally:
            event.set()
            await task

    return asyncio.run(main())


def parked_in_trio(async_fn: Any, look: Any = format_task) -> Any:
    """The same for a task of Trio."""

    async def main() -> Any:
        event = trio.Event()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(async_fn, event)
            await trio.testing.wait_all_tasks_blocked()
            (task,) = nursery.child_tasks
            try:
                return look(task)
            finally:
                event.set()

    return trio.run(main)
