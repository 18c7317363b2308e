"""Steps that hold the event loop and go on: the log events meanwhile."""

from __future__ import annotations

import asyncio
import queue
import threading
from typing import Any, Callable, Dict, Iterator, List

import pytest
import structlog

import greenback
import greenback_trace
from greenback import await_
from greenback_trace import Config, _activate
from greenback_trace.count.frames import can_look_at_others
from greenback_trace.live.stalls import Stalls

pytest.importorskip("opentelemetry.sdk.trace", reason="these tests need greenback[report]")

from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader

from tests.conftest import Backend

NAME = "greenback stalls"
#: Seconds. Nothing here takes longer.
LONG = 60.0

needs_frames = pytest.mark.skipif(
    not can_look_at_others(), reason="without the GIL, no other thread can read a stack"
)


class Told:
    """The application's log: the events ``greenback.stalled`` as they come."""

    def __init__(self) -> None:
        self._events: queue.Queue[Dict[str, Any]] = queue.Queue()

    def keep(self, logger: Any, method: str, event: Any) -> Any:
        if event["event"] == "greenback.stalled":
            self._events.put(dict(event, level=method))
        raise structlog.DropEvent

    def next(self, field: str = "seconds") -> Dict[str, Any]:
        """Block the thread until there is an event, or one with a certain field."""
        while True:
            event = self._events.get(timeout=LONG)
            if field in event:
                return event

    def rest(self) -> List[Dict[str, Any]]:
        return list(self._events.queue)


@pytest.fixture
def told() -> Iterator[Told]:
    told = Told()
    structlog.configure(processors=[told.keep])
    yield told
    structlog.reset_defaults()


@pytest.fixture(params=["on", "debug"])
def enable(request: pytest.FixtureRequest) -> Callable[[], None]:
    config = Config(mode=request.param, misuse="off", slow=0.01)
    return lambda: greenback_trace.enable(config=config)


def in_task(sync_fn: Callable[[], Any]) -> Any:
    async def task() -> Any:
        await greenback.ensure_portal()
        return sync_fn()

    return task


