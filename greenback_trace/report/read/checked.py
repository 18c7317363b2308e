"""A request of OTLP -> what greenback has written in it, with every value checked.

This is the one place that says what a line may have in it. What is behind it can rely on the types
here: texts are Unicode that can be encoded, numbers are finite and within the ranges of OTLP, times
are years that a calendar has. A value that does not fit makes the whole line a broken one.
"""

from __future__ import annotations

from typing import (
    TYPE_CHECKING,
    AbstractSet,
    Any,
    Dict,
    List,
    NamedTuple,
    Tuple,
)

from ...count.caller import Caller
from .otlp import NotOTLPError
from .values import (
    LARGEST,
    LEAST,
    MOST,
    Attributes,
    attributes_of,
    checked_float,
    checked_int,
    encodable,
    time_of,
)

if TYPE_CHECKING:
    from .structs import Request, ScopeMetrics, ScopeSpans

__all__ = [
    "HISTOGRAMS",
    "SITE_METRICS",
    "NewerTraceError",
    "Part",
    "Point",
    "Span",
    "check",
]

#: The metrics per site that a report is made from, as (what it counts, whether per chain).
SITE_METRICS = {
    "greenback.chain.bridges": ("bridges", True),
    "greenback.chain.suspensions": ("suspended", True),
    "greenback.chain.time": ("time", True),
    "greenback.chain.suspended_time": ("suspended_time", True),
    # What any SDK exports: the same numbers, but only per function.
    "greenback.bridges": ("bridges", False),
    "greenback.bridge.suspensions": ("suspended", False),
    "greenback.bridge.time": ("time", False),
    "greenback.bridge.suspended_time": ("suspended_time", False),
}
HISTOGRAMS = {
    "greenback.bridge.duration",
    "greenback.step.duration",
    "greenback.portal.duration",
}
#: What also goes down: a delta of it can be negative.
_ACTIVE = {"greenback.portal.active", "greenback.bridge.active"}
#: Says what the texts of functions in sync chains are made of.
_FUNCTIONS = "greenback.chain.functions"
#: What a report is made from.
_REPORTED = {
    *SITE_METRICS,
    *HISTOGRAMS,
    "greenback.portal.active",
    "greenback.portals",
    "greenback.steps",
    "greenback.step.time",
    "greenback.slow_steps",
    "greenback.misuses",
    "greenback.trace.item.dropped",
}
_DELTA = (1, "1", "AGGREGATION_TEMPORALITY_DELTA")
_FAILED = (2, "2", "STATUS_CODE_ERROR")

#: The latest version of the format that is known. Files of version 1 do not name it.
_VERSION = 2
#: What reading a request raises where something else is in the place of a part.
_MALFORMED = (
    AttributeError,
    IndexError,
    KeyError,
    OverflowError,
    RecursionError,
    TypeError,
    ValueError,
)

#: What a metric has counted: its name, with attributes and, if it is a histogram, bounds in
#: seconds; from when to when, in nanoseconds since 1970; how much; whether as a delta.
Point = Tuple[str, Attributes, Tuple[float, ...], int, int, Tuple[float, ...], bool]


class Span(NamedTuple):
    """A span. Times are in nanoseconds since 1970."""

    name: str
    id: str
    parent: str
    #: The id of the span of the portal that a bridge belongs to; empty if there is none.
    portal: str
    begin: int
    end: int
    failed: bool
    attributes: Dict[str, Any]


class Part(NamedTuple):
    """What a request says of one process."""

    resource: Attributes
    points: List[Point]
    spans: List[Span]
    #: What the texts in sync chains stand for.
    callers: List[Caller]


class NewerTraceError(Exception):
    """A line is of a version that is not known yet. The message says which, and what to do."""


def check(request: Request, wanted: AbstractSet[str] = frozenset(_REPORTED)) -> List[Part]:
    """The parts of a request that are greenback's.

    Args:
        request: What a line says.
        wanted: The names of the metrics whose points are.

    Raises:
        NotOTLPError: Something in it is not what OTLP, or greenback, has in this place.
        NewerTraceError: A newer greenback has written it.
    """
    try:
        return _parts(request, wanted)
    except _MALFORMED as error:
        raise NotOTLPError(f"not a request of OTLP ({type(error).__name__}: {error})") from None


