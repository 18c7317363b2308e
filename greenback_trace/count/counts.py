"""The objects that hold counts. Times are in nanoseconds.

Each object belongs to one thread. That thread writes to it; other threads only read. The base
classes in layout.py have the attributes.
"""

from __future__ import annotations

import itertools
import weakref
from types import CodeType, FrameType
from typing import TYPE_CHECKING, Any, Callable, Dict, List, Optional, Tuple

from . import layout

if TYPE_CHECKING:
    from ..misuse.watchdog import Held
    from .sites import Site

    Chain = Tuple[Site, ...]

#: The upper ends, inclusive, of the buckets of durations: 1 us to 10 s.
BOUNDS: List[int] = [step * 10**exponent for exponent in range(3, 10) for step in (1, 2, 5)] + [
    10**10
]
#: The upper ends for portals, which can be open for long: up to a day.
PORTAL_BOUNDS: List[int] = BOUNDS + [
    seconds * 10**9 for seconds in (30, 60, 300, 900, 3_600, 14_400, 43_200, 86_400)
]

# A histogram is a list: the sum in nanoseconds, then the counts of its buckets. The last bucket has
# the durations above all bounds. The sum comes first because CPython is slower with negative
# indices. `bisect_left(EDGES, duration)` is the index of a duration's bucket.
Histogram = List[int]
EDGES: List[int] = [-1, *BOUNDS]
PORTAL_EDGES: List[int] = [-1, *PORTAL_BOUNDS]


def histogram(bounds: List[int]) -> Histogram:
    return layout.histogram(len(bounds) + 2)


def count_of(durations: Histogram) -> int:
    return sum(durations[1:])


class Ticks:
    """A counter that any thread can increase, without loss and without a lock.

    ``+= 1`` in several threads loses some. A lock could be held by the code that a signal handler
    or a finalizer has interrupted.
    """

    __slots__ = ("_count", "add")

    def __init__(self) -> None:
        self._count = itertools.count()
        #: Adds one, and returns the number before. (`next()` of `itertools.count` cannot be
        #: interrupted, and is atomic on free-threaded builds.)
        self.add: Callable[[], int] = self._count.__next__

    def read(self) -> int:
        # Only repr() tells the value without increasing it.
        return int(repr(self._count)[len("count(") : -1])


class Tally(layout.Tally):
    """Counts of finished bridges."""

    __slots__ = ()

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


class Node(layout.Node, Tally):
    """A sync chain in one thread, or the inner part of one: a site and the callers up to here."""

    __slots__ = ()

    def __init__(self, site: Site, inner: Optional[Node], ends: bool) -> None:
        Tally.__init__(self)
        self.site = site
        self.inner = inner
        #: A walk ends here and does not look further out.
        self.ends = ends
        #: The code and the offset of a site's instruction: to compare the two takes half as long as
        #: to compute a key. None for callers, and for the node of all sites over the limit.
        self.code: Optional[CodeType] = None
        self.offset = -1
        #: The first caller that was learned, mostly the only one, and its instruction. Where a walk
        #: ends at this caller, the node is its own caller.
        self.outer: Any = None
        self.outer_code: Optional[CodeType] = None
        self.outer_offset = -1
        # For debug mode. None while nobody has looked.
        #: All calls of the chain are known to be what they look like.
        self.is_known: Optional[bool] = None
        #: None of the chain's functions has a ``with`` block.
        self.is_without: Optional[bool] = None
        #: The other callers, by key.
        self.others: Dict[int, Node] = _NO_OTHERS

    def add_caller(self, frame: FrameType, key: int, caller: Node) -> None:
        if self.outer is None:
            # In this order: a signal handler can bridge in between, and compares the code first.
            self.outer = caller
            self.outer_offset = frame.f_lasti
            self.outer_code = frame.f_code
        else:
            self.add_other(key, caller)

    def add_other(self, key: int, caller: Node) -> None:
        if self.others is _NO_OTHERS:
            self.others = {key: caller}
        else:
            self.others[key] = caller

    def chain(self) -> Chain:
        """The sites of the chain, outermost caller first."""
        sites = []
        node: Optional[Node] = self
        while node is not None:
            sites.append(node.site)
            node = node.inner
        return tuple(sites)

    def root(self) -> Node:
        """The node of the site itself."""
        node = self
        while node.inner is not None:
            node = node.inner
        return node


