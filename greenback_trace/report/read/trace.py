"""What traces add up to: the numbers of sites, sync chains and portals."""

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
    """What was counted. Times are in seconds."""

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
        """The time in bridges in which they did not wait, and so held the event loop."""
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
    """The bridges of one site, and of each sync chain that led to it."""

    function: str = ""
    #: Empty, and ``line`` 0, if the trace does not tell.
    file: str = ""
    line: int = 0
    chains: Dict[Chain, Numbers] = field(default_factory=dict)
    #: What only spans tell, and they may be a sample.
    observed: Observed = field(default_factory=Observed)


@dataclass
class PortalReport:
    """The portals of one kind.

    Attributes:
        opened: How many there were.
        active: How many of them were open at the end.
        lifetimes: Of those that were closed.
        spans: How many have a span.
        slow_steps: How many steps were slow in those.
    """

    opened: float = 0
    active: float = 0
    lifetimes: Durations = field(default_factory=Durations)
    spans: int = 0
    slow_steps: int = 0


@dataclass
class Trace:
    """What the files say.

    Attributes:
        sites: By total time, the longest first.
        portals: By kind.
        processes: How many processes wrote the files.
        services: How many processes each service had.
        begin: When the first of what was counted began, in nanoseconds since 1970. None if the
            files do not say.
        end: When the last was counted.
        spans: The spans of greenback that are in them.
        is_sampled: Some processes have no metrics, so that their numbers are those of spans.
        bridge_durations: Of all bridges, whichever their site.
        step_durations: How long steps held the event loop.
        slow_steps: By function that held the loop.
        misuses: By kind and function.
        dropped: What tracing has left out, by what it is and why.
        broken: Lines that are not OTLP JSON, as ``file:line: why``; the first thousand.
        broken_lines: How many there are.
    """

    sites: List[SiteReport] = field(default_factory=list)
    portals: Dict[str, PortalReport] = field(default_factory=dict)
    processes: int = 0
    services: Dict[str, int] = field(default_factory=dict)
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