def _parts(request: Request, wanted: AbstractSet[str]) -> List[Part]:
    found = [
        Part(_about(resource_metrics), _points(scope_metrics, wanted), [], _callers(scope_metrics))
        for resource_metrics in request.resourceMetrics or ()
        for scope_metrics in resource_metrics.scopeMetrics
        if _is_ours(scope_metrics)
    ]
    found += [
        Part(_about(resource_spans), [], _spans(scope_spans), [])
        for resource_spans in request.resourceSpans or ()
        for scope_spans in resource_spans.scopeSpans
        if _is_ours(scope_spans)
    ]
    return found


def _is_ours(scope: Any) -> bool:
    return scope.scope is not None and scope.scope.name == "greenback"


def _about(part: Any) -> Attributes:
    if part.resource is None:
        return []
    found = attributes_of(part.resource.attributes)
    for key, value in found:
        if key == "greenback.trace.version" and value > _VERSION:
            raise NewerTraceError(
                f"a trace of version {value}, and this greenback reads those up to version "
                f"{_VERSION}. Upgrade it: pip install --upgrade greenback"
            )
    return found


def _spans(scope_spans: ScopeSpans) -> List[Span]:
    found: List[Span] = []
    for span in scope_spans.spans:
        name, number, parent = span.name, span.spanId, span.parentSpanId
        portal = span.links[0].spanId if span.links else ""
        if not (type(name) is type(number) is type(parent) is type(portal) is str):
            raise NotOTLPError("the name or an id of a span is no text")
        if not name.isascii():
            encodable("the name of a span", name)
        found.append(
            Span(
                name,
                number,
                parent,
                portal,
                time_of("startTimeUnixNano", span.startTimeUnixNano),
                time_of("endTimeUnixNano", span.endTimeUnixNano),
                span.status is not None and span.status.code in _FAILED,
                dict(attributes_of(span.attributes)),
            )
        )
    return found


def _callers(scope_metrics: ScopeMetrics) -> List[Caller]:
    found: List[Caller] = []
    for metric in scope_metrics.metrics:
        if metric.name == _FUNCTIONS and metric.gauge is not None:
            for point in metric.gauge.dataPoints:
                parts = dict(attributes_of(point.attributes))
                if "greenback.function.qualname" not in parts:
                    raise NotOTLPError(f"{_FUNCTIONS} has a function without a name")
                found.append(
                    Caller(
                        parts.get("greenback.function.module", ""),
                        parts["greenback.function.qualname"],
                        parts.get("code.file.path", ""),
                        parts.get("code.line.number", 0),
                    )
                )
    return found


def _points(scope_metrics: ScopeMetrics, wanted: AbstractSet[str]) -> List[Point]:
    found: List[Point] = []
    # Neighbours have the same times: one object for all, since it is kept.
    start: Tuple[Any, int] = ("", 0)
    time: Tuple[Any, int] = ("", 0)
    for metric in scope_metrics.metrics:
        name = metric.name
        if name not in wanted:
            continue
        is_histogram = name in HISTOGRAMS
        data = metric.histogram if is_histogram else metric.sum or metric.gauge
        if data is None:
            continue
        is_delta = data.aggregationTemporality in _DELTA
        least = LEAST if name in _ACTIVE else 0
        bounds: Tuple[float, ...] = ()
        for point in data.dataPoints:
            if start[0] != point.startTimeUnixNano:
                given = point.startTimeUnixNano
                start = given, time_of("startTimeUnixNano", given)
            if time[0] != point.timeUnixNano:
                given = point.timeUnixNano
                time = given, time_of("timeUnixNano", given)
            value: Tuple[float, ...]
            if is_histogram:
                bounds = tuple([checked_float(name, each, 0) for each in point.explicitBounds])
                counts = [checked_int(name, each, 0, MOST) for each in point.bucketCounts]
                value = tuple(map(float, counts))
                if value and len(value) != len(bounds) + 1:
                    raise NotOTLPError(f"{name} has {len(value)} buckets, {len(bounds)} bounds")
            else:
                number, double = point.asInt, point.asDouble
                if number is None and type(double) is float and 0 <= double <= LARGEST:
                    value = (double,)
                elif number is None:
                    value = (checked_float(name, double or 0, least),)
                elif type(number) is str and len(number) < 19 and number.isdigit():
                    value = (float(number),)
                else:
                    value = (float(checked_int(name, number, least, MOST)),)
            attributes = attributes_of(point.attributes)
            found.append((name, attributes, bounds, start[1], time[1], value, is_delta))
    return found
