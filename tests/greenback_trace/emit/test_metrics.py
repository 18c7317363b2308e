"""Metrics, with the real SDK."""

from __future__ import annotations

import asyncio
import contextlib
import sys
from types import FrameType
from typing import Any, Callable, Dict, Iterator, List, Optional, Set, Tuple

import pytest

import greenback
import greenback_trace
from greenback._engine.state import NOWHERE
from greenback.instruments import Portal
from greenback_trace import Config

pytest.importorskip("opentelemetry.sdk.metrics", reason="these tests need greenback[report]")

from opentelemetry.sdk.metrics import MeterProvider, ObservableCounter
from opentelemetry.sdk.metrics.export import AggregationTemporality, InMemoryMetricReader

from greenback_trace.count.counts import Counts
from greenback_trace.count.totals import Totals
from greenback_trace.emit import metrics, table
from greenback_trace.emit.measurements import Measurements

Points = Dict[Tuple[Tuple[str, Any], ...], float]


class Reading:
    def __init__(self, temporality: Optional[Dict[type, AggregationTemporality]] = None) -> None:
        self.reader = InMemoryMetricReader(preferred_temporality=temporality or {})
        self.provider = MeterProvider([self.reader], shutdown_on_exit=False)

    def enable(self, **settings: Any) -> None:
        greenback_trace.enable(config=Config(**settings), meter_provider=self.provider)

    def metrics(self) -> List[Any]:
        data = self.reader.get_metrics_data()
        return [
            metric
            for resource in (data.resource_metrics if data is not None else ())
            for scope in resource.scope_metrics
            if scope.scope.name == "greenback"
            for metric in scope.metrics
        ]

    def points(self) -> Dict[str, Points]:
        return {
            metric.name: {
                tuple(sorted(point.attributes.items())): point.value
                for point in metric.data.data_points
            }
            for metric in self.metrics()
            if not metric.name.endswith(".duration")
        }


async def nop() -> None:
    pass


async def fail() -> None:
    raise LookupError


def bridge_to_nop() -> None:
    greenback.await_(nop())


def fails() -> None:
    with pytest.raises(LookupError):
        greenback.await_(fail())


