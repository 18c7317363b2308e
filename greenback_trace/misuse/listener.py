"""Debug mode's listener: passes on the runtime's events, and asks the detectors in between."""

from __future__ import annotations

import sys
from functools import partial
from time import perf_counter_ns
from types import FrameType
from typing import TYPE_CHECKING, Any, Callable, Dict, Optional, Tuple

from greenlet import getcurrent

from greenback._engine.bridge import await_
from greenback._engine.state import Worker
from greenback._frames import around_worker, caller_of_bridge

from ..count import layout
from ..count.frames import can_look_at_others
from ..count.sites import OTHER, Site, outside_adapters
from ..emit.sdk import unwatch_collections, watch_collections
from . import detect
from .detect import are_known, at_start
from .detectors import lock_held
from .evidence import blocks
from .evidence.blocks import are_without, with_blocks
from .evidence.locks import claims, replacements
from .finding import Finding
from .policy import OFF, MisuseError
from .record import Misuses
from .watchdog import Watchdog
from .wording import Misuse

if TYPE_CHECKING:
    from greenback._listener.listener import Listener
    from greenback.instruments import Portal

    from ..count.counts import Node, PortalTally, Running
    from ..count.totals import Totals
    from ..emit.spans import Spans

_LOCK_HELD = "lock_held"
#: Looking that takes longer than this is subtracted from the time of the step.
_LONG_NS = 1_000_000


def _holds(says: Callable[[FrameType, int], bool], node: Node, frame: FrameType) -> Optional[bool]:
    """Whether a statement holds of a bridge's sync chain; None if *node* does not tell the chain.

    Args:
        says: Says whether it holds of a frame and of a number of its callers.
        node: The node of the bridge.
        frame: The frame that called `greenback.await_`.
    """
    if node.site is OTHER or node.root().code is not frame.f_code:
        return None  # the node stands for many chains, or its chain begins further out
    return says(frame, len(node.chain()) - 1)


