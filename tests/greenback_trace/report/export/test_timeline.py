"""Lanes and slices: what each task did when."""

from __future__ import annotations

from pathlib import Path
from typing import List

import pytest

from greenback_trace.report.export.timeline import (
    BRIDGE,
    PORTAL,
    SLOW_STEP,
    STEP,
    Lane,
    Slice,
    Span,
    all_slices,
    lanes,
    read,
)

pytest.importorskip("click", reason="the report needs greenback[report]")
pytest.importorskip("rich", reason="the report needs greenback[report]")
pytest.importorskip("opentelemetry.sdk", reason="the report needs greenback[report]")


def only(found: List[Lane]) -> Slice:
    """The only slice of the only lane."""
    (lane,) = found
    (portal,) = lane.slices
    return portal


def span_ids(slices: List[Slice]) -> List[str]:
    return sorted(each.span.id for each in all_slices(slices) if each.span is not None)


@pytest.fixture(scope="class")
def spans(path: Path) -> List[Span]:
    return read([str(path)])[1]


class TestTimeline:
    def of_task(self, spans: List[Span], name: str) -> List[Lane]:
        return [lane for lane in lanes(spans) if lane.name == name]

    def test_everything_is_there_once(self, spans: List[Span]) -> None:
        """Each span has one slice, and each slice is inside the slice around it."""
        found = [each for lane in lanes(spans) for each in lane.slices]
        assert span_ids(found) == sorted(span.id for span in spans)
        for each in all_slices(found):
            last = each.start
            for below in each.below:
                assert last <= below.start <= below.end <= each.end
                last = below.end

    def test_tasks_of_one_name(self, spans: List[Span]) -> None:
        """Tasks with the same name that run at the same time have separate lanes."""
        first, second = self.of_task(spans, "order")
        assert first.slices[0].end > second.slices[0].start

    def test_tasks_one_after_another(self, spans: List[Span]) -> None:
        """Portals opened one after another in tasks with the same name share a lane."""
        (lane,) = self.of_task(
            [span for span in spans if span.attributes.get("greenback.task.name") != "order"]
            + self.one_after_another(spans),
            "order",
        )
        assert len(lane.slices) == 2

    def one_after_another(self, spans: List[Span]) -> List[Span]:
        twins = [span for span in spans if span.attributes.get("greenback.task.name") == "order"]
        first, second = sorted(twins, key=lambda span: span.start)
        moved = Span(**{**vars(second), "start": first.end, "end": first.end + 1_000_000})
        return [first, moved]

    def test_steps(self, spans: List[Span]) -> None:
        """Under with_portal_run_sync(), a task waits in a bridge or holds the loop in a step."""
        for lane in self.of_task(spans, "order"):
            (portal,) = lane.slices
            length = {STEP: 0, BRIDGE: 0}
            for each in portal.below:
                length[each.kind] += each.end - each.start
            assert sum(length.values()) == portal.end - portal.start
            assert length[STEP] >= 20_000_000  # the sleep
            # One bridge fetches the rate, three fetch prices. Two do not wait, and are in a step.
            assert [each.kind for each in portal.below] == [STEP, BRIDGE] * 4 + [STEP]
            assert [each.kind for each in portal.below[-1].below] == [BRIDGE] * 2

    def test_slow_steps(self, spans: List[Span]) -> None:
        """A step that held the loop for longer than GREENBACK_TRACE_SLOW is called slow."""
        for lane in self.of_task(spans, "order"):
            (portal,) = lane.slices
            slow = [each for each in portal.below if each.name == SLOW_STEP]
            assert portal.span is not None
            assert len(slow) == portal.span.attributes["greenback.portal.slow_steps"]
            others = [each for each in portal.below if each.kind == STEP and each not in slow]
            # The step with the sleep.
            assert portal.below[-1] in slow
            assert all(each.end - each.start <= 20_000_000 for each in others)

    def test_no_steps_where_it_may_wait_elsewhere(self, spans: List[Span]) -> None:
        """An async task has no steps in the timeline, since it can also wait without a bridge."""
        portal = only(self.of_task(spans, "long"))
        assert {each.kind for each in portal.below} == {BRIDGE}

    def test_no_steps_without_all_bridges(self, spans: List[Span]) -> None:
        """The time of a missing span is not shown as a step."""
        waited = next(span for span in spans if span.name == "await_ Prices.__init__")
        kinds = {
            each.kind
            for lane in lanes([span for span in spans if span is not waited])
            for portal in lane.slices
            if portal.span is not None and portal.span.id == waited.portal
            for each in portal.below
        }
        assert kinds == {BRIDGE}

    def test_bridges_in_bridges(self, spans: List[Span]) -> None:
        """A bridge inside the awaited function of another bridge is below that bridge."""
        portal = only(self.of_task(spans, "nested"))
        (outer,) = [each for each in all_slices([portal]) if each.name == "await_ outer"]
        assert {each.name for each in outer.below} == {
            "await_ Prices.__init__",
            "await_ Prices.__getitem__",
            "await_ bill",
        }

    def test_portals_without_a_span(self, spans: List[Span]) -> None:
        """The bridges of a portal without a span, such as an open one, have a lane."""
        portals = {span.id for span in spans if span.name.startswith("portal ")}
        found = lanes([span for span in spans if span.id not in portals])
        assert {lane.name for lane in found} == {"portals without a span"}
        assert sum(len(list(all_slices(lane.slices))) for lane in found) == len(spans) - len(
            portals
        )

    def test_kinds(self, spans: List[Span]) -> None:
        """A lane has portals, and failed spans are marked."""
        found = [each for lane in lanes(spans) for each in lane.slices]
        assert {each.kind for each in found} == {PORTAL}
        failed = [each for each in all_slices(found) if each.span is not None and each.span.failed]
        assert [each.name for each in failed] == ["await_ bill"] * 4
