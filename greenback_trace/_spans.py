"""Portals and bridges -> OpenTelemetry spans.

A span takes 20 to 100 us, most of it in the SDK, so there are at most so many per second; totals
count everything all the same.
"""

from __future__ import annotations

import threading
from time import perf_counter, perf_counter_ns, time_ns
from typing import TYPE_CHECKING, Any, Dict, Optional

from opentelemetry import context as otel_context
from opentelemetry import trace
from opentelemetry.context import Context
from opentelemetry.trace import Span, Tracer

from greenback.instruments import Instrument

from ._totals import Node, PortalTally, Totals, Waiting, is_cancellation

if TYPE_CHECKING:
    from greenback.instruments import Bridge, Portal

#: A bridge that took longer gets its span from the second budget, if the first one was used up.
SLOW_NS = 100_000_000
_OWN_SPAN = otel_context.create_key("greenback-span")


class Budget:
    """At most so many per second. With a rate of 0, there is no limit."""

    __slots__ = ("_left", "_rate", "_since")

    def __init__(self, rate: float) -> None:
        self._rate = rate
        self._left = rate
        self._since = perf_counter()

    def has_some(self) -> bool:
        # Two threads can both take the last one: a limit that is exact is not worth a lock.
        if not self._rate or self._left >= 1:
            return True
        now = perf_counter()
        seconds = now - self._since
        if seconds < 1:
            return False
        # With a rate below 1, what is left over adds up.
        self._left = min(self._left + seconds * self._rate, max(self._rate, 1.0))
        self._since = now
        return self._left >= 1

    def take(self) -> None:
        self._left -= 1


class _InSdk(threading.local):
    """Whether the thread is inside of a call of the SDK, whose locks are not reentrant."""

    now = False


class _Open:
    """The span of a bridge that is under way."""

    __slots__ = ("before", "context", "span")

    def __init__(self, span: Span, before: Context, context: Context) -> None:
        self.span = span
        #: What was current before the bridge, and what is while it runs.
        self.before = before
        self.context = context


