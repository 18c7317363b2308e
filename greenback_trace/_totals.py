"""Exact counts per site, sync chain and portal: the hot path of tracing.

Every thread counts for itself, and whoever reads adds up, so that counting needs no lock: adding to
a number that threads share loses some. While a bridge is under way it is known by its `Bridge`,
with when it began and where it is to be counted.

A chain is found by walking outwards from the site, along a tree that the thread has learned: one
dictionary look-up per sync function. Bridges are added to the node at which the walk ends.

This module stays simple enough to compile: no closures, no decorators, no dynamic attributes. What
the hooks cost is measured by ``benchmarks/``.
"""

from __future__ import annotations

import sys
import threading
import weakref
from time import perf_counter_ns
from types import CodeType, FrameType
from typing import TYPE_CHECKING, Any, Callable, Dict, Iterable, List, Optional, Tuple, Union

from greenback.instruments import Instrument

from ._sites import (
    ASYNC,
    CHAIN_LIMIT,
    OTHER,
    RUNTIME,
    Key,
    Site,
    Sites,
    outside_adapters,
)
from ._snapshot import ChainTotals, PortalTotals, SiteTotals, Snapshot, StepTotals

if TYPE_CHECKING:
    from greenback.instruments import Bridge, Portal

    Chain = Tuple[Site, ...]

#: Nodes that a thread learns at most, for each site that may be kept. A node takes 250 bytes.
_NODES_PER_SITE = 20
_OVERFLOW: Key = (0, 0)


class Tally:
    """Bridges that have finished, counted. Times are in nanoseconds."""

    __slots__ = ("cancelled", "errors", "ok", "suspended", "suspended_ns", "time_ns")

    def __init__(self) -> None:
        self.ok = 0
        self.errors = 0
        self.cancelled = 0
        self.suspended = 0
        self.time_ns = 0
        self.suspended_ns = 0

    @property
    def bridges(self) -> int:
        return self.ok + self.errors + self.cancelled

    def add(self, other: Tally) -> None:
        self.ok += other.ok
        self.errors += other.errors
        self.cancelled += other.cancelled
        self.suspended += other.suspended
        self.time_ns += other.time_ns
        self.suspended_ns += other.suspended_ns

    def public(self) -> Dict[str, Any]:
        return {
            "ok": self.ok,
            "errors": self.errors,
            "cancelled": self.cancelled,
            "suspended": self.suspended,
            "time": self.time_ns / 1e9,
            "suspended_time": self.suspended_ns / 1e9,
        }


class Node(Tally):
    """A site and the chain that led to it, in one thread; or the inner part of such a chain."""

    __slots__ = ("callers", "inner", "site")

    def __init__(self, site: Site, inner: Optional[Node], ends: bool) -> None:
        Tally.__init__(self)
        self.site = site
        self.inner = inner
        #: None where a walk ends without looking further out.
        self.callers: Optional[Dict[Key, Node]] = None if ends else {}

    def chain(self) -> Chain:
        """From the outermost caller to the site."""
        sites = []
        node: Optional[Node] = self
        while node is not None:
            sites.append(node.site)
            node = node.inner
        return tuple(sites)


class KindTally(Tally):
    """The portals of one kind, and what was bridged in those that are closed."""

    __slots__ = ("closed", "opened")

    def __init__(self) -> None:
        Tally.__init__(self)
        self.opened = 0
        self.closed = 0


class Steps:
    __slots__ = ("count", "time_ns")

    def __init__(self) -> None:
        self.count = 0
        self.time_ns = 0


class PortalTally(Tally):
    """One open portal, and what was bridged in it."""

    __slots__ = (
        "closed",
        "counts",
        "kind",
        "library",
        "step_max_ns",
        "step_started",
        "steps",
        "switches",
    )

    def __init__(self, kind: str, library: str, counts: Counts) -> None:
        Tally.__init__(self)
        self.kind = kind
        self.library = library
        self.closed = False
        #: Those of the thread that runs its current step, so that a bridge need not ask for them.
        self.counts = counts
        #: Where its steps are counted: with all those of its thread and library.
        self.steps = counts.steps_of(library)
        #: 0 while no step is under way.
        self.step_started = 0
        self.step_max_ns = 0
        self.switches = 0


class Waiting:
    """A bridge that has suspended at least once, while it is under way."""

    __slots__ = ("node", "portal", "started", "suspended_at", "suspended_ns", "switches")

    def __init__(self, node: Node, portal: PortalTally, started: int) -> None:
        self.node = node
        self.portal = portal
        self.started = started
        #: 0 while it runs.
        self.suspended_at = 0
        self.suspended_ns = 0
        self.switches = 0


