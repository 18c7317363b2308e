"""What a program does at the moment: numbers, and what is added to them per second."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Dict, List, Optional, Tuple


@dataclass
class SiteNow:
    """A function that bridges: totals, and what is added to them per second."""

    function: str
    bridges: float = 0
    suspended: float = 0
    errors: float = 0
    time: float = 0
    waiting: float = 0
    bridges_rate: float = 0
    #: How many of its bridges are under way on average: seconds in bridges per second.
    time_rate: float = 0


@dataclass
class TaskNow:
    """A task with a portal, and its stack as `greenback_trace.format_task` shows it.

    Attributes:
        seconds: For how long it has held the event loop, or waited. None if that is not known.
        where: Its innermost function, or the one that waits in a bridge.
    """

    name: str
    library: str
    portal: str
    seconds: Optional[float]
    stack: str
    where: str


@dataclass
class Now:
    """What a program does at the moment.

    Attributes:
        sites: The busiest first.
        portals: By kind, how many are open, and how many were opened.
        under_way: Bridges that have not finished.
        bridges_rate: Bridges per second.
        held: The share of the time in which tasks with a portal hold the event loop.
        stalled: For how many seconds a step has held an event loop that still runs and is longer
            than a step may be: the longest, or 0.
        slow_steps: By function that held the loop: how often, and how often per second.
        who: The program, if there is but one and it has said so.
        holding: The tasks that hold an event loop right now. None if that is not known.
        parked: Those tasks that have waited for the longest time. None if that is not known.
        parked_count: How many tasks wait.
        is_idle: Whether nothing was written for so long that the rates are zero.
    """

    sites: List[SiteNow] = field(default_factory=list)
    portals: Dict[str, Tuple[float, float]] = field(default_factory=dict)
    under_way: float = 0
    bridges_rate: float = 0
    held: float = 0
    stalled: float = 0
    slow_steps: Dict[str, Tuple[float, float]] = field(default_factory=dict)
    processes: int = 0
    who: str = ""
    holding: Optional[List[TaskNow]] = None
    parked: Optional[List[TaskNow]] = None
    parked_count: int = 0
    is_idle: bool = True
