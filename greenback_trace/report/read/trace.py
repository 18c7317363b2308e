"""A trace: the numbers of sites, sync chains and portals."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Dict, List, Optional, Tuple

from .durations import Durations
from .observed import Observed

if TYPE_CHECKING:
    from ...count.caller import Caller

#: The sync functions of a chain, outermost first.
Chain = Tuple["Caller", ...]


@dataclass
class Numbers:
    """Counts of bridges, and their times in seconds."""

    ok: float = 0
    errors: float = 0
    cancelled: float = 0
    suspended: float = 0
    time: float = 0
    suspended_time: float = 0

    @property
    def bridges(self) -> float:
        return self.ok + self.errors + self.cancelled

    @property
    def holding_time(self) -> float:
        """Seconds in bridges without waiting. For so long they held the event loop."""
        return max(self.time - self.suspended_time, 0)

    def add(self, other: Numbers) -> None:
        self.ok += other.ok
        self.errors += other.errors
        self.cancelled += other.cancelled
        self.suspended += other.suspended
        self.time += other.time
        self.suspended_time += other.suspended_time


@dataclass
class SiteReport(Numbers):
    """The bridges of one site, and of each sync chain that leads to it."""

    function: str = ""
    #: Empty, with ``line`` 0, if the trace does not name the file.
    file: str = ""
    line: int = 0
    chains: Dict[Chain, Numbers] = field(default_factory=dict)
    #: What only spans tell. Spans may be a sample.
    observed: Observed = field(default_factory=Observed)


@dataclass
class PortalReport:
    """The portals of one kind.

    Attributes:
        opened: The number of portals opened.
        active: The number of portals open at the end.
        lifetimes: Durations of the closed portals.
        spans: The number of portals that have a span.
        slow_steps: The number of slow steps in the portals that have a span.
    """

    opened: float = 0
    active: float = 0
    lifetimes: Durations = field(default_factory=Durations)
    spans: int = 0
    slow_steps: int = 0


@dataclass
class Trace:
    """The totals of the files.

    Attributes:
        sites: Sorted by total time, longest first.
        portals: Portals by kind.
        processes: The number of processes that wrote the files.
        services: The number of processes by service.
        engines: The number of processes by engine, ``"c"`` or ``"python"``, of those that say it.
        begin: The earliest time in the files, in nanoseconds since 1970. None if they have none.
        end: The latest time in the files.
        spans: The number of spans of greenback.
        is_sampled: Whether some processes have no metrics, so that their numbers come from spans.
        bridge_durations: Durations of the bridges of all sites.
        step_durations: For how long steps held the event loop.
        steps: The number of steps.
        step_time: Seconds in all steps.
        slow_steps: The number of slow steps by the function that held the loop.
        misuses: The number of misuses by kind and function.
        dropped: The number of items that tracing left out, by kind of item and reason.
        broken: The first thousand lines that are not OTLP JSON, as ``file:line: why``.
        broken_lines: The number of lines that are not OTLP JSON.
    """

    sites: List[SiteReport] = field(default_factory=list)
    portals: Dict[str, PortalReport] = field(default_factory=dict)
    processes: int = 0
    services: Dict[str, int] = field(default_factory=dict)
    engines: Dict[str, int] = field(default_factory=dict)
    begin: Optional[int] = None
    end: Optional[int] = None
    spans: int = 0
    is_sampled: bool = False
    bridge_durations: Durations = field(default_factory=Durations)
    step_durations: Durations = field(default_factory=Durations)
    steps: float = 0
    step_time: float = 0
    slow_steps: Dict[str, float] = field(default_factory=dict)
    misuses: Dict[Tuple[str, str], float] = field(default_factory=dict)
    dropped: Dict[Tuple[str, str], float] = field(default_factory=dict)
    broken: List[str] = field(default_factory=list)
    broken_lines: int = 0

    @property
    def total(self) -> Numbers:
        total = Numbers()
        for site in self.sites:
            total.add(site)
        return total
