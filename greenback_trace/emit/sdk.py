"""When the SDK of OpenTelemetry may be called: its locks are not reentrant.

A signal handler, a finalizer or an exporter can run in the middle of a call of the SDK, while that
holds a lock. Bridges there are counted, but get no spans.

The same holds for bridges in finalizers that CPython 3.11 and older run during a garbage
collection. Such a collection can start in the middle of `contextvars.ContextVar.set`. To make a
span current sets a context variable, too, and frees the object that the outer call is working on:
the interpreter crashes. From 3.12 on, garbage is collected between two instructions.
"""

from __future__ import annotations

import gc
import sys
import threading
from types import FrameType
from typing import Any, Callable, Optional, Set, Tuple
from weakref import ref


class Call:
    """A call that greenback makes of the SDK: a local variable of the calling function.

    So it ends with the function, also if a signal handler raises anywhere in there.
    """

    __slots__ = ("__weakref__", "_frame")

    def __init__(self) -> None:
        if sys.implementation.name != "cpython":
            self._frame = sys._getframe(1)

    def unless_over(self) -> Optional[Call]:
        """The call, or None when its function has ended. For PyPy, which frees objects later."""
        try:
            self._frame.clear()
        except RuntimeError:  # the function is still executing
            return self
        return None


def no_call() -> None:
    return None


def reference_to(call: Call) -> Callable[[], Optional[Call]]:
    """A function that returns *call*, and None once the function of the call has ended."""
    return ref(call) if sys.implementation.name == "cpython" else call.unless_over


class _Inside(threading.local):
    """`call()` returns the call of the SDK that this thread is inside of, or None."""

    def __init__(self) -> None:
        self.call: Callable[[], Optional[Call]] = no_call


inside = _Inside()


class _Last:
    """The garbage collector's last message. `start`, `stop` and `said` are one attribute."""

    __slots__ = ("said",)


for _phase in ("start", "stop"):
    setattr(_Last, _phase, _Last.said)  # type: ignore[attr-defined]

# Each message of the collector has a new dictionary. No two collections overlap.
_last: Any = _Last()
_last.said = _last
#: The last message in this thread, by phase.
_here = threading.local()
# Methods in C. In a Python function, a signal handler could run, and its exception, for example
# KeyboardInterrupt, would be lost: the collector drops exceptions. Another thread could run, too.
_notes: Tuple[Any, ...] = (_last.__setattr__, _here.__setattr__)
#: The ids of those who need `is_collecting`.
_watchers: Set[int] = set()


def is_collecting() -> bool:
    """Whether this thread is collecting garbage. False on PyPy, and from CPython 3.12 on."""
    return getattr(_here, "start", None) is _last.said


def watch_collections(whom: object) -> None:
    """Keep `is_collecting` up to date until *whom* no longer needs it."""
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
    """Whether *frame* or one of its callers is in the SDK."""
    while frame is not None:
        if frame.f_globals.get("__name__", "").startswith("opentelemetry.sdk."):
            return True
        frame = frame.f_back
    return False
