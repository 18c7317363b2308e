"""Exported traces -> what a person wants to know of them.

`load` reads a trace, `hot_spots` and `plan` say what ``greenback-trace report`` and ``plan`` print.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ._durations import Durations
from ._face import hot_spots, load, plan
from ._input import NothingToReportError
from ._trace import Numbers, PortalReport, SiteReport, Trace

if TYPE_CHECKING:
    from ._edits import Edit
    from ._plan import Move, Plan, Step
    from ._sources import Frame

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
        from . import _edits as module
    elif name == "Frame":
        from . import _sources as module  # type: ignore[no-redef]
    elif name in {"Move", "Plan", "Step"}:
        from . import _plan as module  # type: ignore[no-redef]
    else:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(module, name)
