"""What tracing counts with. Times are in nanoseconds.

Whoever writes to an object of these classes is the thread that it belongs to; others only read.
"""

from __future__ import annotations

import itertools
import weakref
from types import CodeType, FrameType
from typing import TYPE_CHECKING, Any, Callable, Dict, List, Optional, Set, Tuple

if TYPE_CHECKING:
    from ..misuse.watchdog import Held
    from .sites import Site

    Chain = Tuple[Site, ...]

#: The upper ends, inclusive, of the buckets of durations: 1 us to 10 s.
BOUNDS: List[int] = [step * 10**exponent for exponent in range(3, 10) for step in (1, 2, 5)] + [
    10**10
]
#: The same of portals, which can live long: up to a day.
PORTAL_BOUNDS: List[int] = BOUNDS + [
    seconds * 10**9 for seconds in (30, 60, 300, 900, 3_600, 14_400, 43_200, 86_400)
]

# A histogram is a list: the sum in nanoseconds, and then the counts of its buckets, the last one
# for what is longer than all bounds. The sum comes first since CPython has a short way for indices
# that are not negative. Looking a duration up in the edges gives the index of its bucket.
Histogram = List[int]
EDGES: List[int] = [-1, *BOUNDS]
PORTAL_EDGES: List[int] = [-1, *PORTAL_BOUNDS]


def histogram(bounds: List[int]) -> Histogram:
    return [0] * (len(bounds) + 2)


def count_of(durations: Histogram) -> int:
    return sum(durations[1:])


class Ticks:
    """A number that any thread adds one to, of which none is lost.

    ``+= 1`` loses some, and a lock could be held by whoever a signal handler or a finalizer has
    interrupted.
    """

    __slots__ = ("_count", "add")

    def __init__(self) -> None:
        self._count = itertools.count()
        #: Adds one, and gives how many there were. (The only operation of `itertools.count` cannot
        #: be interrupted, and is atomic on free-threaded builds.)
        self.add: Callable[[], int] = self._count.__next__

    def read(self) -> int:
        # Nothing else gives its value without drawing it.
        return int(repr(self._count)[len("count(") : -1])


class Tally:
    """Bridges that have finished, counted."""

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

    __slots__ = (
        "code",
        "ends",
        "inner",
        "offset",
        "others",
        "outer",
        "outer_code",
        "outer_offset",
        "site",
    )

    def __init__(self, site: Site, inner: Optional[Node], ends: bool) -> None:
        Tally.__init__(self)
        self.site = site
        self.inner = inner
        #: Whether a walk ends here without looking further out.
        self.ends = ends
        #: The instruction of a site, in two parts: comparing them takes half as long as making a
        #: key of them. Of what is not one place, and of callers, None.
        self.code: Optional[CodeType] = None
        self.offset = -1
        #: The caller that was learned first, which mostly is the only one, and its instruction. A
        #: node is its own caller where a walk ends with that caller.
        self.outer: Any = None
        self.outer_code: Optional[CodeType] = None
        self.outer_offset = -1
        #: The other callers, by their key.
        self.others: Dict[int, Node] = _NO_OTHERS

    def add_caller(self, frame: FrameType, key: int, caller: Node) -> None:
        if self.outer is None:
            # In this order, lest a signal handler that bridges in between finds half of it.
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
        """From the outermost caller to the site."""
        sites = []
        node: Optional[Node] = self
        while node is not None:
            sites.append(node.site)
            node = node.inner
        return tuple(sites)

    def root(self) -> Node:
        """The one of the site itself."""
        node = self
        while node.inner is not None:
            node = node.inner
        return node


#: Shared, and never written to: a dictionary of its own is as large as the rest of a node.
_NO_OTHERS: Dict[int, Node] = {}

_NOWHERE: Any = None
#: That of a portal in which nothing has bridged yet. No instruction is its.
NO_NODE = Node(_NOWHERE, None, True)


class KindTally(Tally):
    """The portals of one kind, and what was bridged in those that are closed."""

    __slots__ = ("closed", "durations", "open", "opened")

    def __init__(self) -> None:
        Tally.__init__(self)
        self.opened = 0
        self.closed = 0
        #: Those that are open. Counted by whoever reads: the other two can be off by what a signal
        #: handler has interrupted.
        self.open = 0
        self.durations = histogram(PORTAL_BOUNDS)


# The outcome of a bridge, whether it suspended, and the type of its error.
Ending = Tuple[str, bool, Optional[str]]


class LibraryTally:
    """The steps of the portal tasks of one library, and how long its bridges took."""

    __slots__ = ("durations", "quick", "steps", "waited")

    def __init__(self) -> None:
        self.steps = histogram(BOUNDS)
        #: Bridges that returned a value and did not suspend.
        self.quick = histogram(BOUNDS)
        #: Those that returned a value and did suspend.
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


