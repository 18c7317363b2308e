"""Log events, through structlog."""

from __future__ import annotations

import logging
import sys
import threading
from time import monotonic, perf_counter_ns
from typing import TYPE_CHECKING, Any, Callable, Dict, Optional, Tuple

import structlog
from opentelemetry import trace

import greenback
from greenback._listener.failures import raise_if_from_signal_handler

from ..count.counts import Ticks
from ..count.names import task_name
from ..count.snapshot import Snapshot
from .context import own_span

if TYPE_CHECKING:
    from greenback.instruments import Portal

    from ..count.counts import PortalTally
    from ..live.stalls import Stall
    from ..misuse.watchdog import Held
    from ..misuse.wording import Misuse

_SITES_IN_SUMMARY = 5
#: Seconds in which an event of a site is logged only once.
_QUIET = 10.0
#: Pairs of event and site that are remembered.
_KEPT = 2_000


class _Told:
    """When an event was last logged, and how often it was left out since."""

    __slots__ = ("_left_out", "_lock", "_told", "at", "leave_out")

    def __init__(self, at: float) -> None:
        self.at = at
        self._left_out = Ticks()
        self.leave_out = self._left_out.add
        #: How many of the events left out were already reported.
        self._told = 0
        # Reentrant: a finalizer or a signal handler can log in the middle of this.
        self._lock = threading.RLock()

    def tell(self, now: float) -> int:
        """Note that the event is logged now, and return how many were left out before.

        If two threads log at once, one of them gets the number, and the other one 0.
        """
        with self._lock:
            self.at = now
            left_out = self._left_out.read() - self._told
            self._told += left_out
            return left_out


# Written by any thread, by finalizers and by signal handlers, in single operations. If two of them
# find at once that an event is due again, both log it.
_told: Dict[Tuple[str, str], _Told] = {}


def _logger() -> Any:
    """The application's logger, if it has configured structlog; else one for standard error."""
    if structlog.is_configured():
        config = structlog.get_config()
        if not hasattr(config["wrapper_class"], "sync_bl"):
            return structlog.get_logger("greenback").bind()
        # The methods of this wrapper are coroutines, and it needs asyncio's loop in this thread. So
        # take a sync wrapper with the same factory and processors. hasattr() asks the class, since
        # instances of structlog's generic wrapper have every attribute.
        return structlog.wrap_logger(
            config["logger_factory"]("greenback"), wrapper_class=structlog.stdlib.BoundLogger
        ).bind()
    return structlog.wrap_logger(
        structlog.WriteLogger(sys.stderr),  # one write per line: processes share a terminal
        processors=[
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso"),
            structlog.processors.KeyValueRenderer(key_order=["timestamp", "level", "event"]),
        ],
    )


def emit(level: str, event: str, *, site: Optional[str] = None, **fields: Any) -> None:
    """Log an event. Never raises, although the application's logger may.

    Args:
        level: The name of the logger's method.
        event: The name of the event.
        site: The function where it happened. For 10 s, repeats of the event at this site are left
            out; the next event has their number. Events without a site are all logged.
        fields: Further fields of the event.
    """
    try:
        if site is not None:
            left_out = _left_out(event, site)
            if left_out is None:
                return
            fields["code.function.name"] = site
            if left_out:
                fields["left_out"] = left_out
        # The application's span, if one is current; else the ids in *fields*; else our own span.
        context = trace.get_current_span().get_span_context()
        if not context.is_valid and "trace_id" not in fields:
            context = own_span().get_span_context()
        if context.is_valid:
            fields["trace_id"] = trace.format_trace_id(context.trace_id)
            fields["span_id"] = trace.format_span_id(context.span_id)
        getattr(_logger(), level)(event, **fields)
    except Exception as error:
        raise_if_from_signal_handler(error)
        try:
            logging.getLogger("greenback").warning("%s could not be logged: %r", event, error)
        except Exception:  # there is no further way to report it
            return


def _left_out(event: str, site: str) -> Optional[int]:
    """How many events were left out since the last one; None if this one is left out, too."""
    now = monotonic()
    key = event, site
    last = _told.get(key)
    if last is None:
        if len(_told) >= _KEPT:
            _told.clear()
        this = _Told(now)
        last = _told.setdefault(key, this)
        if last is this:
            return 0
    if now - last.at < _QUIET:
        last.leave_out()
        return None
    return last.tell(now)


def start_over() -> None:
    """Forget which events were logged: the next one of each is logged."""
    _told.clear()
    _Debug.until = 0.0


def portal_opened(portal: Portal) -> None:
    """Log ``greenback.portal.opened``, if debug events are shown."""
    if _shows_debug():
        emit("debug", "greenback.portal.opened", **_described(portal))


def portal_closed(portal: Portal, tally: PortalTally) -> None:
    """Log ``greenback.portal.closed``, also for a portal still open when the program ends."""
    if _shows_debug():
        emit(
            "debug",
            "greenback.portal.closed",
            **_described(portal),
            still_open=not tally.closed,
            seconds=(perf_counter_ns() - tally.opened_at) / 1e9,
            bridges=tally.bridges,
            suspended=tally.suspended,
            errors=tally.errors,
            switches=tally.switches,
            bridge_time=tally.time_ns / 1e9,
            suspended_time=tally.suspended_ns / 1e9,
            switch_time=tally.switch_ns / 1e9,
            step_time_max=tally.step_max_ns / 1e9,
        )