#: Shared by all nodes, and never written: an empty dictionary per node would double its size.
_NO_OTHERS: Dict[int, Node] = {}

_NOWHERE: Any = None
#: The root of a portal without a bridge so far. It matches no instruction.
NO_NODE = Node(_NOWHERE, None, True)


class KindTally(layout.KindTally, Tally):
    """Counts of the portals of one kind, and of the bridges in the closed ones."""

    __slots__ = ()

    def __init__(self) -> None:
        Tally.__init__(self)
        self.opened = 0
        self.closed = 0
        #: Portals open now. `Sums` counts these anew: a signal handler that raises can keep a
        #: portal from being counted in the other two.
        self.open = 0
        self.durations = histogram(PORTAL_BOUNDS)


# The outcome of a bridge, whether it suspended, and the name of its error's type.
Ending = Tuple[str, bool, Optional[str]]


class LibraryTally(layout.LibraryTally):
    """The steps of the portal tasks of one library, and how long its bridges took."""

    __slots__ = ()

    def __init__(self) -> None:
        self.steps = histogram(BOUNDS)
        #: Bridges that returned a value and did not suspend.
        self.quick = histogram(BOUNDS)
        #: Bridges that returned a value and suspended.
        self.waited = histogram(BOUNDS)
        self.durations: Dict[Ending, Histogram] = {
            ("ok", False, None): self.quick,
            ("ok", True, None): self.waited,
        }

    def add(self, other: LibraryTally) -> None:
        add_histogram(self.steps, other.steps)
        for ending, durations in other.durations.copy().items():
            add_histogram(self.durations_of(ending), durations)

    def durations_of(self, ending: Ending) -> Histogram:
        durations = self.durations.get(ending)
        if durations is None:
            durations = self.durations[ending] = histogram(BOUNDS)
        return durations

    @property
    def count(self) -> int:
        return count_of(self.steps)

    @property
    def time_ns(self) -> int:
        return self.steps[0]


def add_histogram(total: Histogram, other: Histogram) -> None:
    for index, value in enumerate(other):
        total[index] += value


class PortalTally(layout.PortalTally, Tally):
    """One open portal, and the counts of its bridges."""

    __slots__ = ()

    def __init__(self, totals: Any, kind: str, library: str, counts: Counts, now: int) -> None:
        Tally.__init__(self)
        layout.PortalTally.__init__(self)
        #: The totals that this belongs to: tracing can be enabled again while a portal is open.
        self.totals = totals
        self.kind = kind
        self.library_name = library
        self.opened_at = now
        #: When the current step really began, if debug mode has moved `Portal.entered` to leave its
        #: own time out; else 0.
        self.began = 0
        self.closed = False
        #: The counts of the thread that runs the current step: a bridge need not look them up.
        self.counts = counts
        self.library = counts.library(library)
        #: The node of the last bridge's site. Most bridges are in loops, and have the same one.
        self.root = NO_NODE
        # `layout` sets these three:
        # running: Weak references to the bridges under way and to `spares`, without those that C
        # code counts. `active` looks at each of them. A number that is increased and decreased
        # would stay wrong after a signal handler has cut a bridge off in between; here, such a
        # bridge is gone as soon as it is freed.
        # running_in_c: The number of bridges under way that C code counts. Nothing cuts them off.
        # spares: Objects of finished bridges, to be used again: as many as were ever nested.
        #: The node of the last bridge in this step: its function held the event loop.
        self.last: Optional[Node] = None
        #: What debug mode saw holding the event loop in the step that is about to end.
        self.held: Optional[Held] = None
        #: No caller around the portal is in a ``with`` block. For debug mode; None if unknown yet.
        self.is_bare: Optional[bool] = None
        #: The span of this portal is not sampled: bridges without another parent get none, either.
        self.is_unsampled = False
        self.step_max_ns = 0
        self.slow_steps = 0
        #: The duration of the step that the waiting bridge has ended, if it was a slow step.
        self.slow_ns = 0
        self.switches = 0
        self.switch_ns = 0

    def new_running(self) -> Running:
        bridge = Running(self)
        self.running.add(weakref.ref(bridge, self.running.discard))
        return bridge

    def active(self) -> int:
        """How many bridges are under way in this portal."""
        bridges = [reference() for reference in list(self.running)]
        in_python = sum(bridge is not None and bridge.runs for bridge in bridges)
        return in_python + self.running_in_c


