"""The socket of a program -> what happens now."""

from __future__ import annotations

import json
import os
import re
import socket
from typing import Any, Dict, Optional

from ..read.inputs import NothingToReportError
from .now import Now, SiteNow, TaskNow

_PART = 1 << 20
#: Of the numbers in it. Sums of these are finite.
_LARGEST = float(1 << 64)
#: Seconds to wait for a program that is busy.
_CONNECTING = 5.0
#: Half of a pair is no text that can be shown.
_SURROGATE = re.compile("[\ud800-\udfff]")
_FRAME = re.compile(r'^  File "(.*)", line (\d+), in (.*)$', re.MULTILINE)
_BRIDGE = "  --- bridge"
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