def _described(portal: Portal) -> Dict[str, Any]:
    return {
        "kind": portal.kind,
        "library": portal.library.name,
        "task": task_name(portal.task),
    }


class _Debug:
    """Whether debug events are shown, and the time until which this is remembered."""

    shown = False
    until = 0.0


def _shows_debug() -> bool:
    """Whether the application shows debug events. Each portal asks, so the answer lasts a second.

    False if the application has not configured structlog: to switch tracing on is not to ask for a
    line on standard error per portal.
    """
    now = monotonic()
    if now >= _Debug.until:
        _Debug.until = now + 1
        _Debug.shown = structlog.is_configured() and _is_enabled_for_debug()
    return _Debug.shown


def silent_seconds() -> float:
    """For how many seconds from now on `portal_opened` and `portal_closed` log nothing."""
    return 0.0 if _Debug.shown else _Debug.until - monotonic()


def _is_enabled_for_debug() -> bool:
    try:
        logger = _logger()
        for asked in (logger, getattr(logger, "_logger", None)):
            # The filtering loggers of structlog have the first method. Those of the standard
            # library, and structlog's wrappers of them, have the second. getattr() asks the class:
            # an instance of structlog's generic wrapper would take the name for a level, and log.
            for name in ("is_enabled_for", "isEnabledFor"):
                ask = getattr(type(asked), name, None)
                if ask is not None:
                    return bool(ask(asked, logging.DEBUG))
        return True
    except Exception as error:  # raised by the application's logger; `emit` will report it
        raise_if_from_signal_handler(error)
        return True


def slow_step(function: str, seconds: float, held: Optional[Held] = None) -> None:
    """Log ``greenback.slow_step``: a step held the event loop for *seconds*.

    Args:
        function: The function whose bridge was the last one in the step.
        seconds: How long the step took.
        held: The code that debug mode saw holding the loop; None without debug mode.
    """
    fields: Dict[str, Any] = {"seconds": round(seconds, 6)}
    if held is not None:
        fields.update(held_by=f"{held.function} ({held.file}:{held.line})", stack=held.stack)
    emit("warning", "greenback.slow_step", site=function, **fields)


def stalled(function: str, is_first: bool, describe: Callable[[], Stall]) -> None:
    """Log ``greenback.stalled``: a step holds the event loop and goes on.

    Args:
        function: The function whose bridge was the last one in the step.
        is_first: The step has just exceeded the limit. Then the event is left out if another step
            of this function was logged within 10 s. Later events of the same step, each after twice
            the time, are all logged.
        describe: Returns the rest, which takes time.
    """
    event = "greenback.stalled"
    left_out = _left_out(event, function) if is_first else 0
    if left_out is None:
        return
    stall = describe()
    fields: Dict[str, Any] = {
        "code.function.name": function,
        "seconds": round(stall.seconds, 6),
        "held_by": stall.held_by,
        "task": stall.task,
        "library": stall.library,
        "waiting_tasks": stall.tasks,
    }
    if stall.waits is not None:
        fields["waits_for"] = stall.waits.lock
        fields["lock_held_by"] = list(stall.waits.held_by)
    fields["stack"] = stall.stack
    if left_out:
        fields["left_out"] = left_out
    emit("warning", event, **fields)


def misuse(level: str, kind: str, site: str, describe: Callable[[], Misuse]) -> None:
    """Log ``greenback.misuse``, unless the same kind was logged for the same site within 10 s.

    Args:
        level: ``"warning"``, or ``"info"`` for advice.
        kind: The kind of misuse.
        site: The function where it happened.
        describe: Returns the rest, which takes time. Called only if the event is logged.
    """
    left_out = _left_out(f"greenback.misuse {kind}", site)
    if left_out is None:
        return
    found = describe()
    fields: Dict[str, Any] = {
        "kind": kind,
        "severity": found.severity,
        "subject": found.subject,
        "code.function.name": found.function,
        "bridge": found.site,
        "offender": found.offender,
        "task": found.task,
        "thread": found.thread,
        "count": found.count,
        "inconclusive": found.inconclusive,
        "evidence": list(found.evidence),
        "instead": found.instead,
        "link": found.link,
        "stack": "".join(found.stack),
    }
    if found.span_id is not None:
        # `emit` replaces these if a span of the application is current.
        fields.update(trace_id=found.trace_id, span_id=found.span_id)
    if left_out:
        fields["left_out"] = left_out
    emit(level, "greenback.misuse", **fields)


def summary(totals: Snapshot) -> None:
    """Log ``greenback.summary``: the totals, if neither an SDK nor a file gets them."""
    sites = totals.sites
    emit(
        "info",
        "greenback.summary",
        engine=greenback.engine,
        portals={kind: portals.opened for kind, portals in totals.portals.items()},
        bridges=sum(site.bridges for site in sites),
        suspended=sum(site.suspended for site in sites),
        errors=sum(site.errors for site in sites),
        cancelled=sum(site.cancelled for site in sites),
        time=sum(site.time for site in sites),
        suspended_time=sum(site.suspended_time for site in sites),
        slow_steps=totals.slow_steps,
        sites=[
            f"{site.function} ({site.file}:{site.line}): {site.bridges} bridges, "
            f"{site.suspended} suspended, {site.time:.3g} s"
            for site in sites[:_SITES_IN_SUMMARY]
        ],
    )
