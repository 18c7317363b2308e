"""Exact counts per site, sync chain and portal: the hot path of tracing.

Each thread has counts of its own, and `Sums` adds them up for readers. So counting needs no lock;
``+= 1`` on a number that threads share would lose some. The runtime calls `Totals` directly: to
call an instrument takes longer than all of the counting.

To find its chain, a bridge walks outwards from the site along a tree of nodes that the thread has
learned: at most one dictionary look-up per sync function. The node where the walk ends counts it.

counting.c does the same in C, and calls the methods here for what seldom happens. A change of one
is a change of both. ``benchmarks/`` measures what they cost.
"""

from __future__ import annotations

import threading
import weakref
from bisect import bisect_left
from time import perf_counter_ns
from types import FrameType
from typing import TYPE_CHECKING, Any, Callable, Optional, Tuple, cast

from greenback._engine.bridge import await_
from greenback._engine.choice import compiled as engine
from greenback._engine.work import with_frame
from greenback.instruments import Portal

from . import layout
from .counts import (
    EDGES,
    NO_NODE,
    PORTAL_BOUNDS,
    PORTAL_EDGES,
    Counts,
    Node,
    PortalTally,
    Running,
)
from .outcomes import ending_of
from .sites import (
    ADAPTERS_FILE,
    ASYNC,
    CALLERS_PER_SITE,
    CHAIN_LIMIT,
    NO_FRAME,
    OTHER,
    RUNTIME,
    STRIDE,
    Site,
    Sites,
    call_of,
    key_of,
    outside_adapters,
)
from .sums import Sums

if TYPE_CHECKING:
    from ..emit.measurements import Measurements
    from ..misuse.watchdog import Held

#: The key of the node for all sites, or all callers, over the limit.
_OVERFLOW = 0
#: Of the frames that stand for a worker in C, which has none.
_STAND_INS = {await_.__code__, with_frame.__code__}
#: `Totals.quiet_until` of an observer that never wants to be told.
_ALWAYS = (1 << 63) - 1


class _Presence:
    """An object that lives as long as its thread."""

    __slots__ = ("__weakref__",)


class _Local(threading.local):
    counts: Optional[Counts] = None
    presence: Optional[_Presence] = None


class Observer:
    """`Totals` call these methods for portals, slow steps and failures. Override each of them.

    C code calls the first two only after `Totals.quiet_until`.
    """

    __slots__ = ()

    def portal_opened(self, portal: Portal) -> None:
        """The totals count *portal* from now on: it is new, or was open when tracing began."""

    def portal_closed(self, portal: Portal, tally: PortalTally) -> None:
        """*portal* is closed; *tally* has its counts."""

    def slow_step(self, function: str, seconds: float, held: Optional[Held]) -> None:
        """A slow step has ended.

        Args:
            function: The function that held the event loop.
            seconds: The duration of the step.
            held: What debug mode saw of the step; None without debug mode.
        """

    def failed(self, error: Exception) -> None:
        """Counting raised *error*. The program must not notice."""
        raise error