# What is known of a bridge before it suspends, if it ever does: a tuple costs a fifth of an object.
Running = Tuple[Node, PortalTally, int]


class Counts:
    """What one thread has counted."""

    __slots__ = ("is_alive", "kept", "kinds", "nodes", "roots", "steps", "to_loop", "to_task")

    def __init__(self, is_alive: Callable[[], Any]) -> None:
        self.is_alive = is_alive
        self.roots: Dict[Key, Node] = {}
        #: All nodes, in the order in which they were learned.
        self.nodes: List[Node] = []
        #: The code objects at which chains end: they stay, so that their ids do.
        self.kept: List[CodeType] = []
        self.kinds: Dict[str, KindTally] = {}
        self.steps: Dict[str, Steps] = {}
        self.to_loop = 0
        self.to_task = 0

    def steps_of(self, library: str) -> Steps:
        steps = self.steps.get(library)
        if steps is None:
            steps = self.steps[library] = Steps()
        return steps


class _Presence:
    """Lives as long as the thread that made it."""

    __slots__ = ("__weakref__",)


class _Local(threading.local):
    counts: Optional[Counts] = None
    presence: Optional[_Presence] = None


class Totals(Instrument):
    """Counts everything that the runtime tells of.

    Args:
        site_limit: Sites that are kept apart.
    """

    __slots__ = (
        "_all",
        "_ended",
        "_ended_chains",
        "_local",
        "_lock",
        "_node_limit",
        "_sites",
        "bridges",
        "portals",
    )

    def __init__(self, site_limit: int) -> None:
        #: The bridges that are under way, in all threads. A bridge is added and removed by the
        #: thread that it runs in; single operations of a dictionary are atomic.
        self.bridges: Dict[Bridge, Union[Running, Waiting]] = {}
        #: The open portals, likewise.
        self.portals: Dict[Portal, PortalTally] = {}
        self._sites = Sites(site_limit)
        self._node_limit = site_limit * _NODES_PER_SITE
        self._local = _Local()
        self._lock = threading.Lock()
        # These are written under the lock, by any thread.
        self._all: List[Counts] = []
        self._ended = Counts(bool)
        self._ended_chains: Dict[Chain, Tally] = {}

    # The hooks

    def bridge_started(self, bridge: Bridge) -> None:
        portal = self.portals.get(bridge.portal)
        if portal is None:
            portal = self._new_portal(bridge.portal)
        counts = portal.counts
        frame: Any = bridge.frame
        node = counts.roots.get((id(frame.f_code), frame.f_lasti))
        if node is None:
            frame = outside_adapters(frame)
            node = counts.roots.get((id(frame.f_code), frame.f_lasti))
            if node is None:
                node = self._new_root(counts, frame)
        callers = node.callers
        while callers is not None:
            frame = frame.f_back
            if frame is None:
                break
            next_node = callers.get((id(frame.f_code), frame.f_lasti))
            if next_node is None:
                next_node = self._new_caller(counts, node, frame)
            if next_node is node:
                break  # what called it is async, or the portal
            node = next_node
            callers = node.callers
        self.bridges[bridge] = (node, portal, perf_counter_ns())

    def bridge_suspended(self, bridge: Bridge) -> None:
        state = self.bridges.get(bridge)
        if state is None:
            return  # it began before tracing was enabled
        if type(state) is not Waiting:
            state = self.bridges[bridge] = Waiting(*state)  # type: ignore[misc]
        state.portal.counts.to_loop += 1
        state.switches += 1
        state.suspended_at = perf_counter_ns()

    def bridge_resumed(self, bridge: Bridge) -> None:
        now = perf_counter_ns()
        state = self.bridges.get(bridge)
        if type(state) is not Waiting:
            return
        state.suspended_ns += now - state.suspended_at
        state.suspended_at = 0
        state.switches += 1
        state.portal.counts.to_task += 1

    def bridge_finished(self, bridge: Bridge, error: Optional[BaseException]) -> None:
        now = perf_counter_ns()
        state = self.bridges.pop(bridge, None)
        if state is None:
            return
        if type(state) is not Waiting:
            node, portal, started = state  # type: ignore[misc]
            tally: Tally = portal
            if portal.closed:
                tally = self._kind(portal.kind)
        else:
            node, portal, started = state.node, state.portal, state.started
            tally = portal
            if portal.closed:
                tally = self._kind(portal.kind)
            if state.suspended_at:  # killed while it waited
                state.suspended_ns += now - state.suspended_at
            node.suspended += 1
            node.suspended_ns += state.suspended_ns
            tally.suspended += 1
            tally.suspended_ns += state.suspended_ns
            portal.switches += state.switches
        spent = now - started
        node.time_ns += spent
        tally.time_ns += spent
        if error is None:
            node.ok += 1
            tally.ok += 1
        elif is_cancellation(error):
            node.cancelled += 1
            tally.cancelled += 1
        else:
            node.errors += 1
            tally.errors += 1

    def portal_opened(self, portal: Portal) -> None:
        self._new_portal(portal)

    def portal_closed(self, portal: Portal) -> None:
        tally = self.portals.pop(portal, None)
        if tally is None:
            return  # it was opened before tracing was enabled, and never bridged since
        tally.closed = True
        kind = self._kind(tally.kind)
        kind.closed += 1
        kind.add(tally)

    def step_started(self, portal: Portal) -> None:
        tally = self.portals.get(portal)
        if tally is None:
            return
        counts = self._local.counts
        if counts is not tally.counts:  # its event loop goes on in another thread
            self._move(tally)
        tally.step_started = perf_counter_ns()

    def step_finished(self, portal: Portal) -> None:
        now = perf_counter_ns()
        tally = self.portals.get(portal)
        if tally is None or not tally.step_started:
            return
        spent = now - tally.step_started
        tally.step_started = 0
        if spent > tally.step_max_ns:
            tally.step_max_ns = spent
        tally.steps.count += 1
        tally.steps.time_ns += spent

    # What the hooks do when they meet something for the first time

    def _counts(self) -> Counts:
        """Those of this thread."""
        counts = self._local.counts
        if counts is not None:
            return counts
        presence = self._local.presence = _Presence()
        counts = Counts(weakref.ref(presence))
        with self._lock:
            self._take_over_from_ended_threads()
            self._all.append(counts)
        self._local.counts = counts
        return counts

    def _new_root(self, counts: Counts, frame: FrameType) -> Node:
        site = self._sites.bridging(frame)
        key = _OVERFLOW if site is OTHER else (id(frame.f_code), frame.f_lasti)
        node = counts.roots.get(key)
        if node is None:
            node = counts.roots[key] = Node(site, None, site.is_async or site is OTHER)
            counts.nodes.append(node)
        return node

    def _new_caller(self, counts: Counts, inner: Node, frame: FrameType) -> Node:
        """The node of a caller of *inner*; or *inner* itself where the chain ends with it."""
        code = frame.f_code
        is_full = len(counts.nodes) + len(counts.kept) >= self._node_limit
        if code.co_flags & ASYNC or code.co_filename.startswith(RUNTIME):
            if not is_full:
                counts.kept.append(code)
                assert inner.callers is not None
                inner.callers[id(code), frame.f_lasti] = inner
            return inner
        if is_full:
            while inner.inner is not None:
                inner = inner.inner
            callers = inner.callers
            assert callers is not None
            node = callers.get(_OVERFLOW)
            if node is None:
                node = callers[_OVERFLOW] = Node(OTHER, inner, True)
                counts.nodes.append(node)
            return node
        site = self._sites.calling(frame)
        ends = len(inner.chain()) + 1 >= CHAIN_LIMIT
        assert inner.callers is not None
        node = inner.callers[id(code), frame.f_lasti] = Node(site, inner, ends)
        counts.nodes.append(node)
        return node

    def _new_portal(self, portal: Portal) -> PortalTally:
        counts = self._counts()
        tally = PortalTally(portal.kind, portal.library.name, counts)
        self.portals[portal] = tally
        self._kind(portal.kind).opened += 1
        return tally

    def _move(self, tally: PortalTally) -> None:
        tally.counts = self._counts()
        tally.steps = tally.counts.steps_of(tally.library)

    def _kind(self, name: str) -> KindTally:
        """What this thread has counted of the portals of a kind."""
        counts = self._counts()
        kind = counts.kinds.get(name)
        if kind is None:
            kind = counts.kinds[name] = KindTally()
        return kind

    # For those who read

    def by_chain(self) -> Dict[Chain, Tally]:
        """The bridges of every chain, site last. An async site is a chain of its own."""
        with self._lock:
            everyone = list(self._all)
            totals: Dict[Chain, Tally] = {}
            for chain, tally in self._ended_chains.items():
                _add(totals, chain, tally)
        for counts in everyone:
            _add_nodes(totals, counts)
        return totals

    def by_site(self) -> Dict[Site, Tally]:
        totals: Dict[Site, Tally] = {}
        for chain, tally in self.by_chain().items():
            site = chain[-1]
            found = totals.get(site)
            if found is None:
                found = totals[site] = Tally()
            found.add(tally)
        return totals

    def by_function(self) -> Dict[str, Tally]:
        totals: Dict[str, Tally] = {}
        for site, tally in self.by_site().items():
            found = totals.get(site.function)
            if found is None:
                found = totals[site.function] = Tally()
            found.add(tally)
        return totals

    def by_kind(self) -> Dict[str, KindTally]:
        totals: Dict[str, KindTally] = {}
        for counts in self._everyone():
            for name, kind in list(counts.kinds.items()):
                _add_kind(totals, name, kind)
        for portal in list(self.portals.values()):
            found = totals.get(portal.kind)
            if found is not None:
                found.add(portal)
        return totals

    def by_library(self) -> Dict[str, Steps]:
        totals: Dict[str, Steps] = {}
        for counts in self._everyone():
            for name, steps in list(counts.steps.items()):
                _add_steps(totals, name, steps)
        return totals

    def active(self) -> Dict[str, int]:
        """The bridges that are under way, by the name of their library; 0 where there were some."""
        totals = dict.fromkeys(self.by_library(), 0)
        for bridge in list(self.bridges):
            name = bridge.portal.library.name
            totals[name] = totals.get(name, 0) + 1
        return totals

    def switches(self) -> Dict[str, int]:
        everyone = list(self._everyone())
        return {
            "to_loop": sum(counts.to_loop for counts in everyone),
            "to_task": sum(counts.to_task for counts in everyone),
        }

    def snapshot(self) -> Snapshot:
        chains = [
            ChainTotals(
                **tally.public(),
                **_public_site(chain[-1]),
                chain=tuple(map(str, chain)) if not chain[-1].is_async else (),
            )
            for chain, tally in self.by_chain().items()
        ]
        sites = [
            SiteTotals(**tally.public(), **_public_site(site))
            for site, tally in self.by_site().items()
        ]
        return Snapshot(
            portals={
                name: PortalTotals(**kind.public(), opened=kind.opened, closed=kind.closed)
                for name, kind in self.by_kind().items()
            },
            sites=tuple(sorted(sites, key=_time, reverse=True)),
            chains=tuple(sorted(chains, key=_time, reverse=True)),
            steps={
                name: StepTotals(steps.count, steps.time_ns / 1e9)
                for name, steps in self.by_library().items()
            },
            active=self.active(),
            switches=self.switches(),
        )

    def _everyone(self) -> Iterable[Counts]:
        with self._lock:
            self._take_over_from_ended_threads()
            return [self._ended, *self._all]

    def _take_over_from_ended_threads(self) -> None:
        """Add up what ended threads have counted, so that many short-lived ones take no memory."""
        gone = [counts for counts in self._all if counts.is_alive() is None]
        if not gone:
            return
        self._all = [counts for counts in self._all if counts not in gone]
        for counts in gone:
            _add_nodes(self._ended_chains, counts)
            for name, kind in counts.kinds.items():
                _add_kind(self._ended.kinds, name, kind)
            for name, steps in counts.steps.items():
                _add_steps(self._ended.steps, name, steps)
            self._ended.to_loop += counts.to_loop
            self._ended.to_task += counts.to_task