class TestToldOf:
    @pytest.mark.parametrize("kind", ["run_sync", "task"])
    def test_while_it_lasts(self, backend: Any, told: Told, enable: Any, kind: str) -> None:
        """A step is logged when it exceeds the limit, and each time it has taken twice as long."""

        def hold() -> List[float]:
            await_(backend.sleep(0))
            return [told.next()["seconds"] for _ in range(5)]

        enable()
        if kind == "run_sync":
            seconds = backend.run(greenback.with_portal_run_sync, hold)
        else:
            seconds = backend.run(in_task(hold))
        for number, each in enumerate(seconds):
            assert each > 0.01 * 2**number
        assert seconds == sorted(seconds)

    def test_what_is_told(self, backend: Any, told: Told, enable: Any) -> None:
        found: List[Dict[str, Any]] = []

        def hold() -> None:
            await_(backend.sleep(0))
            found.append(told.next())

        enable()
        backend.run(greenback.with_portal_run_sync, hold)
        (event,) = found
        assert event["level"] == "warning"
        assert event["code.function.name"].endswith("hold")
        assert event["library"] == backend.name
        assert event["waiting_tasks"] == 0
        assert "waits_for" not in event

    @needs_frames
    def test_stack(self, backend: Any, told: Told, enable: Any) -> None:
        """The stack has the step's async and sync functions, from outside of the portal inwards."""
        found: List[Dict[str, Any]] = []

        async def innermost() -> None:
            found.append(told.next())

        def hold() -> None:
            await_(innermost())

        async def outermost() -> None:
            await greenback.with_portal_run_sync(hold)

        enable()
        backend.run(outermost)
        stack = found[0]["stack"]
        names = [line.split(" in ")[1] for line in stack.splitlines() if " in " in line]
        functions = ["outermost", "hold", "innermost"]
        assert [name for name in names if name in functions] == functions
        assert "--- bridge: greenback.await_ ---" in stack
        assert found[0]["held_by"].startswith("threading.Condition.wait (")

    def test_each_function_once(self, backend: Any, told: Told) -> None:
        """Many slow steps of one function are logged once in a while, and other functions, too."""
        slow = 0.05
        events: List[Dict[str, Any]] = []

        def hold() -> None:
            await_(backend.sleep(0))
            threading.Event().wait(1.4 * slow)

        def other() -> None:
            await_(backend.sleep(0))
            while not events or not events[-1]["code.function.name"].endswith("other"):
                events.append(told.next())

        def work() -> None:
            for _ in range(6):
                hold()
            other()

        greenback_trace.enable(config=Config(slow=slow))
        backend.run(greenback.with_portal_run_sync, work)
        # On a busy machine, a step can take twice the limit, and is then logged in any case.
        first = [event["code.function.name"] for event in events if event["seconds"] < 2 * slow]
        assert len([name for name in first if name.endswith("hold")]) <= 1

    def test_tasks_that_wait(self, backend: Any, told: Told, enable: Any) -> None:
        """Waiting tasks are all tasks of the loop that have not ended, with or without a portal."""
        found: List[Dict[str, Any]] = []

        def hold() -> None:
            await_(backend.sleep(0))
            found.append(told.next())

        async def on_asyncio() -> None:
            others = [asyncio.ensure_future(asyncio.sleep(LONG)) for _ in range(3)]
            await greenback.with_portal_run_sync(hold)
            for task in others:
                task.cancel()

        async def on_trio() -> None:
            import trio

            async with trio.open_nursery() as nursery:
                for _ in range(3):
                    nursery.start_soon(trio.sleep, LONG)
                await greenback.with_portal_run_sync(hold)
                nursery.cancel_scope.cancel()

        enable()
        backend.run(on_trio if backend.name == "trio" else on_asyncio)
        assert found[0]["waiting_tasks"] == 3

    def test_steps_within_the_step(self, backend: Any, told: Told, enable: Any) -> None:
        """If another event loop has run steps inside of a step, the outer step is logged."""
        found: List[Dict[str, Any]] = []

        def inner() -> None:
            await_(other.sleep(0))

        def hold() -> None:
            await_(backend.sleep(0))
            other.run(greenback.with_portal_run_sync, inner)
            found.append(told.next())
            while not found[-1]["code.function.name"].endswith("hold"):
                found.append(told.next())

        other = Backend("trio" if backend.name == "asyncio" else "asyncio")
        enable()
        backend.run(greenback.with_portal_run_sync, hold)
        assert found[-1]["library"] == backend.name

    def test_not_while_it_waits(self, backend: Any, told: Told, enable: Any) -> None:
        """A task that waits for long holds no loop, and is not logged."""

        def work() -> None:
            await_(backend.sleep(0.1))

        async def main() -> None:
            await greenback.ensure_portal()
            await backend.sleep(0.1)
            work()

        enable()
        # A busy machine can hold any step for long, but not one in each of many runs.
        events: List[Dict[str, Any]] = []
        for _ in range(20):
            backend.run(main)
            before, events = events, told.rest()
            if events == before:
                return
        pytest.fail(f"each run has logged a stall: {events}")

    def test_over_meanwhile(self, backend: Any, caplog: pytest.LogCaptureFixture) -> None:
        """A step that ends before it is described is not logged, and the thread goes on."""
        greenback_trace.enable(config=Config(slow=60))
        totals = _activate._current.totals  # type: ignore[union-attr]
        totals.slow_ns = 1
        described: List[Any] = []
        looking, over = threading.Event(), threading.Event()

        def tell(function: str, is_first: bool, describe: Callable[[], Any]) -> None:
            looking.set()
            assert over.wait(LONG)
            described.append(describe())

        def hold() -> None:
            await_(backend.sleep(0))
            watcher.start()
            assert looking.wait(LONG)

        stalls = Stalls(totals, tell)
        watcher = threading.Thread(target=stalls._look)
        backend.run(greenback.with_portal_run_sync, hold)
        over.set()
        watcher.join(LONG)
        assert not watcher.is_alive()
        assert described == []
        assert not caplog.records

    def test_out_of_sight(
        self, backend: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
    ) -> None:
        """A step with only greenback's frames in sight is logged without its stack."""
        monkeypatch.setattr("greenback_trace.live.stalls.is_own", lambda frame: True)
        monkeypatch.setattr("greenback_trace.live.stalls.is_bridge", lambda frame: False)
        greenback_trace.enable(config=Config(slow=60))
        totals = _activate._current.totals  # type: ignore[union-attr]
        totals.slow_ns = 1
        described: List[Any] = []

        def tell(function: str, is_first: bool, describe: Callable[[], Any]) -> None:
            described.append(describe())

        def hold() -> None:
            await_(backend.sleep(0))
            watcher = threading.Thread(target=Stalls(totals, tell)._look)
            watcher.start()
            watcher.join(LONG)

        backend.run(greenback.with_portal_run_sync, hold)
        (stall,) = described
        assert (stall.held_by, stall.waits) == ("", None)
        assert "cannot" in stall.stack or "can read it" in stall.stack
        assert not caplog.records

    def test_disabled(self, backend: Any, told: Told, enable: Any) -> None:
        """When tracing is disabled, the thread ends."""
        enable()
        backend.run(greenback.with_portal_run_sync, lambda: await_(backend.sleep(0)))
        threads = [thread for thread in threading.enumerate() if thread.name == NAME]
        assert threads
        greenback_trace.disable()
        for thread in threads:
            thread.join(LONG)
            assert not thread.is_alive()