class Running(layout.Running):
    """A bridge under way. `Totals.start_bridge` sets the fields anew each time."""

    __slots__ = ()

    node: Node
    started: int
    #: The number of switches, the time waited so far, and the longest slow step that the bridge
    #: ended by suspending.
    switches: int
    suspended_ns: int
    slow_ns: int
    # Set on demand. The first two by emit/spans.py and debug mode, the third by emit/spans.py, the
    # others for debug mode.
    portal: Any
    awaitable: Any
    opened: Any
    #: The frame of the outermost function of the sync chain. Debug mode deletes it at once.
    outermost: Any
    #: No caller can be inside of a ``with`` block.
    is_clear: bool

    def __init__(self, tally: PortalTally) -> None:
        self.tally = tally
        #: The bridge has begun, and has not finished.
        self.runs = False
        # These are read even of a bridge that was interrupted before it set them.
        self.portal = self.awaitable = self.opened = None


class Counts(layout.Counts):
    """The counts of one thread."""

    __slots__ = ()

    def __init__(self, is_alive: Callable[[], Any]) -> None:
        self.is_alive = is_alive
        self.roots: Dict[int, Node] = {}
        #: All nodes, in the order in which they were learned.
        self.nodes: List[Node] = []
        #: The code objects at which chains end. They are kept so that their ids stay their own.
        self.kept: List[CodeType] = []
        self.kinds: Dict[str, KindTally] = {}
        self.libraries: Dict[str, LibraryTally] = {}
        #: The number of slow steps, by function.
        self.slow: Dict[str, int] = {}
        #: The number of events to skip before the next sample for an SDK's histogram, and its first
        #: value. Each thread has its own: `-=` on a shared number loses some. `Totals` count down,
        #: and call `Measurements` at 0, which do the rest. Below 0 if an event has come in the
        #: middle of counting down for another.
        self.skip = 0
        self.skipped_from = 0
        #: Events in no histogram, without the events skipped since `skip` was last drawn.
        self.unmeasured = 0
        #: How long switches took.
        self.to_loop = histogram(BOUNDS)
        self.to_task = histogram(BOUNDS)

    def left_out(self) -> int:
        """The number of events in no histogram. Another thread never reads too many."""
        # The reverse of the order in which the thread writes these when it draws again.
        return self.unmeasured + self.skipped_from - self.skip

    def library(self, name: str) -> LibraryTally:
        library = self.libraries.get(name)
        if library is None:
            library = self.libraries[name] = LibraryTally()
        return library

    def kind(self, name: str) -> KindTally:
        kind = self.kinds.get(name)
        if kind is None:
            kind = self.kinds[name] = KindTally()
        return kind

    def add(self, other: Counts) -> None:
        """Add all counts but the nodes."""
        self.unmeasured += other.left_out()
        for name, kind in other.kinds.copy().items():
            mine = self.kind(name)
            mine.add(kind)
            mine.opened += kind.opened
            mine.closed += kind.closed
            add_histogram(mine.durations, kind.durations)
        for name, library in other.libraries.copy().items():
            self.library(name).add(library)
        for function, count in other.slow.copy().items():
            self.slow[function] = self.slow.get(function, 0) + count
        add_histogram(self.to_loop, other.to_loop)
        add_histogram(self.to_task, other.to_task)
