"""Spans -> what each task did when: its portals, the bridges in them, the steps between those.

A lane is what one task did after another. Portals share a lane if their tasks have one name and
they do not overlap: Trio's tasks are called after their function, and many have the same name.
"""

from __future__ import annotations

import heapq
from dataclasses import dataclass, field
from itertools import count
from typing import Any, Dict, Iterable, Iterator, List, NamedTuple, Optional, Sequence, Tuple

from ..read.checked import Span as CheckedSpan
from ..read.inputs import NothingToReportError
from ..read.load import load
from ..read.trace import Trace

#: The kinds of slices.
PORTAL, BRIDGE, STEP = "portal", "bridge", "step"
#: The name of a step that held the event loop for longer than GREENBACK_TRACE_SLOW.
SLOW_STEP = "slow step"


class Process(NamedTuple):
    """What tells a process from others, as its resource has it."""

    service: str
    #: 0 if it is not known. In containers, all have the same.
    pid: int
    instance: str = ""


@dataclass
class Span:
    """A span of greenback. Times are in nanoseconds since 1970."""

    id: str
    parent: str
    #: The id of the span of the portal that a bridge belongs to, if it is known.
    portal: str
    name: str
    start: int
    end: int
    process: Process
    failed: bool
    attributes: Dict[str, Any]


@dataclass
class Slice:
    """A stretch of time in a lane. Those below are within it, one after another."""

    kind: str
    name: str
    start: int
    end: int
    #: None for steps, which are worked out.
    span: Optional[Span] = None
    below: List[Slice] = field(default_factory=list)


@dataclass
class Lane:
    process: Process
    name: str
    slices: List[Slice] = field(default_factory=list)


def read(paths: Sequence[str]) -> Tuple[Trace, List[Span]]:
    """What files say, and the spans of greenback in them, in one pass.

    Raises:
        NothingToReportError: A file cannot be read, or none has anything of greenback in it.
    """
    spans: List[Span] = []
    trace = load(paths, on_span=lambda span, about: spans.append(_span(span, about)))
    return trace, spans


def lanes(spans: Iterable[Span]) -> List[Lane]:
    """Lay *spans* out, in the order in which the lanes begin.

    Raises:
        NothingToReportError: There are none.
    """
    portals: Dict[str, _Portal] = {}
    # A bridge without a portal that is known goes into a lane with the others of its process.
    alone = count()
    for span in spans:
        if span.name.startswith("portal "):
            portals.setdefault(span.id, _Portal(span.process)).span = span
        else:
            key = span.portal or f"alone {next(alone)}"
            portals.setdefault(key, _Portal(span.process)).bridges.append(span)
    if not portals:
        raise NothingToReportError(
            "the trace has no spans, which a timeline is made of. Run the program with "
            "GREENBACK_TRACE=1 GREENBACK_TRACE_FILE=trace.jsonl, and GREENBACK_TRACE_SPANS unset"
        )
    return _packed(_nested(portals))


def all_slices(slices: Iterable[Slice]) -> Iterator[Slice]:
    """*slices* and those below them, in no order."""
    left = list(slices)
    while left:
        each = left.pop()
        yield each
        left += each.below


@dataclass
class _Portal:
    process: Process
    span: Optional[Span] = None
    bridges: List[Span] = field(default_factory=list)

    @property
    def task(self) -> str:
        name = self.span and self.span.attributes.get("greenback.task.name")
        return str(name or "portals without a span")

    def slices(self) -> List[Slice]:
        bridges = [
            Slice(BRIDGE, span.name, span.start, max(span.start, span.end), span)
            for span in sorted(self.bridges, key=lambda span: (span.start, -span.end))
        ]
        if self.span is None:
            return _stacked(bridges)
        end = max(self.span.start, self.span.end)
        portal = Slice(PORTAL, self.span.name, self.span.start, end, self.span)
        portal.below = _stacked(_clipped(bridges, portal))
        if self._shows_steps():
            portal.below = _with_steps(portal)
        return [portal]

    def _shows_steps(self) -> bool:
        """Whether all of the portal that is not waiting in a bridge holds the event loop.

        Sync code can wait in no other way, but the spans of all the bridges must be there.
        """
        assert self.span is not None
        attributes = self.span.attributes
        suspended = sum(bool(span.attributes.get("greenback.suspended")) for span in self.bridges)
        return (
            attributes.get("greenback.portal.kind") == "run_sync"
            and attributes.get("greenback.portal.suspended") == suspended
        )


