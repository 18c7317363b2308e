"""When the OpenTelemetry SDK may be called: its locks are not reentrant.

A signal handler, a finalizer or an exporter can run in the middle of a call of the SDK, and so of
whatever lock that holds. Bridges there are only counted.
"""

from __future__ import annotations

import threading
from types import FrameType
from typing import Optional


class _Inside(threading.local):
    """Whether this thread is inside of a call that we make."""

    now = False


inside = _Inside()


def is_within(frame: Optional[FrameType]) -> bool:
    """Whether one of the callers is the SDK, called by the application or a thread of its own."""
    while frame is not None:
        if frame.f_globals.get("__name__", "").startswith("opentelemetry.sdk."):
            return True
        frame = frame.f_back
    return False
