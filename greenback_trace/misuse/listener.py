"""Debug mode: what the runtime tells, with detectors in between."""

from __future__ import annotations

import sys
from functools import partial
from time import perf_counter_ns
from types import FrameType
from typing import TYPE_CHECKING, Any, Callable, Dict, Optional, Tuple

from greenback._frames import caller_of_bridge

from ..count.frames import can_look_at_others
from ..count.sites import OTHER, Site, outside_adapters
from ..emit.sdk import unwatch_collections, watch_collections
from .detect import are_known, at_start
from .detectors import lock_held
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
#: What takes longer than this is taken off the step that it was done in.
_LONG_NS = 1_000_000
#: Sync chains of which is remembered what need not be looked at again.
_CHAINS_KEPT = 10_000


class _Chains:
    """The sync chains of which something is known to hold, or not to hold: found out once for each.

    Args:
        holds: Whether it holds of so many callers of a frame.
    """

    __slots__ = ("_found", "_holds")

    def __init__(self, holds: Callable[[FrameType, int], bool]) -> None:
        self._holds = holds
        # Written by whichever thread comes first: what two write at once is equal.
        self._found: Dict[Node, bool] = {}

    def have(self, node: Node) -> Optional[bool]:
        """Whether it holds of a bridge's chain; None if nobody has looked."""
        return self._found.get(node)

    def look(self, node: Node, frame: FrameType) -> bool:
        """Find out. *frame* is what called `greenback.await_`."""
        if node.site is OTHER or node.root().code is not frame.f_code:
            return False  # it stands for many chains, or begins further out
        if len(self._found) >= _CHAINS_KEPT:
            self._found.clear()
        holds = self._found[node] = self._holds(frame, len(node.chain()) - 1)
        return holds


class Debug:
    """A `greenback._listener.listener.Listener` around `Totals` or `Spans` that looks for misuse.

    Detectors are called after the bridge has begun for the others, so that a bridge which is
    refused is one that has failed, and has a span.

    Args:
        inner: What is told of everything, and counts.
        totals: The totals that are in it.
        spans: The spans that are in it, if there are some.
        misuses: Where what is found is reported.
        slow_seconds: Of a step that takes longer, the code that held the loop is named.
    """

    __slots__ = (
        "__weakref__",
        "_calls",
        "_inner",
        "_looks_at_start",
        "_spans",
        "_start",
        "_totals",
        "_watchdog",
        "_withs",
        "enter_portal",
        "finish_bridge",
        "misuses",
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
        self._calls = _Chains(are_known)
        self._withs = _Chains(are_without)
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
        self.suspend_bridge = None
        if actions[_LOCK_HELD] != OFF:
            self.suspend_bridge = self._before_suspension
            replacements.install()

    def after_fork(self) -> None:
        """Start at zero, in a forked child."""
        self.misuses.after_fork()
        self._watchdog.after_fork()

    def stop(self) -> None:
        """Leave nothing of debug mode behind."""
        self.misuses.log_postponed()
        self._watchdog.stop()
        unwatch_collections(self)
        if self.suspend_bridge is not None:
            replacements.uninstall()

    # What the runtime calls, besides what goes through unseen

    def start_bridge(self, portal: Portal, awaitable: Any, frame: FrameType) -> Optional[Running]:
        bridge: Optional[Running] = self._start(portal, awaitable, frame)
        try:
            self._look(bridge, portal, frame)
        except BaseException as error:  # it is refused; or a signal handler's
            if bridge is not None:
                self._excuse(bridge, portal)
                self.finish_bridge(bridge, error, 0)
            raise
        return bridge

    def _excuse(self, bridge: Running, portal: Portal, since: int = 0) -> None:
        """What was done since the bridge began, or *since* then, is none of its time."""
        now = perf_counter_ns()
        taken = now - (since or bridge.started)
        bridge.started += taken
        if taken > _LONG_NS:  # nor of the step's: source may have been read
            tally = bridge.tally
            entered = portal.entered
            if not tally.began:
                tally.began = entered
            # A finalizer's bridge in here may have been excused already.
            portal.entered = min(portal.entered + taken, now)
            self._watchdog.excuse(portal, taken)

    def _look(self, bridge: Optional[Running], portal: Portal, frame: FrameType) -> None:
        node = outermost = None
        if bridge is not None:
            outermost, bridge.outermost = bridge.outermost, None
            # Elsewhere, functions of greenback's adapters are in between.
            if bridge.tally.root.code is frame.f_code:
                node = bridge.node
            bridge.portal = portal
        if self._looks_at_start:
            try:
                is_known = None if node is None else self._calls.have(node)
                finding = at_start(frame, outermost if is_known else None)
                if finding is None and is_known is None and node is not None:
                    self._calls.look(node, frame)
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
                    # Its callers are the same when it suspends, and how to get to the outermost
                    # one is known now.
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
        """Whether nothing that the bridge is called from has a ``with`` block."""
        is_known = self._withs.have(node)
        if is_known is None:
            is_known = self._withs.look(node, frame)
        if tally.is_bare is None:
            tally.is_bare = not with_blocks(None)
        return not with_blocks(outermost if is_known else frame, tally.is_bare)

    def close_portal(self, portal: Portal) -> None:
        self._watchdog.finish_step(portal)  # one that was killed has no other end
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
        if self.misuses.postponed and (tally is None or not tally.active()):
            self.misuses.log_postponed()

    def _before_suspension(self, bridge: Running) -> None:
        if bridge.switches:
            return  # nothing of the task's sync code has run since the first one
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

    # What it does about a finding

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
