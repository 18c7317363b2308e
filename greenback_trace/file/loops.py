"""When an event loop that had portals ends, so that its trace is written then.

An event loop says nothing of its end to others. So one of asyncio, be it in C, gets a ``close`` of
its own on top of that of its class, until it is closed. Trio has a hook, which costs it nothing
before.
"""

from __future__ import annotations

import logging
import sys
import weakref
from typing import TYPE_CHECKING, Any, Callable, MutableSet, Optional

from greenback._listener.failures import raise_if_from_signal_handler, tell_failure

if TYPE_CHECKING:
    from greenback.instruments import Portal


class Loops:
    """Calls *at_start* when a loop has its first portal, and *at_end* when that loop has ended."""

    def __init__(self, at_start: Callable[[], None], at_end: Callable[[], None]) -> None:
        self._at_start = at_start
        self._at_end = at_end
        self._last: Callable[[], Any] = _nothing
        # Added to by the thread that runs the loop; threads that do so at once are in loops of
        # their own, and one that is lost would only be watched twice.
        self._known: MutableSet[Any] = weakref.WeakSet()
        self._has_failed = False

    def see(self, portal: Portal) -> None:
        """Called for each portal, hence the short way for the loop that had one last."""
        try:
            loop = _loop_of(portal)
            if loop is None or loop is self._last():
                return
            self._last = weakref.ref(loop)
            if loop not in self._known:
                self._known.add(loop)
                self._at_start()
                self._watch(portal.library.name, loop)
        except Exception as error:
            raise_if_from_signal_handler(error)
            if not self._has_failed:
                self._has_failed = True
                tell_failure(
                    "GREENBACK_TRACE_FILE: the end of the event loop cannot be seen, so that the "
                    "file is written up to 5 s later: %s",
                    error=error,
                    level=logging.WARNING,
                )

    def _watch(self, library: str, loop: Any) -> None:
        if library == "trio":
            sys.modules["trio"].lowlevel.add_instrument(_AfterRun(self._at_end))
        elif "close" not in vars(loop):
            # Until it is closed, a loop refers to itself anyway.
            loop.close = _Close(loop, self._at_end)


class _Close:
    """``close`` of one event loop of asyncio."""

    __slots__ = ("_at_end", "_loop")

    def __init__(self, loop: Any, at_end: Callable[[], None]) -> None:
        self._loop = loop
        self._at_end = at_end

    def __call__(self) -> None:
        loop = self._loop
        vars(loop).pop("close", None)
        try:
            loop.close()
        finally:
            if loop.is_closed():
                self._at_end()
            else:  # it is running, which it has said by raising
                loop.close = self


class _AfterRun:
    """An instrument of Trio."""

    __slots__ = ("after_run",)

    def __init__(self, at_end: Callable[[], None]) -> None:
        self.after_run = at_end


def _loop_of(portal: Portal) -> Optional[Any]:
    if portal.library.name != "trio":
        return portal.library.loop_of(portal.task)
    try:
        return sys.modules["trio"].lowlevel.current_trio_token()
    except RuntimeError:
        return None  # bestowed from outside of the run


def _nothing() -> None:
    return None