@layout.in_c
class Totals(Sums):
    """The `greenback._listener.listener.Listener` that counts.

    Args:
        site_limit: Count at most this many sites apart.
        slow_ns: A step that takes more nanoseconds than this is a slow step.
        observer: Is told of portals, slow steps and failures.
        gives_outermost: Set `Running.outermost`, for debug mode.
    """

    __slots__ = (
        "__weakref__",
        "_local",
        "_observer",
        "_site_limit",
        "c_hooks",
        "sites",
    )

    def __init__(
        self,
        site_limit: int,
        slow_ns: int = 100_000_000,
        observer: Optional[Observer] = None,
        gives_outermost: bool = False,
    ) -> None:
        self._site_limit = site_limit
        self.slow_ns = slow_ns
        self._observer = Observer() if observer is None else observer
        self._gives_outermost = gives_outermost
        #: Written by `pass_on`, from any thread.
        self._measurements: Optional[Measurements] = None
        self.sites = Sites(site_limit)
        #: The hooks in C that the runtime calls in place of the methods below; None without them.
        self.c_hooks: Any = None
        if layout.compiled is not None and type(self) is Totals and not gives_outermost:
            self.c_hooks = layout.compiled.totals_hooks
        # A thread learns at most this many nodes. A node takes 250 bytes.
        super().__init__(node_limit=site_limit * CALLERS_PER_SITE)

    def after_fork(self) -> None:
        super().after_fork()
        self.sites.after_fork()
        self._local = _Local()
        #: The observer has nothing to do when a portal is opened or closed before this time, as
        #: long as the variables in `unset` are unset or None: so C code does not call it. `unset`
        #: alternates the dictionary and the name of a variable.
        self.quiet_until = _ALWAYS if type(self._observer) is Observer else 0
        self.unset: Optional[Tuple[Any, ...]] = None

    def pass_on(self, measurements: Optional[Measurements]) -> None:
        """Pass samples for an SDK's histograms to *measurements* from now on; None ends that."""
        self._measurements = measurements

    # Listener: called by the runtime. The handlers keep a failure away from the program.

    #: Not needed: `Portal.left` and `Portal.entered` have the times at which switches began.
    suspend_bridge: Optional[Callable[[Any], None]] = None
    start_step: Optional[Callable[[Portal], None]] = None

    def start_bridge(self, portal: Portal, awaitable: Any, frame: Any) -> Optional[Running]:
        bridge: Optional[Running] = None
        try:
            tally = portal.note
            if tally is None or tally.totals is not self:
                tally = self._new_portal(portal)
            code = frame.f_code
            offset = frame.f_lasti
            node = tally.root
            if code is not node.code or offset != node.offset:
                node = tally.counts.roots.get(id(code) + offset * STRIDE)
                if node is None:
                    frame = outside_adapters(frame)
                    node = tally.counts.roots.get(key_of(frame))
                    if node is None:
                        node = self._new_root(tally.counts, frame)
                tally.root = node
            while not node.ends:
                caller = frame.f_back
                if caller is None:
                    break
                code = caller.f_code
                if code is node.outer_code and caller.f_lasti == node.outer_offset:
                    outer = node.outer
                else:
                    key = id(code) + caller.f_lasti * STRIDE
                    outer = node.others.get(key)
                    if outer is None:
                        outer = self._new_caller(tally.counts, node, key, caller)
                if outer is node:
                    break  # the caller is async, or the portal
                node = outer
                frame = caller
            tally.last = node
            try:
                spare: Running = tally.spares.pop()
            except IndexError:
                spare = tally.new_running()
            bridge = spare
            bridge.node = node
            if self._gives_outermost:
                bridge.outermost = frame
            bridge.switches = bridge.suspended_ns = bridge.slow_ns = 0
            bridge.started = perf_counter_ns()
            bridge.runs = True  # last: if a signal handler raises before, no bridge has begun
            return bridge
        except BaseException as error:
            if bridge is not None:
                bridge.runs = False
            # At the limit of recursion, the bridge is refused.
            if not issubclass(type(error), Exception) or issubclass(type(error), RecursionError):
                raise
            self._observer.failed(cast(Exception, error))
            return None

    def resume_bridge(self, bridge: Running, portal: Portal, left: int) -> None:
        # In this order: a finalizer that bridges can make the step begin later.
        entered = portal.entered
        now = perf_counter_ns()
        bridge.suspended_ns += now - left
        bridge.switches += 2
        tally = bridge.tally
        tally.last = bridge.node
        if tally.slow_ns:
            bridge.slow_ns = max(bridge.slow_ns, tally.slow_ns)
            tally.slow_ns = 0
        if entered >= left:  # else this step began while tracing was off
            spent = now - entered
            tally.switches += 2
            tally.switch_ns += spent
            counts = tally.counts
            durations = counts.to_task
            durations[bisect_left(EDGES, spent)] += 1
            durations[0] += spent
            measurements = self._measurements
            if measurements is not None:
                if counts.skip > 0:
                    counts.skip -= 1
                else:
                    measurements.switch(counts, "to_task", spent)

    def finish_bridge(self, bridge: Running, error: Optional[BaseException], left: int) -> int:
        """Count the bridge, and return its duration in nanoseconds.

        A second call does nothing and returns 0: if a signal handler raised just after the first
        call, the caller calls again.
        """
        if not bridge.runs:
            return 0
        now = perf_counter_ns()
        bridge.runs = False
        node = bridge.node
        tally = bridge.tally
        spent = now - bridge.started
        node.time_ns += spent
        tally.time_ns += spent
        if left:  # killed while it waited
            bridge.suspended_ns += now - left
            bridge.switches += 1
            tally.switches += 1
        if bridge.switches:
            suspended_ns = bridge.suspended_ns
            node.suspended += 1
            node.suspended_ns += suspended_ns
            tally.suspended += 1
            tally.suspended_ns += suspended_ns
            durations = tally.library.waited
        else:
            durations = tally.library.quick
        if error is None:
            node.ok += 1
            tally.ok += 1
            durations[bisect_left(EDGES, spent)] += 1
            durations[0] += spent
            measurements = self._measurements
            if measurements is not None:
                counts = tally.counts
                if counts.skip > 0:
                    counts.skip -= 1
                else:
                    suspended = bridge.switches > 0
                    measurements.bridge(counts, tally.library_name, None, suspended, spent)
        else:
            try:
                self._failed(node, tally, error, bridge.switches > 0, spent)
            except Exception as failure:
                self._observer.failed(failure)
        if tally.closed:
            self._finished_late(tally)
        else:
            tally.spares.append(bridge)
        return spent

    def _failed(
        self, node: Node, tally: PortalTally, error: BaseException, suspended: bool, spent: int
    ) -> None:
        # All that can raise comes before the counting: C code calls again after a RecursionError.
        ending = ending_of(error, suspended)
        durations = tally.library.durations_of(ending)
        bucket = bisect_left(EDGES, spent)
        if ending[0] == "cancelled":
            node.cancelled += 1
            tally.cancelled += 1
        else:
            node.errors += 1
            tally.errors += 1
        durations[bucket] += 1
        durations[0] += spent
        measurements = self._measurements
        if measurements is not None:
            counts = tally.counts
            if counts.skip > 0:
                counts.skip -= 1
            else:
                measurements.bridge(counts, tally.library_name, error, suspended, spent)

    def open_portal(self, portal: Portal) -> None:
        try:
            self._new_portal(portal)
        except Exception as error:
            self._observer.failed(error)

    def enter_portal(self, portal: Portal) -> None:
        tally = portal.note
        if tally is None or tally.totals is not self:
            return
        try:  # another thread may have opened the portal
            tally.counts = self._counts()
            tally.library = tally.counts.library(tally.library_name)
            tally.root = NO_NODE
        except Exception as error:
            self._observer.failed(error)

    def close_portal(self, portal: Portal) -> None:
        tally = portal.note
        if tally is None or tally.totals is not self or tally.closed:
            return  # the portal was opened before tracing was enabled, and has not bridged since
        try:
            if tally.postponed is not None:
                self._count_postponed(tally)
            spent = perf_counter_ns() - tally.opened_at
            counts = self._counts()
            kind = counts.kind(tally.kind)
            with self._lock:  # for a reader, the portal is either open or closed, and never both
                self.portals.pop(portal, None)
                tally.closed = True
                tally.spares.clear()  # spares refer to the tally, and can refer to the portal
                kind.durations[bisect_left(PORTAL_EDGES, spent)] += 1
                kind.durations[0] += spent
                kind.closed += 1
                if tally.active():
                    self.late[id(tally)] = tally
                else:
                    kind.add(tally)
            measurements = self._measurements
            if measurements is not None:
                if counts.skip > 0:
                    counts.skip -= 1
                else:
                    measurements.portal(counts, tally.kind, spent)
            self._observer.portal_closed(portal, tally)
        except Exception as error:
            self._observer.failed(error)

    def finish_step(self, portal: Portal) -> None:
        now = perf_counter_ns()
        tally = portal.note
        if tally is None or tally.totals is not self:
            return
        if tally.postponed is not None:
            self._count_postponed(tally)
        entered = portal.entered
        left = portal.left
        began = tally.began
        if began:
            tally.began = 0
            if began <= left < entered:  # a finalizer bridged when the step was about to end
                left = portal.left = entered
        if entered < tally.opened_at:
            return  # the step began before tracing did, or before a fork in the parent process
        counts = tally.counts
        if left >= entered:  # a bridge ended the step by suspending
            spent = now - left
            tally.switch_ns += spent
            durations = counts.to_loop
            durations[bisect_left(EDGES, spent)] += 1
            durations[0] += spent
        spent = now - entered
        durations = tally.library.steps
        durations[bisect_left(EDGES, spent)] += 1
        durations[0] += spent
        measurements = self._measurements
        if measurements is not None:
            if left < entered:
                if counts.skip > 0:
                    counts.skip -= 1
                else:
                    measurements.step(counts, tally.library_name, spent)
            elif counts.skip > 1:
                counts.skip -= 2  # in one operation, which takes a hundredth of a bridge
            else:
                measurements.switch_and_step(counts, now - left, tally.library_name, spent)
        if spent > tally.step_max_ns:
            tally.step_max_ns = spent
        if spent > self.slow_ns:
            self._slow_step(portal, tally, spent, left >= entered)
        tally.last = None

    # Slow paths: first encounters and rare events

    def _counts(self) -> Counts:
        """The counts of this thread."""
        counts = self._local.counts
        if counts is not None:
            return counts
        presence = self._local.presence = _Presence()
        counts = Counts(weakref.ref(presence))
        measurements = self._measurements
        if measurements is not None:
            measurements.skip_some(counts)  # else the first event of each thread was in the sample
        self._add_thread(counts)
        self._local.counts = counts
        return counts

    def _new_root(self, counts: Counts, frame: Optional[FrameType]) -> Node:
        """The node of the site that *frame* is at.

        None stands for a worker in C, and so does a frame that the runtime has in its place.
        """
        key = NO_FRAME if frame is None else key_of(frame)
        called = None if frame is None or frame.f_code in _STAND_INS else frame
        site = self.sites.bridging(called)
        if site is not OTHER:
            call = NO_FRAME if called is None else call_of(called)
            root = counts.roots.get(call)
            if root is None:
                root = self._add_root(counts, call, site)
            if frame is not None:
                counts.roots[key] = root
                # In this order: a signal handler can bridge in between, and compares the code
                # first.
                root.offset = frame.f_lasti
                root.code = frame.f_code
            return root
        node = counts.roots.get(_OVERFLOW)
        if node is None:
            node = self._add_root(counts, _OVERFLOW, OTHER)
        if len(counts.nodes) + len(counts.kept) < self._node_limit:
            if frame is not None:
                counts.kept.append(frame.f_code)
            counts.roots[key] = node
        return node

    def _add_root(self, counts: Counts, key: int, site: Site) -> Node:
        node = counts.roots[key] = Node(site, None, site.is_async or site is OTHER)
        counts.nodes.append(node)
        return node

    def _new_caller(self, counts: Counts, inner: Node, key: int, frame: FrameType) -> Node:
        """The node of a caller of *inner*; *inner* itself where the chain ends there."""
        code = frame.f_code
        is_full = len(counts.nodes) + len(counts.kept) >= self._node_limit
        if code.co_flags & ASYNC or code.co_filename.startswith(RUNTIME):
            if not is_full:
                counts.kept.append(code)
                inner.add_caller(frame, key, inner)
            return inner
        if is_full:
            inner = inner.root()
            node = inner.others.get(_OVERFLOW)
            if node is None:
                node = Node(OTHER, inner, True)
                inner.add_other(_OVERFLOW, node)
                counts.nodes.append(node)
            return node
        site = self.sites.calling(frame)
        ends = len(inner.chain()) + 1 >= CHAIN_LIMIT
        node = Node(site, inner, ends)
        inner.add_caller(frame, key, node)
        counts.nodes.append(node)
        return node

    def _new_portal(self, portal: Portal) -> PortalTally:
        counts = self._counts()
        tally = PortalTally(self, portal.kind, portal.library.name, counts, perf_counter_ns())
        portal.note = tally
        self.portals[portal] = tally
        counts.kind(portal.kind).opened += 1
        self._observer.portal_opened(portal)
        # The first portal has the observer connect, which is no time of the portal's.
        tally.opened_at = perf_counter_ns()
        return tally

    def _finished_late(self, tally: PortalTally) -> None:
        """A bridge has finished after its portal was closed."""
        with self._lock:
            if not tally.active() and self.late.pop(id(tally), None) is not None:
                self._counts().kind(tally.kind).add(tally)

    def _slow_step(self, portal: Portal, tally: PortalTally, spent: int, suspended: bool) -> None:
        try:
            tally.slow_steps += 1
            held = tally.held
            function = self.holder(portal) if held is None else held.function
            slow = self._counts().slow
            if function not in slow and len(slow) >= self._site_limit:
                function = OTHER.function
            slow[function] = slow.get(function, 0) + 1
            if suspended:
                tally.slow_ns = spent
            self._observer.slow_step(function, spent / 1e9, held)
        except Exception as error:
            self._observer.failed(error)

    # For counting.c

    def _finish_failed(
        self, node: Node, tally: PortalTally, error: BaseException, suspended: bool, spent: int
    ) -> None:
        errors = tally.errors + tally.cancelled
        try:
            self._failed(node, tally, error, suspended, spent)
        except Exception as failure:
            # C code calls again if there was no room on the stack, and nothing has been counted.
            if isinstance(failure, RecursionError) and errors == tally.errors + tally.cancelled:
                raise
            self._observer.failed(failure)

    def _count_postponed(self, tally: PortalTally) -> None:
        """Call `_finish_failed` where it found no room on the stack before."""
        postponed, tally.postponed = tally.postponed, None
        for arguments in postponed or ():
            self._finish_failed(*arguments)

    def _fail(self, error: Exception) -> None:
        self._observer.failed(error)


def _is_main_thread() -> bool:
    return threading.current_thread() is threading.main_thread()


if layout.compiled is not None:
    layout.compiled.complete(
        clock=engine.clock,
        portal=Portal,
        portal_tally=PortalTally,
        no_node=NO_NODE,
        bounds=PORTAL_BOUNDS,
        is_main_thread=_is_main_thread,
        adapters_file=ADAPTERS_FILE,
        runtime=RUNTIME,
    )
