"""One implementation under one event loop. run.py starts it and asks it for measurements.

Reads one JSON request per line, ``{"work": ..., "n": ..., "depth": ...}``, and answers each with
``{"seconds": ...}`` for one of *n* calls, ``{"bytes": ...}`` for one of *n* parked tasks, or
``{"error": ...}``. Needs nothing but the implementation and the event loop.

The timed loops are the same functions for every implementation, which they get as an argument.
"""

from __future__ import annotations

import gc
import importlib
import json
import logging
import os
import resource
import sys
import traceback
from importlib import metadata
from itertools import repeat
from time import perf_counter
from typing import Any, Callable, Dict, List, Optional

import greenlet

# Functions of the implementation and of the event loop that the works below use. serve() sets them.
implementation: Any
loop: Any


class Greenback:
    """This implementation and upstream, which have the same interface."""

    def __init__(self) -> None:
        import greenback

        self.module = greenback
        #: The engine that runs. Upstream does not say.
        self.engine = getattr(greenback, "engine", None)
        self.await_ = greenback.await_
        self.ensure_portal = greenback.ensure_portal
        self.run_sync = greenback.with_portal_run_sync
        self.run_async = greenback.with_portal_run

    async def enter(self, function: Callable[..., Any], *args: Any) -> Any:
        """Call a sync function that bridges."""
        await self.ensure_portal()
        return function(*args)


class SQLAlchemy:
    def __init__(self) -> None:
        import sqlalchemy.util

        self.module = importlib.import_module("sqlalchemy")
        self.await_ = sqlalchemy.util.await_only
        self.run_sync = self.enter = sqlalchemy.util.greenlet_spawn


class Awaitlet:
    def __init__(self) -> None:
        import awaitlet

        self.module = awaitlet
        self.await_ = awaitlet.awaitlet
        self.run_sync = self.enter = awaitlet.async_def


IMPLEMENTATIONS: Dict[str, Callable[[], Any]] = {
    "ours": Greenback,
    "upstream": Greenback,
    "sqlalchemy": SQLAlchemy,
    "awaitlet": Awaitlet,
}


class Asyncio:
    def __init__(self, new_loop: Callable[[], Any]) -> None:
        import asyncio

        self.asyncio = asyncio
        self.new_loop = new_loop
        self.sleep = asyncio.sleep
        self.event = asyncio.Event

    def run(self, async_fn: Callable[..., Any], *args: Any) -> Any:
        loop = self.new_loop()
        try:
            return loop.run_until_complete(async_fn(*args))
        finally:
            loop.close()

    async def time_tasks(self, n: int, body: Callable[[], Any]) -> float:
        create_task = self.asyncio.get_running_loop().create_task
        start = perf_counter()
        for _ in repeat(None, n):
            await create_task(body())
        return perf_counter() - start

    async def run_together(self, bodies: List[Callable[[], Any]]) -> None:
        await self.asyncio.gather(*[body() for body in bodies])


class Trio:
    def __init__(self) -> None:
        import trio

        self.open_nursery = trio.open_nursery
        self.run = trio.run
        self.sleep = trio.sleep
        self.event = trio.Event

    async def time_tasks(self, n: int, body: Callable[[], Any]) -> float:
        open_nursery = self.open_nursery
        start = perf_counter()
        for _ in repeat(None, n):
            async with open_nursery() as nursery:
                nursery.start_soon(body)
        return perf_counter() - start

    async def run_together(self, bodies: List[Callable[[], Any]]) -> None:
        async with self.open_nursery() as nursery:
            for body in bodies:
                nursery.start_soon(body)


def load_loop(name: str) -> Any:
    if name == "trio":
        return Trio()
    return Asyncio(importlib.import_module(name).new_event_loop)


# The functions that the loops call.


async def nop() -> None:
    pass


def nop_sync() -> None:
    pass


def at_depth(depth: int, function: Callable[..., Any], *args: Any) -> Any:
    """Call *function*, as the sync frame number *depth*."""
    if depth == 1:
        return function(*args)
    return at_depth(depth - 1, function, *args)


# The timed loops.


def time_bridges(n: int, await_: Callable[[Any], Any], nop: Callable[[], Any]) -> float:
    start = perf_counter()
    for _ in repeat(None, n):
        await_(nop())
    return perf_counter() - start


def time_bridged_sleeps(
    n: int, await_: Callable[[Any], Any], sleep: Callable[[float], Any]
) -> float:
    start = perf_counter()
    for _ in repeat(None, n):
        await_(sleep(0))
    return perf_counter() - start


async def time_awaits(n: int, nop: Callable[[], Any]) -> float:
    start = perf_counter()
    for _ in repeat(None, n):
        await nop()
    return perf_counter() - start


async def time_sleeps(n: int, sleep: Callable[[float], Any]) -> float:
    start = perf_counter()
    for _ in repeat(None, n):
        await sleep(0)
    return perf_counter() - start


async def time_runs(n: int, run: Callable[[Any], Any], function: Callable[[], Any]) -> float:
    start = perf_counter()
    for _ in repeat(None, n):
        await run(function)
    return perf_counter() - start


def time_switches(n: int, switch: Callable[[], Any]) -> float:
    start = perf_counter()
    for _ in repeat(None, n):
        switch()
    return perf_counter() - start


def switch_back_forever(switch: Callable[[], Any]) -> None:
    while True:
        switch()


