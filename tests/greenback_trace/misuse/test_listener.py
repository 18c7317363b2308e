"""What becomes of a misuse: in the program, the log, the counter, the spans and the snapshot."""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import itertools
import json
import linecache
import logging
import os
import sys
import threading
import time
import warnings
import weakref
from typing import Any, Callable, Dict, Iterator, List, Tuple

import pytest
import structlog

import greenback
import greenback_trace
from greenback._state import current_portal
from greenback.instruments import Instrument, add_instrument, remove_instrument
from greenback_trace import Config, MisuseError, MisuseWarning, allow
from greenback_trace._sites import site_of
from greenback_trace.misuse import _listener
from greenback_trace.misuse._finding import Finding
from greenback_trace.misuse._record import Misuses
from greenback_trace.misuse.report import actions_of

from ...interrupting import Interrupt
from .garbage import IS_PYPY, collect, until

pytest.importorskip("opentelemetry.sdk.trace", reason="these tests need greenback[report]")

from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

#: Portals are logged at the level debug.
FROM_INFO = structlog.make_filtering_bound_logger(logging.INFO)

Events = List[Dict[str, Any]]


@pytest.fixture(autouse=True)
def events() -> Iterator[Events]:
    """What the application's structlog is given."""
    seen: Events = []

    def keep(logger: Any, method: str, event: Any) -> Any:
        seen.append({**event, "level": method})
        raise structlog.DropEvent

    structlog.configure(processors=[keep], wrapper_class=FROM_INFO)
    yield seen
    structlog.reset_defaults()


def misuses_in(events: Events) -> Events:
    return [event for event in events if event["event"] == "greenback.misuse"]


def enable(misuse: str = "warn", **settings: Any) -> None:
    greenback_trace.enable(config=Config(mode="debug", misuse=misuse, **settings))


def holding(lock: Any, wait: Callable[[], Any]) -> None:
    with lock:
        greenback.await_(wait())


def hold(backend: Any, times: int = 1) -> None:
    """Suspend while holding a lock, so many times, in one portal."""
    lock = threading.Lock()

    def work() -> None:
        for _ in range(times):
            holding(lock, lambda: backend.sleep(0))

    backend.run(greenback.with_portal_run_sync, work)


async def advised(backend: Any) -> None:
    await greenback.ensure_portal()
    greenback.await_(backend.sleep(0))


@contextlib.contextmanager
def no_warnings() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", MisuseWarning)
        yield


def in_context_manager(guard: Any, wait: Callable[[], Any]) -> None:
    @contextlib.contextmanager
    def transaction() -> Iterator[None]:
        with guard:
            yield

    with transaction():
        greenback.await_(wait())


def in_generator(guard: Any, wait: Callable[[], Any]) -> None:
    def items() -> Iterator[int]:
        with guard:
            yield 1

    for _ in items():
        greenback.await_(wait())


class TestLocks:
    @pytest.mark.parametrize("form", [holding, in_context_manager, in_generator])
    @pytest.mark.parametrize("kind", ["Lock", "RLock", "Condition", "Semaphore"])
    def test_is_counted_while_it_is_held(self, kind: str, form: Any, backend: Any) -> None:
        """One misuse for each bridge that suspends inside, and none for those after it."""

        def work() -> None:
            for _ in range(2):
                form(getattr(threading, kind)(), lambda: backend.sleep(0))
                greenback.await_(backend.sleep(0))

        enable()
        with no_warnings():
            backend.run(greenback.with_portal_run_sync, work)
        (misuse,) = greenback_trace.snapshot().misuses
        assert (misuse.kind, misuse.count) == ("lock_held", 2)
        assert misuse.subject.startswith(f"threading.{kind}")


