"""A line of OTLP JSON -> a request, with the parts that a report is made from."""

# ruff: noqa: N815  (the names are those of OTLP)
from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, Callable, Dict, Optional, Tuple, Type, cast

if TYPE_CHECKING:
    from .structs import Request

_fast: Optional[Callable[[bytes], Request]] = None
_REFUSED: Tuple[Type[Exception], ...] = (ValueError, RecursionError)
try:
    from . import structs

    _fast, _REFUSED = structs.decode, (*_REFUSED, structs.Error)
except ImportError:  # PyPy, or msgspec is not installed
    pass


class NotOTLPError(Exception):
    """The line is no request of OTLP. The message says why."""


def decode(line: bytes) -> Optional[Request]:
    """The request in a line; None for an empty line.

    Raises:
        NotOTLPError: The line is not JSON, or not a request.
    """
    if not line.strip():
        return None
    request = None
    if _fast is not None:
        try:
            request = _fast(line)
        except _REFUSED:
            pass  # msgspec refuses null, NaN and a byte order mark, which `_decode` reads
    if request is None:
        request = _decode(line)
    if (
        request.resourceSpans is None
        and request.resourceMetrics is None
        and request.resourceLogs is None
    ):
        raise NotOTLPError("JSON, but not a request of OTLP")
    return request


class _Object:
    """A JSON object with its fields as attributes, which have defaults if the field is missing.

    The defaults are those of the classes in `structs`.
    """

    stringValue = intValue = doubleValue = boolValue = arrayValue = None
    scope = resource = status = sum = gauge = histogram = asInt = asDouble = None
    resourceSpans = resourceMetrics = resourceLogs = None
    attributes = links = spans = scopeSpans = metrics = scopeMetrics = values = ()
    dataPoints = bucketCounts = explicitBounds = ()
    startTimeUnixNano = timeUnixNano = aggregationTemporality = code = 0
    name = spanId = parentSpanId = ""

    def __init__(self, fields: Dict[str, Any]) -> None:
        if None in fields.values():  # a field that is null counts as missing
            fields = {name: value for name, value in fields.items() if value is not None}
        self.__dict__ = fields


def _decode(line: bytes) -> Request:
    try:
        found = json.loads(line, object_hook=_Object)
    except (ValueError, RecursionError) as error:
        raise NotOTLPError(f"not JSON ({error})") from None
    if not isinstance(found, _Object):
        raise NotOTLPError("JSON, but not a request of OTLP")
    for signal in ("resourceSpans", "resourceMetrics", "resourceLogs"):
        if not isinstance(getattr(found, signal), (list, type(None))):
            raise NotOTLPError("JSON, but not a request of OTLP")
    return cast("Request", found)
