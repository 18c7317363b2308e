"""A program with every kind of bridge. Prints what was counted, without times, as JSON.

The argument is the setting for spans, or "debug"; there is no SDK.
"""

from __future__ import annotations

import asyncio
import functools
import json
import sys
import threading
import time
from typing import Any, Callable, Dict

import trio

import greenback
import greenback_trace
from greenback_trace import Config


async def nop() -> None:
    pass


async def naps(sleep: Callable[[float], Any], times: int) -> None:
    for _ in range(times):
        await sleep(0)


async def fails(sleep: Callable[[float], Any], times: int) -> None:
    await naps(sleep, times)
    raise LookupError


class Door:
    @greenback.autoawait
    async def opens(self) -> None:
        pass


def chained(depth: int, work: Callable[[], None]) -> None:
    if depth:
        chained(depth - 1, work)
    else:
        work()


def bridges(sleep: Callable[[float], Any], cancelled: Callable[[], None]) -> None:
    for _ in range(3):
        greenback.await_(nop())
        greenback.await_(naps(sleep, 2))
        for times in (0, 1):
            try:
                greenback.await_(fails(sleep, times))
            except LookupError:
                pass
        for depth in (0, 2, 40):  # the longest is cut
            chained(depth, lambda: greenback.await_(nop()))
        Door().opens()
        list(map(greenback.await_, [nop(), naps(sleep, 1)]))
        functools.partial(greenback.await_, nop())()
        nested(sleep, 3)
    cancelled()


def nested(sleep: Callable[[float], Any], depth: int) -> None:
    async def inner() -> None:
        if depth:
            nested(sleep, depth - 1)
        else:
            greenback.await_(naps(sleep, 1))  # the site is an async function

    greenback.await_(inner())


def many_sites() -> None:
    functions: Dict[str, Any] = {"__name__": __name__, "await_": greenback.await_, "nop": nop}
    for index in range(40):
        exec(f"def site_{index}():\n    await_(nop())\n", functions)
    for _ in range(12):  # by then, the interpreter has specialised the calls
        for index in range(40):
            functions[f"site_{index}"]()


def slow() -> None:
    greenback.await_(nop())
    time.sleep(0.6)


async def in_asyncio() -> None:
    def cancelled() -> None:
        task: Any = asyncio.current_task()
        task.get_loop().call_soon(task.cancel)
        try:
            greenback.await_(asyncio.sleep(1000))
        except asyncio.CancelledError:
            getattr(task, "uncancel", int)()

    for _ in range(3):
        await greenback.with_portal_run_sync(bridges, asyncio.sleep, cancelled)
        await greenback.with_portal_run_sync(greenback.await_, nop())
        await greenback.with_portal_run_sync(greenback.await_, naps(asyncio.sleep, 1))
        await asyncio.create_task(ensured(asyncio.sleep))
    await greenback.with_portal_run(naps, asyncio.sleep, 2)
    await greenback.with_portal_run_sync(many_sites)


async def in_trio() -> None:
    def cancelled() -> None:
        with trio.move_on_after(0.01):
            greenback.await_(trio.sleep(1000))

    for _ in range(3):
        await greenback.with_portal_run_sync(bridges, trio.sleep, cancelled)
        await greenback.with_portal_run_sync(greenback.await_, nop())
        async with trio.open_nursery() as nursery:
            nursery.start_soon(ensured, trio.sleep)
    await greenback.with_portal_run(naps, trio.sleep, 2)


async def in_portal(sync_fn: Callable[[], None]) -> None:
    await greenback.with_portal_run_sync(sync_fn)


async def ensured(sleep: Callable[[float], Any]) -> None:
    await greenback.ensure_portal()
    greenback.await_(naps(sleep, 1))
    greenback.await_(nop())


async def closed_in_a_bridge(sleep: Callable[[float], Any]) -> None:
    """The portal is closed in the middle of a bridge, and its task has steps after that."""
    portals = greenback.portals_for_tree()
    await portals.__aenter__()

    async def close() -> None:
        await portals.__aexit__(None, None, None)
        await naps(sleep, 5)

    def waits() -> None:
        greenback.await_(close())

    waits()
    await naps(sleep, 3)


async def enabled_in_between(config: Config) -> None:
    """Tracing is enabled again while a portal is open, and a bridge is under way."""

    async def enable() -> None:
        greenback_trace.enable(config=config)
        greenback.await_(nop())

    await greenback.with_portal_run_sync(greenback.await_, enable())


async def disabled_in_between(config: Config) -> None:
    """Tracing is disabled while a bridge waits, and enabled again before it goes on."""

    async def waits() -> None:
        asyncio.get_running_loop().call_soon(greenback_trace.disable)
        await asyncio.sleep(0)
        greenback_trace.enable(config=config)
        await asyncio.sleep(0)

    await greenback.with_portal_run_sync(greenback.await_, waits())


def in_another_thread() -> None:
    """Portals are opened in one thread, and their tasks run in another one."""

    async def bridges(times: int) -> None:
        greenback.await_(nop())
        greenback.await_(naps(asyncio.sleep, times))

    loop = asyncio.new_event_loop()
    # From the second task on, there is a worker whose task has ended.
    tasks = [loop.create_task(bridges(times)) for times in (0, 0, 1)]
    for task in tasks:
        greenback.bestow_portal(task)
    everything = asyncio.wait(tasks)
    thread = threading.Thread(target=loop.run_until_complete, args=(everything,))
    thread.start()
    thread.join()
    loop.close()


def counted() -> Any:
    found = greenback_trace.snapshot().as_dict()
    for each in (*found["sites"], *found["chains"], *found["portals"].values()):
        del each["time"], each["suspended_time"]
    for each in found["chains"]:
        del each["file"], each["line"]
    # The worker's function. An engine in C has none, so that no line of it calls.
    for each in found["sites"]:
        if each["function"] == "greenback._engine.work.work":
            each["line"] = 0
        del each["file"]
    for each in found["chains"]:
        each["chain"] = [
            name.partition(" ")[0] if name.startswith("greenback.") else name
            for name in each["chain"]
        ]
    for each in found["steps"].values():
        del each["time"]
    for each in found["durations"]:
        del each["sum"]
        each["counts"] = sum(each["counts"])
    for name in ("sites", "chains", "durations"):
        found[name] = sorted(json.dumps(each, sort_keys=True) for each in found[name])
    return found


def main() -> None:
    mode, spans = ("debug", "none") if sys.argv[1] == "debug" else ("on", sys.argv[1])
    config = Config(mode=mode, spans=spans, sites=30, slow=0.5)
    greenback_trace.enable(config=config)
    asyncio.run(in_asyncio())
    asyncio.run(in_portal(slow))
    asyncio.run(closed_in_a_bridge(asyncio.sleep))
    trio.run(in_trio)
    trio.run(closed_in_a_bridge, trio.sleep)
    threads = [threading.Thread(target=lambda: asyncio.run(in_asyncio())) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for _ in range(2):
        in_another_thread()
    found = [counted()]
    asyncio.run(enabled_in_between(config))
    found.append(counted())
    asyncio.run(disabled_in_between(config))
    found.append(counted())
    print(json.dumps(found, indent=1, sort_keys=True))
    greenback_trace.disable()


if __name__ == "__main__":
    main()