class TestWarn:
    def test_the_bridge_goes_on(self, backend: Any) -> None:
        """Under 'warn' a misuse is shown, and the program does what it would do without."""
        enable()
        with pytest.warns(MisuseWarning, match="lock_held.*instead") as shown:
            hold(backend)
        assert [site.ok for site in greenback_trace.snapshot().sites] == [1]
        (warning,) = shown
        assert isinstance(warning.message, MisuseWarning)
        assert warning.message.misuse.kind == "lock_held"

    def test_is_shown_at_the_line(self, backend: Any) -> None:
        """The warning names the file and the line of the program, not greenback's."""
        enable()
        with pytest.warns(MisuseWarning) as shown:
            hold(backend)
        assert shown[0].filename == __file__
        assert "greenback.await_(wait())" in linecache.getline(__file__, shown[0].lineno)

    def test_each_line_once(self, backend: Any) -> None:
        """Under Python's own filters, repeats are shown once, although they are all counted."""
        enable()
        with warnings.catch_warnings(record=True) as shown:
            warnings.simplefilter("default")
            hold(backend, times=5)
        assert [warning.category for warning in shown] == [MisuseWarning]
        assert [misuse.count for misuse in greenback_trace.snapshot().misuses] == [5]

    def test_filters_that_make_errors(self, backend: Any) -> None:
        """With -W error the program still runs as it would: to raise is what 'raise' is for."""
        enable()
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            hold(backend)
        assert [misuse.kind for misuse in greenback_trace.snapshot().misuses] == ["lock_held"]
        assert [site.errors for site in greenback_trace.snapshot().sites] == [0]


class TestRaise:
    def test_at_a_suspension(self, backend: Any) -> None:
        """await_ raises before it suspends, and what it was given is closed."""
        enable("raise")
        closed: List[str] = []

        async def wait() -> None:
            try:
                await backend.sleep(0)
            finally:
                closed.append("closed")

        lock = threading.Lock()

        def work() -> None:
            with pytest.raises(MisuseError, match="lock_held") as caught:
                holding(lock, wait)
            assert closed == ["closed"]
            assert caught.value.misuse.kind == "lock_held"
            assert not lock.locked()

        backend.run(greenback.with_portal_run_sync, work)

    def test_at_the_start(self, backend: Any) -> None:
        """await_ raises before the coroutine has begun, and the coroutine is closed."""
        enable("async_caller=raise")

        async def main() -> None:
            await greenback.ensure_portal()
            coroutine = backend.sleep(0)
            with pytest.raises(MisuseError, match="async_caller"):
                greenback.await_(coroutine)
            assert inspect.getcoroutinestate(coroutine) == "CORO_CLOSED"

        backend.run(main)

    def test_is_reported_too(self, backend: Any, events: Events) -> None:
        """What is raised is also logged and counted: Python only prints it in a finalizer."""
        enable("raise")
        with pytest.raises(MisuseError):
            hold(backend)
        assert [event["kind"] for event in misuses_in(events)] == ["lock_held"]
        assert [misuse.count for misuse in greenback_trace.snapshot().misuses] == [1]

    def test_in_a_finalizer(self, backend: Any, events: Events) -> None:
        """The exception ends in Python's hook for those that nobody can catch, and is reported."""
        enable("raise")
        swallowed: List[Any] = []

        class Connection:
            def __del__(self) -> None:
                greenback.await_(backend.sleep(0))

        def work() -> None:
            connection = Connection()
            del connection
            collect()

        hook, sys.unraisablehook = sys.unraisablehook, lambda args: swallowed.append(args.exc_type)
        try:
            until(
                lambda: greenback_trace.snapshot().misuses,
                lambda: backend.run(greenback.with_portal_run_sync, work),
            )
        finally:
            sys.unraisablehook = hook
        if not IS_PYPY:
            assert swallowed == [MisuseError]
        (misuse,) = greenback_trace.snapshot().misuses
        assert misuse.kind == "finalizer"
        assert "Connection" in misuse.subject
        assert [event["kind"] for event in misuses_in(events)] == ["finalizer"]

    def test_counts_as_a_bridge_that_failed(self, backend: Any) -> None:
        """A refused bridge is counted once, as an error, and is not under way afterwards."""
        enable("raise,async_caller=raise")
        with pytest.raises(MisuseError):
            backend.run(advised, backend)
        with pytest.raises(MisuseError):
            hold(backend)
        snapshot = greenback_trace.snapshot()
        assert [(site.ok, site.errors) for site in snapshot.sites] == [(0, 1), (0, 1)]
        assert set(snapshot.active.values()) == {0}

    def test_what_is_not_certain(self, backend: Any) -> None:
        """An inconclusive misuse is shown as a warning, and nothing is raised."""
        misuses = Misuses(actions_of("raise"), 10)

        def work() -> Any:
            frame = sys._getframe()
            portal: Any = current_portal()[2]
            finding = Finding("finalizer", frame, "something", ("It may be.",), inconclusive=True)
            return misuses.report(
                finding, site_of(frame), frame, portal, lambda finding, site: None
            )

        with pytest.warns(MisuseWarning, match="inconclusive"):
            assert backend.run(greenback.with_portal_run_sync, work) is None
        assert [misuse.inconclusive for misuse in misuses.all()] == [True]

    def test_with_instruments(self, backend: Any) -> None:
        """An instrument that listens hears of the bridge, which is refused all the same."""
        finished: List[Any] = []

        class Listening(Instrument):
            def bridge_finished(self, bridge: Any, error: Any) -> None:
                finished.append(type(error))

        instrument = Listening()
        enable("raise")
        add_instrument(instrument)
        try:
            with pytest.raises(MisuseError):
                hold(backend)
        finally:
            remove_instrument(instrument)
        assert finished == [MisuseError]
        assert [site.errors for site in greenback_trace.snapshot().sites] == [1]


