"""Exact counts per site, sync chain and portal: the hot path of tracing.

Every thread counts for itself, and whoever reads adds up, so that counting needs no lock: adding to
a number that threads share loses some. The runtime calls `Totals` directly: to tell an instrument
takes longer than all of the counting.

A chain is found by walking outwards from the site, along a tree that the thread has learned: one
dictionary look-up per sync function. Bridges are added to the node at which the walk ends.

This module stays simple enough to compile: no closures, no decorators, no dynamic attributes. What
it costs is measured by ``benchmarks/``.
"""

from __future__ import annotations

import builtins
import sys
import threading
import weakref
from bisect import bisect_left
from time import perf_counter_ns
from types import FrameType
from typing import TYPE_CHECKING, Any, Callable, Dict, List, Optional, cast

from greenback._listener.failures import raise_if_from_signal_handler
from greenback.instruments import Portal

from .counts import (
    EDGES,
    NO_NODE,
    PORTAL_EDGES,
    Counts,
    Ending,
    Histogram,
    KindTally,
    LibraryTally,
    Node,
    PortalTally,
    Running,
    Tally,
)
from .sites import (
    ASYNC,
    CALLERS_PER_SITE,
    CHAIN_LIMIT,
    OTHER,
    RUNTIME,
    STRIDE,
    Site,
    Sites,
    key_of,
    outside_adapters,
)

if TYPE_CHECKING:
    from ..emit.metrics import Measurements
    from ..misuse.watchdog import Held
    from .counts import Chain

#: In place of the key of what is too much.
_OVERFLOW = 0


class _Presence:
    """Lives as long as the thread that made it."""

    __slots__ = ("__weakref__",)


class _Local(threading.local):
    counts: Optional[Counts] = None
    presence: Optional[_Presence] = None


class Observer:
    """Whom `Totals` tell of portals, slow steps and failures. Each method is to be overridden."""

    __slots__ = ()

    def portal_opened(self, portal: Portal) -> None:
        """The totals know of *portal* from now on: it is new, or was open when they began."""

    def portal_closed(self, portal: Portal, tally: PortalTally) -> None:
        """It is gone, and *tally* has what was counted in it."""

    def slow_step(self, function: str, seconds: float, held: Optional[Held]) -> None:
        """A slow step has ended.

        Args:
            function: The function that held the event loop.
            seconds: For how long.
            held: What was seen of it, if debug mode has looked.
        """

    def failed(self, error: Exception) -> None:
        """Counting has raised *error*, which the program is not to feel."""
        raise error


