"""A program that counts its own bridges, of every kind, in threads with both async libraries."""

from __future__ import annotations

import asyncio
import gc
import itertools
import sys
import threading
import types
from typing import Any, Callable, Dict, List, Optional, Tuple

import trio

import greenback
import greenback_trace

Counted = Dict[Tuple[Any, ...], int]


class Count:
    """The program's own counts. Any thread can add, and so can finalizers in the middle of that.

    Args:
        work: Called in each portal.
    """

    def __init__(self, work: Optional[Callable[[Count, Any], None]] = None) -> None:
        self.work = littering if work is None else work
        self._ticks: Dict[Tuple[Any, ...], Any] = {}

    def add(self, *key: Any) -> None:
        # Nothing can interrupt an itertools.count; some interpreters can interrupt `+= 1`.
        tick = self._ticks.get(key)
        if tick is None:
            tick = self._ticks.setdefault(key, itertools.count())
        next(tick)

    def result(self) -> Counted:
        """End counting and return the counts."""
        return {key: next(tick) for key, tick in self._ticks.items()}


@types.coroutine
def counting(count: Count, loop: Any, coroutine: Any, site: Optional[str] = None) -> Any:
    """Await *coroutine* and count its traps: for a bridge at *site*, or for code in a portal."""
    error: Optional[BaseException] = None
    answer = None
    traps = 0
    while True:
        try:
            if error is None:
                trap = coroutine.send(answer)
            else:
                thrown, error = error, None
                trap = coroutine.throw(thrown)
        except StopIteration as stop:
            return stop.value
        count.add("step", loop.name)
        if site is not None:
            count.add("switch", "to_loop")
            if not traps:
                count.add("suspended", site)
        traps += 1
        try:
            answer = yield trap
        except BaseException as reason:
            error = reason
        if site is not None:
            count.add("switch", "to_task")


# Functions to bridge to, and functions that bridge. Each has counters of its own.


async def nop() -> None:
    pass


async def raises() -> None:
    raise LookupError


async def naps(loop: Any, times: int) -> None:
    for _ in range(times):
        await loop.checkpoint()


async def raises_late(loop: Any) -> None:
    await loop.checkpoint()
    raise LookupError


async def nests(count: Count, loop: Any, depth: int) -> None:
    if depth:
        nested(count, loop, depth - 1)
    else:
        waiting(count, loop, 1)


def returning(count: Count) -> None:
    greenback.await_(nop())
    count.add("bridge", "returning", "ok")


def waiting(count: Count, loop: Any, times: int) -> None:
    greenback.await_(counting(count, loop, naps(loop, times), "waiting"))
    count.add("bridge", "waiting", "ok")


def failing(count: Count) -> None:
    try:
        greenback.await_(raises())
    except LookupError:
        count.add("bridge", "failing", "error")


def failing_late(count: Count, loop: Any) -> None:
    try:
        greenback.await_(counting(count, loop, raises_late(loop), "failing_late"))
    except LookupError:
        count.add("bridge", "failing_late", "error")


def nested(count: Count, loop: Any, depth: int) -> None:
    greenback.await_(counting(count, loop, nests(count, loop, depth), "nested"))
    count.add("bridge", "nested", "ok")


def cancelled(count: Count, loop: Any) -> None:
    loop.cancelling(cut_short, count, loop)


def cut_short(count: Count, loop: Any) -> None:
    try:
        greenback.await_(counting(count, loop, naps(loop, 1), "cut_short"))
    except loop.cancellation:
        count.add("bridge", "cut_short", "cancelled")
        raise


def through_a_chain(count: Count) -> None:
    returning(count)


def finalizing(count: Count) -> None:
    try:
        greenback.await_(nop())
    except RuntimeError:  # the garbage collector ran where there is no portal
        count.add("refused")
    else:
        count.add("bridge", "finalizing", "ok")


class Litter:
    """An object that bridges when it is collected, or tries to."""

    def __init__(self, count: Count) -> None:
        self._count = count
        count.add("litter")

    def __del__(self) -> None:
        finalizing(self._count)


