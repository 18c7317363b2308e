"""OTLP JSON lines -> the totals in them.

A counter is written again and again with all that it has counted so far, so the last point of each
series is what counts. A series is told apart by the process that wrote it (its resource), by when
it began, and by its attributes.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import Any, Dict, Iterator, List, Optional, Tuple

_DELTA = 1
#: The metrics that a report is made from, as (what it counts, whether per chain).
_SITE_METRICS = {
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
_PORTAL_METRICS = {"greenback.portals": "opened", "greenback.portal.active": "active"}

_Attributes = Tuple[Tuple[str, Any], ...]


class NothingToReportError(Exception):
    """The files have nothing in them that could be reported. The message says what to do."""


@dataclass
class Numbers:
    """What was counted. Times are in seconds."""

    ok: float = 0
    errors: float = 0
    cancelled: float = 0
    suspended: float = 0
    time: float = 0
    suspended_time: float = 0

    @property
    def bridges(self) -> float:
        return self.ok + self.errors + self.cancelled

    def add(self, other: Numbers) -> None:
        self.ok += other.ok
        self.errors += other.errors
        self.cancelled += other.cancelled
        self.suspended += other.suspended
        self.time += other.time
        self.suspended_time += other.suspended_time


@dataclass
class SiteReport(Numbers):
    """The bridges of one site, and of each sync chain that led to it."""

    function: str = ""
    #: Empty, and ``line`` 0, if the trace does not tell.
    file: str = ""
    line: int = 0
    chains: Dict[Tuple[str, ...], Numbers] = field(default_factory=dict)


@dataclass
class PortalReport:
    """The portals of one kind: how many were opened, and how many were open at the end."""

    opened: float = 0
    active: float = 0


@dataclass
class Trace:
    """What the files say.

    Attributes:
        sites: By total time, the longest first.
        portals: By kind.
        processes: How many processes wrote the files.
        spans: The spans of greenback that are in them.
        broken: Lines that are not OTLP JSON, as ``file:line: why``.
    """

    sites: List[SiteReport] = field(default_factory=list)
    portals: Dict[str, PortalReport] = field(default_factory=dict)
    processes: int = 0
    spans: int = 0
    broken: List[str] = field(default_factory=list)


class _Series:
    """The points of one series of one metric, added up or replaced as they come."""

    def __init__(self) -> None:
        # By start time: a process that starts its counters again begins another run of points.
        self._runs: Dict[int, Tuple[int, float]] = {}
        self._sum = 0.0

    def add(self, point: Dict[str, Any], is_delta: bool) -> None:
        value = float(point["asInt"] if "asInt" in point else point.get("asDouble", 0))
        if is_delta:
            self._sum += value
            return
        start, time = int(point.get("startTimeUnixNano", 0)), int(point.get("timeUnixNano", 0))
        if time >= self._runs.get(start, (0, 0.0))[0]:
            self._runs[start] = time, value

    def total(self) -> float:
        return self._sum + sum(value for _, value in self._runs.values())

    def latest(self) -> float:
        return max(self._runs.values(), default=(0, self._sum))[1]


_Points = Dict[Tuple[_Attributes, str, _Attributes], _Series]


def load(paths: List[str]) -> Trace:
    """Read files of OTLP JSON lines, as ``GREENBACK_TRACE_FILE`` or a Collector writes them.

    Raises:
        NothingToReportError: A file cannot be read, or none has metrics of greenback in it.
    """
    trace = Trace()
    points: _Points = {}
    lines = 0
    for path in paths:
        try:
            with open(path, "rb") as file:
                for number, line in enumerate(file, 1):
                    if line.strip():
                        lines += 1
                        why = _read_line(line, points, trace)
                        if why is not None:
                            trace.broken.append(f"{path}:{number}: {why}")
        except OSError as error:
            raise NothingToReportError(
                f"{path} cannot be read: {error.strerror}. Name the file that a program has "
                "written with GREENBACK_TRACE=1 and GREENBACK_TRACE_FILE set"
            ) from None
    _collect(points, trace)
    if not trace.sites and not trace.portals:
        raise NothingToReportError(_why_nothing(paths, lines, trace))
    return trace


def _why_nothing(paths: List[str], lines: int, trace: Trace) -> str:
    names = ", ".join(paths)
    advice = (
        "run the program with GREENBACK_TRACE=1 GREENBACK_TRACE_FILE=trace.jsonl, let it "
        "open a portal, and give it 5 seconds or a normal exit to write"
    )
    if not lines:
        return f"{names}: empty. To have something in it, {advice}"
    if len(trace.broken) == lines:
        return f"{names}: no line is OTLP JSON ({trace.broken[0]}). To get a trace, {advice}"
    return f"{names}: no metrics of greenback in {lines} lines. To get some, {advice}"


def _read_line(line: bytes, points: _Points, trace: Trace) -> Optional[str]:
    """Add what a line says, or return what is wrong with it."""
    try:
        request = json.loads(line)
    except ValueError as error:
        return f"not JSON ({error})"
    if not isinstance(request, dict) or not any(
        isinstance(request.get(name), list)
        for name in ("resourceMetrics", "resourceSpans", "resourceLogs")
    ):
        return "JSON, but not a request of OTLP"
    try:
        found = list(_points(request))
        trace.spans += sum(
            len(scope.get("spans", ()))
            for resource in request.get("resourceSpans", ())
            for scope in resource.get("scopeSpans", ())
            if scope.get("scope", {}).get("name") == "greenback"
        )
        for key, point, is_delta in found:
            points.setdefault(key, _Series()).add(point, is_delta)
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        return f"not a request of OTLP ({type(error).__name__}: {error})"
    return None


def _points(
    request: Dict[str, Any],
) -> Iterator[Tuple[Tuple[_Attributes, str, _Attributes], Dict[str, Any], bool]]:
    for resource in request.get("resourceMetrics", ()):
        process = _attributes(resource.get("resource", {}))
        for scope in resource.get("scopeMetrics", ()):
            if scope.get("scope", {}).get("name") != "greenback":
                continue
            for metric in scope.get("metrics", ()):
                name = metric["name"]
                if name not in _SITE_METRICS and name not in _PORTAL_METRICS:
                    continue
                data = metric.get("sum", {})
                is_delta = data.get("aggregationTemporality") == _DELTA
                for point in data.get("dataPoints", ()):
                    yield (process, name, _attributes(point)), point, is_delta


def _attributes(fields: Dict[str, Any]) -> _Attributes:
    return tuple(
        sorted(
            (attribute["key"], _value(attribute.get("value", {})))
            for attribute in fields.get("attributes", ())
        )
    )


def _value(value: Dict[str, Any]) -> Any:
    for kind, content in value.items():
        if kind == "intValue":
            return int(content)
        if kind == "arrayValue":
            return tuple(_value(item) for item in content.get("values", ()))
        return content if isinstance(content, (str, int, float)) else json.dumps(content)
    return ""


def _collect(points: _Points, trace: Trace) -> None:
    with_chains = {
        process for process, name, _ in points if _SITE_METRICS.get(name, ("", False))[1]
    }
    sites: Dict[Tuple[str, str, int], SiteReport] = {}
    for (process, name, attributes), series in points.items():
        values = dict(attributes)
        if name in _PORTAL_METRICS:
            kind = str(values.get("greenback.portal.kind", "?"))
            portals = trace.portals.setdefault(kind, PortalReport())
            if _PORTAL_METRICS[name] == "opened":
                portals.opened += series.total()
            else:
                portals.active += series.latest()
            continue
        what, is_per_chain = _SITE_METRICS[name]
        if is_per_chain != (process in with_chains):
            continue  # said twice
        key = (
            str(values.get("code.function.name", "?")),
            str(values.get("code.file.path", "")),
            int(values.get("code.line.number", 0)),
        )
        site = sites.setdefault(key, SiteReport(function=key[0], file=key[1], line=key[2]))
        numbers = _numbers(what, values, series.total())
        site.add(numbers)
        if is_per_chain:
            chain = values.get("greenback.sync_chain", ())
            site.chains.setdefault(chain, Numbers()).add(numbers)
    trace.processes = len({process for process, _, _ in points})
    trace.sites = sorted(
        sites.values(), key=lambda site: (-site.time, -site.bridges, site.function)
    )


def _numbers(what: str, values: Dict[str, Any], value: float) -> Numbers:
    numbers = Numbers()
    if what != "bridges":
        setattr(numbers, what, value)
    elif values.get("greenback.outcome") == "error":
        numbers.errors = value
    elif values.get("greenback.outcome") == "cancelled":
        numbers.cancelled = value
    else:
        numbers.ok = value
    return numbers