class Totals:
    """Counts everything that the runtime tells of: a `greenback._listener.listener.Listener`.

    Args:
        site_limit: Sites that are kept apart.
        slow_ns: Steps that take longer are slow ones.
        observer: Who is told of portals, of slow steps and of failures.
        gives_outermost: Whether `Running.outermost` is set, for debug mode.
    """

    __slots__ = (
        "__weakref__",
        "_all",
        "_closed",
        "_ended",
        "_ended_chains",
        "_gives_outermost",
        "_local",
        "_lock",
        "_measurements",
        "_node_limit",
        "_observer",
        "_site_limit",
        "_unmeasured",
        "late",
        "portals",
        "sites",
        "slow_ns",
    )

    def __init__(
        self,
        site_limit: int,
        slow_ns: int = 100_000_000,
        observer: Optional[Observer] = None,
        gives_outermost: bool = False,
    ) -> None:
        self._site_limit = site_limit
        #: Nodes that a thread learns at most, each of which takes 250 bytes; and chains that are
        #: kept of threads that have ended.
        self._node_limit = site_limit * CALLERS_PER_SITE
        self.slow_ns = slow_ns
        self._observer = Observer() if observer is None else observer
        self._gives_outermost = gives_outermost
        #: Written by `pass_on`, from any thread.
        self._measurements: Optional[Measurements] = None
        self.sites = Sites(site_limit)
        self.after_fork()

    def after_fork(self) -> None:
        """Start at zero, in a child that was forked. Takes no lock: somebody may have held it."""
        # What was open stays its parent's: nobody adds it up here.
        for tally in list(getattr(self, "portals", {}).values()):
            tally.totals = None
        #: The open portals. One is added and removed by the thread that it runs in; single
        #: operations of a dictionary are atomic, also on free-threaded builds.
        self.portals: Dict[Portal, PortalTally] = {}
        #: Closed ones that bridges are still under way in, by their id.
        self.late: Dict[int, PortalTally] = {}
        self.sites.after_fork()
        self._local = _Local()
        # Reentrant: a finalizer that runs in here may be the first in its thread to bridge.
        self._lock = threading.RLock()
        # These are written under the lock, by any thread.
        self._all: List[Counts] = []
        #: The closed portals that somebody was told of, by kind.
        self._closed: Dict[str, int] = {}
        #: What was told of those that no histogram was told of.
        self._unmeasured = 0
        self._ended = Counts(bool)
        self._ended_chains: Dict[Chain, Tally] = {}

    def pass_on(self, measurements: Optional[Measurements]) -> None:
        """Give *measurements* their samples for an SDK's histograms from now on; None ends that."""
        self._measurements = measurements

    # What the runtime calls. An instrument must not be felt by the program, hence the handlers.

    #: Nobody wants to know of these: `Portal.left` and `Portal.entered` tell when switches began.
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
                    break  # what called it is async, or the portal
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
            bridge.runs = True  # last: what a signal handler raises in here begins no bridge
            return bridge
        except BaseException as error:
            if bridge is not None:
                bridge.runs = False
            if not issubclass(type(error), Exception):
                raise
            self._observer.failed(cast(Exception, error))
            return None

    def resume_bridge(self, bridge: Running, portal: Portal, left: int) -> None:
        # In this order: a finalizer that bridges may put the beginning of the step off.
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
        """Count it, and give how long it took.

        Does nothing where that was done: a signal handler may have kept the caller from noticing.
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
        ending = ending_of(error, suspended)
        if ending[0] == "cancelled":
            node.cancelled += 1
            tally.cancelled += 1
        else:
            node.errors += 1
            tally.errors += 1
        durations = tally.library.durations_of(ending)
        durations[bisect_left(EDGES, spent)] += 1
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
        try:  # it may have been opened by another thread
            tally.counts = self._counts()
            tally.library = tally.counts.library(tally.library_name)
            tally.root = NO_NODE
        except Exception as error:
            self._observer.failed(error)

    def close_portal(self, portal: Portal) -> None:
        tally = portal.note
        if tally is None or tally.totals is not self or tally.closed:
            return  # it was opened before tracing was enabled, and never bridged since
        try:
            spent = perf_counter_ns() - tally.opened_at
            counts = self._counts()
            kind = counts.kind(tally.kind)
            with self._lock:  # whoever reads finds it among the open ones or the closed ones
                self.portals.pop(portal, None)
                tally.closed = True
                tally.spares.clear()  # these refer to the tally, and perhaps to the portal
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
        entered = portal.entered
        left = portal.left
        began = tally.began
        if began:
            tally.began = 0
            if began <= left < entered:  # a finalizer has bridged when the step was about to end
                left = portal.left = entered
        if entered < tally.opened_at:
            return  # it began before tracing did, or in the process that this one was forked from
        counts = tally.counts
        if left >= entered:  # a bridge has ended it by suspending
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
                counts.skip -= 2  # at once: each time is a hundredth of the bridge's
            else:
                measurements.switch_and_step(counts, now - left, tally.library_name, spent)
        if spent > tally.step_max_ns:
            tally.step_max_ns = spent
        if spent > self.slow_ns:
            self._slow_step(portal, tally, spent, left >= entered)
        tally.last = None

    # What these do when they meet something for the first time, or that seldom happens

    def _counts(self) -> Counts:
        """Those of this thread."""
        counts = self._local.counts
        if counts is not None:
            return counts
        presence = self._local.presence = _Presence()
        counts = Counts(weakref.ref(presence))
        measurements = self._measurements
        if measurements is not None:
            measurements.skip_some(counts)  # a thread's first event is no better than its others
        with self._lock:
            self._take_over_from_ended_threads()
            self._all.append(counts)
        self._local.counts = counts
        return counts

    def _new_root(self, counts: Counts, frame: FrameType) -> Node:
        site = self.sites.bridging(frame)
        if site is not OTHER:
            root = self._add_root(counts, key_of(frame), site)
            root.offset = frame.f_lasti
            root.code = frame.f_code
            return root
        node = counts.roots.get(_OVERFLOW)
        if node is None:
            node = self._add_root(counts, _OVERFLOW, OTHER)
        if len(counts.nodes) + len(counts.kept) < self._node_limit:
            counts.kept.append(frame.f_code)
            counts.roots[key_of(frame)] = node
        return node

    def _add_root(self, counts: Counts, key: int, site: Site) -> Node:
        node = counts.roots[key] = Node(site, None, site.is_async or site is OTHER)
        counts.nodes.append(node)
        return node

    def _new_caller(self, counts: Counts, inner: Node, key: int, frame: FrameType) -> Node:
        """The node of a caller of *inner*; or *inner* itself where the chain ends with it."""
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
        return tally

    def _finished_late(self, tally: PortalTally) -> None:
        """A bridge has finished in a portal that was closed under it."""
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

    # For those who read

    def holder(self, portal: Portal) -> str:
        """The function whose bridge was the last one in the portal's step; else its work."""
        node = portal.note.last
        return _work_of(portal) if node is None else node.root().site.function

    def by_chain(self) -> Dict[Chain, Tally]:
        """The bridges of every chain, site last. An async site is a chain of its own."""
        with self._lock:
            totals: Dict[Chain, Tally] = {}
            for chain, tally in self._ended_chains.copy().items():
                _add(totals, chain, tally)
            for counts in list(self._all):
                _add_nodes(totals, counts)
            return totals

    def by_site(self) -> Dict[Site, Tally]:
        totals: Dict[Site, Tally] = {}
        for chain, tally in self.by_chain().items():
            _add(totals, chain[-1], tally)
        return totals

    def by_function(self) -> Dict[str, Tally]:
        with self._lock:
            totals: Dict[str, Tally] = {}
            for chain, tally in self._ended_chains.copy().items():
                _add(totals, chain[-1].function, tally)
            for counts in list(self._all):
                for node in list(counts.nodes):
                    if node.bridges:
                        _add(totals, node.root().site.function, node)
            return totals

    def by_kind(self) -> Dict[str, KindTally]:
        with self._lock:  # lest one close between the two
            totals = self._sum().kinds
            for portals, is_open in ((self.portals, 1), (self.late, 0)):
                for portal in list(portals.values()):
                    found = totals.get(portal.kind)
                    if found is not None:
                        found.add(portal)
                        found.open += is_open
            for name, kind in totals.items():
                # One that was opened since its kind was added up is no portal that is closed less.
                closed = max(self._closed.get(name, 0), kind.opened - kind.open)
                self._closed[name] = closed
                kind.open = kind.opened - closed
            return totals

    def by_library(self) -> Dict[str, LibraryTally]:
        return self._sum().libraries

    def active(self) -> Dict[str, int]:
        """The bridges that are under way, by the name of their library; 0 where there were some."""
        totals = dict.fromkeys(self.by_library(), 0)
        for portal in [*list(self.portals.values()), *list(self.late.values())]:
            name = portal.library_name
            totals[name] = totals.get(name, 0) + portal.active()
        return totals

    def switches(self) -> Dict[str, Histogram]:
        """How long they took, by direction."""
        everything = self._sum()
        return {"to_loop": everything.to_loop, "to_task": everything.to_task}

    def slow_steps(self) -> Dict[str, int]:
        return self._sum().slow

    def unmeasured(self) -> int:
        """The bridges, switches, steps and closed portals that no histogram of an SDK was told of.

        What was told once is never more than what is told later.
        """
        with self._lock:
            self._unmeasured = max(self._unmeasured, self._sum().unmeasured)
            return self._unmeasured

    def _sum(self) -> Counts:
        """What all threads have counted, but for the nodes."""
        with self._lock:
            self._take_over_from_ended_threads()
            totals = Counts(bool)
            for counts in [self._ended, *self._all]:
                totals.add(counts)
            return totals

    def _take_over_from_ended_threads(self) -> None:
        """Add up what ended threads have counted, so that many short-lived ones take no memory."""
        for counts in [counts for counts in self._all if counts.is_alive() is None]:
            try:
                self._all.remove(counts)
            except ValueError:
                continue  # a finalizer that ran in here was the first in its thread to bridge
            self._add_ended(counts)

    def _add_ended(self, counts: Counts) -> None:
        for node in counts.nodes:
            if node.bridges:
                chain = node.chain()
                is_full = len(self._ended_chains) >= self._node_limit
                if is_full and len(chain) > 1 and chain not in self._ended_chains:
                    chain = (OTHER, chain[-1])
                _add(self._ended_chains, chain, node)
        self._ended.add(counts)