class TestMetrics:
    def test_values(self, backend: Any) -> None:
        """The metrics say exactly what happened, with the names and attributes of the contract."""
        reading = Reading()
        reading.enable(spans="none")
        during = []

        async def look() -> None:
            during.append(reading.points())
            await backend.sleep(0)

        def program() -> None:
            bridge_to_nop()
            bridge_to_nop()
            fails()
            greenback.await_(look())

        backend.run(greenback.with_portal_run_sync, program)
        points = reading.points()
        function = "code.function.name"
        nops, failures = f"{__name__}.bridge_to_nop", f"{__name__}.fails"
        # Before Python 3.11, a nested function has only its last name.
        qualname = program.__qualname__ if sys.version_info >= (3, 11) else "program"
        programs = f"{__name__}.{qualname}"
        assert points["greenback.bridges"] == {
            ((function, nops), ("greenback.outcome", "ok")): 2,
            ((function, failures), ("greenback.outcome", "error")): 1,
            ((function, programs), ("greenback.outcome", "ok")): 1,
        }
        assert points["greenback.bridge.suspensions"] == {
            ((function, nops),): 0,
            ((function, failures),): 0,
            ((function, programs),): 1,
        }
        time, waiting = points["greenback.bridge.time"], points["greenback.bridge.suspended_time"]
        assert set(time) == set(waiting) == set(points["greenback.bridge.suspensions"])
        assert time[((function, programs),)] > waiting[((function, programs),)] > 0
        assert waiting[((function, nops),)] == 0
        library = (("greenback.async_library", backend.name),)
        assert during[0]["greenback.bridge.active"] == {library: 1}
        assert points["greenback.bridge.active"] == {library: 0}
        assert points["greenback.switches"] == {
            (("greenback.switch.direction", "to_loop"),): 1,
            (("greenback.switch.direction", "to_task"),): 1,
        }
        kind = (("greenback.portal.kind", "run_sync"),)
        assert points["greenback.portals"] == {kind: 1}
        assert during[0]["greenback.portal.active"] == {kind: 1}
        assert points["greenback.portal.active"] == {kind: 0}
        assert points["greenback.steps"] == {library: 2}
        assert points["greenback.step.time"][library] > 0

    def test_units(self, backend: Any) -> None:
        """Times have the unit s, counts the thing that they count; counters only grow."""
        reading = Reading()
        reading.enable(spans="none")
        backend.run(greenback.with_portal_run_sync, bridge_to_nop)
        assert {
            metric.name: (
                metric.unit,
                getattr(metric.data, "is_monotonic", type(metric.data).__name__.lower()),
            )
            for metric in reading.metrics()
        } == {
            "greenback.bridges": ("{bridge}", True),
            "greenback.bridge.suspensions": ("{bridge}", True),
            "greenback.bridge.time": ("s", True),
            "greenback.bridge.suspended_time": ("s", True),
            "greenback.bridge.active": ("{bridge}", False),
            "greenback.switches": ("{switch}", True),
            "greenback.portals": ("{portal}", True),
            "greenback.portal.active": ("{portal}", False),
            "greenback.steps": ("{step}", True),
            "greenback.step.time": ("s", True),
            "greenback.step.stalled": ("s", "gauge"),
            "greenback.bridge.duration": ("s", "histogram"),
            "greenback.portal.duration": ("s", "histogram"),
            "greenback.step.duration": ("s", "histogram"),
        }

    def test_sites_of_one_function_are_one_series(self, backend: Any) -> None:
        """Metrics are per function, so that a new line number starts no new series."""

        def twice() -> None:
            greenback.await_(nop())
            greenback.await_(nop())

        reading = Reading()
        reading.enable(spans="none")
        backend.run(greenback.with_portal_run_sync, twice)
        assert list(reading.points()["greenback.bridges"].values()) == [2]

    def test_disabled(self, backend: Any) -> None:
        """After disable(), nothing is reported; enabled again, the same provider works again."""
        reading = Reading()
        reading.enable(spans="none")
        backend.run(greenback.with_portal_run_sync, bridge_to_nop)
        greenback_trace.disable()
        assert not any(reading.points().values())
        reading.enable(spans="none")
        backend.run(greenback.with_portal_run_sync, fails)
        outcomes = [dict(point) for point in reading.points()["greenback.bridges"]]
        assert {"error"} < {point["greenback.outcome"] for point in outcomes}

    def test_spans_left_out(self, backend: Any) -> None:
        """Spans that the rate limit leaves out are counted."""
        sdk = pytest.importorskip("opentelemetry.sdk.trace")
        reading = Reading()
        greenback_trace.enable(
            config=Config(span_rate=1),
            meter_provider=reading.provider,
            tracer_provider=sdk.TracerProvider(shutdown_on_exit=False),
        )
        backend.run(greenback.with_portal_run_sync, bridge_to_nop)
        assert reading.points()["greenback.trace.item.dropped"] == {
            (("greenback.trace.drop.reason", "rate_limit"), ("greenback.trace.item", "span")): 1,
        }


