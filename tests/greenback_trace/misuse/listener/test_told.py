"""The log, the counts and the spans of a misuse."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import os
import threading
from typing import Any, Dict, Tuple

import pytest
import structlog
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

import greenback
import greenback_trace
from greenback_trace import Config, MisuseError

from .misusing import FROM_INFO, Events, advised, enable, hold, misuses_in, no_warnings

pytest.importorskip("opentelemetry.sdk.trace", reason="these tests need greenback[report]")


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
        """Repeats of a kind at a site are logged occasionally, and counted exactly."""
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
        """If the program's logger fails, the program goes on, and the misuse is counted."""

        def fail(logger: Any, method: str, event: Any) -> Any:
            raise LookupError

        structlog.configure(processors=[fail], wrapper_class=FROM_INFO)
        enable()
        with no_warnings(), caplog.at_level(logging.WARNING, "greenback"):
            hold(backend)
        assert [misuse.count for misuse in greenback_trace.snapshot().misuses] == [1]
        assert "could not be logged" in caplog.text

    def test_a_logger_that_bridges(self, backend: Any) -> None:
        """A bridge of the program's logger during a report is not reported in turn."""
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
        """Without spans the report is complete except for the ids."""
        assert self.run(backend, exporter, "warn", "none") == {}
        (misuse,) = greenback_trace.snapshot().misuses
        assert (misuse.trace_id, misuse.span_id) == (None, None)