class PortalTally(Tally):
    """One open portal, and what was bridged in it."""

    __slots__ = (
        "began",
        "closed",
        "counts",
        "held",
        "is_bare",
        "is_unsampled",
        "kind",
        "last",
        "library",
        "library_name",
        "opened_at",
        "root",
        "running",
        "slow_ns",
        "slow_steps",
        "spares",
        "step_max_ns",
        "switch_ns",
        "switches",
        "totals",
    )

    def __init__(self, totals: Any, kind: str, library: str, counts: Counts, now: int) -> None:
        Tally.__init__(self)
        #: Whose it is: a portal can see tracing enabled more than once.
        self.totals = totals
        self.kind = kind
        self.library_name = library
        self.opened_at = now
        #: When its current step began, if debug mode has put `Portal.entered` off, since its own
        #: time is not the step's; else 0.
        self.began = 0
        self.closed = False
        #: Those of the thread that runs its current step, so that a bridge need not ask for them.
        self.counts = counts
        self.library = counts.library(library)
        #: That of the last one's site: most of them are in loops.
        self.root = NO_NODE
        #: Its bridges, by weak reference: those under way, and `spares`. How many are under way is
        #: counted by looking at them, not by adding and subtracting, so that one which a signal
        #: handler has cut off in the middle of that is none of them as soon as it is freed.
        self.running: Set[weakref.ref[Running]] = set()
        #: The last one in this step, for whoever wants to know what held the event loop.
        self.last: Optional[Node] = None
        #: Those of bridges that are over, to be used again: as many as were ever nested.
        self.spares: List[Running] = []
        #: What held the event loop in the step that is about to end, if debug mode has seen it.
        self.held: Optional[Held] = None
        #: Whether nothing around it is in a ``with`` block. For debug mode; None if not known yet.
        self.is_bare: Optional[bool] = None
        #: Whether bridges get no spans without another parent, since this would have been that.
        self.is_unsampled = False
        self.step_max_ns = 0
        self.slow_steps = 0
        #: The length of the step that the waiting bridge has ended, if that was a slow one.
        self.slow_ns = 0
        self.switches = 0
        self.switch_ns = 0

    def new_running(self) -> Running:
        bridge = Running(self)
        self.running.add(weakref.ref(bridge, self.running.discard))
        return bridge

    def active(self) -> int:
        """How many bridges are under way in it."""
        bridges = [reference() for reference in list(self.running)]
        return sum(bridge is not None and bridge.runs for bridge in bridges)


class Running:
    """A bridge that is under way. Whoever starts one sets everything."""

    __slots__ = (
        "__weakref__",
        "awaitable",
        "is_clear",
        "node",
        "opened",
        "outermost",
        "portal",
        "runs",
        "slow_ns",
        "started",
        "suspended_ns",
        "switches",
        "tally",
    )

    node: Node
    started: int
    #: How often it switched, for how long it has waited, and the longest slow step that it ended
    #: by suspending.
    switches: int
    suspended_ns: int
    slow_ns: int
    # What is set on demand: by emit/spans.py and debug mode, by emit/spans.py alone, by debug mode
    # alone.
    portal: Any
    awaitable: Any
    opened: Any
    #: The frame of the outermost function of the sync chain. Who wants it takes it away at once.
    outermost: Any
    #: No caller can be inside of a ``with`` block.
    is_clear: bool

    def __init__(self, tally: PortalTally) -> None:
        self.tally = tally
        #: It has begun, and not finished.
        self.runs = False
        # What is interrupted before it has set these may still be asked for them.
        self.portal = self.awaitable = self.opened = None


class Counts:
    """What one thread has counted."""

    __slots__ = (
        "is_alive",
        "kept",
        "kinds",
        "libraries",
        "nodes",
        "roots",
        "skip",
        "skipped_from",
        "slow",
        "to_loop",
        "to_task",
        "unmeasured",
    )

    def __init__(self, is_alive: Callable[[], Any]) -> None:
        self.is_alive = is_alive
        self.roots: Dict[int, Node] = {}
        #: All nodes, in the order in which they were learned.
        self.nodes: List[Node] = []
        #: The code objects at which chains end: they stay, so that their ids do.
        self.kept: List[CodeType] = []
        self.kinds: Dict[str, KindTally] = {}
        self.libraries: Dict[str, LibraryTally] = {}
        #: Slow steps, by function.
        self.slow: Dict[str, int] = {}
        #: Events to let pass before the next one that an SDK's histogram is told of, and how many
        #: there were to begin with. Each thread has its own: `-=` on one they share loses some.
        #: `Totals` only count down; all else is up to `Measurements`, which they call then. Below 0
        #: where an event has come in the middle of counting down for another.
        self.skip = 0
        self.skipped_from = 0
        #: Events that no histogram was told of, but for those let pass since `skip` was drawn.
        self.unmeasured = 0
        #: How long switches took.
        self.to_loop = histogram(BOUNDS)
        self.to_task = histogram(BOUNDS)

    def left_out(self) -> int:
        """The events that no histogram was told of. To another thread, never too many."""
        # In this order, which is the reverse of the one in which a thread draws again.
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
        """All but the nodes."""
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