class TestEnabledAgain:
    """A provider keeps its instruments, and their counters go on."""

    def test_counters_go_on(self, backend: Any) -> None:
        """A counter never falls, whatever later sessions count; a snapshot starts at zero."""
        reading = Reading()
        bridges = []
        before: Dict[str, Points] = {}
        for program, times in ((bridge_to_nop, 3), (fails, 1), (bridge_to_nop, 2)):
            reading.enable(spans="none")
            for _ in range(times):
                backend.run(greenback.with_portal_run_sync, program)
            points = reading.points()
            monotonic = {name for name in points if not name.endswith(".active")}
            for name in monotonic & set(before):
                assert set(before[name]) <= set(points[name])
                for attributes, value in before[name].items():
                    assert points[name][attributes] >= value
            before = points
            by_attributes = sorted(points["greenback.bridges"].items())
            bridges.append([value for _, value in by_attributes])
            assert sum(site.bridges for site in greenback_trace.snapshot().sites) == times
        assert bridges == [[3], [3, 1], [5, 1]]
        assert list(before["greenback.portals"].values()) == [6]
        assert list(before["greenback.portal.active"].values()) == [0]

    def test_deltas(self, backend: Any) -> None:
        """With delta temporality, each export has the counts since the last one."""
        delta = {ObservableCounter: AggregationTemporality.DELTA}
        reading = Reading(delta)
        deltas = []
        for times in (5, 2, 1):
            reading.enable(spans="none")
            for _ in range(times):
                backend.run(greenback.with_portal_run_sync, bridge_to_nop)
            deltas += reading.points()["greenback.bridges"].values()
            greenback_trace.disable()
        assert deltas == [5, 2, 1]

    def test_without_an_export(self, backend: Any) -> None:
        """The counts of a session without a collection are exported later."""
        reading = Reading()
        for _ in range(3):
            reading.enable(spans="none")
            backend.run(greenback.with_portal_run_sync, bridge_to_nop)
        assert list(reading.points()["greenback.bridges"].values()) == [3]

    def test_another_provider_between(self, backend: Any) -> None:
        """Each provider has the counts of its own sessions."""
        readings = [Reading(), Reading()]
        for _ in range(2):
            for reading in readings:
                reading.enable(spans="none")
                backend.run(greenback.with_portal_run_sync, bridge_to_nop)
        assert not any(readings[0].points().values())
        assert list(readings[1].points()["greenback.bridges"].values()) == [2]

    def test_what_is_active(self, backend: Any) -> None:
        """A portal that stays open while tracing is enabled again counts as one open portal."""
        reading = Reading()
        active = []

        def program() -> None:
            for _ in range(2):
                reading.enable(spans="none")
                bridge_to_nop()
                active.extend(reading.points()["greenback.portal.active"].values())

        backend.run(greenback.with_portal_run_sync, program)
        assert active == [1, 1]
        assert list(reading.points()["greenback.portal.active"].values()) == [0]

    def test_what_was_left_out(self, backend: Any) -> None:
        """The counter of items left out goes on, too."""
        sdk = pytest.importorskip("opentelemetry.sdk.trace")
        reading = Reading()
        for _ in range(2):
            greenback_trace.enable(
                config=Config(span_rate=1),
                meter_provider=reading.provider,
                tracer_provider=sdk.TracerProvider(shutdown_on_exit=False),
            )
            backend.run(greenback.with_portal_run_sync, bridge_to_nop)
        assert list(reading.points()["greenback.trace.item.dropped"].values()) == [2]

    def test_in_the_middle_of_a_collection(self) -> None:
        """Wherever a collection is when tracing is enabled again, no counter falls or jumps."""
        reading = Reading()
        reading.enable(spans="none")
        exported = [0.0]
        portals = moment = 0
        was_reached = True
        while was_reached:
            asyncio.run(greenback.with_portal_run_sync(bridge_to_nop))
            portals += 1
            moment += 1
            with _enabled_again_at(moment, reading) as was_interrupted:
                exported += reading.points().get("greenback.portals", {}).values()
            was_reached = was_interrupted()
            assert exported[-1] <= portals
        assert moment > 50
        assert exported == sorted(exported)
        assert exported[-1] == portals


