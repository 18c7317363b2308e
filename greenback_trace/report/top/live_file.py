"""A growing file of OTLP JSON lines -> what happens now."""

from __future__ import annotations

import os
import stat
from time import monotonic
from typing import IO, Any, Callable, Dict, List, Optional, Tuple

from ..read.checked import NewerTraceError, Part, Point, check
from ..read.inputs import NothingToReportError
from ..read.otlp import NotOTLPError, decode
from ..read.values import Attributes
from .now import Now, SiteNow

#: Seconds without a new line after which nothing happens: programs write every 5 s.
_PATIENCE = 12.0
#: Bytes that are read of a file that is there already, from its end: it may have grown for days.
_TAIL = 64 << 20
_PART = 1 << 20
#: What one of a trace's lines has: metrics, which are read, or something else.
_SIGNALS = (b'"resourceMetrics"', b'"resourceSpans"', b'"resourceLogs"')
#: Bytes in a line, at most.
_LONGEST = 64 << 20

_SITE = {
    "greenback.bridges",
    "greenback.bridge.suspensions",
    "greenback.bridge.time",
    "greenback.bridge.suspended_time",
}
#: What does not only grow.
_ACTIVE = {"greenback.bridge.active", "greenback.portal.active", "greenback.step.stalled"}
_WANTED = _SITE | _ACTIVE | {"greenback.portals", "greenback.slow_steps", "greenback.step.time"}
#: Seconds from one line of a process to the next.
_PERIOD = 5.0

#: The attributes of a process or of a metric, by their names.
_Sorted = Tuple[Tuple[str, Any], ...]
#: A process, the name of a metric, its attributes.
_Key = Tuple[_Sorted, str, _Sorted]