def is_cancellation(error: BaseException) -> bool:
    """Whether *error* is a cancellation of asyncio or Trio, or a group of nothing else."""
    asyncio = sys.modules.get("asyncio")
    if asyncio is not None and isinstance(error, asyncio.CancelledError):
        return True
    trio = sys.modules.get("trio")
    if trio is None:
        return False
    if isinstance(error, trio.Cancelled):
        return True
    members = getattr(error, "exceptions", None)  # Trio's nurseries put even one into a group
    return isinstance(members, tuple) and bool(members) and all(map(is_cancellation, members))


def _add_nodes(totals: Dict[Chain, Tally], counts: Counts) -> None:
    for node in list(counts.nodes):
        if node.bridges:
            _add(totals, node.chain(), node)


def _add(totals: Dict[Chain, Tally], chain: Chain, tally: Tally) -> None:
    found = totals.get(chain)
    if found is None:
        found = totals[chain] = Tally()
    found.add(tally)


def _add_kind(totals: Dict[str, KindTally], name: str, kind: KindTally) -> None:
    found = totals.get(name)
    if found is None:
        found = totals[name] = KindTally()
    found.add(kind)
    found.opened += kind.opened
    found.closed += kind.closed


def _add_steps(totals: Dict[str, Steps], name: str, steps: Steps) -> None:
    found = totals.get(name)
    if found is None:
        found = totals[name] = Steps()
    found.count += steps.count
    found.time_ns += steps.time_ns


def _public_site(site: Site) -> Dict[str, Any]:
    return {
        "function": site.function,
        "qualname": site.qualname,
        "file": site.file,
        "line": site.line,
    }


def _time(totals: SiteTotals) -> float:
    return totals.time
