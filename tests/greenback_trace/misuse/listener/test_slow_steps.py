"""Slow steps in debug mode."""

from __future__ import annotations

import itertools
import time
from typing import Any

import pytest

import greenback
import greenback_trace
from greenback_trace import Config
from greenback_trace.misuse import listener
from tests import sampling

from ....interrupting import Interrupt
from .misusing import Events

pytest.importorskip("opentelemetry.sdk.trace", reason="these tests need greenback[report]")


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
        """A finalizer that bridges while another bridge suspends adds no switch or step to it."""
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
                time.sleep(0.005)  # longer than the whole step, from which it is subtracted

        numbers = itertools.islice(sampling.instructions(), 0, None, 3)

        async def main() -> int:
            # In the first run, CPython 3.12 begins to tell of instructions.
            for runs, number in enumerate(itertools.chain([10**9], numbers), 1):
                with Interrupt(
                    number, greenback, greenback_trace, handler=finalizer, repeats=1
                ) as interrupt:
                    interrupt.begin()
                    await greenback.with_portal_run_sync(suspend)
                    interrupt.end()
                if interrupt.where is None and number < 10**9:
                    return runs
            raise AssertionError

        monkeypatch.setattr(listener, "at_start", look_long)
        runs = backend.run(main)
        assert runs > 20
        totals = greenback_trace.snapshot()
        assert totals.switches == {"to_loop": runs, "to_task": runs}
        assert [each.steps for each in totals.steps.values()] == [2 * runs]