def _clipped(slices: List[Slice], within: Slice) -> List[Slice]:
    # A span that was made afterwards starts when it was computed to, some microseconds off.
    for each in slices:
        each.start = min(max(each.start, within.start), within.end)
        each.end = max(each.start, min(each.end, within.end))
    return slices


def _stacked(slices: List[Slice]) -> List[Slice]:
    """Put each slice below the one that it is within. Those that overlap a little no longer do."""
    outermost: List[Slice] = []
    open_: List[Slice] = []
    for each in slices:
        while open_ and (open_[-1].end <= each.start or open_[-1].end < each.end):
            each.start = max(each.start, open_.pop().end)
        each.end = max(each.start, each.end)
        (open_[-1].below if open_ else outermost).append(each)
        open_.append(each)
    return outermost


def _with_steps(portal: Slice) -> List[Slice]:
    """The slices of a portal, with a step around what is between two that wait."""
    result: List[Slice] = []
    step = Slice(STEP, "step", portal.start, portal.start)
    for each in portal.below:
        if _waits(each):
            step.end = each.start
            result += [step, each]
            step = Slice(STEP, "step", each.end, each.end)
        else:
            step.below.append(each)
    step.end = portal.end
    result = [each for each in [*result, step] if each.kind != STEP or each.end > each.start]
    # How many were slow has been counted. Which ones: the longest.
    slow = (
        0 if portal.span is None else portal.span.attributes.get("greenback.portal.slow_steps", 0)
    )
    steps = [each for each in result if each.kind == STEP]
    for each in heapq.nlargest(slow, steps, key=lambda each: each.end - each.start):
        each.name = SLOW_STEP
    return result


def _waits(bridge: Slice) -> bool:
    """Whether the task waits in it: if there are bridges within a bridge, they do that for it."""
    return any(
        each.span is not None and bool(each.span.attributes.get("greenback.suspended"))
        for each in all_slices([bridge])
    )


def _nested(portals: Dict[str, _Portal]) -> List[Tuple[_Portal, List[Slice]]]:
    """The slices of each portal, but those that were opened in a bridge of the same task: these
    are put into the bridge."""
    slices = {key: portal.slices() for key, portal in portals.items()}
    owner = {
        each.span.id: (portals[key], each)
        for key, found in slices.items()
        for each in all_slices(found)
        if each.kind == BRIDGE and each.span is not None
    }
    result = []
    for key, portal in portals.items():
        found = slices[key]
        if portal.span is not None and portal.span.parent in owner:
            outer, bridge = owner[portal.span.parent]
            is_free = not bridge.below or bridge.below[-1].end <= found[0].start
            if outer.task == portal.task and is_free and found[0].end <= bridge.end:
                bridge.below += found
                continue
        result.append((portal, found))
    return result


def _packed(portals: List[Tuple[_Portal, List[Slice]]]) -> List[Lane]:
    result: List[Lane] = []
    # By process and task: when each lane is free, as a heap. The number keeps lanes uncompared.
    free: Dict[Tuple[Process, str], List[Tuple[int, int, Lane]]] = {}
    for portal, slices in sorted(portals, key=lambda item: item[1][0].start):
        heap = free.setdefault((portal.process, portal.task), [])
        if heap and heap[0][0] <= slices[0].start:
            _, number, lane = heapq.heappop(heap)
        else:
            number, lane = len(result), Lane(portal.process, portal.task)
            result.append(lane)
        lane.slices += slices
        heapq.heappush(heap, (slices[-1].end, number, lane))
    return result


def _span(span: CheckedSpan, about: Dict[str, Any]) -> Span:
    return Span(
        id=span.id,
        parent=span.parent,
        portal=span.portal,
        name=span.name,
        start=span.begin,
        end=span.end,
        process=Process(
            str(about.get("service.name", "?")),
            about.get("process.pid", 0),
            str(about.get("service.instance.id", "")),
        ),
        failed=span.failed,
        attributes=span.attributes,
    )
