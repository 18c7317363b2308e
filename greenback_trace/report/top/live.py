"""A growing file of OTLP JSON lines, or the socket of a program -> what happens now."""

from __future__ import annotations

import json
import os
import re
import socket
import stat
from dataclasses import dataclass, field
from time import monotonic
from typing import IO, Any, Callable, Dict, List, Optional, Tuple, Union

from ..read.checked import Attributes, NewerTraceError, Part, Point, check
from ..read.inputs import NAMELESS, NothingToReportError
from ..read.otlp import NotOTLPError, decode

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

#: Of the numbers in it. Sums of these are finite.
_LARGEST = float(1 << 64)
#: Seconds to wait for a program that is busy.
_CONNECTING = 5.0
#: Half of a pair is no text that can be shown.
_SURROGATE = re.compile("[\ud800-\udfff]")
_FRAME = re.compile(r'^  File "(.*)", line (\d+), in (.*)$', re.MULTILINE)
_BRIDGE = "  --- bridge"

#: The attributes of a process or of a metric, by their names.
_Sorted = Tuple[Tuple[str, Any], ...]
#: A process, the name of a metric, its attributes.
_Key = Tuple[_Sorted, str, _Sorted]


@dataclass
class SiteNow:
    """A function that bridges: totals, and what is added to them per second."""

    function: str
    bridges: float = 0
    suspended: float = 0
    errors: float = 0
    time: float = 0
    waiting: float = 0
    bridges_rate: float = 0
    #: How many of its bridges are under way on average: seconds in bridges per second.
    time_rate: float = 0


@dataclass
class TaskNow:
    """A task with a portal, and its stack as `greenback_trace.format_task` shows it.

    Attributes:
        seconds: For how long it has held the event loop, or waited. None if that is not known.
        where: Its innermost function, or the one that waits in a bridge.
    """

    name: str
    library: str
    portal: str
    seconds: Optional[float]
    stack: str
    where: str


@dataclass
class Now:
    """What a program does at the moment.

    Attributes:
        sites: The busiest first.
        portals: By kind, how many are open, and how many were opened.
        under_way: Bridges that have not finished.
        bridges_rate: Bridges per second.
        held: The share of the time in which tasks with a portal hold the event loop.
        stalled: For how many seconds a step has held an event loop that still runs and is longer
            than a step may be: the longest, or 0.
        slow_steps: By function that held the loop: how often, and how often per second.
        who: The program, if there is but one and it has said so.
        holding: The tasks that hold an event loop right now. None if that is not known.
        parked: Those tasks that have waited for the longest time. None if that is not known.
        parked_count: How many tasks wait.
        is_idle: Whether nothing was written for so long that the rates are zero.
    """

    sites: List[SiteNow] = field(default_factory=list)
    portals: Dict[str, Tuple[float, float]] = field(default_factory=dict)
    under_way: float = 0
    bridges_rate: float = 0
    held: float = 0
    stalled: float = 0
    slow_steps: Dict[str, Tuple[float, float]] = field(default_factory=dict)
    processes: int = 0
    who: str = ""
    holding: Optional[List[TaskNow]] = None
    parked: Optional[List[TaskNow]] = None
    parked_count: int = 0
    is_idle: bool = True


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


_TASK = {
    "task": (str, None),
    "library": str,
    "portal": str,
    "seconds": (float, None),
    "stack": str,
}
_TOTALS = ("ok", "errors", "cancelled", "suspended", "time", "suspended_time")
#: What a line from the socket has, of what is read. In braces, `str` is any key; with None, there
#: may be nothing; 1 is that number.
_LINE: Any = {
    "version": 1,
    "clock": float,
    "program": str,
    "pid": float,
    "active": {str: float},
    "portals": {str: {"opened": float, "closed": float}},
    "sites": [{"function": str, **dict.fromkeys(_TOTALS, float)}],
    "steps": {str: {"time": float}},
    "slow_steps": {str: float},
    "slow": (float, None),
    "holding": [_TASK],
    "parked": [_TASK],
    "parked_count": float,
}


def _fits(value: Any, shape: Any) -> bool:
    """Whether a value out of JSON has a shape, which `_LINE` is an example of."""
    if shape is str:
        return isinstance(value, str) and _SURROGATE.search(value) is None
    if shape is float:
        is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
        return is_number and 0 <= value <= _LARGEST
    if isinstance(shape, tuple):
        return value is None or _fits(value, shape[0])
    if isinstance(shape, list):
        return isinstance(value, list) and all(_fits(each, shape[0]) for each in value)
    if isinstance(shape, dict):
        if not isinstance(value, dict):
            return False
        if str in shape:
            return all(_fits(each, shape[str]) for each in value.values())
        return all(_fits(value.get(name), each) for name, each in shape.items())
    return bool(value == shape)


