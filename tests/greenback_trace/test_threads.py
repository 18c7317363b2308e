"""What threads do at the same time, be it with the GIL or without."""

from __future__ import annotations

import asyncio
import itertools
import math
import sys
import threading
import types
from time import perf_counter_ns
from types import SimpleNamespace
from typing import Any, Callable, Dict, Iterator, List, Optional, Set, Tuple

import pytest

import greenback
import greenback_trace
from greenback._engine import bridge
from greenback._engine.state import NOWHERE
from greenback.instruments import Portal
from greenback_trace import Config, _providers, _session, emit, format_task
from greenback_trace import count as counting
from greenback_trace.count import sums
from greenback_trace.count.counts import Counts, Ticks
from greenback_trace.count.totals import Observer, Totals
from greenback_trace.emit import log, metrics, table
from greenback_trace.emit.budget import Budget
from greenback_trace.emit.measurements import Measurements
from greenback_trace.live.describe import describe
from greenback_trace.misuse import detect, watchdog
from greenback_trace.misuse.detectors import finalizer
from greenback_trace.misuse.evidence import blocks
from greenback_trace.misuse.watchdog import Watchdog

from ..interleaving import CAN_STOP, Turns, at_each_instruction
from .counted import Count, assert_counted, everything, growing, in_threads, nop

stopping = pytest.mark.skipif(
    not CAN_STOP, reason="this interpreter does not tell trace functions of instructions"
)
Meeting = Tuple[Callable[[], object], Callable[[], object], Callable[[], object]]


def nothing() -> None:
    pass


async def nap() -> None:
    await asyncio.sleep(0)


async def portal() -> None:
    await greenback.with_portal_run_sync(greenback.await_, nap())


class Histogram:
    def record(self, seconds: float, attributes: Dict[str, Any]) -> None:
        pass


def a_portal() -> Portal:
    return Portal("task", NOWHERE.library)


