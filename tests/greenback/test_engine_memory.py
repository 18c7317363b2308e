"""Nothing is left behind by what the engine does, however often it does it.

Each operation is repeated, and then two things are counted: allocated blocks of memory, and the
references to all objects that are there. A block or a reference that each repetition leaves behind
shows in one of the two. No time is measured, and the event loop runs nothing else.
"""

from __future__ import annotations

import asyncio
import contextvars
import gc
import os
import platform
import sys
import types
from typing import Any, Awaitable, Callable, Dict, Iterator

import greenlet
import pytest
import trio

import greenback
from greenback import await_
from greenback._engine import bridge, work
from greenback.instruments import Instrument, add_instrument, remove_instrument

pytestmark = [
    pytest.mark.skipif(
        platform.python_implementation() != "CPython", reason="PyPy counts no references"
    ),
    pytest.mark.skipif(
        "TESTS_WITH_SDK" in os.environ, reason="the SDK of the tests keeps all that it is told"
    ),
]

#: Of each operation.
REPETITIONS = int(
    os.environ.get("TESTS_REPETITIONS", "2000" if "TESTS_SMALL" in os.environ else "10000")
)
#: Before the first count: pools fill up, and the interpreter specializes bytecode.
WARM_UP = 200

# Of the library that the test runs.
checkpoint: Callable[[], Awaitable[None]]
variable: contextvars.ContextVar[int] = contextvars.ContextVar("variable", default=0)


# What is awaited


async def at_once() -> str:
    return "value"


async def waits() -> str:
    await checkpoint()
    return "value"


async def fails() -> None:
    raise ValueError("at once")


async def fails_late() -> None:
    await checkpoint()
    raise ValueError("late")


async def bridges() -> None:
    await_(waits())
    await checkpoint()


class Awaitable_:
    def __await__(self) -> Iterator[Any]:
        return waits().__await__()


@types.coroutine
def generator() -> Any:
    return (yield from waits().__await__())


# Operations in a portal: they are sync


def raises(error: Any, sync_fn: Callable[..., Any], *args: Any) -> None:
    try:
        sync_fn(*args)
    except error:
        return
    raise AssertionError("nothing was raised")


def in_another_context() -> None:
    contextvars.copy_context().run(await_, waits())


def in_a_handler() -> None:
    try:
        raise KeyError
    except KeyError:
        raises(ValueError, await_, fails_late())


def in_another_greenlet() -> None:
    greenlet.greenlet(await_).switch(waits())


def of_a_future() -> None:
    future = asyncio.get_running_loop().create_future()
    asyncio.get_running_loop().call_soon(future.set_result, None)
    await_(future)


def thrown_into() -> None:
    future = asyncio.get_running_loop().create_future()
    asyncio.get_running_loop().call_soon(future.set_exception, ValueError("thrown"))
    raises(ValueError, await_, future)


def thrown_into_a_handler() -> None:
    try:
        raise KeyError
    except KeyError:
        thrown_into()


def cancelled_scope() -> None:
    with trio.CancelScope() as scope:
        scope.cancel()
        await_(trio.sleep_forever())


BRIDGES: Dict[str, Callable[[], Any]] = {
    "at once": lambda: await_(at_once()),
    "by keyword": lambda: await_(aw=at_once()),
    "suspends": lambda: await_(waits()),
    "nested": lambda: await_(bridges()),
    "raises": lambda: raises(ValueError, await_, fails()),
    "raises late": lambda: raises(ValueError, await_, fails_late()),
    "an __await__()": lambda: await_(Awaitable_()),
    "a generator": lambda: await_(generator()),
    "refused": lambda: raises(TypeError, await_, 1),
    "wrong call": lambda: raises(TypeError, lambda: await_()),  # type: ignore[call-arg]
    "another context": in_another_context,
    "in a handler": in_a_handler,
    "another greenlet": in_another_greenlet,
    "ensured again": lambda: await_(greenback.ensure_portal()),
    "portal in a portal": lambda: await_(greenback.with_portal_run_sync(await_, waits())),
}
BRIDGES_ON_ASYNCIO = {
    "a future": of_a_future,
    "thrown into": thrown_into,
    "thrown into a handler": thrown_into_a_handler,
}
BRIDGES_ON_TRIO = {"cancelled": cancelled_scope}


# Operations in a task without a portal: they are async


async def araises(error: Any, awaitable: Awaitable[Any]) -> None:
    try:
        await awaitable
    except error:
        return
    raise AssertionError("nothing was raised")