@needs_frames
class TestLocks:
    """A step that waits for a lock: the event has the lock and its holder."""

    pytest.importorskip("pure_eval", reason="to name a lock needs greenback[debug]")

    @pytest.fixture(params=["threading.Lock", "threading.RLock", "threading.Condition"])
    def kind(self, request: pytest.FixtureRequest) -> str:
        return str(request.param)

    @pytest.mark.parametrize("how", ["with", "acquire"])
    def test_of_another_thread(
        self, backend: Any, told: Told, enable: Any, kind: str, how: str
    ) -> None:
        enable()
        found: List[Dict[str, Any]] = []

        class Shop:
            lock = getattr(threading, kind.split(".")[1])()

            def order(self) -> None:
                await_(backend.sleep(0))
                threading.Thread(target=let_go, daemon=True).start()
                if how == "with":
                    with self.lock:
                        pass
                else:
                    self.lock.acquire()
                    self.lock.release()

        taken, free = threading.Event(), threading.Event()

        def holder() -> None:
            with Shop.lock:
                taken.set()
                free.wait(LONG)

        def let_go() -> None:
            found.append(told.next("lock_held_by"))
            free.set()

        thread = threading.Thread(target=holder, name="the holder")
        thread.start()
        taken.wait(LONG)
        backend.run(greenback.with_portal_run_sync, Shop().order)
        thread.join(LONG)
        (event,) = found
        assert event["waits_for"] == f"{kind} 'self.lock'"
        assert event["lock_held_by"][0].startswith("thread 'the holder', in ")
        assert "holder (" in event["lock_held_by"][0]

    @pytest.mark.parametrize("waits_in", ["portal", "async"])
    def test_of_a_task(self, backend: Any, told: Told, enable: Any, waits_in: str) -> None:
        """The holder is a task that has suspended with the lock. Only this test releases it."""
        enable()
        found: List[Dict[str, Any]] = []
        lock = threading.Lock()

        def hold() -> None:
            with lock:
                await_(done.wait())

        async def hold_async() -> None:
            with lock:
                await done.wait()

        def want() -> None:
            threading.Thread(target=let_go, daemon=True).start()
            with lock:
                pass
            lock.acquire()  # the other task releases it
            done.set()

        def let_go() -> None:
            found.append(told.next("lock_held_by"))
            lock.release()

        async def holding() -> None:
            if waits_in == "portal":
                await greenback.with_portal_run_sync(hold)
            else:
                await hold_async()

        async def wanting() -> None:
            while not lock.locked():
                await backend.sleep(0)
            await greenback.with_portal_run_sync(want)

        async def on_asyncio() -> None:
            nonlocal done
            done = asyncio.Event()
            tasks = [asyncio.ensure_future(holding()), asyncio.ensure_future(wanting())]
            await asyncio.gather(*tasks)

        async def on_trio() -> None:
            nonlocal done
            import trio

            done = trio.Event()
            async with trio.open_nursery() as nursery:
                nursery.start_soon(holding)
                nursery.start_soon(wanting)

        done: Any = None
        backend.run(on_trio if backend.name == "trio" else on_asyncio)
        (event,) = found
        assert event["waits_for"] == "threading.Lock 'lock'"
        (holder,) = event["lock_held_by"]
        assert holder.startswith("task ")
        assert ("hold (" if waits_in == "portal" else "hold_async (") in holder

    def test_own(self, backend: Any, told: Told, enable: Any) -> None:
        """The holder is the waiting task itself."""
        enable()
        found: List[Dict[str, Any]] = []
        lock = threading.Lock()

        def let_go() -> None:
            found.append(told.next("lock_held_by"))
            lock.release()

        def inner() -> None:
            lock.acquire()

        def outer() -> None:
            await_(backend.sleep(0))
            threading.Thread(target=let_go, daemon=True).start()
            with lock:
                inner()

        backend.run(greenback.with_portal_run_sync, outer)
        (event,) = found
        assert "outer (" in event["lock_held_by"][0]

    def test_acquired(self, backend: Any, told: Told) -> None:
        """The holder called acquire(), which debug mode noted."""
        greenback_trace.enable(config=Config(mode="debug", slow=0.01))
        found: List[Dict[str, Any]] = []
        lock = threading.Lock()

        def let_go() -> None:
            found.append(told.next("lock_held_by"))
            lock.release()

        def want() -> None:
            await_(backend.sleep(0))
            threading.Thread(target=let_go, daemon=True).start()
            lock.acquire()

        def take() -> None:
            lock.acquire()

        thread = threading.Thread(target=take, name="the taker")
        thread.start()
        thread.join()
        backend.run(greenback.with_portal_run_sync, want)
        (event,) = found
        assert "in take (" in event["lock_held_by"][0]


