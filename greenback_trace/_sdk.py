"""When OpenTelemetry may be called: the locks of its SDK are not reentrant.

A signal handler, a finalizer or an exporter can run in the middle of a call of the SDK, and so of
whatever lock that holds. Bridges there are only counted.

So are those in finalizers that CPython 3.11 and older run while they collect garbage, which can be
in the middle of `contextvars.ContextVar.set`: setting one there, as making a span the current one
does, frees what the outer call is working on, and the interpreter crashes. From 3.12 on, garbage is
collected between two instructions.
"""

from __future__ import annotations

import gc
import sys
import threading
from collections import OrderedDict
from types import FrameType
from typing import Any, Optional


class _Inside(threading.local):
    """Whether this thread is inside of a call that we make."""

    now = False


inside = _Inside()

#: The phase of garbage collection that was told of last stands last.
phases: OrderedDict[str, None] = OrderedDict.fromkeys(("start", "stop"))
# A method in C. In a function, a signal handler might run, and what it raises would be lost, since
# the collector ignores exceptions: a KeyboardInterrupt, say.
_note_phase: Any = phases.move_to_end


def is_collecting() -> bool:
    """Whether garbage is being collected, in any thread; False where that does not matter."""
    return next(reversed(phases)) == "start"


def watch_collections() -> None:
    """Have `is_collecting` tell."""
    if _COLLECTS_ANYWHERE and _note_phase not in gc.callbacks:
        gc.callbacks.append(_note_phase)


def unwatch_collections() -> None:
    if _COLLECTS_ANYWHERE and _note_phase in gc.callbacks:
        gc.callbacks.remove(_note_phase)
    phases.move_to_end("stop")


_COLLECTS_ANYWHERE = sys.implementation.name == "cpython" and sys.version_info < (3, 12)


def is_within(frame: Optional[FrameType]) -> bool:
    """Whether one of the callers is the SDK, called by the application or a thread of its own."""
    while frame is not None:
        if frame.f_globals.get("__name__", "").startswith("opentelemetry.sdk."):
            return True
        frame = frame.f_back
    return False
