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
from typing import Any, Callable, Optional, Set, Tuple
from weakref import ref


class Call:
    """A call of the SDK that we make: a local variable of the function that makes it.

    So it ends with the function, wherever a signal handler raises in there.
    """

    __slots__ = ("__weakref__", "_frame")

    def __init__(self) -> None:
        if sys.implementation.name != "cpython":
            self._frame = sys._getframe(1)

    def unless_over(self) -> Optional[Call]:
        """Gives the call, or None when its function has ended, where objects live on unused."""
        try:
            self._frame.clear()
        except RuntimeError:  # it is executing
            return self
        return None


def no_call() -> None:
    return None


def reference_to(call: Call) -> Callable[[], Optional[Call]]:
    """What gives a call until its function has ended, and None from then on."""
    return ref(call) if sys.implementation.name == "cpython" else call.unless_over


class _Inside(threading.local):
    """The call that this thread is inside of; gives None if there is none."""

    def __init__(self) -> None:
        self.call: Callable[[], Optional[Call]] = no_call


inside = _Inside()


class _Last:
    """What the collector said last, whichever phase that was of: attributes that are one."""

    __slots__ = ("said",)


for _phase in ("start", "stop"):
    setattr(_Last, _phase, _Last.said)  # type: ignore[attr-defined]

# What it says is a dictionary that is made for the occasion. No two collections overlap.
_last: Any = _Last()
_last.said = _last
#: What it said in this thread, by phase.
_here = threading.local()
# Methods in C. In a function, a signal handler might run, and what it raises would be lost, since
# the collector ignores exceptions: a KeyboardInterrupt, say. Another thread might run, too.
_notes: Tuple[Any, ...] = (_last.__setattr__, _here.__setattr__)
#: By their ids. Each of them takes itself off.
_watchers: Set[int] = set()


def is_collecting() -> bool:
    """Whether this thread is collecting garbage; False where that does not matter."""
    return getattr(_here, "start", None) is _last.said


def watch_collections(whom: object) -> None:
    """Have `is_collecting` tell, for *whom*: until nobody wants to know any more."""
    if _COLLECTS_ANYWHERE:
        _watchers.add(id(whom))
        gc.callbacks.extend([note for note in _notes if note not in gc.callbacks])


def unwatch_collections(whom: object) -> None:
    _watchers.discard(id(whom))
    if _COLLECTS_ANYWHERE and not _watchers:
        for note in _notes:
            if note in gc.callbacks:
                gc.callbacks.remove(note)
        _last.said = _last


_COLLECTS_ANYWHERE = sys.implementation.name == "cpython" and sys.version_info < (3, 12)


def is_within(frame: Optional[FrameType]) -> bool:
    """Whether one of the callers is the SDK, called by the application or a thread of its own."""
    while frame is not None:
        if frame.f_globals.get("__name__", "").startswith("opentelemetry.sdk."):
            return True
        frame = frame.f_back
    return False