class TestAdvice:
    def test_is_only_logged(self, backend: Any, events: Events) -> None:
        """Advice is logged at info and counted; 'raise' does not raise for it."""
        enable("raise")
        with warnings.catch_warnings(record=True) as shown:
            warnings.simplefilter("always")
            backend.run(advised, backend)
        assert not shown
        assert [(event["kind"], event["level"]) for event in misuses_in(events)] == [
            ("async_caller", "info")
        ]
        assert [misuse.severity for misuse in greenback_trace.snapshot().misuses] == ["advice"]

    def test_that_is_named(self, backend: Any) -> None:
        """Advice whose kind is named is shown like the rest."""
        enable("async_caller=warn")
        with pytest.warns(MisuseWarning, match="async_caller"):
            backend.run(advised, backend)


class TestOff:
    def test_everything(self, backend: Any, events: Events) -> None:
        """With 'off', debug mode traces and says nothing of misuse."""
        enable("off")
        hold(backend)
        backend.run(advised, backend)
        assert greenback_trace.snapshot().misuses == ()
        assert not misuses_in(events)
        assert len(greenback_trace.snapshot().sites) == 2

    def test_one_kind(self, backend: Any, events: Events) -> None:
        """A kind that is off is neither reported nor counted."""
        enable("raise,lock_held=off")
        hold(backend)
        assert greenback_trace.snapshot().misuses == ()

    def test_tracing_alone(self, backend: Any) -> None:
        """Tracing without debug mode looks for nothing."""
        greenback_trace.enable(config=Config(mode="on", misuse="raise"))
        hold(backend)
        assert greenback_trace.snapshot().misuses == ()

    def test_disabled(self, backend: Any) -> None:
        """After disable() nothing is looked for, and the snapshot keeps what was found."""
        enable("raise")
        with pytest.raises(MisuseError):
            hold(backend)
        greenback_trace.disable()
        hold(backend)
        assert [misuse.count for misuse in greenback_trace.snapshot().misuses] == [1]


class TestAllowed:
    def test_one_site(self, backend: Any, events: Events) -> None:
        """Inside allow(), that kind is not misuse; outside of it, it is."""
        enable("raise")
        with allow("lock_held", reason="a test"):
            hold(backend)
        assert greenback_trace.snapshot().misuses == ()
        assert not misuses_in(events)
        with allow("import", reason="a test"), pytest.raises(MisuseError):
            hold(backend)

    def test_inside_the_portal(self, backend: Any) -> None:
        """It holds across bridges in sync code of the task."""
        enable("raise")
        lock = threading.Lock()

        def work() -> None:
            with allow("lock_held", reason="a test"):
                holding(lock, lambda: backend.sleep(0))
                holding(lock, lambda: backend.sleep(0))
            with pytest.raises(MisuseError):
                holding(lock, lambda: backend.sleep(0))

        backend.run(greenback.with_portal_run_sync, work)


