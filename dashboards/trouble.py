"""Fires every alert: one program with all kinds of trouble, until its standard input is closed.

    GREENBACK_TRACE=debug GREENBACK_TRACE_SLOW=0.02 GREENBACK_TRACE_SITES=2 \\
        opentelemetry-instrument python dashboards/trouble.py

Five times a second it bridges in a finalizer, holds the event loop for 30 ms in one step, and
leaves a task with a portal that never ends. It has more sites than GREENBACK_TRACE_SITES allows.
"""

from __future__ import annotations

import asyncio
import sys
import threading
import time

import greenback


class Cart:
    def __del__(self) -> None:
        greenback.await_(asyncio.sleep(0))


async def compute() -> None:
    time.sleep(0.03)  # the trouble


def bill() -> None:
    greenback.await_(compute())


def fail() -> None:
    try:
        greenback.await_(asyncio.wait_for(asyncio.sleep(60), 0.001))
    except asyncio.TimeoutError:
        pass


def wait(ended: asyncio.Event) -> None:
    greenback.await_(asyncio.wait_for(ended.wait(), None))


async def leak(ended: asyncio.Event) -> None:
    await greenback.ensure_portal()
    wait(ended)


async def main() -> None:
    loop = asyncio.get_running_loop()
    ended = asyncio.Event()

    def wait_for_the_end() -> None:
        sys.stdin.buffer.read()
        loop.call_soon_threadsafe(ended.set)

    threading.Thread(target=wait_for_the_end, daemon=True).start()
    await greenback.ensure_portal()
    leaked = set()
    while not ended.is_set():
        cart = Cart()
        del cart
        bill()
        await asyncio.create_task(greenback.with_portal_run_sync(fail))
        leaked.add(asyncio.create_task(leak(ended)))
        await asyncio.sleep(0.15)
    await asyncio.gather(*leaked)


asyncio.run(main())
