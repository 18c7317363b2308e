"""No count is lost between a program and a real OTLP receiver."""

from __future__ import annotations

import asyncio
import gc
import threading
from contextlib import ExitStack
from typing import Any, Callable, Dict, List, Optional, Tuple

import pytest

import greenback
import greenback_trace
from greenback_trace import Config

pytest.importorskip("opentelemetry.sdk", reason="these tests need greenback[report]")

from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader, PeriodicExportingMetricReader
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor

from ..counted import (
    Asyncio,
    Count,
    Trio,
    assert_counted,
    everything,
    growing,
    in_threads,
    laps,
    nop,
)
from ..receiver import Receiver


def assert_received(receiver: Receiver) -> None:
    """The figures of the receiver are equal to the totals."""
    totals = greenback_trace.snapshot()
    assert not receiver.faults
    sums = receiver.sums
    bridges: Dict[Tuple[str, ...], int] = {}
    suspensions: Dict[Tuple[str, ...], int] = {}
    times: Dict[Tuple[str, ...], float] = {}
    waits: Dict[Tuple[str, ...], float] = {}
    for site in totals.sites:
        of_function = (site.function,)
        for outcome, count in (
            ("ok", site.ok),
            ("error", site.errors),
            ("cancelled", site.cancelled),
        ):
            if count:
                key = (site.function, outcome)
                bridges[key] = bridges.get(key, 0) + count
        suspensions[of_function] = suspensions.get(of_function, 0) + site.suspended
        times[of_function] = times.get(of_function, 0) + site.time
        waits[of_function] = waits.get(of_function, 0) + site.suspended_time
    assert sums["greenback.bridges"] == bridges
    assert sums["greenback.bridge.suspensions"] == suspensions
    assert sums["greenback.bridge.time"] == pytest.approx(times)
    assert sums["greenback.bridge.suspended_time"] == pytest.approx(waits)
    assert sums["greenback.switches"] == _keyed(totals.switches)
    assert sums["greenback.bridge.active"] == _keyed(totals.active)
    assert set(totals.active.values()) == {0}
    kinds = totals.portals.items()
    assert sums["greenback.portals"] == {(kind,): each.opened for kind, each in kinds}
    assert sums["greenback.portal.active"] == {(kind,): 0 for kind, _ in kinds}
    steps = totals.steps.items()
    assert sums["greenback.steps"] == {(library,): each.steps for library, each in steps}
    assert sums["greenback.step.time"] == pytest.approx(
        {(library,): each.time for library, each in steps}
    )
    assert sums.get("greenback.slow_steps", {}) == _keyed(totals.slow_steps)
    assert sums.get("greenback.trace.item.dropped", {}) == {
        (reason, item): count
        for item, reasons in totals.dropped.items()
        for reason, count in reasons.items()
    }


def _keyed(values: Dict[str, Any]) -> Dict[Tuple[str, ...], Any]:
    return {(key,): value for key, value in values.items()}


class Exporting:
    """An SDK whose readers export to receivers of their own, a few times a second."""

    def __init__(self, stack: ExitStack, *preferences: str) -> None:
        self.receivers = [stack.enter_context(Receiver()) for _ in preferences]
        readers = []
        with pytest.MonkeyPatch.context() as environ:
            for receiver, preference in zip(self.receivers, preferences):
                environ.setenv("OTEL_EXPORTER_OTLP_METRICS_TEMPORALITY_PREFERENCE", preference)
                readers.append(PeriodicExportingMetricReader(receiver.exporters()[0], 200))
        self.meter_provider = MeterProvider(readers, shutdown_on_exit=False)
        stack.callback(self.meter_provider.shutdown)
        self.tracer_provider = TracerProvider(shutdown_on_exit=False)
        spans = self.receivers[0].exporters()[1]
        self.tracer_provider.add_span_processor(
            BatchSpanProcessor(spans, max_queue_size=1_000_000, schedule_delay_millis=200)
        )
        stack.callback(self.tracer_provider.shutdown)

    def enable(self, **settings: Any) -> None:
        greenback_trace.enable(
            config=Config(**settings),
            meter_provider=self.meter_provider,
            tracer_provider=self.tracer_provider,
        )

    def flush(self) -> None:
        assert self.meter_provider.force_flush()
        assert self.tracer_provider.force_flush()


