"""Show that portals leave nothing behind: many tasks, many parked at once, many threads.

Run it as ``.venv/bin/python benchmarks/soak.py``. After each load it prints the number of greenlets
(at most the documented pool of 32 idle workers per thread and nesting level), portals and tasks
still alive, and the memory that the process has gained since the first run of the same load.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import os
import threading
from typing import Awaitable, Callable

import greenlet

import greenback
from greenback.instruments import Portal


async def short() -> None:
    await greenback.ensure_portal()
    greenback.await_(asyncio.sleep(0))


async def tasks(count: int) -> None:
    for _ in range(count // 1000):
        await asyncio.gather(*(short() for _ in range(1000)))


async def parked(count: int) -> None:
    gate = asyncio.Event()
    waiting = 0

    async def waits() -> None:
        nonlocal waiting
        await greenback.ensure_portal()
        waiting += 1
        if waiting == count:
            gate.set()
        greenback.await_(gate.wait())

    await asyncio.gather(*(waits() for _ in range(count)))


def in_threads(count: int) -> None:
    async def work() -> None:
        await greenback.with_portal_run_sync(greenback.await_, asyncio.sleep(0))

    for _ in range(count // 8):
        batch = [threading.Thread(target=asyncio.run, args=(work(),)) for _ in range(8)]
        for thread in batch:
            thread.start()
        for thread in batch:
            thread.join()
    # greenlet frees the greenlets of ended threads when another thread uses it.
    asyncio.run(work())


def alive(kind: type) -> int:
    gc.collect()
    return sum(1 for thing in gc.get_objects() if isinstance(thing, kind))


def resident_kb() -> int:
    with open("/proc/self/statm") as statm:
        return int(statm.read().split()[1]) * os.sysconf("SC_PAGE_SIZE") // 1024


def run(name: str, load: Callable[[], object]) -> None:
    load()
    before = resident_kb()
    load()
    left = [thing for thing in gc.get_objects() if isinstance(thing, greenlet.greenlet)]
    greenlets = sum(1 for thing in left if not thing.dead)
    del left
    gained = resident_kb() - before
    counts = f"{greenlets:4} greenlets  {alive(Portal):4} portals  {alive(asyncio.Task):2} tasks"
    print(f"{name:44}{counts} {gained:+7} kB", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--tasks", type=int, default=100_000)
    parser.add_argument("--parked", type=int, default=5_000)
    parser.add_argument("--threads", type=int, default=10_000)
    numbers = parser.parse_args()

    def loop(load: Callable[[int], Awaitable[None]], count: int) -> Callable[[], object]:
        return lambda: asyncio.run(load(count))

    run(f"{numbers.tasks:,} tasks with a portal", loop(tasks, numbers.tasks))
    run(f"{numbers.parked:,} tasks parked in bridges at once", loop(parked, numbers.parked))
    run(
        f"{numbers.threads:,} threads with a loop and a portal", lambda: in_threads(numbers.threads)
    )


if __name__ == "__main__":
    main()
