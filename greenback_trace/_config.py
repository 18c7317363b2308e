"""Environment and keyword arguments -> `Config`, checked."""

from __future__ import annotations

import logging
import os
import re
from dataclasses import dataclass, fields
from typing import Any, Callable, Dict, Mapping, Optional, Set, Tuple

from .misuse.explained import ALLOWED_BASES, is_base
from .misuse.policy import ALLOWED_ACTIONS, actions_of

_MODES = {"0": "off", "off": "off", "1": "on", "on": "on", "debug": "debug"}
_SPANS = ("all", "suspended", "portals", "none")
# The invalid environment variables of this process that a warning has named. Written by
# `Config.from_env`, in any thread that imports greenback or enables tracing.
_told: Set[Tuple[str, str]] = set()
_UNITS = {"": 1, "k": 1 << 10, "M": 1 << 20, "G": 1 << 30}


class ConfigError(ValueError):
    """A setting has an invalid value. The message names the valid ones."""


@dataclass(frozen=True)
class Config:
    """Settings of tracing. Each field names its environment variable in parentheses.

    Raises:
        ConfigError: A field has an invalid value.
    """

    #: ``"off"``, ``"on"`` or ``"debug"``. (``GREENBACK_TRACE``, where ``0`` is off and ``1`` is on)
    mode: str = "on"
    #: Append OTLP JSON lines to this file. ``{pid}`` in the path becomes the process number.
    #: (``GREENBACK_TRACE_FILE``)
    file: Optional[str] = None
    #: Close the file at this size, in bytes. (``GREENBACK_TRACE_FILE_LIMIT``, where ``k``, ``M``
    #: and ``G`` are powers of 1024)
    file_limit: int = 1 << 30
    #: Open a Unix socket at this path, for ``greenback-trace top``. ``{pid}`` in the path becomes
    #: the process number. (``GREENBACK_TRACE_SOCKET``)
    socket: Optional[str] = None
    #: Spans are made of ``"all"``, ``"suspended"`` (bridges), ``"portals"`` or ``"none"``.
    #: (``GREENBACK_TRACE_SPANS``)
    spans: str = "all"
    #: Make at most this many spans per second; 0 is no limit. ``None`` is no limit for a file, and
    #: 100 elsewhere.
    #: (``GREENBACK_TRACE_SPAN_RATE``)
    span_rate: Optional[float] = None
    #: Record at most this many durations per second in an SDK's histograms, a sample; 0 is no
    #: limit.
    #: (``GREENBACK_TRACE_MEASUREMENT_RATE``)
    measurement_rate: float = 500.0
    #: A step that holds the event loop for more seconds than this is a slow step. Slow steps are
    #: counted, logged and marked on their spans. (``GREENBACK_TRACE_SLOW``)
    slow: float = 0.1
    #: Count at most this many sites apart. Further sites count under the function name ``_OTHER``.
    #: (``GREENBACK_TRACE_SITES``)
    sites: int = 500
    #: On a misuse, debug mode does this. It is ``"warn"``, ``"raise"`` or ``"off"``. Kinds can have
    #: an action of their own, as in ``"raise,import=warn"``. Advice is only logged, unless its kind
    #: is named. (``GREENBACK_TRACE_MISUSE``)
    misuse: str = "warn"
    #: Begin the links in reports with this address of a copy of the documentation, for example
    #: ``"https://docs.example.org/greenback"``. Without it, a report names the command
    #: ``greenback-trace explain KIND``, which prints the same text. (``GREENBACK_TRACE_DOCS``)
    docs: Optional[str] = None

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if value is None and field.default is None:
                continue
            if not _FIELDS[field.name].accepts(value):
                raise ConfigError(
                    f"{field.name}={value!r} is not a value that Config can have; it must be "
                    f"{_FIELDS[field.name].allowed_in_python}"
                )

    @classmethod
    def from_env(cls, environ: Optional[Mapping[str, str]] = None) -> Config:
        """The settings of the environment variables ``GREENBACK_TRACE...``.

        An unset or empty variable has its default. An invalid value logs one warning and falls back
        to the default, since a typo must not stop a service. ``GREENBACK_TRACE`` is off by default.

        Args:
            environ: Read these variables instead of `os.environ`.
        """
        told = _told if environ is None else set()
        environ = os.environ if environ is None else environ
        settings: Dict[str, Any] = {"mode": "off"}
        for name, setting in _FIELDS.items():
            text = environ.get(setting.variable, "").strip()
            if not text:
                continue
            try:
                value = setting.parse(text)
            except (ValueError, KeyError, OverflowError):
                value = None
            if value is not None and setting.accepts(value):
                settings[name] = value
            elif (setting.variable, text) not in told:
                told.add((setting.variable, text))
                logging.getLogger("greenback").warning(
                    "%s=%r is ignored: it must be %s",
                    setting.variable,
                    text,
                    setting.allowed_in_environment,
                )
        return cls(**settings)


