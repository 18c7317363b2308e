"""Durations: exact histograms, slow steps, and the sample for an SDK."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from typing import Any, Dict, List, Tuple

import pytest

import greenback
import greenback_trace
from greenback_trace import Config

pytest.importorskip("opentelemetry.sdk")

from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader


async def nop() -> None:
    pass


async def fail() -> None:
    raise LookupError("nothing here")


def hold(seconds: float) -> None:
    """Hold the event loop like a computation."""
    until = time.perf_counter() + seconds
    while time.perf_counter() < until:
        pass


def counted() -> Dict[str, List[Tuple[Dict[str, Any], int]]]:
    found: Dict[str, List[Tuple[Dict[str, Any], int]]] = {}
    for each in greenback_trace.snapshot().durations:
        assert len(each.counts) == len(each.bounds) + 1
        found.setdefault(each.name, []).append((each.attributes, each.count))
    return found


class TestExact:
    def test_bridges(self, backend: Any) -> None:
        """Bridges are told apart by library, outcome, whether they suspended, and error."""

        def program() -> None:
            for _ in range(3):
                greenback.await_(nop())
            greenback.await_(backend.sleep(0))
            with pytest.raises(LookupError):
                greenback.await_(fail())

        greenback_trace.enable(config=Config(spans="none"))
        backend.run(greenback.with_portal_run_sync, program)
        common = {"greenback.async_library": backend.name}
        ok = {**common, "greenback.outcome": "ok"}
        assert sorted(counted()["greenback.bridge.duration"], key=str) == sorted(
            [
                ({**ok, "greenback.suspended": False}, 3),
                ({**ok, "greenback.suspended": True}, 1),
                (
                    {
                        **common,
                        "greenback.outcome": "error",
                        "greenback.suspended": False,
                        "error.type": "LookupError",
                    },
                    1,
                ),
            ],
            key=str,
        )

    def test_switches(self, backend: Any) -> None:
        """Each suspension is a switch to the loop and one back, with the time that it took."""

        def program() -> None:
            for _ in range(4):
                greenback.await_(backend.sleep(0))
            greenback.await_(nop())

        greenback_trace.enable(config=Config(spans="none"))
        backend.run(greenback.with_portal_run_sync, program)
        assert counted()["greenback.switch.duration"] == [
            ({"greenback.switch.direction": "to_loop"}, 4),
            ({"greenback.switch.direction": "to_task"}, 4),
        ]
        assert greenback_trace.snapshot().switches == {"to_loop": 4, "to_task": 4}

    def test_switches_leave_out_the_wait(self, backend: Any) -> None:
        """The duration of a switch does not include the wait between two switches."""

        def program() -> None:
            greenback.await_(backend.sleep(0.2))

        greenback_trace.enable(config=Config(spans="none"))
        backend.run(greenback.with_portal_run_sync, program)
        snapshot = greenback_trace.snapshot()
        switching = sum(
            each.sum for each in snapshot.durations if each.name == "greenback.switch.duration"
        )
        assert switching < snapshot.sites[0].suspended_time

    def test_portals_and_steps(self, backend: Any) -> None:
        """A portal's duration is its lifetime; a step's is the time that it held the loop."""

        def program() -> None:
            greenback.await_(backend.sleep(0))

        greenback_trace.enable(config=Config(spans="none"))
        backend.run(greenback.with_portal_run_sync, program)
        assert counted()["greenback.portal.duration"] == [
            ({"greenback.portal.kind": "run_sync"}, 1)
        ]
        assert counted()["greenback.step.duration"] == [
            ({"greenback.async_library": backend.name}, 2)
        ]
        (portal,) = (
            each
            for each in greenback_trace.snapshot().durations
            if each.name == "greenback.portal.duration"
        )
        assert portal.bounds[0] == 1e-6
        assert portal.bounds[-1] == 86_400


def steps_over(seconds: float) -> int:
    """The number of steps longer than a bound. On a busy machine, any step can be."""
    return sum(
        count
        for each in greenback_trace.snapshot().durations
        if each.name == "greenback.step.duration"
        for bound, count in zip((*each.bounds, float("inf")), each.counts)
        if bound > seconds
    )


class TestSlowSteps:
    def test_counted_and_logged(self, backend: Any, capsys: Any) -> None:
        """A step that held the loop for too long is counted by function, and logged."""

        def crunch() -> None:
            greenback.await_(backend.sleep(0))
            hold(0.02)
            greenback.await_(backend.sleep(0))

        greenback_trace.enable(config=Config(spans="none", slow=0.01))
        backend.run(greenback.with_portal_run_sync, crunch)
        slow = greenback_trace.snapshot().slow_steps
        assert sum(slow.values()) == steps_over(0.01)
        (function,) = (each for each in slow if each.endswith("crunch"))
        captured = capsys.readouterr()
        assert captured.err.count("greenback.slow_step") == len(slow)
        assert function in captured.err
        assert captured.out == ""

    def test_without_a_bridge(self, backend: Any) -> None:
        """A slow step without a bridge counts for the async function that waits next."""

        async def main() -> None:
            await greenback.ensure_portal()
            await crunch()

        async def crunch() -> None:
            await backend.sleep(0)
            hold(0.02)
            await backend.sleep(0.001)

        greenback_trace.enable(config=Config(spans="none", slow=0.01))
        backend.run(main)
        slow = greenback_trace.snapshot().slow_steps
        assert sum(slow.values()) == steps_over(0.01)
        assert any(function.endswith("crunch") for function in slow)

    def test_repeats_are_left_out(self, backend: Any, capsys: Any) -> None:
        """Repeated slow steps of one function are logged only once in 10 s."""

        def crunch_often() -> None:
            for _ in range(5):
                hold(0.004)
                greenback.await_(backend.sleep(0))

        greenback_trace.enable(config=Config(spans="none", slow=0.002))
        backend.run(greenback.with_portal_run_sync, crunch_often)
        assert sum(greenback_trace.snapshot().slow_steps.values()) == steps_over(0.002) >= 5
        lines = capsys.readouterr().err.splitlines()
        told = [line for line in lines if "greenback.slow_step" in line and "crunch_often" in line]
        assert len(told) == 1


class TestSample:
    def sdk(self, **settings: Any) -> InMemoryMetricReader:
        reader = InMemoryMetricReader()
        greenback_trace.enable(
            config=Config(spans="none", **settings),
            meter_provider=MeterProvider([reader], shutdown_on_exit=False),
        )
        return reader

    def read(self, reader: InMemoryMetricReader) -> Tuple[int, int]:
        """The number of calls of histograms, and of dropped measurements."""
        data = reader.get_metrics_data()
        assert data is not None
        called = dropped = 0
        for resource in data.resource_metrics:
            for scope in resource.scope_metrics:
                for metric in scope.metrics:
                    for point in metric.data.data_points:
                        attributes = dict(point.attributes or {})
                        if metric.name.endswith(".duration"):
                            called += point.count
                        elif attributes.get("greenback.trace.item") == "measurement":
                            dropped += point.value
        return called, dropped

    def test_all(self, backend: Any) -> None:
        """Without a limit, the SDK's histograms get every event."""

        def program() -> None:
            for _ in range(20):
                greenback.await_(backend.sleep(0))

        reader = self.sdk(measurement_rate=0)
        backend.run(greenback.with_portal_run_sync, program)
        # 20 bridges, 40 switches, 21 steps and a portal.
        assert self.read(reader) == (82, 0)

    def test_limit(self, backend: Any) -> None:
        """With a limit, the events left out are counted."""

        def program() -> None:
            for _ in range(500):
                greenback.await_(backend.sleep(0))

        reader = self.sdk(measurement_rate=7)
        backend.run(greenback.with_portal_run_sync, program)
        called, dropped = self.read(reader)
        assert called + dropped == 500 + 1000 + 501 + 1
        assert 1 <= called < 500


