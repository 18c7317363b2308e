"""Awaitables, and the outcomes of awaiting them and of bridging to them."""

from __future__ import annotations

import asyncio
from typing import Any, Callable, List, Tuple

import sniffio
import trio

import greenback
from greenback import await_

from ..portals import in_run, in_run_sync, in_task


async def in_child(sync_fn: Callable[[], Any]) -> Any:
    results: List[Any] = []

    async def child() -> None:
        try:
            results.append((sync_fn(), None))
        except BaseException as error:
            results.append((None, error))

    with greenback.portals_for_children():
        if sniffio.current_async_library() == "trio":
            async with trio.open_nursery() as nursery:
                nursery.start_soon(child)
        else:
            task = asyncio.get_running_loop().create_task(child())
            try:
                await task
            except asyncio.CancelledError:
                task.cancel()
                await asyncio.wait([task])
    value, error = results[0]
    if error is not None:
        raise error
    return value


PORTALS = [in_run_sync, in_run, in_task, in_child]


def outcome(call: Callable[[], Any]) -> Tuple[Any, ...]:
    """The outcome of a call: its value, or the type and text of its exception."""
    try:
        return "returned", call()
    except BaseException as error:
        return type(error), error.args


def both_ways(backend: Any, portal: Any, make: Callable[[], Any]) -> Tuple[Any, Any]:
    """The outcomes of awaiting one result of *make*, and of bridging to another."""

    async def awaited() -> Any:
        return await make()

    return outcome(lambda: backend.run(awaited)), outcome(
        lambda: backend.run(portal, lambda: await_(make()))
    )