class Spans(Instrument):
    """An instrument around `Totals`, whose times so do not include what spans cost.

    Args:
        totals: What counts.
        which: ``"all"``, ``"suspended"`` or ``"portals"``.
        rate: Spans per second at most; 0 for no limit.
        is_private: The spans go to a pipeline of our own. The application's spans are then neither
            parents nor children of ours.
    """

    __slots__ = (
        "_bridges",
        "_budget",
        "_dropped",
        "_in_sdk",
        "_is_private",
        "_portals",
        "_second_budget",
        "_totals",
        "_which",
        "tracer",
        "was_recorded",
    )

    def __init__(self, totals: Totals, which: str, rate: float, is_private: bool) -> None:
        self._totals = totals
        self._which = which
        self._is_private = is_private
        self._in_sdk = _InSdk()
        # Added to and removed from by the thread of the portal or bridge.
        self._portals: Dict[Portal, Span] = {}
        self._bridges: Dict[Bridge, _Open] = {}
        self._second_budget = Budget(rate)
        self._budget = Budget(rate)
        self._dropped = 0
        #: None until it is known where the spans go.
        self.tracer: Optional[Tracer] = None
        self.was_recorded = False

    # The hooks

    def portal_opened(self, portal: Portal) -> None:
        self._totals.portal_opened(portal)
        if self.tracer is None or self._in_sdk.now or not self._is_within(self._budget):
            return
        parent = self._parent()
        if parent is None:
            return
        self._budget.take()
        attributes = {
            "greenback.portal.kind": portal.kind,
            "greenback.async_library": portal.library.name,
        }
        self._in_sdk.now = True
        try:
            span = self.tracer.start_span(f"portal {portal.kind}", parent, attributes=attributes)
        finally:
            self._in_sdk.now = False
        if span.is_recording():
            self.was_recorded = True
            self._portals[portal] = span

    def portal_closed(self, portal: Portal) -> None:
        tally = self._totals.portals.get(portal)
        self._totals.portal_closed(portal)
        span = self._portals.pop(portal, None)
        if span is None or self._in_sdk.now:
            return
        self._in_sdk.now = True
        try:
            name = _task_name(portal.task)
            if name is not None:
                span.set_attribute("greenback.task.name", name)
            if tally is not None:
                span.set_attributes(_portal_attributes(tally))
            span.end()
        finally:
            self._in_sdk.now = False

    def bridge_started(self, bridge: Bridge) -> None:
        self._totals.bridge_started(bridge)
        if (
            self._which == "all"
            and self.tracer is not None
            and not self._in_sdk.now
            and self._is_within(self._budget)
        ):
            node, portal, _ = self._totals.bridges[bridge]  # type: ignore[misc]
            self._start(bridge, node)
            self._totals.bridges[bridge] = (node, portal, perf_counter_ns())

    def bridge_suspended(self, bridge: Bridge) -> None:
        self._totals.bridge_suspended(bridge)

    def bridge_resumed(self, bridge: Bridge) -> None:
        self._totals.bridge_resumed(bridge)

    def bridge_finished(self, bridge: Bridge, error: Optional[BaseException]) -> None:
        state = self._totals.bridges.get(bridge)
        self._totals.bridge_finished(bridge, error)
        opened = self._bridges.pop(bridge, None)
        if state is None or self.tracer is None:
            return
        if type(state) is not Waiting:
            state = Waiting(*state)  # type: ignore[misc]
        if opened is not None:
            self._leave(opened)
            self._end(opened.span, state, error, None)
        elif self._which != "portals" and not self._in_sdk.now:
            taken = perf_counter_ns() - state.started
            self._report_afterwards(bridge, state, taken, error)

    def step_started(self, portal: Portal) -> None:
        self._totals.step_started(portal)

    def step_finished(self, portal: Portal) -> None:
        self._totals.step_finished(portal)

    def count_dropped(self) -> int:
        """The spans that were left out because of the limit.

        Threads that add at the same moment may lose some; the number of bridges is exact.
        """
        return self._dropped

    # A bridge that is traced from its beginning

    def _start(self, bridge: Bridge, node: Node) -> None:
        parent = self._parent(bridge)
        if parent is None:
            return
        self._budget.take()
        span = self._new_span(bridge, node, parent, None)
        if not span.is_recording():
            return
        self.was_recorded = True
        before = otel_context.get_current()
        if self._is_private:
            within = otel_context.set_value(_OWN_SPAN, span, before)
        else:
            within = trace.set_span_in_context(span, before)
        otel_context.attach(within)
        # What attach() has made current; the same object, unless a context of its own copies it.
        self._bridges[bridge] = _Open(span, before, otel_context.get_current())

    def _leave(self, opened: _Open) -> None:
        """Make current what was so before, unless somebody else has changed it in between."""
        current = otel_context.get_current()
        if current is opened.context:
            # Not detach(): its token is good only in the contextvars context in which it was made,
            # and a task's can be replaced while it waits.
            otel_context.attach(opened.before)
        elif self._is_private:
            if current.get(_OWN_SPAN) is opened.span:
                outer = opened.before.get(_OWN_SPAN)
                otel_context.attach(otel_context.set_value(_OWN_SPAN, outer, current))
        elif trace.get_current_span(current) is opened.span:
            outer = trace.get_current_span(opened.before)
            otel_context.attach(trace.set_span_in_context(outer, current))

    # A bridge of which only its end shows that it is worth a span

    def _report_afterwards(
        self, bridge: Bridge, state: Waiting, taken: int, error: Optional[BaseException]
    ) -> None:
        finished = time_ns()
        failed = error is not None and not is_cancellation(error)
        if self._which == "suspended" and state.switches:
            budget = self._budget
        elif failed or taken > SLOW_NS:
            budget = self._second_budget
        else:
            return
        parent = self._parent(bridge)
        if parent is None or not self._is_within(budget):
            return
        budget.take()
        span = self._new_span(bridge, state.node, parent, finished - taken)
        if span.is_recording():
            self.was_recorded = True
            self._end(span, state, error, finished)

    # Both

    def _is_within(self, budget: Budget) -> bool:
        if budget.has_some():
            return True
        if self.was_recorded:  # otherwise, it would hardly have been this time
            self._dropped += 1
        return False

    def _new_span(
        self, bridge: Bridge, node: Node, parent: Context, start_time: Optional[int]
    ) -> Span:
        assert self.tracer is not None
        link = self._portals.get(bridge.portal)
        self._in_sdk.now = True
        try:
            return self.tracer.start_span(
                f"await_ {node.chain()[-1].qualname}",
                parent,
                attributes=_first_attributes(bridge, node),
                links=() if link is None else (trace.Link(link.get_span_context()),),
                start_time=start_time,
            )
        finally:
            self._in_sdk.now = False

    def _end(
        self, span: Span, state: Waiting, error: Optional[BaseException], finished: Optional[int]
    ) -> None:
        self._in_sdk.now = True
        try:
            span.set_attributes(
                {
                    "greenback.suspended": state.switches > 0,
                    "greenback.switches": state.switches,
                    "greenback.suspended_time": state.suspended_ns / 1e9,
                }
            )
            if error is not None and not is_cancellation(error):
                span.set_attribute("error.type", _full_name(type(error)))
                span.set_status(trace.StatusCode.ERROR)
            span.end(finished)
        finally:
            self._in_sdk.now = False

    def _parent(self, bridge: Optional[Bridge] = None) -> Optional[Context]:
        """The context whose span becomes the parent, or None where no span is to be made."""
        current = otel_context.get_current()
        if self._is_private:
            own = current.get(_OWN_SPAN)
            # The rest of the context is the application's, and would make its span the parent.
            current = Context() if own is None else trace.set_span_in_context(own, Context())  # type: ignore[arg-type]
        parent = trace.get_current_span(current).get_span_context()
        if parent.is_valid:
            return current if parent.trace_flags.sampled else None
        if bridge is not None and bridge.portal.kind in ("run", "run_sync"):
            span = self._portals.get(bridge.portal)
            if span is not None:
                return trace.set_span_in_context(span, current)
        return current