class TestLog:
    def test_says_everything(self, backend: Any, events: Events) -> None:
        """One event has the whole report, as plain values."""
        enable()
        with no_warnings():
            hold(backend)
        (event,) = misuses_in(events)
        (misuse,) = greenback_trace.snapshot().misuses
        assert event["level"] == "warning"
        assert event["code.function.name"] == misuse.function
        assert event["bridge"] == misuse.site
        assert event["stack"] == "".join(misuse.stack)
        assert event["evidence"] == list(misuse.evidence)
        for name in ("kind", "severity", "subject", "offender", "task", "thread", "count"):
            assert event[name] == getattr(misuse, name)
        json.dumps(event)

    def test_repeats(self, backend: Any, events: Events) -> None:
        """Repeats of a kind at a site are logged once in a while, and counted exactly."""
        enable()
        with no_warnings():
            hold(backend, times=30)
        assert len(misuses_in(events)) == 1
        (misuse,) = greenback_trace.snapshot().misuses
        assert misuse.count == 30

    def test_two_kinds_at_one_site(self, backend: Any, events: Events) -> None:
        """Another kind at the same site is no repeat."""
        enable()

        async def main() -> None:
            await greenback.ensure_portal()
            lock = threading.Lock()
            with lock:
                greenback.await_(backend.sleep(0))

        with no_warnings():
            backend.run(main)
        assert {event["kind"] for event in misuses_in(events)} == {"async_caller", "lock_held"}

    def test_in_the_middle_of_logging(self, backend: Any) -> None:
        """A misuse while the program logs, with a lock that is not reentrant, does not hang."""
        enable(slow=60)
        lock = threading.Lock()
        seen: Events = []

        def keep(logger: Any, method: str, event: Any) -> Any:
            if lock.locked():
                raise RuntimeError("logged in the middle of logging")
            with lock:
                seen.append(event)
                if event["event"] == "of the program":
                    greenback.await_(backend.sleep(0))
            raise structlog.DropEvent

        async def main() -> None:
            await greenback.ensure_portal()
            structlog.get_logger().info("of the program")
            await backend.sleep(0)

        structlog.configure(processors=[keep], wrapper_class=FROM_INFO)
        with no_warnings():
            backend.run(main)
        assert [event["event"] for event in seen] == ["of the program", "greenback.misuse"]

    def test_a_logger_that_fails(self, backend: Any, caplog: Any) -> None:
        """The program does not feel that its logger fails, and the misuse is counted."""

        def fail(logger: Any, method: str, event: Any) -> Any:
            raise LookupError

        structlog.configure(processors=[fail], wrapper_class=FROM_INFO)
        enable()
        with no_warnings(), caplog.at_level(logging.WARNING, "greenback"):
            hold(backend)
        assert [misuse.count for misuse in greenback_trace.snapshot().misuses] == [1]
        assert "could not be logged" in caplog.text

    def test_a_logger_that_bridges(self, backend: Any) -> None:
        """What the program's logger does about a report is no misuse of its own, without end."""
        reports = 0

        def bridging(logger: Any, method: str, event: Any) -> Any:
            nonlocal reports
            reports += 1
            greenback.await_(backend.sleep(0))
            raise structlog.DropEvent

        structlog.configure(processors=[bridging])
        enable()
        with no_warnings():
            hold(backend)
        assert reports == 1


