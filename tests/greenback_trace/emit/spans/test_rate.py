"""The choice of spans, and their limit per second."""

from __future__ import annotations

from typing import Any, List

import pytest

import greenback
import greenback_trace

from .tracing import Tracing, bridge_to_nop, fail, last_part

pytest.importorskip("opentelemetry.sdk.trace", reason="these tests need greenback[report]")


class TestWhich:
    def run(self, backend: Any, which: str) -> List[str]:
        tracing = Tracing()
        tracing.enable(spans=which)

        def waits() -> None:
            greenback.await_(backend.sleep(0))

        def fails() -> None:
            with pytest.raises(LookupError):
                greenback.await_(fail())

        def program() -> None:
            bridge_to_nop()
            waits()
            fails()

        backend.run(greenback.with_portal_run_sync, program)
        return [last_part(span.name) for span in tracing.spans()]

    @pytest.mark.parametrize(
        ("which", "names"),
        [
            ("all", ["bridge_to_nop", "waits", "fails", "run_sync"]),
            ("suspended", ["waits", "fails", "run_sync"]),
            ("portals", ["run_sync"]),
            ("none", []),
        ],
    )
    def test_choice(self, backend: Any, which: str, names: List[str]) -> None:
        """GREENBACK_TRACE_SPANS chooses the spans; failed bridges are among them."""
        assert self.run(backend, which) == names

    def test_a_span_made_afterwards_has_its_true_length(self, backend: Any) -> None:
        """A span that is made at the end of a bridge begins when the bridge did."""
        tracing = Tracing()
        tracing.enable(spans="suspended")
        backend.run(greenback.with_portal_run_sync, lambda: greenback.await_(backend.sleep(0.02)))
        (span,) = tracing.bridges()
        (site,) = greenback_trace.snapshot().sites
        assert span.start_time is not None
        assert span.end_time is not None
        assert (span.end_time - span.start_time) / 1e9 >= site.time >= 0.015


class TestRate:
    def test_limit(self, backend: Any) -> None:
        """Above the limit, only failed bridges get spans, from a budget of their own."""
        tracing = Tracing()
        tracing.enable(span_rate=3)

        def fails() -> None:
            with pytest.raises(LookupError):
                greenback.await_(fail())

        def program() -> None:
            for _ in range(10):
                bridge_to_nop()
            fails()

        backend.run(greenback.with_portal_run_sync, program)
        names = [last_part(span.name) for span in tracing.spans()]
        assert names == ["bridge_to_nop", "bridge_to_nop", "fails", "run_sync"]
        assert sum(site.bridges for site in greenback_trace.snapshot().sites) == 11

    def test_count_of_left_out_only_grows(self, backend: Any) -> None:
        """A bridge over the limit that gets a span at its end is never counted as dropped."""
        dropped = []

        def note() -> None:
            dropped.append(greenback_trace.snapshot().dropped.get("span", {}).get("rate_limit", 0))

        async def notes_and_fails() -> None:
            note()
            raise LookupError("private")

        def program() -> None:
            bridge_to_nop()
            for _ in range(3):
                with pytest.raises(LookupError):
                    greenback.await_(notes_and_fails())
                note()

        tracing = Tracing()
        tracing.enable(span_rate=2)
        backend.run(greenback.with_portal_run_sync, program)
        assert len(tracing.spans()) == 4  # of five; failed bridges have a budget of their own
        assert dropped == [0, 0, 0, 0, 0, 1]