class Asyncio:
    name = "asyncio"
    cancellation = asyncio.CancelledError

    async def checkpoint(self) -> None:
        await asyncio.sleep(0)

    def run(self, async_fn: Callable[..., Any], *args: Any) -> None:
        asyncio.run(async_fn(*args))

    def cancelling(self, sync_fn: Callable[..., None], *args: Any) -> None:
        """Call something that is to be cancelled."""
        task = asyncio.current_task()
        assert task is not None
        task.cancel()
        try:
            sync_fn(*args)
        except asyncio.CancelledError:
            if sys.version_info >= (3, 11):
                task.uncancel()
        else:
            raise AssertionError("not cancelled")

    async def in_child(
        self, prepare: Callable[[Any], None], async_fn: Callable[..., Any], *args: Any
    ) -> None:
        task = asyncio.ensure_future(async_fn(*args))
        prepare(task)
        await task


class Trio:
    name = "trio"
    cancellation = trio.Cancelled
    checkpoint = staticmethod(trio.lowlevel.checkpoint)

    def run(self, async_fn: Callable[..., Any], *args: Any) -> None:
        trio.run(async_fn, *args)

    def cancelling(self, sync_fn: Callable[..., None], *args: Any) -> None:
        """Call something that is to be cancelled."""
        with trio.CancelScope() as scope:
            scope.cancel()
            sync_fn(*args)
        assert scope.cancelled_caught

    async def in_child(
        self, prepare: Callable[[Any], None], async_fn: Callable[..., Any], *args: Any
    ) -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(async_fn, *args)
            (task,) = nursery.child_tasks
            prepare(task)


def everything(count: Count, loop: Any) -> None:
    """The bridges of one portal."""
    for _ in range(10):
        returning(count)
        through_a_chain(count)
    waiting(count, loop, 1)
    waiting(count, loop, 3)
    failing(count)
    failing_late(count, loop)
    cancelled(count, loop)
    nested(count, loop, 2)


def littering(count: Count, loop: Any) -> None:
    everything(count, loop)
    Litter(count)  # collected at once
    litter: List[Any] = [Litter(count)]
    litter.append(litter)  # collected later, anywhere


async def portal(count: Count, loop: Any, kind: str) -> None:
    count.add("portal", kind)
    count.add("step", loop.name)
    await counting(count, loop, in_portal(count, loop))


async def in_portal(count: Count, loop: Any) -> None:
    await loop.checkpoint()
    count.work(count, loop)
    await loop.checkpoint()


async def ensured(count: Count, loop: Any) -> None:
    await greenback.ensure_portal()
    await portal(count, loop, "task")


async def with_children(count: Count, loop: Any) -> None:
    count.add("portal", "run")
    count.add("step", loop.name)
    child = loop.in_child(nothing, portal, count, loop, "inherited")
    await counting(count, loop, child)


def nothing(task: Any) -> None:
    pass


async def every_kind(count: Count, loop: Any) -> None:
    """Portals of each kind, one after the other."""
    await greenback.with_portal_run(portal, count, loop, "run")
    count.add("portal", "run_sync")
    count.add("step", loop.name)
    await greenback.with_portal_run_sync(count.work, count, loop)
    await loop.in_child(nothing, ensured, count, loop)
    await loop.in_child(greenback.bestow_portal, portal, count, loop, "bestowed")
    await greenback.with_portal_run_tree(with_children, count, loop)


async def laps(count: Count, loop: Any, number: int) -> None:
    for _ in range(number):
        await every_kind(count, loop)


#: Bridges of `every_kind`, without those of finalizers that are collected elsewhere.
BRIDGES_PER_LAP = 5 * (2 * 10 + 5 + 4 + 1)
THREADS = 8
#: Seconds between collections. PyPy's look at all objects, and take a tenth of a second.
COLLECTS_EVERY = 0.2 if sys.implementation.name == "pypy" else 0.02


