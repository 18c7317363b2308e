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
from types import FrameType
from typing import Any, Dict, Optional


class _Inside(threading.local):
    """Whether this thread is inside of a call that we make, or of a collection of garbage."""

    now = False
    collection = False


inside = _Inside()


def watch_collections() -> None:
    """Have ``inside.collection`` say whether garbage is being collected, where that matters."""
    if _COLLECTS_ANYWHERE and _note_collection not in gc.callbacks:
        gc.callbacks.append(_note_collection)


def unwatch_collections() -> None:
    if _COLLECTS_ANYWHERE and _note_collection in gc.callbacks:
        gc.callbacks.remove(_note_collection)
    inside.collection = False


def _note_collection(phase: str, info: Dict[str, Any]) -> None:
    inside.collection = phase == "start"


_COLLECTS_ANYWHERE = sys.implementation.name == "cpython" and sys.version_info < (3, 12)


def is_within(frame: Optional[FrameType]) -> bool:
    """Whether one of the callers is the SDK, called by the application or a thread of its own."""
    while frame is not None:
        if frame.f_globals.get("__name__", "").startswith("opentelemetry.sdk."):
            return True
        frame = frame.f_back
    return False
