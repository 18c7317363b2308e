"""The parts of an OTLP request that a report is made from, decoded by msgspec.

msgspec makes these objects only, and skips the rest. That is twice as fast as a parser that makes
all objects, and four times as fast as the standard library's. See `benchmarks/loading.py`.
"""

# ruff: noqa: FA100, N815  (msgspec evaluates the annotations; the names are those of OTLP)
from typing import List, Optional, Union

import msgspec

__all__ = [
    "Attribute",
    "Error",
    "Integer",
    "Metric",
    "Point",
    "Request",
    "Resource",
    "ScopeMetrics",
    "ScopeSpans",
    "Span",
    "Value",
    "decode",
]

#: A number of JavaScript cannot hold 64 bits, so OTLP writes a string, and reads both.
Integer = Union[int, str]


class _Part(msgspec.Struct, gc=False, omit_defaults=True):
    """A part of a request. If it is encoded again, it has only the fields that it was read with."""


class Array(_Part, gc=False):
    values: "List[Value]" = []


class Value(_Part, gc=False):
    stringValue: Optional[str] = None
    intValue: Optional[Integer] = None
    doubleValue: Optional[float] = None
    boolValue: Optional[bool] = None
    arrayValue: Optional[Array] = None


class Attribute(_Part, gc=False):
    key: str
    value: Value


class Link(_Part, gc=False):
    spanId: str = ""


class Status(_Part, gc=False):
    code: Integer = 0


class Span(_Part, gc=False):
    startTimeUnixNano: Integer
    endTimeUnixNano: Integer
    spanId: str = ""
    parentSpanId: str = ""
    name: str = ""
    status: Optional[Status] = None
    attributes: List[Attribute] = []
    links: List[Link] = []


class Scope(_Part, gc=False):
    name: str = ""


class ScopeSpans(_Part, gc=False):
    scope: Optional[Scope] = None
    spans: List[Span] = []


class Resource(_Part, gc=False):
    attributes: List[Attribute] = []


class ResourceSpans(_Part, gc=False):
    resource: Optional[Resource] = None
    scopeSpans: List[ScopeSpans] = []


class Point(_Part, gc=False):
    """A point of a counter, a gauge or a histogram."""

    attributes: List[Attribute] = []
    startTimeUnixNano: Integer = 0
    timeUnixNano: Integer = 0
    asInt: Optional[Integer] = None
    asDouble: Optional[float] = None
    bucketCounts: List[Integer] = []
    explicitBounds: List[float] = []


class Data(_Part, gc=False):
    dataPoints: List[Point] = []
    aggregationTemporality: Integer = 0


class Metric(_Part, gc=False):
    name: str
    sum: Optional[Data] = None
    gauge: Optional[Data] = None
    histogram: Optional[Data] = None


class ScopeMetrics(_Part, gc=False):
    scope: Optional[Scope] = None
    metrics: List[Metric] = []


class ResourceMetrics(_Part, gc=False):
    resource: Optional[Resource] = None
    scopeMetrics: List[ScopeMetrics] = []


class Request(_Part, gc=False):
    """A request with one or several signals. A missing signal is None. Logs are not decoded."""

    resourceSpans: Optional[List[ResourceSpans]] = None
    resourceMetrics: Optional[List[ResourceMetrics]] = None
    resourceLogs: Optional[List[msgspec.Raw]] = None


decode = msgspec.json.Decoder(Request).decode
#: `decode` raises this. It is a ValueError only since msgspec 0.19.
Error = msgspec.MsgspecError
