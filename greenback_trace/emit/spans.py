"""OpenTelemetry spans of portals and bridges.

Creating a span costs 20-100 us, most of it in the SDK. So spans are rate-limited. Totals still
count every bridge.
"""

from __future__ import annotations

import sys
import threading
from time import perf_counter_ns, time_ns
from typing import TYPE_CHECKING, Any, Callable, Dict, Optional, Tuple, cast

from opentelemetry import context as otel_context
from opentelemetry import trace
from opentelemetry.context import Context
from opentelemetry.trace import Span, Tracer

from greenback._listener.failures import raise_if_from_signal_handler, tell_failure

from ..count import layout
from ..count.counts import Node, PortalTally, Running, Ticks
from ..count.names import full_name, task_name
from ..count.outcomes import is_cancellation
from ..count.totals import Totals
from .attributes import first_attributes, portal_attributes
from .budget import Budget
from .context import OWN_SPAN, current_context, has_span, is_unsampled, take_out
from .sdk import (
    Call,
    inside,
    is_collecting,
    is_within,
    no_call,
    reference_to,
    unwatch_collections,
    watch_collections,
)

if TYPE_CHECKING:
    from greenback.instruments import Portal

#: Portals of these kinds end with one call. Their spans are the parents of their bridges' spans.
_ROOTS = ("run", "run_sync")


class _Open:
    """The span of a bridge that is under way, in `Running.opened`.

    If a span was left out, `Running.opened` has the `Ticks` that count it when the bridge finishes.
    """

    __slots__ = ("before", "context", "owner", "process", "span")

    def __init__(
        self, owner: Spans, span: Span, before: Context, context: Context, process: object
    ) -> None:
        #: The object that ends the span. None after the end, and until all fields are set.
        self.owner: Optional[Spans] = None
        self.span = span
        #: The current context before the bridge, and the one during it.
        self.before = before
        self.context = context
        #: The process of the span: a forked child does not end its parent's spans.
        self.process = process
        self.owner = owner

    def __del__(self) -> None:
        owner = getattr(self, "owner", None)
        if owner is not None:  # a signal handler has cut the bridge off
            owner.abandon(self)