def _first_attributes(bridge: Bridge, node: Node) -> Dict[str, Any]:
    chain = node.chain()
    site = chain[-1]
    attributes: Dict[str, Any] = {
        "code.function.name": site.function,
        "greenback.async_library": bridge.portal.library.name,
        "greenback.awaitable": _awaitable_name(bridge.awaitable),
        "greenback.sync_depth": 0 if site.is_async else len(chain),
        "greenback.sync_chain": () if site.is_async else tuple(map(str, chain)),
    }
    if site.file:
        attributes["code.file.path"] = site.file
        attributes["code.line.number"] = site.line
    return attributes


def _portal_attributes(tally: PortalTally) -> Dict[str, Any]:
    return {
        "greenback.portal.bridges": tally.bridges,
        "greenback.portal.suspended": tally.suspended,
        "greenback.portal.errors": tally.errors,
        "greenback.portal.switches": tally.switches,
        "greenback.portal.bridge_time": tally.time_ns / 1e9,
        "greenback.portal.suspended_time": tally.suspended_ns / 1e9,
        "greenback.portal.step_time_max": tally.step_max_ns / 1e9,
    }


def _awaitable_name(awaitable: Any) -> str:
    name = getattr(awaitable, "__qualname__", None)
    return name if isinstance(name, str) else _full_name(type(awaitable))


def _full_name(kind: type) -> str:
    if kind.__module__ == "builtins":
        return kind.__qualname__
    return f"{kind.__module__}.{kind.__qualname__}"


def _task_name(task: Any) -> Optional[str]:
    get_name = getattr(task, "get_name", None)  # asyncio has this, Trio an attribute
    name = getattr(task, "name", None) if get_name is None else get_name()
    return name if isinstance(name, str) else None