def fail(error: Any) -> None:
    raise error


async def closed() -> None:
    coroutine = greenback.with_portal_run_sync(await_, waits())
    coroutine.send(None)
    coroutine.close()


async def closed_run() -> None:
    coroutine = greenback.with_portal_run(waits)
    coroutine.send(None)
    coroutine.close()


async def killed() -> None:
    """A worker is killed while it waits in a bridge, after its portal was closed."""
    workers = []

    def work_to_kill() -> None:
        workers.append(greenlet.getcurrent())
        await_(waits())

    coroutine = greenback.with_portal_run_sync(work_to_kill)
    coroutine.send(None)
    bridge.finish(workers[0].portal)
    workers.pop().throw()
    raises(AttributeError, coroutine.close)  # by now, `drive` has no portal to close


async def interrupted(place: int) -> None:
    """A tracer raises in a step: inside the portal at its first switch, outside at its second."""
    switches = caught = 0

    def trace(event: str, args: Any) -> None:
        nonlocal switches
        switches += 1
        if switches == place:
            raise ValueError("interrupted")

    def work_to_interrupt() -> None:
        nonlocal caught
        for _ in range(3):
            try:
                await_(waits())
            except ValueError:
                caught += 1

    coroutine = greenback.with_portal_run_sync(work_to_interrupt)
    coroutine.send(None)
    greenlet.settrace(trace)
    try:
        while True:
            coroutine.send(None)
    except StopIteration:
        pass
    finally:
        greenlet.settrace(None)
    assert caught == 1


async def refused() -> None:
    raises(RuntimeError, await_, at_once())


async def context_replaced() -> None:
    """Each step of the portal runs in a context of its own."""

    def work_in_contexts() -> None:
        for _ in range(3):
            variable.set(variable.get() + 1)
            await_(waits())

    coroutine = greenback.with_portal_run_sync(work_in_contexts)
    try:
        while True:
            contextvars.copy_context().run(coroutine.send, None)
    except StopIteration:
        pass


PORTALS: Dict[str, Callable[[], Awaitable[Any]]] = {
    "run_sync": lambda: greenback.with_portal_run_sync(int),
    "run_sync with keywords": lambda: greenback.with_portal_run_sync(int, "11", base=2),
    "run_sync raises": lambda: araises(
        ValueError, greenback.with_portal_run_sync(fail, ValueError("at once"))
    ),
    "run_sync waits": lambda: greenback.with_portal_run_sync(await_, waits()),
    "run_sync raises late": lambda: araises(
        ValueError, greenback.with_portal_run_sync(await_, fails_late())
    ),
    "run": lambda: greenback.with_portal_run(at_once),
    "run raises": lambda: araises(ValueError, greenback.with_portal_run(fails)),
    "run waits": lambda: greenback.with_portal_run(waits),
    "run bridges": lambda: greenback.with_portal_run(bridges),
    "run raises late": lambda: araises(ValueError, greenback.with_portal_run(fails_late)),
    "GreenletExit": lambda: araises(
        greenlet.GreenletExit, greenback.with_portal_run_sync(fail, greenlet.GreenletExit())
    ),
    "refused": refused,
}
PORTALS_ON_ASYNCIO = {
    "closed": closed,
    "closed run": closed_run,
    "killed": killed,
    "context replaced": context_replaced,
    "interrupted inside": lambda: interrupted(1),
    "interrupted outside": lambda: interrupted(2),
}


# Operations on tasks of their own


async def ensures() -> None:
    await greenback.ensure_portal()
    await_(bridges())


async def ensures_and_parks() -> None:
    await greenback.ensure_portal()
    await_(sleep_forever())


async def is_bestowed() -> None:
    await checkpoint()
    await_(waits())


async def sleep_forever() -> None:
    await (trio.sleep_forever() if checkpoint is trio.lowlevel.checkpoint else asyncio.sleep(3600))


async def asyncio_task(kind: str) -> None:
    if kind == "ensured":
        await asyncio.ensure_future(ensures())
    elif kind == "bestowed":
        task = asyncio.ensure_future(is_bestowed())
        greenback.bestow_portal(task)
        await task
    elif kind == "bestowed late":
        task = asyncio.ensure_future(is_bestowed())
        await asyncio.sleep(0)
        greenback.bestow_portal(task)
        await task
    else:
        task = asyncio.ensure_future(ensures_and_parks())
        if kind == "cancelled before":
            greenback.bestow_portal(task)
        else:
            await asyncio.sleep(0)
            await asyncio.sleep(0)
        task.cancel()
        await araises(asyncio.CancelledError, task)