def _bytes(text: str) -> int:
    match = re.fullmatch(r"(\d+)([kMG]?)", text)
    if match is None:
        raise ValueError(text)
    return int(match[1]) * _UNITS[match[2]]


@dataclass(frozen=True)
class _Setting:
    variable: str
    parse: Callable[[str], Any]
    accepts: Callable[[Any], bool]
    allowed_in_environment: str
    allowed_in_python: str


def _is_whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value > 0


def _is_misuse(value: Any) -> bool:
    try:
        return isinstance(value, str) and bool(actions_of(value))
    except ValueError:
        return False


def _is_rate(value: Any) -> bool:
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    return number and 0 <= value < float("inf")


_FIELDS: Dict[str, _Setting] = {
    "mode": _Setting(
        "GREENBACK_TRACE",
        lambda text: _MODES[text.lower()],
        lambda value: value in _MODES.values(),
        "0, off, 1, on or debug",
        "'off', 'on' or 'debug'",
    ),
    "file": _Setting(
        "GREENBACK_TRACE_FILE",
        str,
        lambda value: isinstance(value, str) and value != "",
        "a path",
        "a path as a string",
    ),
    "file_limit": _Setting(
        "GREENBACK_TRACE_FILE_LIMIT",
        _bytes,
        _is_whole,
        "a number of bytes above 0, as in 500000, 200k, 50M or 1G",
        "a number of bytes above 0",
    ),
    "socket": _Setting(
        "GREENBACK_TRACE_SOCKET",
        str,
        lambda value: isinstance(value, str) and value != "",
        "a path",
        "a path as a string",
    ),
    "spans": _Setting(
        "GREENBACK_TRACE_SPANS",
        str.lower,
        lambda value: value in _SPANS,
        "all, suspended, portals or none",
        "'all', 'suspended', 'portals' or 'none'",
    ),
    "span_rate": _Setting(
        "GREENBACK_TRACE_SPAN_RATE",
        float,
        _is_rate,
        "a number per second, or 0 for no limit",
        "a number per second, or 0 for no limit",
    ),
    "measurement_rate": _Setting(
        "GREENBACK_TRACE_MEASUREMENT_RATE",
        float,
        _is_rate,
        "a number per second, or 0 for no limit",
        "a number per second, or 0 for no limit",
    ),
    "slow": _Setting(
        "GREENBACK_TRACE_SLOW",
        float,
        lambda value: _is_rate(value) and value > 0,
        "a number of seconds above 0",
        "a number of seconds above 0",
    ),
    "sites": _Setting(
        "GREENBACK_TRACE_SITES", int, _is_whole, "a whole number above 0", "an int above 0"
    ),
    "misuse": _Setting(
        "GREENBACK_TRACE_MISUSE", str.lower, _is_misuse, ALLOWED_ACTIONS, ALLOWED_ACTIONS
    ),
    "docs": _Setting("GREENBACK_TRACE_DOCS", str, is_base, ALLOWED_BASES, ALLOWED_BASES),
}
