"""What the program does at this moment, for whoever has connected to its socket.

Made in a thread of its own while the program runs on: what is read here is never locked, and can
change while it is looked at.
"""

from __future__ import annotations

import os
import sys
from time import monotonic, perf_counter_ns, time
from typing import TYPE_CHECKING, Any, Dict, List, Mapping, Optional, Tuple

from ..count.frames import can_look_at
from ..count.names import task_name
from ..count.snapshot import take
from .stacks import format_task, is_running

if TYPE_CHECKING:
    from greenback.instruments import Portal

    from ..count.totals import Totals
    from ..misuse.wording import Misuse

#: Raised when a field is taken away or changes its meaning.
VERSION = 1
#: Parked tasks whose stacks are told. A stack takes up to a millisecond.
_STACKS = 50


def describe(
    totals: Totals, dropped: Mapping[str, Mapping[str, int]], misuses: Tuple[Misuse, ...]
) -> Dict[str, Any]:
    """The totals but for sync chains and histograms, who holds the event loop, and who waits."""
    now = perf_counter_ns()
    holding: List[Tuple[int, Dict[str, Any]]] = []
    parked: List[Tuple[int, Portal]] = []
    for portal, tally in totals.portals.copy().items():
        try:
            task = portal.task
            if task is None or portal.library.is_done(task):
                continue
            if can_look_at(portal.library, task) and is_running(task):
                since = portal.entered if portal.entered >= tally.opened_at else 0
                about = _described(portal, since, now)
                if about is not None:
                    holding.append((since, about))
            else:
                waits = portal.left >= max(portal.entered, tally.opened_at)
                parked.append((portal.left if waits else now, portal))
        except Exception:  # it has ended while it was looked at
            continue
    # The longest first.
    holding.sort(key=lambda item: item[0])
    parked.sort(key=lambda item: item[0])
    result: Dict[str, Any] = {
        "version": VERSION,
        "pid": os.getpid(),
        "program": os.path.basename(sys.argv[0]) if getattr(sys, "argv", None) else "",
        "time": time(),
        "clock": monotonic(),
    }
    snapshot = take(totals, dropped, misuses, is_brief=True).as_dict()
    del snapshot["chains"], snapshot["durations"]
    snapshot["misuses"] = sum(each["count"] for each in snapshot["misuses"])
    result.update(snapshot)
    result["slow"] = totals.slow_ns / 1e9
    result["holding"] = [about for _, about in holding]
    result["parked"] = []
    for since, portal in parked[:_STACKS]:
        try:
            about = _described(portal, since if since < now else 0, now)
        except Exception:
            continue
        if about is not None:
            result["parked"].append(about)
    result["parked_count"] = len(parked)
    return result


def _described(portal: Portal, since: int, now: int) -> Optional[Dict[str, Any]]:
    """What is told of a task, or None where its end came in between."""
    stack = format_task(portal.task)
    if portal.library.is_done(portal.task):
        return None
    return {
        "task": task_name(portal.task),
        "library": portal.library.name,
        "portal": portal.kind,
        # A step that began before tracing did, or an async function that waits: for how long is not
        # known.
        "seconds": max(now - since, 0) / 1e9 if since else None,
        "bridges": portal.note.bridges,
        "stack": stack,
    }