class TestConfig:
    @pytest.mark.parametrize("value", [0, -1, "1"])
    def test_slow(self, value: Any) -> None:
        """An invalid threshold raises an error that names the field."""
        with pytest.raises(greenback_trace.ConfigError, match="slow"):
            Config(slow=value)

    def test_environment(self) -> None:
        """The environment sets the rate and the threshold, too."""
        config = Config.from_env(
            {"GREENBACK_TRACE_SLOW": "0.25", "GREENBACK_TRACE_MEASUREMENT_RATE": "50"}
        )
        assert (config.slow, config.measurement_rate) == (0.25, 50)


class TestFirstPortal:
    def test_without_the_connecting(self) -> None:
        """The first portal of a process lasts without the time in which tracing connects."""
        program = """
import asyncio, time
import greenback, greenback_trace
from opentelemetry import trace
from opentelemetry.sdk.trace import TracerProvider

connected = []

class Slow(TracerProvider):
    def get_tracer(self, *args, **kwds):
        time.sleep(1)
        connected.append(time.perf_counter())
        return super().get_tracer(*args, **kwds)

async def nop():
    pass

trace.set_tracer_provider(Slow())
asyncio.run(greenback.with_portal_run(nop))
over = time.perf_counter()
(lasted,) = (
    each.sum
    for each in greenback_trace.snapshot().durations
    if each.name == "greenback.portal.duration"
)
print(len(connected), lasted <= over - connected[-1])
"""
        done = subprocess.run(
            [sys.executable, "-c", program],
            env={**os.environ, "GREENBACK_TRACE": "1"},
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.stdout == "1 True\n", done.stderr
