"""What all threads have counted, added up for those who read it."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Any, Dict, List

from greenback.instruments import Portal

from .counts import Counts, Histogram, KindTally, LibraryTally, PortalTally, Tally
from .names import work_of
from .sites import OTHER, Site

if TYPE_CHECKING:
    from .counts import Chain


class Sums:
    """The counts of each thread, and the portals in which bridges can be under way.

    Args:
        node_limit: Chains that are kept of threads that have ended.
    """

    __slots__ = (
        "_all",
        "_closed",
        "_ended",
        "_ended_chains",
        "_lock",
        "_node_limit",
        "_unmeasured",
        "late",
        "portals",
    )

    def __init__(self, node_limit: int) -> None:
        self._node_limit = node_limit
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

    def holder(self, portal: Portal) -> str:
        """The function whose bridge was the last one in the portal's step; else its work."""
        node = portal.note.last
        return work_of(portal) if node is None else node.root().site.function

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

    def _add_thread(self, counts: Counts) -> None:
        with self._lock:
            self._take_over_from_ended_threads()
            self._all.append(counts)

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


def _add_nodes(totals: Dict[Chain, Tally], counts: Counts) -> None:
    for node in list(counts.nodes):
        if node.bridges:
            _add(totals, node.chain(), node)


def _add(totals: Dict[Any, Tally], key: Any, tally: Tally) -> None:
    found = totals.get(key)
    if found is None:
        found = totals[key] = Tally()
    found.add(tally)