# The works. Each runs as a task of its own.


async def bridge(n: int, depth: int) -> Any:
    return await implementation.enter(at_depth, depth, time_bridges, n, implementation.await_, nop)


async def bridged_sleep(n: int, depth: int) -> Any:
    return await implementation.enter(
        at_depth, depth, time_bridged_sleeps, n, implementation.await_, loop.sleep
    )


async def portal_sleep(n: int, depth: int) -> float:
    await implementation.ensure_portal()
    return await time_sleeps(n, loop.sleep)


async def run_sync(n: int, depth: int) -> float:
    return await time_runs(n, implementation.run_sync, nop_sync)


async def run_async(n: int, depth: int) -> float:
    return await time_runs(n, implementation.run_async, nop)


async def portal_task(n: int, depth: int) -> Any:
    return await loop.time_tasks(n, implementation.ensure_portal)


async def portal_tasks(n: int, depth: int) -> float:
    return await time_together(n, implementation.ensure_portal)


async def plain_await(n: int, depth: int) -> float:
    return await time_awaits(n, nop)


async def plain_sleep(n: int, depth: int) -> float:
    return await time_sleeps(n, loop.sleep)


async def plain_task(n: int, depth: int) -> Any:
    return await loop.time_tasks(n, sleep_once)


async def plain_tasks(n: int, depth: int) -> float:
    return await time_together(n, sleep_once)


async def switch_pair(n: int, depth: int) -> float:
    there = greenlet.greenlet(at_depth)
    there.switch(depth, switch_back_forever, greenlet.getcurrent().switch)
    try:
        return time_switches(n, there.switch)
    finally:
        there.throw()


async def sleep_once() -> None:
    await loop.sleep(0)


async def time_together(n: int, body: Callable[[], Any]) -> float:
    """Run *n* tasks, a hundred at once."""
    bodies = [body] * 100
    run_together = loop.run_together
    start = perf_counter()
    for _ in repeat(None, n // 100):
        await run_together(bodies)
    return perf_counter() - start


async def parked(n: int, depth: int) -> int:
    await_ = implementation.await_

    def wait(arrived: Callable[[], None], event: Any) -> None:
        arrived()
        await_(event.wait())

    async def body(arrived: Callable[[], None], event: Any) -> None:
        await implementation.enter(at_depth, depth, wait, arrived, event)

    return await growth(n, body)


async def plain_parked(n: int, depth: int) -> int:
    async def body(arrived: Callable[[], None], event: Any) -> None:
        arrived()
        await event.wait()

    return await growth(n, body)


async def growth(n: int, body: Callable[[Callable[[], None], Any], Any]) -> int:
    """By how many bytes the process grows until *n* tasks wait."""
    event = loop.event()
    missing = n
    grown = 0

    def arrived() -> None:
        nonlocal missing
        missing -= 1

    def make() -> Any:
        return body(arrived, event)

    async def measure() -> None:
        nonlocal grown
        while missing:
            await loop.sleep(0)
        for _ in range(3):  # until the last tasks wait, too
            await loop.sleep(0)
        grown = resident() - before
        event.set()

    before = resident()
    await loop.run_together([measure] + [make] * n)
    return grown


def resident() -> int:
    gc.collect()
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * resource.getpagesize()


WORKS = {
    work.__name__: work
    for work in (
        bridge,
        bridged_sleep,
        portal_sleep,
        run_sync,
        run_async,
        portal_task,
        portal_tasks,
        plain_await,
        plain_sleep,
        plain_task,
        plain_tasks,
        switch_pair,
    )
}
MEMORY = {work.__name__: work for work in (parked, plain_parked)}


def describe() -> Dict[str, Any]:
    versions = {}
    for name in (
        "greenback",
        "greenlet",
        "uvloop",
        "trio",
        "sqlalchemy",
        "awaitlet",
        "opentelemetry-sdk",
    ):
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            pass
    return {
        "versions": versions,
        "from": os.path.dirname(implementation.module.__file__),
        "engine": getattr(implementation, "engine", None),
    }


def silence_tracing() -> None:
    """Log no events, neither of steps that are slow on a busy machine nor of the process's end."""
    if "greenback_trace" in sys.modules:
        import structlog

        structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.CRITICAL))


def answer(work: str, n: int, depth: int) -> Dict[str, Any]:
    if work in MEMORY:
        loop.run(MEMORY[work], 1, depth)  # the first task loads modules and caches
        return {"bytes": loop.run(MEMORY[work], n, depth) / n}
    gc.collect()
    gc.disable()
    try:
        return {"seconds": loop.run(WORKS[work], n, depth) / n}
    finally:
        gc.enable()


def serve(
    answer: Callable[..., Dict[str, Any]], prepare: Optional[Callable[[], object]] = None
) -> None:
    """Answer requests until there are no more."""
    global implementation, loop
    try:
        implementation = IMPLEMENTATIONS[sys.argv[1]]()
        silence_tracing()
        loop = load_loop(sys.argv[2])
        if prepare is not None:
            prepare()
        first = describe()
    except Exception:
        first = {"error": traceback.format_exc()}
    print(json.dumps(first), flush=True)
    for line in sys.stdin:
        try:
            reply = answer(**json.loads(line))
        except BaseException:
            reply = {"error": traceback.format_exc()}
        print(json.dumps(reply), flush=True)


if __name__ == "__main__":
    serve(answer)
