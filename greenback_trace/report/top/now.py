"""What a program does now: totals, and rates per second."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Dict, List, Optional, Tuple


@dataclass
class SiteNow:
    """The bridges of one function: totals, and rates per second."""

    function: str
    bridges: float = 0
    suspended: float = 0
    errors: float = 0
    time: float = 0
    waiting: float = 0
    bridges_rate: float = 0
    #: Seconds in bridges per second, which is the average number of bridges under way.
    time_rate: float = 0


@dataclass
class TaskNow:
    """A task with a portal, and its stack as `greenback_trace.format_task` shows it.

    Attributes:
        seconds: For how long the task has held the event loop, or waited. None if unknown.
        where: The function that waits in a bridge, or else the innermost function.
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
        sites: Functions that bridge, busiest first.
        portals: The number of open portals and of portals opened, by kind.
        under_way: The number of bridges that have not finished.
        bridges_rate: Bridges per second.
        held: The share of time in which tasks with a portal hold the event loop.
        stalled: Seconds of the longest step that still runs and is already slow; 0 without one.
        slow_steps: The number of slow steps, and slow steps per second, by the function that held
            the loop.
        processes: The number of processes.
        who: The program, if there is only one and it gives its name.
        holding: The tasks that hold an event loop right now. None if unknown.
        parked: The tasks that have waited longest. None if unknown.
        parked_count: The number of waiting tasks.
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
