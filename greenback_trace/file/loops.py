"""The end of event loops with portals: their trace is written then.

asyncio has no hook for the end of a loop. So each loop with portals, also one written in C, gets an
attribute ``close`` that hides the method of its class until the loop is closed. Trio has a hook,
which costs nothing before the end.
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
        # The thread of a loop adds it. Two threads that add at once have different loops. A loop
        # that is lost from the set would only be watched twice.
        self._known: MutableSet[Any] = weakref.WeakSet()
        self._has_failed = False

    def see(self, portal: Portal) -> None:
        """Called for each portal. So there is a short way for the loop of the last one."""
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
            # A reference cycle, but a loop refers to itself anyway until it is closed.
            loop.close = _Close(loop, self._at_end)


class _Close:
    """The attribute ``close`` of one asyncio loop."""

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
            else:  # the loop is running, and has raised because of that
                loop.close = self


class _AfterRun:
    """A Trio instrument that calls *at_end* after the run."""

    __slots__ = ("after_run",)

    def __init__(self, at_end: Callable[[], None]) -> None:
        self.after_run = at_end


def _loop_of(portal: Portal) -> Optional[Any]:
    if portal.library.name != "trio":
        return portal.library.loop_of(portal.task)
    try:
        return sys.modules["trio"].lowlevel.current_trio_token()
    except RuntimeError:
        return None  # the portal was bestowed from outside of the run


def _nothing() -> None:
    return None