def stress(bridges: int, *preferences: str) -> None:
    """Run the program. Its own counts, the totals and the receivers' figures must be equal."""
    with ExitStack() as stack:
        exporting = Exporting(stack, *preferences)
        exporting.enable()
        count = Count()
        for _ in range(2):  # also on a quick machine, later figures come after exported ones
            in_threads(count, bridges // 2)
            exporting.flush()
        counted = count.result()
        refused = counted.get(("refused",), 0)  # in finalizers that ran outside of any portal
        made = sum(each for key, each in counted.items() if key[0] == "bridge")
        assert made + refused >= bridges
        assert counted.get(("bridge", "finalizing", "ok"), 0) + refused == counted["litter",]
        assert_counted(counted)
        for receiver, preference in zip(exporting.receivers, preferences):
            assert receiver.exports > 1
            assert receiver.temporalities["greenback.bridges"] == preference
            assert receiver.temporalities["greenback.bridge.duration"] == preference
            assert receiver.temporalities["greenback.bridge.active"] == "cumulative"
            assert_received(receiver)


@pytest.mark.timeout(600)  # 12 s on PyPy, alone on the machine
class TestStress:
    @pytest.mark.parametrize(
        ("bridges", "preferences"),
        [
            (40_000, ["cumulative", "delta"]),
            (4_000, ["cumulative"]),
            (4_000, ["delta"]),
        ],
        ids=["both", "cumulative", "delta"],
    )
    def test_nothing_is_lost(self, bridges: int, preferences: List[str]) -> None:
        """Each reader of an SDK gets exact figures, with either temporality."""
        stress(bridges, *preferences)


def some_sites(number: int) -> List[Callable[[Count], None]]:
    """Make functions that bridge, each at a site of its own."""
    functions: Dict[str, Any] = {"__name__": __name__, "await_": greenback.await_, "nop": nop}
    source = "".join(
        f"def site_{index}(count):\n    await_(nop())\n    count.add('bridge', 'site_{index}')\n"
        for index in range(number)
    )
    exec(source, functions)
    return [functions[f"site_{index}"] for index in range(number)]


def run_sync(sync_fn: Callable[..., Any], *args: Any) -> None:
    async def main() -> None:
        await greenback.with_portal_run_sync(sync_fn, *args)

    asyncio.run(main())


@pytest.mark.usefixtures("switching_often")
class TestSites:
    def test_more_than_are_kept(self) -> None:
        """Bridges of sites over the limit count under _OTHER, and these sites are counted."""
        count = Count()
        sites = some_sites(50)

        def program() -> None:
            for _ in range(3):
                for site in sites:
                    site(count)

        with ExitStack() as stack:
            exporting = Exporting(stack, "cumulative", "delta")
            exporting.enable(sites=20, spans="none")
            threads = [threading.Thread(target=run_sync, args=(program,)) for _ in range(4)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
            exporting.flush()
            counted = count.result()
            for receiver in exporting.receivers:
                bridges = receiver.sums["greenback.bridges"]
                assert len(bridges) == 21
                other = bridges.pop(("_OTHER", "ok"))
                assert all(
                    each == counted["bridge", function.rpartition(".")[2]]
                    for (function, _), each in bridges.items()
                )
                assert other + sum(bridges.values()) == sum(counted.values()) == 4 * 3 * 50
                assert receiver.sums["greenback.trace.item.dropped"]["limit", "site"] == 30


class TestMeasurements:
    @pytest.mark.parametrize("rate", [0, 20, 500])
    def test_over_the_rate(self, rate: int) -> None:
        """Each event that an SDK's histograms do not get is counted as dropped."""
        with ExitStack() as stack:
            exporting = Exporting(stack, "cumulative", "delta")
            exporting.enable(measurement_rate=rate, spans="none")
            in_threads(Count(), 5_000)
            exporting.flush()
            totals = greenback_trace.snapshot()
            happened = (
                sum(site.bridges for site in totals.sites)
                + sum(totals.switches.values())
                + sum(each.steps for each in totals.steps.values())
                + sum(each.closed for each in totals.portals.values())
            )
            for receiver in exporting.receivers:
                assert set(receiver.measured) <= {each.name for each in totals.durations}
                measured = sum(sum(each.values()) for each in receiver.measured.values())
                dropped = receiver.sums.get("greenback.trace.item.dropped", {})
                assert measured > 0
                assert measured + dropped.get(("rate_limit", "measurement"), 0) == happened


class TestSpans:
    @pytest.mark.parametrize("rate", [0, 20])
    def test_over_the_rate(self, rate: int) -> None:
        """Each bridge and each portal has a span that arrives, or is counted as left out."""
        count = Count()

        def program() -> None:
            for _ in range(10):
                everything(count, Asyncio())

        with ExitStack() as stack:
            exporting = Exporting(stack, "cumulative", "delta")
            exporting.enable(span_rate=rate)
            for _ in range(3):
                run_sync(program)
            exporting.flush()
            totals = greenback_trace.snapshot()
            happened = (
                sum(site.bridges for site in totals.sites) + totals.portals["run_sync"].opened
            )
            spans = exporting.receivers[0].spans
            assert len({span.span_id for span in spans}) == len(spans)
            assert (len(spans) == happened) == (rate == 0)
            for receiver in exporting.receivers:
                dropped = receiver.sums.get("greenback.trace.item.dropped", {})
                assert len(spans) + dropped.get(("rate_limit", "span"), 0) == happened

    @pytest.mark.usefixtures("switching_often")
    def test_over_the_rate_in_threads(self) -> None:
        """The same holds if several threads exceed the limit at once."""
        with ExitStack() as stack:
            exporting = Exporting(stack, "cumulative")
            exporting.enable(span_rate=50)
            in_threads(Count(everything), 5_000)
            exporting.flush()
            totals = greenback_trace.snapshot()
            happened = sum(site.bridges for site in totals.sites) + sum(
                each.opened for each in totals.portals.values()
            )
            (receiver,) = exporting.receivers
            dropped = receiver.sums["greenback.trace.item.dropped"]["rate_limit", "span"]
            assert len(receiver.spans) + dropped == happened


def exported(reader: InMemoryMetricReader) -> Dict[Tuple[Any, ...], float]:
    """The values of all counters that a reader has collected."""
    data = reader.get_metrics_data()
    assert data is not None
    return {
        (metric.name, *sorted((point.attributes or {}).items())): getattr(point, "value", 0)
        for resource in data.resource_metrics
        for scope in resource.scope_metrics
        for metric in scope.metrics
        if getattr(metric.data, "is_monotonic", False)
        for point in metric.data.data_points
    }


class TestReaders:
    def test_snapshots_never_go_backwards(self) -> None:
        """In snapshots taken while threads count, come and go, no number falls."""
        assert_grows(growing)

    def test_collections_never_go_backwards(self) -> None:
        """In collections of a metric reader, no counter falls."""
        reader = InMemoryMetricReader()
        provider = MeterProvider([reader], shutdown_on_exit=False)
        assert_grows(lambda: exported(reader), provider)


def assert_grows(
    read: Callable[[], Dict[Tuple[Any, ...], float]], provider: Optional[MeterProvider] = None
) -> None:
    config = Config(spans="none")
    greenback_trace.enable(config=config, meter_provider=provider)
    count = Count()
    loops: List[Any] = [Asyncio(), Trio()]
    for loop in loops:
        loop.run(laps, count, loop, 1)  # else there is nothing to read
    backwards: List[Any] = []
    errors: List[BaseException] = []
    done = threading.Event()

    def keep_reading() -> None:
        try:
            before = read()
            while not done.is_set():
                now = read()
                backwards.extend(
                    (key, value, now.get(key, 0))
                    for key, value in before.items()
                    if now.get(key, 0) < value
                )
                before = now
        except BaseException as error:
            errors.append(error)

    readers = [threading.Thread(target=keep_reading) for _ in range(2)]
    for reader in readers:
        reader.start()
    for _ in range(15):  # short-lived threads: other threads take over their counts
        threads = [threading.Thread(target=loop.run, args=(laps, count, loop, 2)) for loop in loops]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    done.set()
    for reader in readers:
        reader.join()
    assert not errors, errors
    assert not backwards, backwards[:5]
    gc.collect()
    assert_counted(count.result())
