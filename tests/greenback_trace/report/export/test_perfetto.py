"""``greenback-trace export --format perfetto``."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Dict, List, Tuple

import pytest

from greenback_trace.report.export.perfetto import perfetto
from greenback_trace.report.export.timeline import (
    Process,
    Span,
    all_slices,
    lanes,
    read,
)

from .exporting import GENEXPR, exported

pytest.importorskip("click", reason="the report needs greenback[report]")
pytest.importorskip("rich", reason="the report needs greenback[report]")
pytest.importorskip("opentelemetry.sdk", reason="the report needs greenback[report]")


@pytest.fixture(scope="class")
def packets(path: Path) -> Any:
    # The published schema needs a newer protobuf than Python 3.8 has.
    protos = pytest.importorskip(
        "perfetto.protos.perfetto.trace.perfetto_trace_pb2", exc_type=Exception
    )
    trace = protos.Trace.FromString(exported("--format", "perfetto", path))
    return trace.packet


class TestPerfetto:
    def test_schema(self, packets: Any) -> None:
        """Perfetto's published schema knows every field in the file."""
        from google.protobuf.unknown_fields import UnknownFieldSet

        left = list(packets)
        assert left
        while left:
            message = left.pop()
            assert not len(UnknownFieldSet(message))
            for field, value in message.ListFields():
                if field.message_type is not None:
                    left += [value] if hasattr(value, "ListFields") else list(value)

    def test_tracks(self, packets: Any, path: Path) -> None:
        """The process is a track, with a track for each lane below it, in the order of lanes."""
        process, *tracks = [
            packet.track_descriptor for packet in packets if packet.HasField("track_descriptor")
        ]
        assert process.process.process_name == "shop.py"
        assert process.process.pid > 0
        assert [track.name for track in tracks] == [
            lane.name for lane in lanes(read([str(path)])[1])
        ]
        assert {track.parent_uuid for track in tracks} == {process.uuid}
        assert len({track.uuid for track in [process, *tracks]}) == len(tracks) + 1

    def test_slices(self, packets: Any, path: Path) -> None:
        """Reading the file as Perfetto does gives the slices of the timeline."""
        found: List[Tuple[str, str, int, int]] = []
        stacks_: Dict[int, List[Any]] = {}
        last: Dict[int, int] = {}
        for packet in packets:
            if packet.HasField("track_event"):
                event = packet.track_event
                assert packet.timestamp >= last.get(event.track_uuid, 0)
                last[event.track_uuid] = packet.timestamp
                stack = stacks_.setdefault(event.track_uuid, [])
                if event.type == event.TYPE_SLICE_BEGIN:
                    stack.append((event.categories[0], event.name, packet.timestamp))
                else:
                    assert event.type == event.TYPE_SLICE_END
                    found.append((*stack.pop(), packet.timestamp))
        assert not any(stacks_.values())
        assert sorted(found) == sorted(
            (each.kind, each.name, each.start, each.end)
            for lane in lanes(read([str(path)])[1])
            for each in all_slices(lane.slices)
        )

    def test_attributes(self, packets: Any) -> None:
        """A slice has the attributes of its span, with the sync chain."""
        event = next(
            packet.track_event
            for packet in packets
            if packet.track_event.name == "await_ Prices.__getitem__"
        )
        values = {annotation.name: annotation for annotation in event.debug_annotations}
        assert values["code.function.name"].string_value == "__main__.Prices.__getitem__"
        assert values["greenback.suspended"].bool_value is True
        assert values["greenback.sync_depth"].int_value == 3
        assert values["greenback.suspended_time"].double_value > 0
        chain = [item.string_value for item in values["greenback.sync_chain"].array_values]
        assert [caller.split(" ")[0] for caller in chain] == [
            "__main__.bill",
            f"__main__.{GENEXPR}",
            "__main__.Prices.__getitem__",
        ]

    def test_deep(self) -> None:
        """Spans may be nested thousands of times."""
        spans = [
            Span(
                id=str(number),
                parent="",
                portal="portal",
                name="await_ f",
                start=number,
                end=100_000 - number,
                process=Process("shop", 1),
                failed=False,
                attributes={"greenback.sync_chain": ("f",)},
            )
            for number in range(3_000)
        ]
        assert len(b"".join(perfetto(lanes(spans)))) > 3_000
