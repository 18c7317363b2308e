"""A timeline -> a trace for https://ui.perfetto.dev, in its native format.

This module spells out the part of the protobuf schema that it needs
(protos/perfetto/trace/perfetto_trace.proto). The package with the whole schema does not work with
the protobuf of Python 3.8.
"""

from __future__ import annotations

from itertools import count
from typing import Any, Dict, Iterable, Iterator, List, Tuple

from google.protobuf.descriptor_pb2 import FieldDescriptorProto, FileDescriptorProto
from google.protobuf.descriptor_pool import DescriptorPool
from google.protobuf.message_factory import GetMessageClass

from .timeline import Lane, Process, Slice

_PACKAGE = "perfetto.protos"
#: Number and type of each field, by message and name. A star marks repeated fields.
_SCHEMA = {
    "Trace": {"packet": "1 TracePacket *"},
    "TracePacket": {
        "timestamp": "8 uint64",
        "trusted_packet_sequence_id": "10 uint32",
        "track_event": "11 TrackEvent",
        "track_descriptor": "60 TrackDescriptor",
    },
    "TrackDescriptor": {
        "uuid": "1 uint64",
        "name": "2 string",
        "process": "3 ProcessDescriptor",
        "parent_uuid": "5 uint64",
        "child_ordering": "11 int32",
        "sibling_order_rank": "12 int32",
        "sibling_merge_behavior": "15 int32",
    },
    "ProcessDescriptor": {"pid": "1 int32", "process_name": "6 string"},
    "TrackEvent": {
        "debug_annotations": "4 DebugAnnotation *",
        "type": "9 int32",
        "track_uuid": "11 uint64",
        "categories": "22 string *",
        "name": "23 string",
    },
    "DebugAnnotation": {
        "bool_value": "2 bool",
        "int_value": "4 int64",
        "double_value": "5 double",
        "string_value": "6 string",
        "name": "10 string",
        "array_values": "12 DebugAnnotation *",
    },
}
# Enums are integers on the wire.
_SLICE_BEGIN, _SLICE_END = 1, 2
_ORDER_EXPLICIT = 3
_NEVER_MERGE = 2
_SEQUENCE = 1


def perfetto(lanes: Iterable[Lane]) -> Iterator[bytes]:
    """The file in parts. Each lane is a track of its process."""
    messages = _messages()
    processes: Dict[Process, int] = {}
    numbers = count(1)
    for rank, lane in enumerate(lanes):
        trace = messages["Trace"]()
        process = processes.get(lane.process)
        if process is None:
            process = processes[lane.process] = next(numbers)
            track = trace.packet.add().track_descriptor
            track.uuid = process
            track.child_ordering = _ORDER_EXPLICIT
            track.process.process_name = lane.process.service
            track.process.pid = lane.process.pid
        track = trace.packet.add().track_descriptor
        track.uuid = uuid = next(numbers)
        track.parent_uuid = process
        track.name = lane.name
        track.sibling_order_rank = rank
        track.sibling_merge_behavior = _NEVER_MERGE
        for each in lane.slices:
            _add(trace, each, uuid)
        # Protobuf reads serialized messages one after another as one message with all packets.
        yield trace.SerializeToString()


def _add(trace: Any, outermost: Slice, track: int) -> None:
    # Without recursion: a trace may claim thousands of slices, each inside the next.
    left: List[Tuple[Slice, bool]] = [(outermost, False)]
    while left:
        each, has_begun = left.pop()
        if has_begun:
            _event(trace, each.end, track).type = _SLICE_END
            continue
        _begin(trace, each, track)
        left.append((each, True))
        left += [(below, False) for below in reversed(each.below)]


def _begin(trace: Any, each: Slice, track: int) -> None:
    event = _event(trace, each.start, track)
    event.type = _SLICE_BEGIN
    event.name = each.name
    event.categories.append(each.kind)
    if each.span is not None:
        attributes = {"error": each.span.failed, **each.span.attributes}
        for name, value in attributes.items():
            annotation = event.debug_annotations.add(name=name)
            for item in value if isinstance(value, tuple) else [value]:
                to = annotation.array_values.add() if isinstance(value, tuple) else annotation
                _set(to, item)


def _event(trace: Any, time: int, track: int) -> Any:
    packet = trace.packet.add(timestamp=time, trusted_packet_sequence_id=_SEQUENCE)
    packet.track_event.track_uuid = track
    return packet.track_event


def _set(annotation: Any, value: Any) -> None:
    if isinstance(value, bool):
        annotation.bool_value = value
    elif isinstance(value, int):
        annotation.int_value = value
    elif isinstance(value, float):
        annotation.double_value = value
    else:
        annotation.string_value = str(value)


def _messages() -> Dict[str, Any]:
    file = FileDescriptorProto(name="trace.proto", package=_PACKAGE, syntax="proto2")
    for name, fields in _SCHEMA.items():
        message = file.message_type.add(name=name)
        for field, description in fields.items():
            number, kind, *several = description.split()
            added = message.field.add(name=field, number=int(number))
            added.label = (
                FieldDescriptorProto.LABEL_REPEATED
                if several
                else FieldDescriptorProto.LABEL_OPTIONAL
            )
            if kind in _SCHEMA:
                added.type = FieldDescriptorProto.TYPE_MESSAGE
                added.type_name = f".{_PACKAGE}.{kind}"
            else:
                added.type = getattr(FieldDescriptorProto, f"TYPE_{kind.upper()}")
    pool = DescriptorPool()
    pool.Add(file)
    return {
        name: GetMessageClass(pool.FindMessageTypeByName(f"{_PACKAGE}.{name}")) for name in _SCHEMA
    }