class Spans(layout.Spans):
    """A `greenback._listener.listener.Listener` around `Totals`, which makes spans.

    The times of the totals leave out what spans cost.

    Args:
        totals: The listener that counts.
        which: ``"all"``, ``"suspended"`` or ``"portals"``.
        rate: Make at most this many spans per second; 0 is no limit.
        slow_ns: A bridge that took more nanoseconds than this gets its span from a second budget if
            the first one is used up.
        is_private: The spans go to the embedded pipeline. Then the application's spans are neither
            their parents nor their children.
    """

    __slots__ = (
        "__weakref__",
        "_all_bridges",
        "_budget",
        "_dropped",
        "_dropped_inside",
        "_failing",
        "_is_private",
        "_on_sdk",
        "_process",
        "_rate",
        "_second_budget",
        "_unsampled",
        "_which",
        "c_hooks",
        "enter_portal",
        "finish_step",
        "resume_bridge",
        "was_recorded",
    )

    def __init__(
        self, totals: Totals, which: str, rate: float, slow_ns: int, is_private: bool
    ) -> None:
        self._totals = totals
        self._which = which
        self._only_suspended = which == "suspended"
        self._only_portals = which == "portals"
        self._rate = rate
        self._slow_ns = slow_ns
        self._is_private = is_private
        #: None until `start`, and after `stop`.
        self._tracer: Optional[Tracer] = None
        #: The application has not set an SDK yet.
        self._waits_for_sdk = False
        self._on_sdk: Optional[Callable[[], None]] = None
        self._all_bridges = False
        self.after_fork()
        # The runtime calls these methods of the totals directly.
        self.enter_portal = totals.enter_portal
        # In place of all its methods, the runtime calls C code while bridges get no spans.
        self.c_hooks = None if totals.c_hooks is None else layout.compiled.spans_hooks
        self.resume_bridge = totals.resume_bridge
        self.finish_step = totals.finish_step

    def after_fork(self) -> None:
        """Forget the parent's spans, which the parent ends. Calls nothing of the SDK."""
        self._process = object()
        #: Held while a failure is logged.
        self._failing = threading.RLock()
        # The thread of a portal adds and removes its span.
        self._portals: Dict[Portal, Span] = {}
        self._budget = Budget(self._rate)
        self._second_budget = Budget(self._rate)
        self._dropped = Ticks()
        self._dropped_inside = Ticks()
        #: The last context whose span was not sampled: a short way for bridges in it.
        self._unsampled: Optional[Context] = None
        self.was_recorded = False

    def start(self, tracer: Tracer, on_sdk: Callable[[], None]) -> None:
        """Make spans with *tracer* from now on.

        If the application has set no SDK yet, *on_sdk* is called when it has, before the first
        span.
        """
        self._waits_for_sdk = type(tracer) is trace.ProxyTracer and _no_sdk()
        self._on_sdk = on_sdk
        self._all_bridges = self._which == "all"
        self._tracer = tracer
        watch_collections(self)

    def stop(self) -> None:
        """Make no more spans. Open spans are still ended."""
        self._tracer = None
        self._all_bridges = False
        unwatch_collections(self)

    def count_dropped(self) -> int:
        """The number of spans left out because of the limit, without bridges still under way."""
        return self._dropped.read()

    def count_inside_sdk(self) -> int:
        """The number of spans left out because a call of the SDK was under way in the thread."""
        return self._dropped_inside.read()

    # Listener: called by the runtime

    suspend_bridge: Optional[Callable[[Any], None]] = None
    start_step: Optional[Callable[[Portal], None]] = None

    def open_portal(self, portal: Portal) -> None:
        self._totals.open_portal(portal)
        try:
            if self._tracer is not None and not self._is_idle():
                self._start_portal(portal)
        except Exception as error:
            self._failed(error)

    def close_portal(self, portal: Portal) -> None:
        tally = portal.note
        self._totals.close_portal(portal)
        if self._portals:
            span = self._portals.pop(portal, None)
            if span is not None and inside.call() is None:
                try:
                    self._end_portal(portal, tally, span)
                except Exception as error:
                    self._failed(error)

    def start_bridge(self, portal: Portal, awaitable: Any, frame: Any) -> Optional[Running]:
        bridge = None
        try:
            bridge = self._totals.start_bridge(portal, awaitable, frame)
            if bridge is None:
                return None
            bridge.opened = None
            bridge.portal = portal
            bridge.awaitable = awaitable
            if self._all_bridges and not (self._waits_for_sdk and self._is_idle()):
                current = current_context()
                if current is not self._unsampled:
                    self._start(bridge, frame, current)
            return bridge
        except BaseException as error:
            if bridge is None:
                raise
            bridge.portal, bridge.awaitable = portal, awaitable
            self._failed_to_start(bridge, error)
            return bridge

    def finish_bridge(self, bridge: Running, error: Optional[BaseException], left: int) -> None:
        try:
            if not bridge.runs:
                # A second call: a signal handler raised just after the first one.
                if type(bridge.opened) is _Open:
                    self._finish(bridge, error, perf_counter_ns())
                return
            spent = self._totals.finish_bridge(bridge, error, left)
            # The common case first: no span to end or to make.
            if (
                spent < self._slow_ns
                and error is None
                and not (self._only_suspended and bridge.switches)
            ):
                opened = bridge.opened
                if type(opened) is not _Open:
                    bridge.awaitable = None
                    if opened is not None:
                        opened.add()
                    return
            # The calls below can begin a bridge, which would get this object from the spares.
            bridge.tally.spares.clear()
            self._finish(bridge, error, bridge.started + spent)
        except BaseException as failure:
            self._failed_to_finish(bridge, failure)

    def _finish_span(
        self,
        tally: PortalTally,
        node: Node,
        portal: Portal,
        numbers: Tuple[int, int, int, int],
        error: Optional[BaseException],
        finished: int,
    ) -> None:
        """Make a span for a bridge that C code has counted, if it failed, was slow, or suspended.

        When the bridge began, there was no SDK yet.
        """
        bridge = Running(tally)
        try:
            bridge.node, bridge.portal = node, portal
            bridge.started, bridge.switches, bridge.suspended_ns, bridge.slow_ns = numbers
            self._finish(bridge, error, finished)
        except BaseException as failure:
            self._failed_to_finish(bridge, failure)

    def note_misuse(
        self, bridge: Optional[Running], portal: Portal, frame: Any, attributes: Dict[str, Any]
    ) -> Optional[Tuple[str, str]]:
        """Add an event to the span of the bridge, or else to the nearest span around it.

        Returns the ids of the trace and of the span in hexadecimal; None if there is no span.
        """
        span = self._nearest(bridge, portal)
        if span is None:
            return None
        if self._may_call(frame):
            call = Call()
            inside.call = reference_to(call)
            try:
                span.add_event("greenback.misuse", attributes)
            finally:
                inside.call = no_call
        context = span.get_span_context()
        return trace.format_trace_id(context.trace_id), trace.format_span_id(context.span_id)

    def _nearest(self, bridge: Optional[Running], portal: Portal) -> Optional[Span]:
        opened = None if bridge is None else bridge.opened
        if type(opened) is _Open and opened.process is self._process:
            span: Span = opened.span
            return span
        span = trace.get_current_span(self._own_view(current_context()))
        return span if span.is_recording() else self._portals.get(portal)

    # Failures

    def _failed(self, error: Exception) -> None:
        """Make no more spans, since making one raised *error*. Logs once."""
        try:
            raise_if_from_signal_handler(error)
            with self._failing:
                if self._tracer is None:
                    return
                self.stop()
            tell_failure(
                "greenback makes no more spans, because making one raised %s; it still counts",
                error=error,
            )
        finally:
            del error  # its traceback can refer to this frame

    def _failed_to_start(self, bridge: Running, error: BaseException) -> None:
        try:
            if not issubclass(type(error), Exception):
                raise error
            self._failed(cast(Exception, error))
        except BaseException:  # the runtime does not finish a bridge whose start raised
            self.finish_bridge(bridge, error, 0)
            raise
        finally:
            del error  # its traceback has this frame

    def _failed_to_finish(self, bridge: Running, error: BaseException) -> None:
        try:
            if type(bridge.opened) is _Open:
                # The error came before or in the middle of this. Twice does no harm.
                self._finish(bridge, error, perf_counter_ns())
        except Exception as failure:
            self._failed(failure)
        try:
            if not issubclass(type(error), Exception):
                raise error
            self._failed(cast(Exception, error))
        finally:
            del error  # its traceback has this frame

    # The span of a portal

    def _start_portal(self, portal: Portal) -> None:
        assert self._tracer is not None
        current = self._own_view(current_context())
        if is_unsampled(current):
            return
        if not self._may_call(sys._getframe(1)):
            self._dropped_inside.add()
            return
        if not (self._budget.has_some(perf_counter_ns()) and self._budget.take()):
            if self.was_recorded:  # otherwise, it would hardly have been this time
                self._dropped.add()
            return
        attributes = {
            "greenback.portal.kind": portal.kind,
            "greenback.async_library": portal.library.name,
        }
        call = Call()
        inside.call = reference_to(call)
        try:
            span = self._tracer.start_span(f"portal {portal.kind}", current, attributes=attributes)
        finally:
            inside.call = no_call
        if span.is_recording():
            self.was_recorded = True
            self._portals[portal] = span
        elif portal.note is not None:
            portal.note.is_unsampled = portal.kind in _ROOTS

    def _end_portal(self, portal: Portal, tally: Optional[PortalTally], span: Span) -> None:
        call = Call()
        inside.call = reference_to(call)
        try:
            name = task_name(portal.task)
            if name is not None:
                span.set_attribute("greenback.task.name", name)
            if tally is not None:
                span.set_attributes(portal_attributes(tally))
            span.end()
        finally:
            inside.call = no_call

    # The span of a bridge, made at its start

    def _start(self, bridge: Running, frame: Any, current: Context) -> None:
        view = self._own_view(current)
        if is_unsampled(view):
            self._unsampled = current
            return
        if bridge.tally.is_unsampled and not has_span(view):
            return
        now = bridge.started
        budget = self._budget
        if now < budget.empty_until or not budget.has_some(now):
            if self.was_recorded:  # otherwise, it would hardly have been this time
                bridge.opened = self._dropped
            return
        if not self._may_call(frame):
            bridge.opened = self._dropped_inside
            return
        if not budget.take():
            if self.was_recorded:
                bridge.opened = self._dropped
            return
        span = self._new_span(bridge, self._parent(bridge, view), None)
        if not span.is_recording():
            bridge.started = perf_counter_ns()
            return
        self.was_recorded = True
        if self._is_private:
            within = otel_context.set_value(OWN_SPAN, span, current)
        else:
            within = trace.set_span_in_context(span, current)
        # Before attach(): so _leave() takes the span out again, whatever happens next.
        opened = bridge.opened = _Open(self, span, current, within, self._process)
        otel_context.attach(within)
        opened.context = current_context()  # equal, or a copy by another kind of runtime context
        bridge.started = perf_counter_ns()

    def _leave(self, opened: _Open) -> None:
        """Restore the context from before the bridge, unless other code has attached another."""
        current = current_context()
        if current is opened.context:
            # Not detach(): a token is valid only in the contextvars context that made it, and the
            # context of a task can be replaced while the task waits.
            otel_context.attach(opened.before)
            return
        take_out(opened.context, opened.span, opened.before)
        if self._is_private:
            if current.get(OWN_SPAN) is opened.span:
                outer = opened.before.get(OWN_SPAN)
                otel_context.attach(otel_context.set_value(OWN_SPAN, outer, current))
        elif trace.get_current_span(current) is opened.span:
            outer = trace.get_current_span(opened.before)
            otel_context.attach(trace.set_span_in_context(outer, current))

    def abandon(self, opened: _Open) -> None:
        """End the span of a bridge that was interrupted before its caller got it."""
        opened.owner = None
        try:
            self._leave(opened)
            if opened.process is not self._process:
                return
            if not self._may_call(sys._getframe(1)):
                self._dropped_inside.add()
                return
            call = Call()
            inside.call = reference_to(call)
            try:
                opened.span.end()
            finally:
                inside.call = no_call
        except Exception as error:
            self._failed(error)

    def _finish(self, bridge: Running, error: Optional[BaseException], now: int) -> None:
        opened = bridge.opened
        if type(opened) is _Open:
            self._leave(opened)
            opened.owner = bridge.opened = None
            if opened.process is self._process:
                self._end(opened.span, bridge, error, now, None)
            return
        bridge.opened = None
        left_out = self._make_late(bridge, error, now, opened)
        # Counted only now: at its start, the bridge could still get a span at its end.
        if left_out is not None:
            left_out.add()

    def _make_late(
        self, bridge: Running, error: Optional[BaseException], now: int, left_out: Optional[Ticks]
    ) -> Optional[Ticks]:
        """Make a span for a finished bridge without one, if it failed, was slow, or suspended.

        Returns the counter for the span if it is left out: *left_out* if nothing has changed. None
        if it is not left out.
        """
        if self._tracer is None or self._only_portals or self._is_idle():
            return left_out
        taken = now - bridge.started
        failed = error is not None and not is_cancellation(error)
        if self._which == "suspended" and bridge.switches:
            budget = self._budget
        elif failed or taken > self._slow_ns:
            budget = self._second_budget
        else:
            return left_out
        view = self._own_view(current_context())
        if is_unsampled(view) or (bridge.tally.is_unsampled and not has_span(view)):
            return left_out
        if not self._may_call(sys._getframe(3)):
            return left_out or self._dropped_inside
        if not (budget.has_some(now) and budget.take()):
            return left_out or (self._dropped if self.was_recorded else None)
        finished = time_ns()
        span = self._new_span(bridge, self._parent(bridge, view), finished - taken)
        if span.is_recording():
            self.was_recorded = True
            self._end(span, bridge, error, now, finished)
        return None

    # All spans

    def _is_idle(self) -> bool:
        """Whether the application has set no SDK yet."""
        if not self._waits_for_sdk:
            return False
        if _no_sdk() or not self._may_call(sys._getframe(1)):
            return True
        self._waits_for_sdk = False
        if self._on_sdk is not None:
            self._on_sdk()
        return False

    def _may_call(self, frame: Any) -> bool:
        """Whether the SDK can be called from here."""
        # Only calls made by greenback take the locks of the embedded pipeline.
        if inside.call() is not None or is_collecting():
            return False
        return self._is_private or not is_within(frame)

    def _new_span(self, bridge: Running, parent: Context, start_time: Optional[int]) -> Span:
        assert self._tracer is not None
        link = self._portals.get(bridge.portal)
        call = Call()
        inside.call = reference_to(call)
        try:
            return self._tracer.start_span(
                f"await_ {bridge.node.root().site.qualname}",
                parent,
                attributes=first_attributes(bridge),
                links=() if link is None else (trace.Link(link.get_span_context()),),
                start_time=start_time,
            )
        finally:
            inside.call = no_call

    def _end(
        self,
        span: Span,
        bridge: Running,
        error: Optional[BaseException],
        now: int,
        finished: Optional[int],
    ) -> None:
        # The step in which the bridge finishes can be slow by now, too.
        entered = bridge.portal.entered
        held = now - entered if entered >= bridge.tally.opened_at else 0
        slow = max(bridge.slow_ns, held if held > self._slow_ns else 0)
        call = Call()
        inside.call = reference_to(call)
        try:
            attributes: Dict[str, Any] = {
                "greenback.suspended": bridge.switches > 0,
                "greenback.switches": bridge.switches,
                "greenback.suspended_time": bridge.suspended_ns / 1e9,
            }
            if slow:
                attributes["greenback.slow_step_time"] = slow / 1e9
            span.set_attributes(attributes)
            if error is not None and not is_cancellation(error):
                span.set_attribute("error.type", full_name(type(error)))
                span.set_status(trace.StatusCode.ERROR)
            span.end(finished)
        finally:
            inside.call = no_call

    def _own_view(self, current: Context) -> Context:
        """The context for our spans: with the embedded pipeline, it has its spans only."""
        if not self._is_private:
            return current
        # With the rest of the context, a span of the application would become the parent.
        own: Any = current.get(OWN_SPAN)
        return Context() if own is None else trace.set_span_in_context(own, Context())

    def _parent(self, bridge: Running, view: Context) -> Context:
        """The context whose span becomes the parent of the bridge's span."""
        if bridge.tally.kind in _ROOTS:
            span = self._portals.get(bridge.portal)
            if span is not None and not has_span(view):
                return trace.set_span_in_context(span, view)
        return view


def _no_sdk() -> bool:
    """Whether the global tracer provider is still the proxy that waits for one."""
    return getattr(trace, "_TRACER_PROVIDER", trace) is None


if layout.compiled is not None:
    layout.compiled.watch(vars(trace), "_TRACER_PROVIDER")
