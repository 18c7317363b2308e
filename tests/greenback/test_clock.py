"""The clock of the engine in C, which asks the kernel every 100 us only."""

from __future__ import annotations

from time import perf_counter_ns, sleep

import pytest

from greenback._engine.choice import compiled

pytestmark = pytest.mark.skipif(compiled is None, reason="the engine is in Python")

#: Between two readings of the kernel's clock, the processor's counter is off by less than this.
TOLERANCE_NS = 2_000


def read_for(seconds: float) -> None:
    """Read both clocks in turn: the engine's time is between two of the kernel's."""
    last = compiled.perf_counter_ns()
    end = perf_counter_ns() + seconds * 1e9
    before = perf_counter_ns()
    while before < end:
        now = compiled.perf_counter_ns()
        after = perf_counter_ns()
        assert before - TOLERANCE_NS <= now <= after + TOLERANCE_NS
        assert now >= last, "it went back"
        last, before = now, after


def test_is_that_of_the_kernel() -> None:
    read_for(0.5)


def test_after_a_pause() -> None:
    """Nothing is made of the counter for longer than 100 us."""
    for pause in (0.0001, 0.003, 0.3):
        sleep(pause)
        read_for(0.01)


def test_goes_on() -> None:
    """It does not stand still: each 10 us show."""
    times = []
    end = perf_counter_ns() + 20_000_000
    while perf_counter_ns() < end:
        times.append(compiled.perf_counter_ns())
        until = perf_counter_ns() + 10_000
        while perf_counter_ns() < until:
            pass
    assert len(set(times)) == len(times)