@stopping
class TestMeasurements:
    def test_each_thread_lets_its_own_events_pass(self) -> None:
        """A histogram is told of one event in so many: none of those before it is forgotten."""

        def prepare(turns: Turns) -> Meeting:
            class Telling(Measurements):
                def portal(self, counts: Counts, kind: str, spent: int) -> None:
                    told.append(counts.skipped_from - counts.skip)
                    counts.skip = counts.skipped_from = 3

                def skip_some(self, counts: Counts) -> None:
                    counts.skip = counts.skipped_from = 3

            def portals() -> None:
                for _ in range(6):
                    portal = a_portal()
                    totals.open_portal(portal)
                    totals.close_portal(portal)

            told: List[int] = []
            totals = Totals(10)
            totals._lock = turns.lock()
            totals.pass_on(Telling({}, rate=1))
            return portals, portals, lambda: check(told == [3, 3])

        at_each_instruction(prepare, counting.totals, sums)

    def test_those_left_out_never_become_fewer(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Whenever another thread asks for their number, it was told no more before."""
        monkeypatch.setattr("greenback_trace.emit.measurements.random", lambda: 0.5)

        def prepare(turns: Turns) -> Meeting:
            def ask() -> None:
                told.append(totals.unmeasured())

            def portals() -> None:
                for _ in range(12):
                    portal = a_portal()
                    totals.open_portal(portal)
                    ask()
                    totals.close_portal(portal)

            def look() -> None:
                ask()
                assert told == sorted(told)
                assert told[-1] == 9  # of 12, the histogram was told of each fourth

            told: List[int] = []
            totals = Totals(10)
            totals._lock = turns.lock()
            measurements = Measurements({"portal": Histogram()}, rate=1e9)
            measurements._every = 3.0
            measurements._since = math.inf
            totals.pass_on(measurements)
            return portals, ask, look

        at_each_instruction(prepare, emit.measurements)

    def test_those_left_out_are_never_too_many(self) -> None:
        """Whoever asks for their number while a thread draws how many it leaves out next."""

        def prepare(turns: Turns) -> Meeting:
            counts = Counts(bool)
            counts.skipped_from = 3
            measurements = Measurements({}, rate=1)
            told: List[int] = []
            return (
                lambda: told.append(counts.left_out()),
                lambda: measurements.skip_some(counts),
                lambda: check(told[0] <= 3 == counts.left_out()),
            )

        at_each_instruction(prepare, counting.counts)

    def test_they_end_at_any_moment(self) -> None:
        """Tracing that is disabled while a portal is opened and closed is no failure of it."""
        failures: List[Exception] = []

        class Observing(Observer):
            def failed(self, error: Exception) -> None:
                failures.append(error)

        def prepare(turns: Turns) -> Meeting:
            def open_and_close() -> None:
                portal = a_portal()
                totals.open_portal(portal)
                totals.close_portal(portal)

            totals = Totals(10, observer=Observing())
            totals._lock = turns.lock()
            totals.pass_on(Measurements({"portal": Histogram()}, rate=0))
            return open_and_close, lambda: totals.pass_on(None), lambda: check(not failures)

        at_each_instruction(prepare, counting.totals, sums)


def check(holds: bool) -> None:
    assert holds


@stopping
class TestTicks:
    def test_reading_takes_none_away(self) -> None:
        """Two threads may read a number while it grows: it is the number of ticks then."""

        def prepare(turns: Turns) -> Meeting:
            def read() -> None:
                seen.append(ticks.read())

            def add_and_read() -> None:
                ticks.add()
                seen.append(ticks.read())

            seen: List[int] = []
            ticks = Ticks()
            ticks.add()
            ticks.read()

            def look() -> None:
                assert sorted(seen) in ([1, 2], [2, 2])
                assert ticks.read() == 2

            return read, add_and_read, look

        at_each_instruction(prepare, counting.counts)


@stopping
class TestBudget:
    @pytest.mark.parametrize("taken_before", [0, 3], ids=["one second", "a new second"])
    def test_two_threads_share_it(self, taken_before: int) -> None:
        """Together, threads get no more than there is in a second, and do not both fill it up."""

        def prepare(turns: Turns) -> Meeting:
            def take() -> None:
                for _ in range(2):
                    taken.append(budget.has_some(now) and budget.take())

            taken: List[bool] = []
            budget = Budget(3)
            budget._lock = turns.lock()
            now = budget._since + (1_000_000_000 if taken_before else 0)
            for _ in range(taken_before):
                budget.take()
            return take, take, lambda: check(sorted(taken) == [False, True, True, True])

        at_each_instruction(prepare, emit.budget)


@stopping
class TestLog:
    def test_no_repeat_is_forgotten(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Each repeat of an event that was not logged is on one that is."""

        def prepare(turns: Turns) -> Meeting:
            def events() -> None:
                nonlocal now
                for _ in range(3):
                    said.append(log._left_out("event", "site"))
                    now += 6  # the first of a pair is told, the second is left out

            said: List[Optional[int]] = []
            now = 100.0
            log.start_over()
            monkeypatch.setattr(log, "monotonic", lambda: now)
            monkeypatch.setattr(log, "threading", SimpleNamespace(RLock=turns.lock))

            def look() -> None:
                nonlocal now
                now += 100
                said.append(log._left_out("event", "site"))
                left_out = said.count(None)
                assert left_out > 0
                assert sum(each or 0 for each in said) == left_out

            return events, events, look

        at_each_instruction(prepare, log, counting.counts)
        log.start_over()


@stopping
class TestSession:
    def test_histograms_are_found_once(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Two threads may find out at once that there is an SDK: its histograms are told by one."""

        def measure(*arguments: Any) -> Measurements:
            made.append(Measurements(*arguments))
            return made[-1]

        def prepare(turns: Turns) -> Meeting:
            greenback_trace.enable(config=Config(spans="none"))
            session: Any = greenback_trace._activate._current
            source = session._source
            source.was_read = True
            made.clear()

            def look() -> None:
                assert [session.totals._measurements] == made
                greenback_trace.disable()

            return session._look_for_sdk, source.on_read, look

        made: List[Measurements] = []
        monkeypatch.setattr(emit.measurements, "Measurements", measure)
        at_each_instruction(prepare, _session, _providers)

    def test_it_ends_at_any_moment(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Tracing that is disabled while it hears of a portal is no failure of it."""

        def prepare(turns: Turns) -> Meeting:
            monkeypatch.setattr(_session, "lock", turns.lock())
            greenback_trace.enable(config=Config(spans="none"))
            session: Any = greenback_trace._activate._current
            session._loops = SimpleNamespace(see=lambda portal: None)
            portal = a_portal()
            return lambda: session.portal_opened(portal), greenback_trace.disable, nothing

        at_each_instruction(prepare, _session, _providers)

    def test_a_shutdown_does_not_enable(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Tracing that is disabled while the SDK is shut down stays so."""
        sdk = pytest.importorskip("opentelemetry.sdk.trace")

        def prepare(turns: Turns) -> Meeting:
            monkeypatch.setattr(_session, "lock", turns.lock())
            provider = sdk.TracerProvider(shutdown_on_exit=False)
            greenback_trace.enable(config=Config(), tracer_provider=provider)

            def look() -> None:
                assert bridge._hooks is None

            return provider.shutdown, greenback_trace.disable, look

        at_each_instruction(prepare, _session)

    def test_collecting_ends_at_any_moment(self) -> None:
        """A collection that meets the end of tracing is no failure."""
        sdk = pytest.importorskip("opentelemetry.sdk.metrics")
        export = pytest.importorskip("opentelemetry.sdk.metrics.export")
        failures: List[BaseException] = []
        names = "greenback.switches", "greenback.misuses"
        read = [metric for metric in table.METRICS if metric.name in names]
        assert len(read) == len(names)

        def prepare(turns: Turns) -> Meeting:
            def collect() -> None:
                for metric in read:
                    try:
                        source.read(metric)
                    except BaseException as failure:
                        failures.append(failure)

            reader = export.InMemoryMetricReader()
            provider = sdk.MeterProvider([reader], shutdown_on_exit=False)
            greenback_trace.enable(
                config=Config(mode="debug", spans="none"), meter_provider=provider
            )
            session: Any = greenback_trace._activate._current
            source = session._source
            source.on_read = nothing
            session.totals._lock = turns.lock()
            return collect, greenback_trace.disable, provider.shutdown

        at_each_instruction(prepare, metrics, table)
        assert failures == []


@stopping
class TestDebugMode:
    def test_what_is_known_of_code_ends_with_it(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """No other code that gets its address is taken for it, whoever forgets what meanwhile."""
        monkeypatch.setattr(detect, "_CODES_KEPT", 4)

        def prepare(turns: Turns) -> Meeting:
            def learn() -> None:
                for _ in range(3):
                    code, caller = (compile("pass", "", "exec") for _ in range(2))
                    at: Any = SimpleNamespace(f_code=caller, f_lasti=0)
                    detect._remember(detect._known, code, at)

            def look() -> None:
                known = detect._known
                assert set(known.called_from.values()) <= set(known.codes)

            return learn, learn, look

        at_each_instruction(prepare, detect)

    def test_what_others_make_is_theirs(self) -> None:
        """Looking for what is being collected leaves alone what another thread is making."""

        def look(stops_at: int) -> None:
            def trace(frame: Any, event: str, argument: Any) -> Any:
                nonlocal stops_at
                if frame.f_code is not finalizer._collected.__code__:
                    return None
                frame.f_trace_opcodes = True
                if event == "opcode":
                    if stops_at == 0:
                        stopped.set()
                        go_on.wait()
                    stops_at -= 1
                return trace

            sys.settrace(trace)
            finalizer._collected([])
            sys.settrace(None)
            if not stopped.is_set():
                is_over.append(True)
                stopped.set()

        def items() -> Iterator[int]:
            yield from range(5)
            thread.start()
            stopped.wait()
            yield from range(100)  # for which the tuple has to grow

        is_over: List[bool] = []
        for number in itertools.count():
            stopped, go_on = threading.Event(), threading.Event()
            thread = threading.Thread(target=look, args=(number,))
            try:
                assert len(tuple(items())) == 105
            finally:
                go_on.set()
                thread.join()
            if is_over:
                break
        assert number

    def test_one_watchdog(self) -> None:
        """The first steps of two threads have one watchdog, which ends."""

        def prepare(turns: Turns) -> Meeting:
            def look() -> None:
                (thread,) = watchdogs() - before
                watchdog.stop()
                thread.join()

            before = watchdogs()
            watchdog = Watchdog(60)
            # The second has seen that nobody watches, and goes on when the first has seen it, too.
            return lambda: watchdog.start_step(a_portal()), watchdog._rouse, look

        at_each_instruction(prepare, watchdog)


def watchdogs() -> Set[threading.Thread]:
    """Those that run: of an earlier test's, perhaps, one that is about to end."""
    return {thread for thread in threading.enumerate() if thread.name == "greenback watchdog"}


class Reading:
    """A thread that takes snapshots for as long as others count: none has less than one before."""

    def __init__(self) -> None:
        self._is_over = threading.Event()
        self._fell: List[Any] = []
        self._taken = 0
        self._thread = threading.Thread(target=self._read)

    def __enter__(self) -> None:
        self._thread.start()

    def __exit__(self, *exc_info: object) -> None:
        self._is_over.set()
        self._thread.join()
        assert self._taken
        assert self._fell == []

    def _read(self) -> None:
        before: Dict[Tuple[Any, ...], float] = {}
        while not self._is_over.is_set():
            values = growing()
            self._fell += [key for key, value in before.items() if values.get(key, 0) < value]
            before = values
            self._taken += 1


@stopping
class TestFile:
    def test_a_full_batch_is_written(self) -> None:
        """Of two spans that end at once, one wakes the thread that writes, if there are enough."""
        pytest.importorskip("google.protobuf", reason="this test needs greenback[report]")
        from greenback_trace.file import pipeline

        def prepare(turns: Turns) -> Meeting:
            def end() -> None:
                queue.on_end(span)

            woken: List[bool] = []
            span: Any = None
            queue = pipeline._Queue(lambda: woken.append(True))
            for _ in range(pipeline._BATCH - 1):
                queue.on_end(span)
            assert not woken
            return end, end, lambda: check(bool(woken))

        at_each_instruction(prepare, pipeline)


@pytest.mark.timeout(600)
@pytest.mark.usefixtures("switching_often")
class TestStress:
    @pytest.mark.parametrize("spans", ["none", "all"])
    def test_all_is_counted(self, spans: Any) -> None:
        """Eight threads count each bridge, portal, step and switch, while another one reads."""
        greenback_trace.enable(config=Config(spans=spans))
        count = Count(everything)
        with Reading():
            in_threads(count, 4_000)
        assert_counted(count.result())

    def test_debug_mode(self) -> None:
        """Debug mode counts them as well, and each misuse."""
        greenback_trace.enable(config=Config(mode="debug", spans="none", slow=60))
        count = Count()
        with Reading():
            in_threads(count, 4_000)
        counted = count.result()
        assert_counted(counted)
        misuses = greenback_trace.snapshot().misuses
        assert {misuse.kind for misuse in misuses} == {"finalizer"}
        assert sum(misuse.count for misuse in misuses) == counted["bridge", "finalizing", "ok"]

    @pytest.mark.skipif(sys.implementation.name == "pypy", reason="finalizers run later there")
    def test_code_that_comes_and_goes(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Code that gets the address of other code is not taken for it."""

        def work(count: Count, loop: Any) -> None:
            class Called:
                __setitem__: Any

            class Dropped:
                __del__: Any

            # One instruction calls the one function, and drops what is finalized by the other.
            for _ in range(20):
                Called.__setitem__ = new(called, "__setitem__")
                empty(Called())
                del Called.__setitem__
                count.add("called")
                Dropped.__del__ = new(finalized, "__del__")
                empty([Dropped()])
                del Dropped.__del__
                count.add("finalized")

        monkeypatch.setattr(detect, "_CODES_KEPT", 500)
        monkeypatch.setattr(blocks, "_CODES_KEPT", 5)
        greenback_trace.enable(config=Config(mode="debug", spans="none", slow=60, sites=1))
        count = Count(work)
        with Reading():
            in_threads(count, 4_000)
        counted = count.result()
        totals = greenback_trace.snapshot()
        happened = counted["called",] + counted["finalized",]
        (other,) = (site.bridges for site in totals.sites if site.function == "_OTHER")
        # Each code object is called once.
        assert sum(site.bridges for site in totals.sites) - other == 1
        assert other + 1 == happened
        assert sum(chain.bridges for chain in totals.chains) == happened
        assert sum(misuse.count for misuse in totals.misuses) == counted["finalized",]


def new(function: Any, name: str) -> types.FunctionType:
    """The same with a code object of its own."""
    return types.FunctionType(function.__code__.replace(co_name=name), function.__globals__)


def empty(holder: Any) -> None:
    holder[0] = None


def called(self: Any, key: int, value: None) -> None:
    greenback.await_(nop())


def finalized(self: Any) -> None:
    greenback.await_(nop())


class TestWithoutTheGIL:
    """What another thread runs meanwhile is not looked at: that can crash the interpreter."""

    @pytest.fixture(autouse=True)
    def _without_the_gil(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(sys, "_is_gil_enabled", lambda: False, raising=False)

    def test_stack_of_its_own_thread(self, backend: Any) -> None:
        """A task of the same thread is shown."""

        async def main() -> None:
            await greenback.with_portal_run_sync(look)

        def look() -> None:
            task = asyncio.current_task() if backend.name == "asyncio" else current_trio_task()
            texts.append(format_task(task))

        texts: List[str] = []
        backend.run(main)
        assert "in look" in texts[0]

    def test_stack_of_another_thread(self, backend: Any) -> None:
        """A task of another thread's loop is not, and the text says why."""

        async def main() -> None:
            await greenback.with_portal_run_sync(greenback.await_, waits())

        async def waits() -> None:
            task = asyncio.current_task() if backend.name == "asyncio" else current_trio_task()
            thread = threading.Thread(target=lambda: texts.append(format_task(task)))
            thread.start()
            thread.join()

        texts: List[str] = []
        backend.run(main)
        assert "without the GIL, only its own thread can read it" in texts[0]
        assert "in waits" not in texts[0]

    def test_a_loop_that_does_not_run(self) -> None:
        """Who makes a task before its loop runs can see it."""

        async def waits() -> None:
            pass

        loop = asyncio.new_event_loop()
        task = loop.create_task(waits())
        assert "in waits" in format_task(task)
        loop.run_until_complete(task)
        loop.close()

    def test_socket(self, backend: Any) -> None:
        """Who connects to the socket is told of the tasks, but not of their stacks."""

        async def main() -> None:
            await greenback.with_portal_run_sync(look)

        def look() -> None:
            session: Any = greenback_trace._activate._current
            thread = threading.Thread(target=lambda: told.append(describe(session.totals, {}, ())))
            thread.start()
            thread.join()

        told: List[Dict[str, Any]] = []
        greenback_trace.enable(config=Config(spans="none"))
        backend.run(main)
        (about,) = told[0]["parked"]
        assert about["library"] == backend.name
        assert "without the GIL" in about["stack"]
        assert told[0]["holding"] == []

    def test_slow_steps(self, backend: Any) -> None:
        """Debug mode starts no watchdog; a slow step is that of the last site, as without it."""

        def slow() -> None:
            greenback.await_(backend.sleep(0))
            greenback.await_(nop())
            until = perf_counter_ns() + 3_000_000
            while perf_counter_ns() < until:
                pass

        before = watchdogs()
        greenback_trace.enable(config=Config(mode="debug", spans="none", slow=0.002))
        backend.run(greenback.with_portal_run_sync, slow)
        assert watchdogs() <= before
        assert any(each.endswith(".slow") for each in greenback_trace.snapshot().slow_steps)


def current_trio_task() -> Any:
    import trio

    return trio.lowlevel.current_task()
