"""A request of OTLP -> what greenback has written in it, with every value checked.

This is the one place that says what a line may have in it. What is behind it can rely on the types
here: texts are Unicode that can be encoded, numbers are finite and within the ranges of OTLP, times
are years that a calendar has. A value that does not fit makes the whole line a broken one.
"""

from __future__ import annotations

from math import isfinite
from typing import (
    TYPE_CHECKING,
    AbstractSet,
    Any,
    Callable,
    Dict,
    List,
    NamedTuple,
    Sequence,
    Tuple,
    cast,
)

from ...count.caller import Caller
from .otlp import NotOTLPError

if TYPE_CHECKING:
    from .structs import Attribute, Request, ScopeMetrics, ScopeSpans, Value

__all__ = [
    "HISTOGRAMS",
    "SITE_METRICS",
    "Attributes",
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

_LEAST, _MOST = -(1 << 63), (1 << 63) - 1
#: Of a time, in nanoseconds since 1970: what 64 bits hold, the year 2554.
_LATEST = (1 << 64) - 1
#: Of seconds, and of what is counted. Sums of these are finite.
_LARGEST = float(1 << 64)
_LINES = _PIDS = (1 << 31) - 1
#: Functions in a sync chain. Greenback itself writes 32 at most.
_FRAMES = 128
#: Arrays within an array.
_DEEPEST = 8
#: Letters of a number in a string.
_DIGITS = 40
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

#: In the order of the file.
Attributes = List[Tuple[str, Any]]


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
    found = _attributes(part.resource.attributes)
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
            _encode("the name of a span", name)
        found.append(
            Span(
                name,
                number,
                parent,
                portal,
                _time("startTimeUnixNano", span.startTimeUnixNano),
                _time("endTimeUnixNano", span.endTimeUnixNano),
                span.status is not None and span.status.code in _FAILED,
                dict(_attributes(span.attributes)),
            )
        )
    return found


def _callers(scope_metrics: ScopeMetrics) -> List[Caller]:
    found: List[Caller] = []
    for metric in scope_metrics.metrics:
        if metric.name == _FUNCTIONS and metric.gauge is not None:
            for point in metric.gauge.dataPoints:
                parts = dict(_attributes(point.attributes))
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
        least = _LEAST if name in _ACTIVE else 0
        bounds: Tuple[float, ...] = ()
        for point in data.dataPoints:
            if start[0] != point.startTimeUnixNano:
                given = point.startTimeUnixNano
                start = given, _time("startTimeUnixNano", given)
            if time[0] != point.timeUnixNano:
                given = point.timeUnixNano
                time = given, _time("timeUnixNano", given)
            value: Tuple[float, ...]
            if is_histogram:
                bounds = tuple([_double(name, each, 0) for each in point.explicitBounds])
                counts = [_integer(name, each, 0, _MOST) for each in point.bucketCounts]
                value = tuple(map(float, counts))
                if value and len(value) != len(bounds) + 1:
                    raise NotOTLPError(f"{name} has {len(value)} buckets, {len(bounds)} bounds")
            else:
                number, double = point.asInt, point.asDouble
                if number is None and type(double) is float and 0 <= double <= _LARGEST:
                    value = (double,)
                elif number is None:
                    value = (_double(name, double or 0, least),)
                elif type(number) is str and len(number) < 19 and number.isdigit():
                    value = (float(number),)
                else:
                    value = (float(_integer(name, number, least, _MOST)),)
            attributes = _attributes(point.attributes)
            found.append((name, attributes, bounds, start[1], time[1], value, is_delta))
    return found


def _attributes(attributes: Sequence[Attribute]) -> Attributes:
    # Half of the time of a report goes by here.
    found: Attributes = []
    readers = _READERS
    for each in attributes:
        key, value = each.key, each.value
        reader: Callable[[str, Any], Any] = readers.get(key, _anything)
        text = value.stringValue
        number = value.intValue
        # What nearly all are, without a call.
        if reader is _text and type(text) is str and text.isascii():
            found.append((key, text))
        elif reader is _count and type(number) is str and len(number) < 19 and number.isdigit():
            found.append((key, int(number)))
        else:
            found.append((key, reader(key, value)))
    return found


def _text(key: str, value: Value) -> str:
    text = value.stringValue
    if text is None and _is_empty(value):
        return ""
    if type(text) is not str:
        raise NotOTLPError(f"{key} is no text")
    return _encode(key, text)


def _path(key: str, value: Value) -> str:
    text = _text(key, value)
    if "\0" in text:
        raise NotOTLPError(f"{key} has a NUL in it, which no path has")
    return text


def _texts(key: str, value: Value) -> Tuple[str, ...]:
    """A sync chain."""
    array = value.arrayValue
    if array is None:
        raise NotOTLPError(f"{key} is no array")
    texts: Any = tuple([each.stringValue for each in array.values])
    if len(texts) > _FRAMES:
        raise NotOTLPError(f"{key} has more than {_FRAMES} functions")
    try:
        joined = "".join(texts)
    except TypeError:
        raise NotOTLPError(f"{key} has something else than texts in it") from None
    _encode(key, joined)
    if "\0" in joined:
        raise NotOTLPError(f"{key} has a NUL in it, which no path has")
    return cast("Tuple[str, ...]", texts)


def _flag(key: str, value: Value) -> bool:
    if type(value.boolValue) is not bool:
        raise NotOTLPError(f"{key} is neither true nor false")
    return value.boolValue


def _count(key: str, value: Value) -> int:
    return _integer(key, _number(key, value), 0, _MOST)


def _line(key: str, value: Value) -> int:
    return _integer(key, _number(key, value), 0, _LINES)


def _version(key: str, value: Value) -> int:
    return _integer(key, _number(key, value), 1, _MOST)


def _pid(key: str, value: Value) -> int:
    return _integer(key, _number(key, value), 0, _PIDS)


def _seconds(key: str, value: Value) -> float:
    return _double(key, _number(key, value), 0)


def _number(key: str, value: Value) -> Any:
    number = value.doubleValue if value.intValue is None else value.intValue
    if number is None:
        raise NotOTLPError(f"{key} is no number")
    return number


def _anything(key: str, value: Value) -> Any:
    """An attribute that is not greenback's: any value, but one that can be written again."""
    if type(key) is not str:
        raise NotOTLPError("the key of an attribute is no text")
    return _plain(_encode("the key of an attribute", key), value, 0)


def _plain(key: str, value: Value, depth: int) -> Any:
    if value.stringValue is not None:
        return _text(key, value)
    if value.intValue is not None:
        return _integer(key, value.intValue, _LEAST, _MOST)
    if value.arrayValue is not None:
        if depth == _DEEPEST:
            raise NotOTLPError(f"{key} has arrays that are nested deeper than {_DEEPEST}")
        values = value.arrayValue.values or ()
        return tuple([_plain(key, each, depth + 1) for each in values])
    if value.boolValue is not None:
        return _flag(key, value)
    if value.doubleValue is None:
        return ""
    try:
        number = float(value.doubleValue)
    except ValueError:  # not for `check` to show: of half of a surrogate pair, PyPy's cannot be
        raise NotOTLPError(f"{key} is no number{_shown(value.doubleValue)}") from None
    # There is no number in JSON for NaN: others may well write it, as a text.
    return number if isfinite(number) else str(number)


def _is_empty(value: Value) -> bool:
    return (
        value.intValue is None
        and value.doubleValue is None
        and value.boolValue is None
        and value.arrayValue is None
    )


def _encode(what: str, text: str) -> str:
    """The text, if it can be encoded: JSON can have half of a surrogate pair."""
    if not text.isascii():
        try:
            text.encode()
        except UnicodeEncodeError:
            raise NotOTLPError(f"{what} has half of a surrogate pair: {ascii(text)[:60]}") from None
    return text


def _time(what: str, value: Any) -> int:
    if type(value) is str and len(value) < 20 and value.isdigit():
        return int(value)
    return _integer(what, value, 0, _LATEST)


def _integer(what: str, value: Any, least: int, most: int) -> int:
    number = None
    if type(value) is str:
        try:
            number = int(value) if len(value) <= _DIGITS else None
        except ValueError:
            pass
    elif type(value) is int:
        number = value
    elif type(value) is float and value.is_integer():
        number = int(value)
    if number is None:
        raise NotOTLPError(f"{what} is no whole number{_shown(value)}")
    if not least <= number <= most:
        raise NotOTLPError(f"{what} is out of range{_shown(value)}")
    return number


def _double(what: str, value: Any, least: float) -> float:
    if type(value) not in (float, int, str) or (type(value) is str and len(value) > _DIGITS):
        raise NotOTLPError(f"{what} is no number{_shown(value)}")
    try:
        number = float(value)
    except ValueError:
        raise NotOTLPError(f"{what} is no number{_shown(value)}") from None
    except OverflowError:
        raise NotOTLPError(f"{what} is out of range") from None
    if not least <= number <= _LARGEST:  # which NaN is not
        raise NotOTLPError(f"{what} is out of range{_shown(value)}")
    return number


def _shown(value: Any) -> str:
    """A value, where it is a short one."""
    if type(value) is int and not -_LARGEST <= value <= _LARGEST:
        return ""
    return f": {ascii(value)[:_DIGITS]}" if isinstance(value, (float, int, str)) else ""


#: What the attributes that a report is made from have to be.
_READERS: Dict[str, Callable[[str, Any], Any]] = {
    "code.file.path": _path,
    "code.function.name": _text,
    "code.line.number": _line,
    "error.type": _text,
    "greenback.async_library": _text,
    "greenback.awaitable": _text,
    "greenback.function.module": _path,
    "greenback.function.qualname": _path,
    "greenback.misuse.kind": _text,
    "greenback.outcome": _text,
    "greenback.portal.bridges": _count,
    "greenback.portal.errors": _count,
    "greenback.portal.kind": _text,
    "greenback.portal.slow_steps": _count,
    "greenback.portal.suspended": _count,
    "greenback.portal.switches": _count,
    "greenback.slow_step_time": _seconds,
    "greenback.suspended": _flag,
    "greenback.suspended_time": _seconds,
    "greenback.switches": _count,
    "greenback.sync_chain": _texts,
    "greenback.sync_depth": _count,
    "greenback.task.name": _text,
    "greenback.trace.drop.reason": _text,
    "greenback.trace.item": _text,
    "greenback.trace.version": _version,
    "process.pid": _pid,
}
