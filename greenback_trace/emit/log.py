"""Events -> structlog."""

from __future__ import annotations

import logging
import sys
import threading
from time import monotonic, perf_counter_ns
from typing import TYPE_CHECKING, Any, Callable, Dict, Optional, Tuple

import structlog
from opentelemetry import trace

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
#: Seconds for which the same event of the same site is not told again.
_QUIET = 10.0
#: Pairs of event and site that are kept apart.
_KEPT = 2_000


class _Told:
    """When an event was told, and how often it was left out since."""

    __slots__ = ("_left_out", "_lock", "_told", "at", "leave_out")

    def __init__(self, at: float) -> None:
        self.at = at
        self._left_out = Ticks()
        self.leave_out = self._left_out.add
        #: Of those that were left out, how many were told of.
        self._told = 0
        # Reentrant, for finalizers and signal handlers that log in the middle of this.
        self._lock = threading.RLock()

    def tell(self, now: float) -> int:
        """It is told: how often it was left out. Of two that are told at once, one says so."""
        with self._lock:
            self.at = now
            left_out = self._left_out.read() - self._told
            self._told += left_out
            return left_out


# Used by any thread, by finalizers and by signal handlers, in single operations: where two of them
# find at once that it is time to tell an event again, both tell it.
_told: Dict[Tuple[str, str], _Told] = {}


def _logger() -> Any:
    """The application's, if it has configured structlog; otherwise one for standard error."""
    if structlog.is_configured():
        config = structlog.get_config()
        if not hasattr(config["wrapper_class"], "sync_bl"):
            return structlog.get_logger("greenback").bind()
        # A wrapper whose methods are coroutines, and which needs asyncio's loop in this thread: the
        # same factory and processors, called as a function. Asked of the class, since the instances
        # of another wrapper have every attribute.
        return structlog.wrap_logger(
            config["logger_factory"]("greenback"), wrapper_class=structlog.stdlib.BoundLogger
        ).bind()
    return structlog.wrap_logger(
        structlog.WriteLogger(sys.stderr),  # one write, lest two processes share a line
        processors=[
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso"),
            structlog.processors.KeyValueRenderer(key_order=["timestamp", "level", "event"]),
        ],
    )


def emit(level: str, event: str, *, site: Optional[str] = None, **fields: Any) -> None:
    """Log an event. Never raises: what logs is the application's, and it may fail.

    Args:
        level: The name of the logger's method.
        event: What happened.
        site: Where. Repeats of the same event there are left out for a while, and their number is
            on the next one. Events without a site are all logged.
        fields: What else there is to tell.
    """
    try:
        if site is not None:
            left_out = _left_out(event, site)
            if left_out is None:
                return
            fields["code.function.name"] = site
            if left_out:
                fields["left_out"] = left_out
        # A span of the application, if one is current; else what is known already; else ours.
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
        except Exception:  # nothing is left to tell it to
            return


def _left_out(event: str, site: str) -> Optional[int]:
    """How many were left out since the last one; None if this one is to be, too."""
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
    """Tell everything again."""
    _told.clear()
    _Debug.until = 0.0


def portal_opened(portal: Portal) -> None:
    """Log ``greenback.portal.opened``, if debug events are shown."""
    if _shows_debug():
        emit("debug", "greenback.portal.opened", **_described(portal))


def portal_closed(portal: Portal, tally: PortalTally) -> None:
    """Log ``greenback.portal.closed``, also for one that is open when the program ends."""
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
    """Whether debug events are shown, and until when that is taken for granted."""

    shown = False
    until = 0.0


def _shows_debug() -> bool:
    """Asked for each portal, hence looked up once a second only.

    Never without the application's configuration of structlog: a line on standard error for each
    portal is more than anybody asks for by switching tracing on.
    """
    now = monotonic()
    if now >= _Debug.until:
        _Debug.until = now + 1
        _Debug.shown = structlog.is_configured() and _is_enabled_for_debug()
    return _Debug.shown


def _is_enabled_for_debug() -> bool:
    try:
        logger = _logger()
        for asked in (logger, getattr(logger, "_logger", None)):
            # The filtering ones of structlog have the first, those around the standard library's
            # loggers and these themselves the second. Asked of the class: structlog's generic
            # wrapper would take it for the name of a level, and log.
            for name in ("is_enabled_for", "isEnabledFor"):
                ask = getattr(type(asked), name, None)
                if ask is not None:
                    return bool(ask(asked, logging.DEBUG))
        return True
    except Exception as error:  # it is the application's; `emit` tells of it
        raise_if_from_signal_handler(error)
        return True


def slow_step(function: str, seconds: float, held: Optional[Held] = None) -> None:
    """Log ``greenback.slow_step``: the event loop was held for so many *seconds*.

    Args:
        function: The function whose bridge was the last one in the step.
        seconds: How long the step took.
        held: The code that was seen to hold the loop, if somebody watched.
    """
    fields: Dict[str, Any] = {"seconds": round(seconds, 6)}
    if held is not None:
        fields.update(held_by=f"{held.function} ({held.file}:{held.line})", stack=held.stack)
    emit("warning", "greenback.slow_step", site=function, **fields)


def stalled(function: str, is_first: bool, describe: Callable[[], Stall]) -> None:
    """Log ``greenback.stalled``: the event loop is being held, and for how long it has been.

    Args:
        function: The function whose bridge was the last one in the step.
        is_first: The step has just got over the limit: it is not told of if another step of that
            function was a moment ago. Each time that it has taken twice as long, it is.
        describe: Gives the rest, which takes time.
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
    """Log ``greenback.misuse``, unless the same kind was logged for the same site just now.

    Args:
        level: ``"warning"``, or ``"info"`` for advice.
        kind: The kind of misuse.
        site: Where it was.
        describe: Gives the rest, which takes time, if it is to be logged.
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
        # Where a span of the application is current, that is the one.
        fields.update(trace_id=found.trace_id, span_id=found.span_id)
    if left_out:
        fields["left_out"] = left_out
    emit(level, "greenback.misuse", **fields)


def summary(totals: Snapshot) -> None:
    """Log ``greenback.summary``: what was counted, where nobody else will tell."""
    sites = totals.sites
    emit(
        "info",
        "greenback.summary",
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