class TestCounts:
    def test_threads(self, events: Events) -> None:
        """Misuses of several threads at one site add up exactly."""
        enable()
        backend = Asyncio()
        threads = [threading.Thread(target=hold, args=(backend, 40)) for _ in range(4)]
        with no_warnings():
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
        assert [misuse.count for misuse in greenback_trace.snapshot().misuses] == [160]

    def test_more_sites_than_are_kept(self, backend: Any) -> None:
        """Beyond the limit of sites, misuses are counted under _OTHER."""
        enable(sites=1)
        with no_warnings():
            hold(backend)
            backend.run(advised, backend)
            backend.run(advised, backend)
        counts = {
            (misuse.kind, misuse.function.rpartition(".")[2]): misuse.count
            for misuse in greenback_trace.snapshot().misuses
        }
        assert counts == {("lock_held", "holding"): 1, ("async_caller", "_OTHER"): 2}

    def test_the_counter(self, backend: Any) -> None:
        """The counter has the number of misuses by kind and function."""
        reader = InMemoryMetricReader()
        provider = MeterProvider([reader], shutdown_on_exit=False)
        greenback_trace.enable(config=Config(mode="debug"), meter_provider=provider)
        with no_warnings():
            hold(backend, times=3)
        points = _points(reader)
        (misuse,) = greenback_trace.snapshot().misuses
        assert points == {("lock_held", misuse.function): 3}
        greenback_trace.disable()
        assert _points(reader) == {}

    def test_as_dict(self, backend: Any) -> None:
        """The misuses of a snapshot are plain data, too."""
        enable()
        with no_warnings():
            hold(backend)
        (misuse,) = json.loads(json.dumps(greenback_trace.snapshot().as_dict()))["misuses"]
        assert misuse["kind"] == "lock_held"
        assert isinstance(misuse["stack"], list)

    @pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork()")
    def test_a_forked_child(self, python: Any) -> None:
        """A forked child starts at zero, and goes on looking."""
        done = python("-c", _FORKING, GREENBACK_TRACE="debug")
        assert done.returncode == 0, done.stderr
        assert done.stdout.split() == ["child", "0", "2", "parent", "1"]


class Asyncio:
    sleep = staticmethod(asyncio.sleep)

    def run(self, function: Any, *args: Any) -> None:
        asyncio.run(function(*args))


_FORKING = """
import asyncio, os, threading, warnings
import greenback, greenback_trace
warnings.simplefilter("ignore")

def hold():
    lock = threading.Lock()
    def work():
        with lock:
            greenback.await_(asyncio.sleep(0))
    asyncio.run(greenback.with_portal_run_sync(work))

def count():
    return sum(misuse.count for misuse in greenback_trace.snapshot().misuses)

hold()
pid = os.fork()
if not pid:
    print("child", count(), end=" ")
    hold()
    hold()
    print(count(), end=" ", flush=True)
    os._exit(0)
os.waitpid(pid, 0)
print("parent", count())
"""


def _points(reader: InMemoryMetricReader) -> Dict[Tuple[Any, Any], Any]:
    data = reader.get_metrics_data()
    return {
        (
            point.attributes["greenback.misuse.kind"],
            point.attributes["code.function.name"],
        ): point.value
        for resource in (data.resource_metrics if data is not None else ())
        for scope in resource.scope_metrics
        for metric in scope.metrics
        if metric.name == "greenback.misuses"
        for point in metric.data.data_points
    }


@pytest.fixture
def exporter() -> InMemorySpanExporter:
    return InMemorySpanExporter()


class TestSpans:
    def run(self, backend: Any, exporter: InMemorySpanExporter, action: str, spans: str) -> Any:
        provider = TracerProvider(shutdown_on_exit=False)
        provider.add_span_processor(SimpleSpanProcessor(exporter))
        greenback_trace.enable(
            config=Config(mode="debug", misuse=action, spans=spans), tracer_provider=provider
        )
        with no_warnings(), contextlib.suppress(MisuseError):
            hold(backend)
        return {
            span.name: [event for event in span.events if event.name == "greenback.misuse"]
            for span in exporter.get_finished_spans()
        }

    @pytest.mark.parametrize("action", ["warn", "raise"])
    def test_of_the_bridge(self, backend: Any, exporter: InMemorySpanExporter, action: str) -> None:
        """The bridge's span has an event with the kind, and the report has the ids of the span."""
        events = self.run(backend, exporter, action, "all")
        (event,) = events["await_ holding"]
        assert event.attributes["greenback.misuse.kind"] == "lock_held"
        assert event.attributes["code.function.name"].endswith(".holding")
        (misuse,) = greenback_trace.snapshot().misuses
        ids = {
            span.name: format(span.context.span_id, "016x") if span.context else ""
            for span in exporter.get_finished_spans()
        }
        assert misuse.span_id == ids["await_ holding"]

    def test_nearest(self, backend: Any, exporter: InMemorySpanExporter) -> None:
        """Where bridges have no span, the portal's has the event."""
        events = self.run(backend, exporter, "warn", "portals")
        assert [len(found) for found in events.values()] == [1]
        (misuse,) = greenback_trace.snapshot().misuses
        assert misuse.span_id is not None

    def test_none(self, backend: Any, exporter: InMemorySpanExporter) -> None:
        """Without spans the report is complete but for the ids."""
        assert self.run(backend, exporter, "warn", "none") == {}
        (misuse,) = greenback_trace.snapshot().misuses
        assert (misuse.trace_id, misuse.span_id) == (None, None)


