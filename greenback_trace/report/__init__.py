"""Exported traces -> what a person wants to know of them.

`load` reads a trace, `hot_spots` and `plan` say what ``greenback-trace report`` and ``plan`` print.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ._face import hot_spots, load, plan
from .read.durations import Durations
from .read.inputs import NothingToReportError
from .read.trace import Numbers, PortalReport, SiteReport, Trace

if TYPE_CHECKING:
    from .planning.edits import Edit
    from .planning.plan import Move, Plan, Step
    from .planning.sources import Frame

__all__ = [
    "Durations",
    "Edit",
    "Frame",
    "Move",
    "NothingToReportError",
    "Numbers",
    "Plan",
    "PortalReport",
    "SiteReport",
    "Step",
    "Trace",
    "hot_spots",
    "load",
    "plan",
]


def __getattr__(name: str) -> Any:
    # What a plan is made of: to import it takes longer than all the rest.
    if name == "Edit":
        from .planning import edits as module
    elif name == "Frame":
        from .planning import sources as module  # type: ignore[no-redef]
    elif name in {"Move", "Plan", "Step"}:
        from .planning import plan as module  # type: ignore[no-redef]
    else:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(module, name)
