"""The counts of all threads, added up for readers."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Any, Dict, List, Optional

from greenback.instruments import Portal

from . import layout
from .counts import Counts, Histogram, KindTally, LibraryTally, PortalTally, Tally
from .names import work_of
from .sites import OTHER, Site

if TYPE_CHECKING:
    from .counts import Chain


class Sums(layout.Totals):
    """The counts of all threads, and the portals in which bridges can be under way.

    Args:
        node_limit: Keep at most this many chains of ended threads.
    """

    __slots__ = (
        "_all",
        "_closed",
        "_ended",
        "_ended_chains",
        "_node_limit",
        "_unmeasured",
        "late",
    )

    def __init__(self, node_limit: int) -> None:
        self._node_limit = node_limit
        self.after_fork()

    def after_fork(self) -> None:
        """Start at zero in a forked child. Takes no lock: the parent's threads may have held it."""
        # Open portals stay the parent's: their counts are not added up here.
        for tally in list(getattr(self, "portals", {}).values()):
            tally.totals = None
        #: The open portals. The thread of a portal adds and removes it. A single operation of a
        #: dictionary is atomic, also on free-threaded builds.
        self.portals: Dict[Portal, PortalTally] = {}
        #: Closed portals with bridges that are still under way, by the id of their tally.
        self.late: Dict[int, PortalTally] = {}
        # Reentrant: a finalizer that runs under the lock can be the first of its thread to bridge.
        self._lock = threading.RLock()
        #: The counts that C code found last.
        self.recent: Optional[Counts] = None
        # The rest is written under the lock, by any thread.
        self._all: List[Counts] = []
        #: The number of closed portals that readers have seen, by kind.
        self._closed: Dict[str, int] = {}
        #: The number of unmeasured events that readers have seen.
        self._unmeasured = 0
        self._ended = Counts(bool)
        self._ended_chains: Dict[Chain, Tally] = {}

    def holder(self, portal: Portal) -> str:
        """The function of the last bridge in the portal's step; else the task's own function."""
        tally = portal.note  # None if the portal was closed meanwhile
        node = None if tally is None else tally.last
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
        with self._lock:  # no portal may close between the two
            totals = self._sum().kinds
            for portals, is_open in ((self.portals, 1), (self.late, 0)):
                for portal in list(portals.values()):
                    found = totals.get(portal.kind)
                    if found is not None:
                        found.add(portal)
                        found.open += is_open
            for name, kind in totals.items():
                # Never less than readers have seen: a portal may be opened in the middle of this.
                closed = max(self._closed.get(name, 0), kind.opened - kind.open)
                self._closed[name] = closed
                kind.open = kind.opened - closed
            return totals

    def by_library(self) -> Dict[str, LibraryTally]:
        return self._sum().libraries

    def active(self) -> Dict[str, int]:
        """The number of bridges under way, by library. A library that has had steps can have 0."""
        totals = dict.fromkeys(self.by_library(), 0)
        for portal in [*list(self.portals.values()), *list(self.late.values())]:
            name = portal.library_name
            totals[name] = totals.get(name, 0) + portal.active()
        return totals

    def switches(self) -> Dict[str, Histogram]:
        """How long switches took, by direction."""
        everything = self._sum()
        return {"to_loop": everything.to_loop, "to_task": everything.to_task}

    def slow_steps(self) -> Dict[str, int]:
        return self._sum().slow

    def unmeasured(self) -> int:
        """The number of bridges, switches, steps and closed portals in no histogram of an SDK.

        It never falls from one call to the next.
        """
        with self._lock:
            self._unmeasured = max(self._unmeasured, self._sum().unmeasured)
            return self._unmeasured

    def _add_thread(self, counts: Counts) -> None:
        with self._lock:
            self._take_over_from_ended_threads()
            self._all.append(counts)

    def _sum(self) -> Counts:
        """The counts of all threads, without nodes."""
        with self._lock:
            self._take_over_from_ended_threads()
            totals = Counts(bool)
            for counts in [self._ended, *self._all]:
                totals.add(counts)
            return totals

    def _take_over_from_ended_threads(self) -> None:
        """Add up the counts of ended threads, so that many short-lived threads take no memory."""
        for counts in [counts for counts in self._all if counts.is_alive() is None]:
            try:
                self._all.remove(counts)
            except ValueError:
                continue  # a finalizer ran in here, and its bridge has taken them over already
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