def ending_of(error: Optional[BaseException], suspended: bool) -> Ending:
    if error is None:
        return "ok", suspended, None
    if is_cancellation(error):
        return "cancelled", suspended, None
    return "error", suspended, full_name(type(error))


def is_cancellation(error: BaseException) -> bool:
    """Whether *error* is a cancellation of asyncio or Trio, or a group of nothing else."""
    asyncio = sys.modules.get("asyncio")
    # Not isinstance(), which asks what it is given for its class; nor is the error asked below.
    kind = type(error)
    if asyncio is not None and issubclass(kind, asyncio.CancelledError):
        return True
    trio = sys.modules.get("trio")
    if trio is None:
        return False
    if issubclass(kind, trio.Cancelled):
        return True
    group: Any = _group_type()
    if group is None or not issubclass(kind, group):
        return False
    members = vars(group)["exceptions"].__get__(error)  # Trio's nurseries put even one into a group
    return all(map(is_cancellation, members))


def _group_type() -> Any:
    module = builtins if sys.version_info >= (3, 11) else sys.modules.get("exceptiongroup")
    return getattr(module, "BaseExceptionGroup", None)


#: What a metaclass, or the class itself, may shadow.
_MODULE: Any = type.__dict__["__module__"]
_QUALNAME: Any = type.__dict__["__qualname__"]