class TestChains:
    """What is known of a sync chain is not trusted with what may be different the next time."""

    def test_called_from_inside_a_lock(self, backend: Any) -> None:
        """A chain that was fine is looked at again from an async function that holds a lock."""
        enable()
        lock = threading.Lock()

        def inner() -> None:
            greenback.await_(backend.sleep(0))

        def outer() -> None:
            inner()

        async def without() -> None:
            outer()

        async def within() -> None:
            with lock:
                outer()

        async def main() -> None:
            await greenback.ensure_portal()
            for _ in range(3):
                await without()
            await within()
            await without()

        with pytest.warns(MisuseWarning, match="acquired at"):
            backend.run(main)
        (misuse,) = greenback_trace.snapshot().misuses
        assert (misuse.kind, misuse.count) == ("lock_held", 1)

    def test_acquired_meanwhile(self, backend: Any) -> None:
        """A lock that was taken by calling acquire() is found in a chain that is known."""
        enable()
        lock = threading.Lock()

        def ask() -> None:
            greenback.await_(backend.sleep(0))

        def work() -> None:
            for _ in range(3):
                ask()
            lock.acquire()
            for _ in range(2):
                ask()
            lock.release()
            ask()

        with no_warnings():
            backend.run(greenback.with_portal_run_sync, work)
        (misuse,) = greenback_trace.snapshot().misuses
        assert (misuse.kind, misuse.count) == ("lock_held", 2)

    @pytest.mark.skipif(IS_PYPY, reason="nothing is freed when it is dropped on PyPy")
    def test_more_than_are_told_apart(self, backend: Any) -> None:
        """Where there are more callers than are kept, each of them is looked at."""
        enable(sites=1)  # which makes 20 callers
        is_on = True

        class Dropped:
            def __del__(self) -> None:
                if is_on:  # else, in whatever test the collector finds it
                    greenback.await_(backend.sleep(0))

        caller = "def caller(thing):\n    thing.__del__()\n"
        callers: List[Dict[str, Any]] = [{} for _ in range(40)]
        for names in callers:
            exec(caller, names)
        kept = Dropped()

        def work() -> None:
            for _ in range(2):
                for names in callers:
                    names["caller"](kept)
            things = [Dropped()]
            assert not greenback_trace.snapshot().misuses
            things.clear()

        try:
            with no_warnings():
                backend.run(greenback.with_portal_run_sync, work)
        finally:
            is_on = False
        (misuse,) = greenback_trace.snapshot().misuses
        assert (misuse.kind, misuse.count) == ("finalizer", 1)

    @pytest.mark.skipif(IS_PYPY, reason="nothing is freed when it is dropped on PyPy")
    @pytest.mark.parametrize("suspends", [False, True])
    def test_keep_nothing_alive(self, backend: Any, suspends: bool) -> None:
        """What the functions of a chain refer to goes when they return."""
        enable()

        async def nothing() -> None:
            pass

        class Thing:
            pass

        def inner() -> None:
            greenback.await_(backend.sleep(0) if suspends else nothing())

        def outer() -> Any:
            thing = Thing()
            inner()
            return weakref.ref(thing)

        async def main() -> List[Any]:
            await greenback.ensure_portal()
            found = []
            for _ in range(3):  # no comprehension: that may be the outermost function itself
                found.append(outer()())
            return found

        assert backend.run(main) == [None, None, None]


