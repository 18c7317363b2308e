"""Switching tracing on and off."""

from __future__ import annotations

import atexit
import importlib.util
import logging
import os
import sys
from typing import TYPE_CHECKING, Any, Optional

from greenback._listener.listener import set_primary

from . import _providers, _session
from ._config import Config, ConfigError
from ._session import Gate, Session, warn
from .count.snapshot import Snapshot, take
from .count.totals import Totals

if TYPE_CHECKING:
    from opentelemetry.metrics import MeterProvider
    from opentelemetry.trace import TracerProvider

# Written under the lock of _session.py, by any thread.
_current: Optional[Session] = None
# The same, but kept when tracing is disabled.
_last: Optional[Session] = None
_hooks_are_registered = False


def enable(
    *,
    config: Optional[Config] = None,
    tracer_provider: Optional[TracerProvider] = None,
    meter_provider: Optional[MeterProvider] = None,
) -> None:
    """Trace from now on, in every thread. Counts start at zero, also if tracing was enabled.

    Those of `snapshot`, that is: counters that a meter provider has seen go on where they were.

    Telemetry goes to the providers that are given; else to `Config.file`, if that is set; else to
    the global ones of OpenTelemetry, whenever the application sets them.

    Args:
        config: What to trace. By default, what the environment says, where ``GREENBACK_TRACE``
            itself plays no part unless it is ``debug``.
        tracer_provider: Where spans go.
        meter_provider: Where metrics go.

    Raises:
        ConfigError: ``config.mode`` is ``"off"``.
        ImportError: A package is missing; the message names the extra that has it.
    """
    if config is None:
        config = Config.from_env()
    elif config.mode == "off":
        raise ConfigError(
            "enable() was given a Config with mode='off'; to switch tracing off, call disable()"
        )
    _enable(config, tracer_provider, meter_provider, at_import=False)


def disable() -> None:
    """Stop tracing. A file is completed and closed; registered metrics report nothing from now on.

    Does nothing if tracing is not enabled. `snapshot` keeps the last totals.
    """
    global _current
    with _session.lock:
        session, _current = _current, None
        if session is not None:
            session.stop()


def is_enabled() -> bool:
    """Whether tracing is enabled."""
    return _current is not None


def snapshot() -> Snapshot:
    """The exact totals since tracing was enabled, or of the last time that it was."""
    session = _last
    if session is None:
        return take(Totals(1))
    return take(session.totals, session.dropped(), session.misuses())


def from_environment() -> None:
    """Enable tracing if ``GREENBACK_TRACE`` says so. Never raises: the program comes first."""
    try:
        config = Config.from_env()
        if config.mode != "off":
            _enable(config, None, None, at_import=True)
    except ImportError as error:
        warn("GREENBACK_TRACE is set, but the program runs untraced: %s", error)
    except Exception as error:
        warn("GREENBACK_TRACE is set, but the program runs untraced: enabling it raised %r", error)


def _enable(config: Config, tracer_provider: Any, meter_provider: Any, at_import: bool) -> None:
    global _current, _last
    is_to_file = config.file is not None and tracer_provider is None and meter_provider is None
    require_packages(is_to_file)
    if config.mode == "debug":
        _tell_of_missing("debug", "executing", "pure_eval")
    with _session.lock:
        disable()
        # Now, since importing structlog at the first slow step would make it slower still.
        from .emit.log import start_over

        start_over()
        _current = _last = Session(
            config,
            is_to_file,
            tracer_provider,
            meter_provider,
            at_import,
            at_loop_end=_flush,
            at_start_of_child=_finish_with_multiprocessing,
        )
        _register_hooks()
    _finish_with_multiprocessing()


def require_packages(is_to_file: bool) -> None:
    """Make sure that what tracing needs is installed.

    Raises:
        ImportError: A package is missing; the message names the extra that has it.
    """
    _require("trace", "opentelemetry.metrics", "structlog")
    if is_to_file:
        _require(
            "report",
            "google.protobuf",
            "opentelemetry.sdk.trace",
            "opentelemetry.exporter.otlp.proto.common",
        )


def _require(extra: str, *modules: str) -> None:
    for module in modules:
        try:
            found = importlib.util.find_spec(module) is not None
        except ModuleNotFoundError:  # a package that it is in
            found = False
        if not found:
            raise ImportError(
                f"{module.partition('.')[0]} is not installed, or not all of it ({module}); "
                f"run: pip install 'greenback[{extra}]'"
            )


def _tell_of_missing(extra: str, *modules: str) -> None:
    try:
        _require(extra, *modules)
    except ImportError as error:
        warn("greenback's debug mode sees less than it could: %s", error)


def _register_hooks() -> None:
    global _hooks_are_registered
    if not _hooks_are_registered:
        _hooks_are_registered = True
        atexit.register(_at_exit)
        if hasattr(os, "register_at_fork"):
            os.register_at_fork(after_in_child=_after_fork)


def _finish_with_multiprocessing() -> None:
    """Finish with a process of multiprocessing, most of which end with `os._exit`."""
    process = sys.modules.get("multiprocessing.process")
    if process is not None and process.parent_process() is not None:
        from multiprocessing.util import Finalize

        # After the application's own, which may bridge.
        Finalize(None, _at_exit, exitpriority=-1_000)


def _at_exit() -> None:
    session = _current
    if session is None:
        return
    session.tell_of_open_portals()
    if session.is_silent():
        from .emit.log import summary

        summary(snapshot())
    session.close_socket()
    if session.is_to_file:
        disable()
        set_primary(Gate(_tell_of_end, session.totals))
    # Else, whoever set up an SDK before tracing was enabled closes it after this: it still asks.


def _tell_of_end() -> None:
    set_primary(None)
    logging.getLogger("greenback").info(
        "process %d still bridges while it ends, after its trace was completed: untraced",
        os.getpid(),
    )


def _after_fork() -> None:
    """In a forked child, where nobody holds our locks. Those of an SDK are left alone."""
    _session.after_fork()
    _providers.after_fork()
    _start_log_over()
    if _current is not None:
        _current.after_fork()


def _start_log_over() -> None:
    log = sys.modules.get("greenback_trace.emit.log")  # which imports structlog, if it is needed
    if log is not None:
        log.start_over()


def _flush() -> None:
    session = _current
    if session is not None:
        session.flush()