class LiveSocket:
    """Listens at the socket of a program, also when that has ended and was started again."""

    def __init__(self, path: str) -> None:
        self._path = path
        self._socket: Optional[socket.socket] = None
        self._rest = b""
        self._last: Dict[str, Any] = {}
        #: The line before the last one, by the same process.
        self._former: Dict[str, Any] = {}

    def read(self) -> bool:
        """Take in what is new, and say whether anything is.

        Raises:
            NothingToReportError: Nobody answers there.
        """
        if self._socket is None:
            self._connect()
        assert self._socket is not None
        new = False
        while True:
            try:
                part = self._socket.recv(_PART)
            except BlockingIOError:
                return new
            except OSError:
                part = b""
            if not part:
                self.close()
                return True
            *lines, self._rest = (self._rest + part).split(b"\n")
            for line in lines:
                new = self._take(line) or new

    def close(self) -> None:
        if self._socket is not None:
            self._socket.close()
            self._socket = None
            self._rest = b""

    def now(self) -> Now:
        """The state as of the last line that was read."""
        last, former = self._last, self._former
        if not last:
            return Now(holding=[], parked=[], is_idle=self._socket is None)
        is_idle = self._socket is None
        passed = last["clock"] - former["clock"] if former and not is_idle else 0.0

        def rate(now: float, before: float) -> float:
            return (now - before) / passed if passed > 0 else 0.0

        result = Now(
            processes=1,
            who=f"{last['program']} ({last['pid']})",
            is_idle=is_idle,
            under_way=sum(last["active"].values()),
            portals={
                kind: (each["opened"] - each["closed"], each["opened"])
                for kind, each in last["portals"].items()
            },
            held=rate(_step_time(last), _step_time(former)),
            stalled=0 if is_idle else _stalled(last),
            holding=[] if is_idle else [_task(each) for each in last["holding"]],
            parked=[] if is_idle else [_task(each) for each in last["parked"]],
            parked_count=0 if is_idle else last["parked_count"],
        )
        for function, count in last["slow_steps"].items():
            before = former.get("slow_steps", {}).get(function, 0)
            result.slow_steps[function] = count, rate(count, before)
        before_by_function = _by_function(former)
        for function, site in _by_function(last).items():
            earlier = before_by_function.get(function, SiteNow(function))
            site.bridges_rate = rate(site.bridges, earlier.bridges)
            site.time_rate = rate(site.time, earlier.time)
            result.sites.append(site)
        result.bridges_rate = sum(site.bridges_rate for site in result.sites)
        result.sites.sort(key=lambda site: (-site.time_rate, -site.time))
        return result

    def _connect(self) -> None:
        connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            connection.settimeout(_CONNECTING)
            connection.connect(self._path)
            connection.setblocking(False)
        except OSError as error:
            connection.close()
            raise NothingToReportError(
                f"nobody answers at {self._path}: {error.strerror or error}. Name the socket of a "
                "program that runs with GREENBACK_TRACE=1 and GREENBACK_TRACE_SOCKET set; it is "
                "there from the first portal on"
            ) from None
        self._socket = connection

    def _take(self, line: bytes) -> bool:
        last: Any = None
        try:
            last = json.loads(line)
        except (ValueError, RecursionError):
            pass  # it does not fit either
        if not _fits(last, _LINE):
            self.close()
            raise NothingToReportError(
                f"what answers at {self._path} is no program of this version of greenback"
            )
        is_same = last["pid"] == self._last.get("pid")
        self._former = self._last if is_same else {}
        self._last = last
        return True


#: Where to learn what happens now.
Live = Union[LiveFile, LiveSocket]


def follow(path: str) -> Live:
    """Whatever *path* is, a socket or a file.

    Raises:
        NothingToReportError: It is empty.
    """
    if not path:
        raise NothingToReportError(NAMELESS)
    try:
        is_socket = stat.S_ISSOCK(os.stat(path).st_mode)
    except OSError:
        is_socket = False  # the file's business, which says why
    return LiveSocket(path) if is_socket else LiveFile(path)


def _by_function(line: Dict[str, Any]) -> Dict[str, SiteNow]:
    result: Dict[str, SiteNow] = {}
    for each in line.get("sites", ()):
        site = result.setdefault(each["function"], SiteNow(each["function"]))
        site.bridges += each["ok"] + each["errors"] + each["cancelled"]
        site.errors += each["errors"]
        site.suspended += each["suspended"]
        site.time += each["time"]
        site.waiting += each["suspended_time"]
    return result


def _step_time(line: Dict[str, Any]) -> float:
    """That of steps that are over, and of those that go on."""
    over = sum(each["time"] for each in line.get("steps", {}).values())
    return float(over + sum(each["seconds"] or 0 for each in line.get("holding", ())))


def _stalled(line: Dict[str, Any]) -> float:
    longest = max((each["seconds"] or 0 for each in line["holding"]), default=0)
    slow = line.get("slow")
    return float(longest) if slow is not None and longest > slow else 0.0


def _task(each: Dict[str, Any]) -> TaskNow:
    stack = each["stack"]
    # The last function before the last bridge, if there is one: what follows is what it awaits.
    found = _FRAME.findall(stack[: stack.rfind(_BRIDGE)] if _BRIDGE in stack else stack)
    where = "?"
    if found:
        path, line, function = found[-1]
        where = f"{function} ({os.path.basename(path)}:{line})"
    return TaskNow(
        each["task"] or "?", each["library"], each["portal"], each["seconds"], stack, where
    )


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