def test_metric(backend: Any, enable: Any) -> None:
    """The metric has the time that a running step has held the loop; else 0."""
    reader = InMemoryMetricReader()
    seen: List[float] = []

    def look() -> None:
        data = reader.get_metrics_data()
        assert data is not None
        points = [
            point
            for resource in data.resource_metrics
            for scope in resource.scope_metrics
            for metric in scope.metrics
            if metric.name == "greenback.step.stalled"
            for point in metric.data.data_points
        ]
        assert [dict(point.attributes or {}) for point in points] == [
            {"greenback.async_library": backend.name}
        ]
        seen.append(points[0].value)  # type: ignore[union-attr]

    def hold() -> None:
        await_(backend.sleep(0))
        threading.Event().wait(0.02)
        look()

    enable()
    greenback_trace.enable(
        config=Config(slow=0.01), meter_provider=MeterProvider([reader], shutdown_on_exit=False)
    )
    backend.run(greenback.with_portal_run_sync, hold)
    look()
    assert seen[0] > 0.01
    assert seen[1] == 0


# Trio: from 3.14 on, asyncio steps no task in a forked child.
_FORKS = """
import os, structlog, threading, trio, greenback
told = threading.Event()
def tell(logger, method, event):
    if event["event"] == "greenback.stalled":
        os.write(1, b"%d " % os.getpid())  # in one piece: two processes write
        told.set()
    raise structlog.DropEvent
structlog.configure(processors=[tell])
def hold():
    greenback.await_(trio.lowlevel.checkpoint())
    told.clear()
    if os.fork() == 0:
        greenback.await_(trio.lowlevel.checkpoint())
        told.wait(30)
        os._exit(0)
    os.wait()
    told.wait(30)
trio.run(greenback.with_portal_run_sync, hold)
"""


@pytest.mark.skipif(not hasattr(__import__("os"), "fork"), reason="there is no os.fork")
def test_in_a_forked_child(python: Any) -> None:
    """Parent and child log their own steps."""
    done = python("-c", _FORKS, GREENBACK_TRACE="1", GREENBACK_TRACE_SLOW="0.05")
    assert done.returncode == 0, done.stderr
    assert len(set(done.stdout.split())) == 2