class LiveFile:
    """Follows a file while it grows, also when it is emptied, or replaced by one of its name."""

    def __init__(self, path: str, clock: Callable[[], float] = monotonic) -> None:
        self._path = path
        self._clock = clock
        self._file: Optional[IO[bytes]] = None
        self._rest = b""
        #: Whether a line was a trace's, and whether something else was there.
        self._is_trace = self._is_other = False
        self._grown = clock()
        # Value, when it was so, and the growth per second up to then.
        self._points: Dict[_Key, Tuple[float, int, float]] = {}
        #: Those of the file that was there before. The same process may go on in the new one.
        self._former: Dict[_Key, Tuple[float, int, float]] = {}
        #: By process, when it last wrote.
        self._written: Dict[_Sorted, int] = {}

    def read(self) -> bool:
        """Take in what is new, and say whether anything is.

        Raises:
            NothingToReportError: There is no such file, it has something else in it, or a newer
                greenback writes it.
        """
        try:
            is_new = self._read_rest()
            if self._file is None or self._is_replaced(self._file):
                # What was added to the old one before that is read by now.
                self.close()
                self._open()
                is_new = self._read_rest() or is_new
        except OSError as error:
            raise NothingToReportError(
                f"{self._path} cannot be read: {error.strerror}. Name the file that a program "
                "writes with GREENBACK_TRACE=1 and GREENBACK_TRACE_FILE set, or its "
                "GREENBACK_TRACE_SOCKET"
            ) from None
        # As long as there is nothing in it, and of a line that is not yet whole, it may become one.
        if not self._is_trace and (self._is_other or self._rest.strip()[:1] not in (b"", b"{")):
            self.close()
            raise NothingToReportError(
                f"{self._path}: not a trace that can be followed: no line of it is OTLP JSON. Name "
                "the file that a program writes with GREENBACK_TRACE=1 and GREENBACK_TRACE_FILE "
                "set, or its GREENBACK_TRACE_SOCKET"
            )
        if is_new:
            self._grown = self._clock()
        return is_new

    def _open(self) -> None:
        # Before it is opened: a pipe would have that wait, and a device need not have an end.
        if not stat.S_ISREG(os.stat(self._path).st_mode):
            raise NothingToReportError(
                f"{self._path}: neither a file nor a socket. Name the file that a program writes "
                "with GREENBACK_TRACE=1 and GREENBACK_TRACE_FILE set, or its GREENBACK_TRACE_SOCKET"
            )
        self._file = open(self._path, "rb")  # noqa: SIM115  (kept)
        self._rest = b""
        self._is_trace = self._is_other = False
        # The points are cumulative: what is further back has been written again since.
        skipped = os.fstat(self._file.fileno()).st_size - _TAIL
        if skipped > 0:
            self._file.seek(skipped)
            self._file.readline(_LONGEST)
        self._former, self._points = self._points, {}
        self._written.clear()

    def _read_rest(self) -> bool:
        if self._file is None:
            return False
        is_new = False
        while True:
            new = self._file.read(_PART)
            if not new:
                return is_new
            is_new = True
            # The last line may not be complete yet.
            *lines, self._rest = (self._rest + new).split(b"\n")
            if len(self._rest) > _LONGEST:
                self._rest = b""  # no line of a trace
                self._is_other = True
            for line in lines:
                if any(signal in line for signal in _SIGNALS):
                    self._is_trace = True
                elif line.strip():
                    self._is_other = True
                if b'"resourceMetrics"' in line:
                    try:
                        request = decode(line)
                        if request is not None:
                            self._take(check(request, _WANTED))
                    except NotOTLPError:
                        continue  # the report names them
                    except NewerTraceError as error:
                        self.close()
                        raise NothingToReportError(f"{self._path}: {error}") from None

    def close(self) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None

    def now(self) -> Now:
        """The state as of the last line that was read."""
        result = Now(processes=len(self._written))
        result.is_idle = self._clock() - self._grown > _PATIENCE
        sites: Dict[str, SiteNow] = {}
        for (process, name, attributes), (value, time, rate) in self._points.items():
            if result.is_idle or time < self._written[process]:
                rate = 0
            values = dict(attributes)
            function = values.get("code.function.name", "?")
            if name in _SITE:
                _count(sites.setdefault(function, SiteNow(function)), name, values, value, rate)
            elif name == "greenback.portals":
                kind = values.get("greenback.portal.kind", "?")
                active, opened = result.portals.get(kind, (0, 0))
                result.portals[kind] = active, opened + value
            elif name == "greenback.portal.active":
                kind = values.get("greenback.portal.kind", "?")
                active, opened = result.portals.get(kind, (0, 0))
                result.portals[kind] = active + value, opened
            elif name == "greenback.bridge.active":
                result.under_way += value
            elif name == "greenback.step.time":
                result.held += rate
            elif name == "greenback.step.stalled" and not result.is_idle:
                # Its time is counted when it is over.
                result.held += min(value / _PERIOD, 1.0)
                result.stalled = max(result.stalled, value)
            elif name == "greenback.slow_steps":
                count, per_second = result.slow_steps.get(function, (0, 0))
                result.slow_steps[function] = count + value, per_second + rate
        result.bridges_rate = sum(site.bridges_rate for site in sites.values())
        result.sites = sorted(sites.values(), key=lambda site: (-site.time_rate, -site.time))
        return result

    def _is_replaced(self, file: IO[bytes]) -> bool:
        there, here = os.stat(self._path), os.fstat(file.fileno())
        return there.st_ino != here.st_ino or here.st_size < file.tell()

    def _take(self, parts: List[Part]) -> None:
        for part in parts:
            process = _sorted(part.resource)
            for point in part.points:
                self._add(process, point)

    def _add(self, process: _Sorted, point: Point) -> None:
        name, attributes, _, start, time, (value, *_), is_delta = point
        key = process, name, _sorted(attributes)
        known = self._points.get(key) or self._former.get(key)
        before, since, _ = known or (0.0, start, 0.0)
        if is_delta:
            value += before if key in self._points else 0.0
        elif value < before and name not in _ACTIVE:
            before = 0.0  # it was started again
        passed = (time - since) / 1e9
        rate = (value - before) / passed if passed > 0 else 0.0
        self._points[key] = value, time, rate
        self._written[process] = max(time, self._written.get(process, 0))


def _count(site: SiteNow, name: str, values: Dict[str, str], value: float, rate: float) -> None:
    if name == "greenback.bridges":
        site.bridges += value
        site.bridges_rate += rate
        if values.get("greenback.outcome") == "error":
            site.errors += value
    elif name == "greenback.bridge.suspensions":
        site.suspended += value
    elif name == "greenback.bridge.time":
        site.time += value
        site.time_rate += rate
    else:
        site.waiting += value


def _sorted(attributes: Attributes) -> _Sorted:
    return tuple(sorted(attributes, key=lambda item: item[0]))
