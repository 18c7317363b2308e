"""Exported traces -> what a person wants to know of them.

`load` reads a trace, `hot_spots` and `plan` say what ``greenback-trace report`` and ``plan`` print.
"""

from __future__ import annotations

from importlib import import_module
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

#: Imported when first asked for: importing these modules takes longer than importing all others.
_OF_PLANS = {
    "Edit": ".planning.edits",
    "Frame": ".planning.sources",
    "Move": ".planning.plan",
    "Plan": ".planning.plan",
    "Step": ".planning.plan",
}


def __getattr__(name: str) -> Any:
    if name not in _OF_PLANS:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_OF_PLANS[name], __name__), name)
