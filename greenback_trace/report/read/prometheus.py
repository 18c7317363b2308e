"""A Prometheus server -> the bridges of each calling function, over all instances that it scrapes.

Through its HTTP API (https://prometheus.io/docs/prometheus/latest/querying/api/). Metrics have no
sync chains, files and lines: these are in trace files.
"""

from __future__ import annotations

import json
import re
from base64 import b64encode
from dataclasses import dataclass, field
from http.client import HTTPException
from typing import Any, Dict, List, Optional, Sequence, Tuple
from urllib.error import HTTPError, URLError
from urllib.parse import unquote, urlencode, urlsplit, urlunsplit
from urllib.request import Request, urlopen

from .inputs import NothingToReportError
from .trace import SiteReport

_TIMEOUT = 30
_WINDOW = re.compile(r"(?:[0-9]+(?:ms|[smhdwy]))+")
_FUNCTION, _OUTCOME = "code_function_name", "greenback_outcome"
# What a name becomes: exporters add the unit and `_total`, or are told not to.
_BRIDGES = '{__name__=~"greenback_bridges(_total)?"}'
_SUSPENSIONS = '{__name__=~"greenback_bridge_suspensions(_total)?"}'
_TIME = '{__name__=~"greenback_bridge_time(_seconds)?(_total)?"}'
_SUSPENDED_TIME = '{__name__=~"greenback_bridge_suspended_time(_seconds)?(_total)?"}'
# Of a Collector's page, job and instance are `exported_` unless labels are honoured.
_INSTANCE = "job, instance, exported_job, exported_instance"


@dataclass
class FunctionReport(SiteReport):
    """The bridges of one function in all instances.

    ``rate`` is bridges per second in the window, and the rest is since each instance began.
    """

    rate: float = 0
    instances: int = 0

    def as_dict(self) -> Dict[str, Any]:
        """For JSON. Times are in seconds."""
        return {
            "function": self.function,
            "bridges": self.bridges,
            "ok": self.ok,
            "errors": self.errors,
            "cancelled": self.cancelled,
            "suspended": self.suspended,
            "time": self.time,
            "suspended_time": self.suspended_time,
            "rate": self.rate,
            "instances": self.instances,
        }


@dataclass
class Fleet:
    """What a Prometheus server says.

    Attributes:
        functions: By total time, the longest first.
        instances: How many there are with bridges.
        window: What rates are over, as PromQL has it.
    """

    url: str
    window: str
    instances: int = 0
    functions: List[FunctionReport] = field(default_factory=list)

    def as_dict(self, functions: Sequence[FunctionReport]) -> Dict[str, Any]:
        """For JSON, with these functions."""
        return {
            "url": self.url,
            "window": self.window,
            "instances": self.instances,
            "functions": [function.as_dict() for function in functions],
        }


def ask_prometheus(url: str, window: str) -> Fleet:
    """Ask the server at *url* what the instances have counted that are up.

    Raises:
        NothingToReportError: *window* is not a duration of Prometheus (``5m``, ``1h30m``); or the
            server does not answer, is not a Prometheus, or has no metrics of greenback.
    """
    if not _WINDOW.fullmatch(window):
        raise NothingToReportError(
            f"--window {window}: not a duration of Prometheus. Write 5m, 1h or 1h30m"
        )
    server = _Server(url)
    fleet = Fleet(server.url, window)
    functions: Dict[str, FunctionReport] = {}
    by = f"by ({_FUNCTION})"
    for labels, value in server.query(f"sum by ({_FUNCTION}, {_OUTCOME}) ({_BRIDGES})"):
        name = labels.get(_FUNCTION, "?")
        numbers = functions.setdefault(name, FunctionReport(function=name))
        outcome = labels.get(_OUTCOME)
        if outcome == "error":
            numbers.errors += value
        elif outcome == "cancelled":
            numbers.cancelled += value
        else:
            numbers.ok += value
    if not functions:
        raise NothingToReportError(
            f"{server.url}: a Prometheus, but without greenback_bridges_total of a process that is "
            "up. Run the processes with GREENBACK_TRACE=1 and an OpenTelemetry SDK that exports "
            "metrics to where it scrapes them"
        )
    for attribute, query in (
        ("suspended", f"sum {by} ({_SUSPENSIONS})"),
        ("time", f"sum {by} ({_TIME})"),
        ("suspended_time", f"sum {by} ({_SUSPENDED_TIME})"),
        ("rate", f"sum {by} (rate({_BRIDGES}[{window}]))"),
        ("instances", f"count {by} (group by ({_FUNCTION}, {_INSTANCE}) ({_BRIDGES}))"),
    ):
        for labels, value in server.query(query):
            # A rate can also be of a function whose instances are all gone.
            found = functions.get(labels.get(_FUNCTION, "?"))
            if found is not None:
                setattr(found, attribute, int(value) if attribute == "instances" else value)
    for _, value in server.query(f"count(group by ({_INSTANCE}) ({_BRIDGES}))"):
        fleet.instances = int(value)
    fleet.functions = sorted(
        functions.values(), key=lambda each: (-each.time, -each.bridges, each.function)
    )
    return fleet