async def trio_task(kind: str) -> None:
    async with trio.open_nursery() as nursery:
        if kind == "ensured":
            nursery.start_soon(ensures)
        elif kind in ("bestowed", "bestowed late"):
            nursery.start_soon(is_bestowed)
            if kind == "bestowed late":
                await checkpoint()
            for task in nursery.child_tasks:
                greenback.bestow_portal(task)
        else:
            nursery.start_soon(ensures_and_parks)
            if kind != "cancelled before":
                await checkpoint()
                await checkpoint()
            nursery.cancel_scope.cancel()


TASKS = ("ensured", "bestowed", "bestowed late", "cancelled before", "cancelled while it waits")


# Counting


def count() -> Dict[str, int]:
    """Blocks of memory, and references to objects."""
    gc.collect()
    gc.collect()
    blocks = sys.getallocatedblocks()
    # All that the collector knows, and what it does not track.
    untracked = (None, True, False, work.ERROR, work.MOVED, bridge.NO_NEED, "none")
    references = sum(map(sys.getrefcount, gc.get_objects())) + sum(map(sys.getrefcount, untracked))
    return {"blocks": blocks, "references": references}


async def check(repeat: Callable[[int], Awaitable[None]], repetitions: int) -> None:
    await repeat(WARM_UP)
    count()  # makes what counting needs
    # Caches and pools of the interpreter differ by some hundreds from count to count. What each
    # repetition leaves behind is more. What is made once, by a thread of tracing say, is made once.
    few = repetitions // 2
    tries = []
    for _ in range(3):
        before = count()
        await repeat(repetitions)
        after = count()
        tries.append({what: after[what] - before[what] for what in before})
        if all(growth < few for growth in tries[-1].values()):
            return
    raise AssertionError(f"{tries} in {repetitions} each")


def run(library: str, repeat: Callable[[int], Awaitable[None]], repetitions: int) -> None:
    global checkpoint
    if library == "asyncio":
        checkpoint = lambda: asyncio.sleep(0)  # noqa: E731
        asyncio.run(check(repeat, repetitions))  # type: ignore[arg-type]
    else:
        checkpoint = trio.lowlevel.checkpoint
        trio.run(check, repeat, repetitions)


def cases(*on_both: Any, asyncio: Any = (), trio: Any = ()) -> Any:
    names = [("asyncio", name) for name in (*on_both, *asyncio)]
    names += [("trio", name) for name in (*on_both, *trio)]
    return pytest.mark.parametrize(("library", "name"), names, ids=map(" ".join, names))


@cases(*BRIDGES, asyncio=BRIDGES_ON_ASYNCIO, trio=BRIDGES_ON_TRIO)
def test_bridges(library: str, name: str) -> None:
    operation = {**BRIDGES, **BRIDGES_ON_ASYNCIO, **BRIDGES_ON_TRIO}[name]

    async def repeat(times: int) -> None:
        await greenback.ensure_portal()
        for _ in range(times):
            operation()

    run(library, repeat, REPETITIONS)


@cases(*PORTALS, asyncio=PORTALS_ON_ASYNCIO)
def test_portals(library: str, name: str) -> None:
    operation = {**PORTALS, **PORTALS_ON_ASYNCIO}[name]

    async def repeat(times: int) -> None:
        for _ in range(times):
            await operation()

    run(library, repeat, REPETITIONS)


@cases(*TASKS)
def test_tasks(library: str, name: str) -> None:
    operation = asyncio_task if library == "asyncio" else trio_task

    async def repeat(times: int) -> None:
        for _ in range(times):
            await operation(name)

    run(library, repeat, REPETITIONS)


@cases("instrument")
def test_instrument(library: str, name: str) -> None:
    """With an instrument, each portal is a new object, and bridges take another path."""

    class Watches(Instrument):
        def bridge_started(self, bridge: Any) -> None:
            pass

        def portal_closed(self, portal: Any) -> None:
            pass

    async def repeat(times: int) -> None:
        for _ in range(times):
            await greenback.with_portal_run(bridges)
            await araises(ValueError, greenback.with_portal_run(fails_late))

    watches = Watches()
    add_instrument(watches)
    try:
        run(library, repeat, REPETITIONS)
    finally:
        remove_instrument(watches)