@layout.in_c
class Debug(layout.Debug):
    """A `greenback._listener.listener.Listener` around `Totals` or `Spans` that looks for misuse.

    Detectors are called after *inner* was told that the bridge starts. So a bridge that is refused
    counts as one that failed, and has a span.

    Args:
        inner: The listener that is told everything, and counts.
        totals: The totals in it.
        spans: The spans in it, if there are any.
        misuses: Reports the findings.
        slow_seconds: For a step that takes longer, the code that held the loop is named.
    """

    __slots__ = (
        "__weakref__",
        "_inner",
        "_spans",
        "enter_portal",
        "finish_bridge",
        "open_portal",
        "resume_bridge",
        "start_step",
        "suspend_bridge",
    )

    suspend_bridge: Optional[Callable[[Any], None]]
    start_step: Optional[Callable[[Portal], None]]

    def __init__(
        self,
        inner: Listener,
        totals: Totals,
        spans: Optional[Spans],
        misuses: Misuses,
        slow_seconds: float,
    ) -> None:
        self.misuses = misuses
        self._watchdog = Watchdog(slow_seconds)
        self._long_ns = _LONG_NS
        self._inner = inner
        self._totals = totals
        self._spans = spans
        watch_collections(self)  # for allow()
        self.open_portal = inner.open_portal
        self.enter_portal = inner.enter_portal
        self._start = inner.start_bridge
        self.resume_bridge = inner.resume_bridge
        self.finish_bridge = inner.finish_bridge
        self.start_step = self._watchdog.start_step if can_look_at_others() else None
        actions = misuses.actions
        self._looks_at_start = any(
            action != OFF for kind, action in actions.items() if kind != _LOCK_HELD
        )
        self._looks_for_locks = actions[_LOCK_HELD] != OFF
        self.suspend_bridge = None
        if self._looks_for_locks:
            self.suspend_bridge = self._before_suspension
            replacements.install()

    def after_fork(self) -> None:
        """Start at zero in a forked child."""
        self.misuses.after_fork()
        self._watchdog.after_fork()

    def stop(self) -> None:
        """Undo everything that debug mode has set up."""
        self.misuses.log_postponed()
        self._watchdog.stop()
        unwatch_collections(self)
        if self.suspend_bridge is not None:
            replacements.uninstall()

    # The hooks that do more than pass on

    def start_bridge(self, portal: Portal, awaitable: Any, frame: FrameType) -> Optional[Running]:
        bridge = self._start(portal, awaitable, frame)
        try:
            return self._look_at(bridge, portal, frame)
        except BaseException as error:  # the bridge is refused, or a signal handler raises
            if bridge is not None:
                self._refuse(bridge, portal, error)
            raise

    def _look_at(
        self, bridge: Optional[Running], portal: Portal, frame: FrameType
    ) -> Optional[Running]:
        """Look at a bridge that begins, and return it."""
        self._look(bridge, portal, frame)
        return bridge

    def _refuse(self, bridge: Running, portal: Portal, error: BaseException) -> None:
        self._excuse(bridge, portal)
        self.finish_bridge(bridge, error, 0)

    def _excuse(self, bridge: Running, portal: Portal, since: int = 0) -> None:
        """Do not count the time since the bridge's start, or since *since*, as the bridge's."""
        now = perf_counter_ns()
        taken = now - (since or bridge.started)
        bridge.started += taken
        if taken > _LONG_NS:  # from the step's, too: source may have been read
            tally = bridge.tally
            entered = portal.entered
            if not tally.began:
                tally.began = entered
            # The time of a finalizer's bridge in here may be subtracted already.
            portal.entered = min(portal.entered + taken, now)
            self._watchdog.excuse(portal, taken)

    def _look(self, bridge: Optional[Running], portal: Portal, frame: FrameType) -> None:
        node = outermost = None
        if bridge is not None:
            outermost, bridge.outermost = bridge.outermost, None
            # Otherwise, functions of greenback's adapters are in between.
            if bridge.tally.root.code is frame.f_code:
                node = bridge.node
            bridge.portal = portal
        if self._looks_at_start:
            try:
                is_known = None if node is None else node.is_known
                finding = at_start(frame, outermost if is_known else None)
                if finding is None and is_known is None and node is not None:
                    node.is_known = _holds(are_known, node, frame)
            except Exception as error:
                self.misuses.tell_failure("looking for misuse", error)
                finding = None
            if finding is not None:
                refused = self._report(finding, bridge, portal, frame)
                finding = None
                if refused is not None:
                    raise MisuseError(refused)
        if bridge is not None:
            if self.suspend_bridge is not None:
                try:
                    # The bridge still has the same callers when it suspends, and the outermost one
                    # is known now.
                    bridge.is_clear = node is not None and self._is_clear(
                        bridge.tally, node, frame, outermost
                    )
                except Exception as error:
                    bridge.is_clear = False
                    self.misuses.tell_failure("looking for held locks", error)
            self._excuse(bridge, portal)

    def _is_clear(
        self, tally: PortalTally, node: Node, frame: FrameType, outermost: Optional[FrameType]
    ) -> bool:
        """Whether none of the bridge's callers in the task has a ``with`` block."""
        if node.is_without is None:
            node.is_without = _holds(are_without, node, frame)
        if tally.is_bare is None:
            tally.is_bare = not with_blocks(None)
        return not with_blocks(outermost if node.is_without else frame, tally.is_bare)

    def close_portal(self, portal: Portal) -> None:
        self._watchdog.finish_step(portal)  # a portal that was killed ends its step only here
        self._inner.close_portal(portal)

    def finish_step(self, portal: Portal) -> None:
        held = self._watchdog.finish_step(portal)
        tally = portal.note
        if held is None or tally is None:
            self._inner.finish_step(portal)
        else:
            tally.held = held
            try:
                self._inner.finish_step(portal)
            finally:
                tally.held = None
        if self.misuses.postponed:
            self._log_postponed(portal)

    def _log_postponed(self, portal: Portal) -> None:
        tally = portal.note
        if tally is None or not tally.active():
            self.misuses.log_postponed()

    def _before_suspension(self, bridge: Running) -> None:
        if bridge.switches:
            return  # no sync code of the task has run since its first suspension
        if bridge.is_clear and not claims.are_noted():
            return
        frame = caller_of_bridge(sys._getframe(1))
        if frame is None:
            return
        portal = bridge.portal
        try:
            finding = lock_held.held(frame, portal.task)
        except Exception as error:
            self.misuses.tell_failure("looking for held locks", error)
            return
        if finding is not None:
            since = perf_counter_ns()
            refused = self._report(finding, bridge, portal, frame)
            self._excuse(bridge, portal, since)
            finding = None
            if refused is not None:
                raise MisuseError(refused)

    # Findings

    def _report(
        self, finding: Finding, bridge: Optional[Running], portal: Portal, frame: FrameType
    ) -> Optional[Misuse]:
        site = self._totals.sites.bridging(outside_adapters(frame))
        note = partial(self._note, bridge, portal, frame)
        return self.misuses.report(finding, site, frame, portal, note)

    def _note(
        self,
        bridge: Optional[Running],
        portal: Portal,
        frame: FrameType,
        finding: Finding,
        site: Site,
    ) -> Optional[Tuple[str, str]]:
        if self._spans is None:
            return None
        attributes: Dict[str, Any] = {
            "greenback.misuse.kind": finding.kind,
            "greenback.misuse.subject": finding.subject,
            "greenback.misuse.inconclusive": finding.inconclusive,
            "code.function.name": site.function,
        }
        return self._spans.note_misuse(bridge, portal, frame, attributes)


if layout.compiled is not None:
    layout.compiled.know(
        detect=vars(detect),
        claims=vars(claims),
        looked=blocks._looked,
        getcurrent=getcurrent,
        worker=Worker,
        bridge_code=await_.__code__,
        around_worker=around_worker,
    )