class _Server:
    """The HTTP API of the Prometheus at a URL, which may have ``user:password@`` in it."""

    def __init__(self, url: str) -> None:
        try:
            parts = urlsplit(url)
            is_url = parts.scheme in {"http", "https"} and bool(parts.hostname)
        except ValueError:
            is_url = False
        if not is_url:
            raise NothingToReportError(
                "--prometheus: not a URL. Write one such as http://localhost:9090"
            )
        #: Without the password, which is not to be printed.
        self.url = urlunsplit(parts._replace(netloc=parts.netloc.rpartition("@")[2])).rstrip("/")
        #: Of the first answer: all others are of the same moment, so that they fit together.
        self._time: Optional[float] = None
        self._headers = {"Accept": "application/json"}
        if parts.username is not None:
            user = f"{unquote(parts.username)}:{unquote(parts.password or '')}"
            self._headers["Authorization"] = f"Basic {b64encode(user.encode()).decode()}"

    def query(self, query: str) -> List[Tuple[Dict[str, str], float]]:
        """The labels and values that an instant query yields."""
        answer = self._get(query)
        if answer.get("status") == "error":
            raise NothingToReportError(
                f"{self.url}: Prometheus cannot answer a query: {answer.get('error')}"
            )
        try:
            found = answer["data"]["result"]
            if self._time is None and found:
                self._time = float(found[0]["value"][0])
            return [(each["metric"], float(each["value"][1])) for each in found]
        except (IndexError, KeyError, TypeError, ValueError):
            raise self._is_another("JSON of another kind") from None

    def _get(self, query: str) -> Dict[str, Any]:
        parameters = {"query": query}
        if self._time is not None:
            parameters["time"] = repr(self._time)
        request = Request(f"{self.url}/api/v1/query?{urlencode(parameters)}", headers=self._headers)
        try:
            try:
                with urlopen(request, timeout=_TIMEOUT) as response:
                    content = response.read()
            except HTTPError as error:
                # A query that fails is answered with 4xx or 5xx and JSON.
                with error:
                    content = error.read()
                if error.code in {401, 403}:
                    raise NothingToReportError(
                        f"{self.url}: {error.code} {error.reason}. "
                        "Write credentials as https://user:password@host"
                    ) from None
                if not content.lstrip().startswith(b"{"):
                    raise self._is_another(f"{error.code} {error.reason}") from None
        except NothingToReportError:
            raise
        except (URLError, HTTPException, OSError, ValueError) as error:
            reason = getattr(error, "reason", error)
            raise NothingToReportError(
                f"{self.url}: cannot be asked: {getattr(reason, 'strerror', None) or reason}. "
                "Is Prometheus there, and can this machine reach it?"
            ) from None
        try:
            answer = json.loads(content)
        except ValueError:
            raise self._is_another("something that is not JSON") from None
        if not isinstance(answer, dict) or "status" not in answer:
            raise self._is_another("JSON of another kind")
        return answer

    def _is_another(self, answer: str) -> NothingToReportError:
        return NothingToReportError(
            f"{self.url}: not the address of a Prometheus: /api/v1/query below it is answered "
            f"with {answer}. Name the address at which its own page is, such as "
            "http://localhost:9090"
        )