def in_threads(count: Count, bridges: int) -> None:
    """Make at least so many bridges in 8 threads, while another thread collects garbage."""
    number = -(-bridges // (BRIDGES_PER_LAP * THREADS))
    errors: List[BaseException] = []

    def work(loop: Any) -> None:
        try:
            loop.run(laps, count, loop, number)
        except BaseException as error:
            errors.append(error)

    done = threading.Event()

    def collect() -> None:
        while not done.wait(COLLECTS_EVERY):
            gc.collect()

    threads = [
        threading.Thread(target=work, args=(Trio() if index % 2 else Asyncio(),))
        for index in range(THREADS)
    ]
    collector = threading.Thread(target=collect)
    if hasattr(gc, "freeze"):  # PyPy has none
        gc.freeze()  # the rest would take half of the time
    for thread in (collector, *threads):
        thread.start()
    for thread in threads:
        thread.join()
    done.set()
    collector.join()
    if hasattr(gc, "freeze"):
        gc.unfreeze()
    gc.collect()
    assert not errors, errors


def name(function: str) -> str:
    return f"{__name__}.{function}"


def assert_counted(counted: Counted) -> None:
    """The totals are equal to the program's own counts.

    PyPy runs finalizers between any two instructions. A finalizer that bridges while another bridge
    adds itself to the same numbers can be missing there (``docs/behaviour.rst``). A finalizer has a
    site of its own, and does not suspend: all other numbers are exact.
    """
    totals = greenback_trace.snapshot()
    is_pypy = sys.implementation.name == "pypy"
    may_be_missing = counted.get(("bridge", "finalizing", "ok"), 0) if is_pypy else 0
    of_sites = {
        (site.function, outcome): count
        for site in totals.sites
        for outcome, count in (
            ("ok", site.ok),
            ("error", site.errors),
            ("cancelled", site.cancelled),
        )
        if count
    }
    assert of_sites == {
        (name(key[1]), key[2]): count for key, count in counted.items() if key[0] == "bridge"
    }
    assert {site.function: site.suspended for site in totals.sites if site.suspended} == {
        name(key[1]): count for key, count in counted.items() if key[0] == "suspended"
    }
    assert totals.switches == _part(counted, "switch")
    assert {kind: each.opened for kind, each in totals.portals.items()} == _part(counted, "portal")
    assert {kind: each.active for kind, each in totals.portals.items()} == dict.fromkeys(
        totals.portals, 0
    )
    assert {name: each.steps for name, each in totals.steps.items()} == _part(counted, "step")
    assert totals.active == {"asyncio": 0, "trio": 0}
    for attribute in ("ok", "errors", "cancelled", "suspended"):
        of_portals = sum(getattr(each, attribute) for each in totals.portals.values())
        missing = sum(getattr(each, attribute) for each in totals.sites) - of_portals
        assert 0 <= missing <= (may_be_missing if attribute == "ok" else 0), (attribute, missing)
        assert sum(getattr(each, attribute) for each in totals.chains) == sum(
            getattr(each, attribute) for each in totals.sites
        )
    durations = {
        metric: sum(each.count for each in totals.durations if each.name == metric)
        for metric in {each.name for each in totals.durations}
    }
    missing = sum(of_sites.values()) - durations.pop("greenback.bridge.duration")
    assert 0 <= missing <= may_be_missing, missing
    assert durations == {
        "greenback.switch.duration": sum(totals.switches.values()),
        "greenback.step.duration": sum(each.steps for each in totals.steps.values()),
        "greenback.portal.duration": sum(each.closed for each in totals.portals.values()),
    }


def _part(counted: Counted, what: str) -> Dict[str, int]:
    return {key[1]: count for key, count in counted.items() if key[0] == what}


def growing() -> Dict[Tuple[Any, ...], float]:
    """All numbers of a snapshot that can only grow."""
    totals = greenback_trace.snapshot()
    values: Dict[Tuple[Any, ...], float] = {}
    of_bridges = ("ok", "errors", "cancelled", "suspended", "time", "suspended_time")
    for site in totals.sites:
        for attribute in of_bridges:
            values["site", site.function, site.line, attribute] = getattr(site, attribute)
    for kind, portals in totals.portals.items():
        for attribute in (*of_bridges, "opened", "closed"):
            values["portal", kind, attribute] = getattr(portals, attribute)
    for library, steps in totals.steps.items():
        values["step", library] = steps.steps
        values["step time", library] = steps.time
    for direction, switches in totals.switches.items():
        values["switch", direction] = switches
    for each in totals.durations:
        values["duration", each.name, tuple(sorted(each.attributes.items()))] = each.count
    return values
