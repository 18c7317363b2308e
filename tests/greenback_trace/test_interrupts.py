"""Exceptions of signal handlers in the middle of tracing reach the program; nothing is stuck."""

from __future__ import annotations

import gc
import itertools
import signal
import warnings
from typing import Any, Dict, List, Tuple

import pytest

import greenback
import greenback_trace
from greenback import await_
from greenback_trace import Config

pytest.importorskip("opentelemetry.sdk.trace", reason="these tests need greenback[report]")

from opentelemetry import trace
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from tests import sampling
from tests.interrupting import Interrupt, Interruption

pytestmark = [
    pytest.mark.skipif(not hasattr(signal, "SIGUSR1"), reason="Windows has no such signal"),
    pytest.mark.usefixtures("few_objects"),
    # 25 s on CPython 3.8, on a machine that does nothing else.
    pytest.mark.timeout(600),
]

SPARED = ("_step", "_first_answer", "_yield_none", "replace", "__del__")


class TimeUp(Exception):
    """A time limit, raised by a handler of SIGALRM."""


def raise_time_up(*args: Any) -> None:
    raise TimeUp


def raise_interruption(*args: Any) -> None:
    raise Interruption


class Sdk:
    """A real SDK that exports into memory."""

    def __init__(self) -> None:
        self.spans = InMemorySpanExporter()
        self.tracer_provider = TracerProvider(shutdown_on_exit=False)
        self.tracer_provider.add_span_processor(SimpleSpanProcessor(self.spans))
        self.reader = InMemoryMetricReader()
        self.meter_provider = MeterProvider([self.reader], shutdown_on_exit=False)
        #: The number of failed bridges at the last look.
        self.failed = 0

    def look(self) -> Tuple[Dict[str, List[float]], int]:
        """The number of active bridges and portals, and of measured bridges that failed."""
        data = self.reader.get_metrics_data()
        metrics = [
            metric
            for resource in (data.resource_metrics if data is not None else ())
            for scope in resource.scope_metrics
            for metric in scope.metrics
        ]
        active = {
            metric.name: [point.value for point in metric.data.data_points]
            for metric in metrics
            if metric.name.endswith(".active")
        }
        measured = sum(
            point.count
            for metric in metrics
            if metric.name == "greenback.bridge.duration"
            for point in metric.data.data_points
            if point.attributes.get("error.type") == "LookupError"
        )
        return active, measured


async def interrupted_at(
    number: int, backend: Any, sdk: Sdk, with_spans: bool, handler: Any, kind: type
) -> Any:
    left: List[str] = []
    entered: List[str] = []
    errors: List[Any] = []
    current: List[Any] = []

    async def leaf() -> None:
        entered.append("leaf")
        try:
            await backend.sleep(0)
        finally:
            left.append("leaf")

    def sync() -> None:
        entered.append("sync")
        try:
            await_(leaf())
            await_(immediate())
        finally:
            left.append("sync")
            current.append(trace.get_current_span())

    async def immediate() -> None:
        pass

    async def fails() -> None:
        raise LookupError

    async def task() -> None:
        interrupt.begin()
        try:
            await greenback.with_portal_run_sync(sync)
        except kind as error:
            errors.append(error)
        finally:
            interrupt.end()
            current.append(trace.get_current_span())

    # Once per instruction: to interrupt it in each of three bridges takes twice the time.
    with Interrupt(
        number, greenback, greenback_trace, spared=SPARED, handler=handler, repeats=1
    ) as interrupt:
        await task()
    where = interrupt.where
    try:
        assert sorted(left) == sorted(entered)
        assert len(errors) == (where is not None)
        errors.clear()
        assert [span for span in current if span.get_span_context().is_valid] == []
        # The next bridge is traced.
        sdk.spans.clear()
        with pytest.raises(LookupError):
            await greenback.with_portal_run_sync(await_, fails())
        assert len(sdk.spans.get_finished_spans()) == (2 if with_spans else 0)
        active, failed = sdk.look()
        assert not any(itertools.chain.from_iterable(active.values())), active
        if not with_spans:
            assert failed == sdk.failed + 1
        sdk.failed = failed
    except AssertionError as error:
        raise AssertionError(f"interrupted at {number}, {where}: {error}") from error
    return where


@pytest.mark.parametrize("spans", ["none", "all"])
def test_at_each_instruction(backend: Any, spans: str) -> None:
    """The exception reaches the program; no bridge or portal stays active, and no span current."""
    # All pairs of an event loop, spans or none, and a kind of exception; all triples take twice
    # the time, which is ten seconds for each.
    handler: Any = raise_interruption
    kind: Any = Interruption
    if (spans == "all") == (backend.name == "asyncio"):
        handler, kind = raise_time_up, TimeUp
    sdk = Sdk()
    with_spans = spans == "all"
    # Make a span or a measurement of everything.
    config = Config(spans=spans, span_rate=0, measurement_rate=1 if with_spans else 0)
    greenback_trace.enable(
        config=config, tracer_provider=sdk.tracer_provider, meter_provider=sdk.meter_provider
    )

    async def main() -> None:
        await interrupted_at(
            10**9, backend, sdk, with_spans, handler, kind
        )  # objects that are made once now exist
        for number in sampling.instructions():
            if await interrupted_at(number, backend, sdk, with_spans, handler, kind) is None:
                break
        assert number > 100

    before = signal.signal(signal.SIGUSR1, handler)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=".* was never awaited")
            backend.run(main)
            gc.collect()
        assert greenback_trace.is_enabled()
    finally:
        signal.signal(signal.SIGUSR1, before)