class TestFailures:
    def test_a_detector_that_fails(
        self, backend: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
    ) -> None:
        """The program does not feel that a detector fails; the log says so once."""

        def fail(*args: Any) -> None:
            raise LookupError("of the detector")

        monkeypatch.setattr(_listener, "at_start", fail)
        enable("raise")
        with caplog.at_level(logging.ERROR, "greenback"):
            backend.run(advised, backend)
            backend.run(advised, backend)
        assert [site.ok for site in greenback_trace.snapshot().sites] == [2]
        (record,) = caplog.records
        assert "of the detector" in record.getMessage()

    def test_telling_of_it_fails(
        self, backend: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        """Nor does it feel that its own log cannot be told of that."""

        class Unspeakable(Exception):
            __context__ = __traceback__ = property(lambda self: 1 / 0)

            def __repr__(self) -> str:
                raise LookupError("of the exception")

        def fail(*args: Any) -> None:
            raise Unspeakable

        def refuse(record: Any) -> bool:
            raise LookupError("of the filter")

        monkeypatch.setattr(_listener, "at_start", fail)
        logger = logging.getLogger("greenback")
        for refuses in (False, True):
            enable("raise")
            if refuses:
                logger.addFilter(refuse)
            try:
                backend.run(advised, backend)
            finally:
                logger.removeFilter(refuse)
            greenback_trace.disable()
            assert [site.ok for site in greenback_trace.snapshot().sites] == [1]
        assert "Logging error" not in capsys.readouterr().err


class Odd(Exception):
    """Shadows what an exception has; nothing of it is to be asked for anything."""

    __context__ = property(lambda self: 1 / 0)
    if sys.implementation.name == "cpython":  # PyPy itself asks for it when it raises one
        __traceback__ = property(lambda self: 1 / 0)
    __cause__ = property(lambda self: 1 / 0)
    __class__ = property(lambda self: 1 / 0)
    exceptions = property(lambda self: 1 / 0)

    def with_traceback(self, traceback: Any) -> Any:
        raise LookupError

    def __getattr__(self, name: str) -> Any:
        raise LookupError

    def __eq__(self, other: object) -> bool:
        raise LookupError

    __hash__ = __repr__ = __str__ = __bool__ = __eq__  # type: ignore[assignment]


class TestOddExceptions:
    """What the program raises reaches it as itself, whatever its class is like."""

    @pytest.mark.parametrize("with_spans", [False, True])
    def test_raised_and_handled(
        self, backend: Any, with_spans: bool, caplog: pytest.LogCaptureFixture
    ) -> None:
        """Bridges that raise it, and those in its handler, are as without debug mode."""
        mine = Odd()

        async def fail() -> None:
            raise mine

        def work() -> None:
            try:
                greenback.await_(fail())
            except Odd:
                greenback.await_(backend.sleep(0))
                raise

        async def in_task() -> None:
            await greenback.ensure_portal()
            work()

        async def is_raised(async_fn: Callable[..., Any], *args: Any) -> bool:
            try:
                await async_fn(*args)
            except Odd as error:
                return error is mine
            return False

        provider = TracerProvider(shutdown_on_exit=False) if with_spans else None
        config = Config(mode="debug", misuse="raise,async_caller=off", spans="all")
        greenback_trace.enable(config=config, tracer_provider=provider)
        for portal in (
            (greenback.with_portal_run_sync, work),
            (greenback.with_portal_run, in_task),
            (in_task,),
        ):
            assert backend.run(is_raised, *portal)
        assert not caplog.records
        assert {site.errors for site in greenback_trace.snapshot().sites} == {0, 3}

    def test_closing_a_generator(self, backend: Any) -> None:
        """A generator that is closed while such an exception is handled bridges in peace."""

        def generator() -> Iterator[None]:
            try:
                yield
            finally:
                greenback.await_(backend.sleep(0))

        def work() -> None:
            items = generator()
            next(items)
            try:
                raise Odd
            except Odd:
                items.close()

        enable("raise")
        backend.run(greenback.with_portal_run_sync, work)


class TestFromEnvironment:
    def test_debug(self, python: Any) -> None:
        """GREENBACK_TRACE=debug with GREENBACK_TRACE_MISUSE=raise raises, and reports."""
        done = python("-c", _HOLDING, GREENBACK_TRACE="debug", GREENBACK_TRACE_MISUSE="raise")
        assert "MisuseError: lock_held" in done.stderr
        assert "greenback.misuse" in done.stderr
        assert done.returncode == 1

    def test_by_default(self, python: Any) -> None:
        """Without GREENBACK_TRACE_MISUSE a misuse is a warning, at the line of the program."""
        done = python("-c", _HOLDING, GREENBACK_TRACE="debug")
        assert done.returncode == 0, done.stderr
        assert "<string>:6: MisuseWarning: lock_held" in done.stderr

    def test_without_the_extra(self, python: Any) -> None:
        """Where the extra 'debug' is not installed, one warning names it, and it looks on."""
        hidden = "import sys; sys.modules.update(executing=None, pure_eval=None)\n"
        done = python("-c", hidden + _HOLDING, GREENBACK_TRACE="debug")
        assert done.returncode == 0, done.stderr
        assert done.stderr.count("pip install 'greenback[debug]'") == 1
        assert "MisuseWarning: lock_held" in done.stderr

    def test_tracing_alone(self, python: Any) -> None:
        """Without debug mode, nothing that looks for misuse is even imported."""
        loaded = (
            "import sys; print([n for n in sys.modules if n.startswith('greenback_trace.misuse')])"
        )
        done = python("-c", _HOLDING + loaded, GREENBACK_TRACE="1")
        assert done.returncode == 0, done.stderr
        assert "greenback_trace.misuse.report" in done.stdout
        for name in ("_listener", "_detect", "_locks", "_watchdog"):
            assert name not in done.stdout


_HOLDING = """
import asyncio, threading
import greenback
def work(lock):
    with lock:
        greenback.await_(asyncio.sleep(0))
asyncio.run(greenback.with_portal_run_sync(work, threading.Lock()))
"""


class TestSlowSteps:
    @pytest.mark.usefixtures("others_are_shown")
    def test_names_the_code_that_held_the_loop(self, backend: Any, events: Events) -> None:
        """In debug mode the event of a slow step shows the function that blocked."""
        greenback_trace.enable(config=Config(mode="debug", slow=0.05))

        def block() -> None:
            until = time.monotonic() + 0.4
            while time.monotonic() < until:
                pass

        def work() -> None:
            block()
            greenback.await_(backend.sleep(0))

        backend.run(greenback.with_portal_run_sync, work)
        slow = [event for event in events if event["event"] == "greenback.slow_step"]
        assert "block" in slow[0]["held_by"]
        assert any("work" in line for line in slow[0]["stack"])

    @pytest.mark.timeout(600)  # it goes from instruction to instruction
    def test_excused_between_two_instructions(
        self, backend: Any, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """A finalizer that bridges while another bridge suspends costs that no switch or step."""
        greenback_trace.enable(config=Config(mode="debug", slow=60))

        async def nop() -> None:
            pass

        def suspend() -> None:
            greenback.await_(backend.sleep(0))

        def finalizer() -> None:
            if greenback.has_portal():
                greenback.await_(nop())

        def look_long(frame: Any, outermost: Any) -> None:
            if frame.f_code is finalizer.__code__:
                time.sleep(0.005)  # longer than the whole step: it is taken out of that

        async def main() -> int:
            # In the first run, CPython 3.12 begins to tell of instructions.
            for runs, number in enumerate(itertools.chain([10**9], itertools.count(1, 3)), 1):
                with Interrupt(
                    number, greenback, greenback_trace, handler=finalizer, repeats=1
                ) as interrupt:
                    interrupt.begin()
                    await greenback.with_portal_run_sync(suspend)
                    interrupt.end()
                if interrupt.where is None and number < 10**9:
                    return runs
            raise AssertionError

        monkeypatch.setattr(_listener, "at_start", look_long)
        runs = backend.run(main)
        assert runs > 50
        totals = greenback_trace.snapshot()
        assert totals.switches == {"to_loop": runs, "to_task": runs}
        assert [each.steps for each in totals.steps.values()] == [2 * runs]