def full_name(kind: type) -> str:
    name: str = _QUALNAME.__get__(kind)
    module = _MODULE.__get__(kind)
    if module == "builtins":
        return name
    return f"{module if type(module) is str else '?'}.{name}"


def task_name(task: Any) -> Optional[str]:
    try:
        get_name = getattr(task, "get_name", None)  # asyncio has this, Trio an attribute
        name = getattr(task, "name", None) if get_name is None else get_name()
    except Exception as error:  # a class of the program's, which cannot say it now
        raise_if_from_signal_handler(error)
        return None
    return name if issubclass(type(name), str) else None


def _work_of(portal: Portal) -> str:
    """The async function that a portal's task waits in, or the function that it was made of.

    Those of the async libraries themselves only say that it waits.
    """
    coroutine = portal.coroutine
    name = None
    while coroutine is not None:
        frame = getattr(coroutine, "cr_frame", None)
        if frame is None:
            break
        module = frame.f_globals.get("__name__", "?")
        if name is None or module.partition(".")[0] not in ("asyncio", "trio", "anyio"):
            name = f"{module}.{coroutine.__qualname__}"
        coroutine = coroutine.cr_await
    if name is not None:
        return name
    # It has ended.
    work = getattr(portal, "function", None) or portal.coroutine
    name = getattr(work, "__qualname__", None) or type(work).__qualname__
    return f"{getattr(work, '__module__', None) or '?'}.{name}"


def _add_nodes(totals: Dict[Chain, Tally], counts: Counts) -> None:
    for node in list(counts.nodes):
        if node.bridges:
            _add(totals, node.chain(), node)


def _add(totals: Dict[Any, Tally], key: Any, tally: Tally) -> None:
    found = totals.get(key)
    if found is None:
        found = totals[key] = Tally()
    found.add(tally)