@contextlib.contextmanager
def _enabled_again_at(moment: int, reading: Reading) -> Iterator[Callable[[], bool]]:
    """Enable tracing again before a certain line that a collection runs in greenback_trace."""
    left = moment

    def look(frame: FrameType, event: str, _: Any) -> Any:
        nonlocal left
        if frame.f_globals.get("__name__") not in (metrics.__name__, table.__name__):
            return None
        if event == "line":
            left -= 1
            if left == 0:
                sys.settrace(None)
                reading.enable(spans="none")
        return look

    before = sys.gettrace()
    sys.settrace(look)
    try:
        yield lambda: left <= 0
    finally:
        sys.settrace(before)


class TestMeasurements:
    @pytest.mark.parametrize(("skip", "measured"), [(0, {"switch", "step"}), (1, {"step"})])
    def test_step_that_ends_by_a_switch(self, skip: int, measured: Set[str]) -> None:
        """Such a step is two events, a switch and a step, and either can be in the sample."""
        reader = InMemoryMetricReader()
        meter = MeterProvider([reader], shutdown_on_exit=False).get_meter("greenback")
        histograms = {name: meter.create_histogram(name, "s") for name in ("switch", "step")}
        measurements = Measurements(histograms, rate=0)
        counts = Counts(bool)
        counts.skip = skip
        measurements.switch_and_step(counts, 1_000, "asyncio", 2_000)
        data = reader.get_metrics_data()
        assert data is not None
        (resource,) = data.resource_metrics
        (scope,) = resource.scope_metrics
        assert {metric.name for metric in scope.metrics} == measured

    def test_bridge_while_the_sample_is_drawn(self) -> None:
        """A bridge in the middle of drawing the next sample is counted as left out."""
        reading = Reading()
        reading.enable(spans="none", measurement_rate=50)

        async def nop() -> None:
            pass

        interrupted: List[str] = []

        def interrupt(frame: FrameType, event: str, function: Any) -> None:
            name = getattr(function, "__name__", "")
            if event == "c_return" and name == "random" and frame.f_code.co_name == "skip_some":
                interrupted.append(name)
                greenback.await_(nop())

        def work() -> None:
            for _ in range(3000):
                greenback.await_(nop())
            sys.setprofile(interrupt)
            try:
                while len(interrupted) < 3:
                    greenback.await_(nop())
            finally:
                sys.setprofile(None)

        asyncio.run(greenback.with_portal_run_sync(work))
        totals = greenback_trace.snapshot()
        recorded = sum(
            point.count
            for metric in reading.metrics()
            if metric.name.endswith(".duration")
            for point in metric.data.data_points
        )
        events = sum(each.count for each in totals.durations)
        assert recorded + totals.dropped["measurement"]["rate_limit"] == events

    def test_histogram_that_opens_a_portal(self) -> None:
        """A histogram that opens a portal does not get that portal, which is counted."""
        calls = []

        class Opens:
            def record(self, *arguments: Any) -> None:
                calls.append(arguments)
                open_and_close()

        def open_and_close() -> None:
            portal = Portal("task", NOWHERE.library)
            totals.open_portal(portal)
            totals.close_portal(portal)

        totals = Totals(1)
        histograms: Any = {"portal": Opens()}
        totals.pass_on(Measurements(histograms, 0))
        open_and_close()
        assert len(calls) == 1
        assert totals.unmeasured() == 1

    @pytest.mark.parametrize("rate", [0, 1])
    def test_histogram_that_fails(self, rate: float, caplog: pytest.LogCaptureFixture) -> None:
        """A histogram that raises gets nothing more, and the events left out are counted."""
        calls = []

        class Broken:
            def record(self, *arguments: Any) -> None:
                calls.append(arguments)
                raise OSError

        totals = Totals(1)
        histograms: Any = {"portal": Broken()}
        totals.pass_on(Measurements(histograms, rate))
        for _ in range(5):
            portal = Portal("task", NOWHERE.library)
            totals.open_portal(portal)
            totals.close_portal(portal)
        assert (len(calls), len(caplog.records)) == (1, 1)
        assert totals.unmeasured() == 5
