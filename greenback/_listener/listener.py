"""The listener: the object that the runtime tells of portals, bridges and steps.

The runtime calls one listener at most. There are up to two: the *primary* one, which belongs to
tracing, and the one that tells instruments. If only one is set, the runtime calls it directly. If
both are, it calls `Both`.
"""

from __future__ import annotations

import os
import threading
from typing import TYPE_CHECKING, Any, Callable, Optional, Tuple

from .._engine.bridge import set_hooks
from .failures import raise_if_from_signal_handler, tell_failure

if TYPE_CHECKING:
    from types import FrameType

    from typing_extensions import Protocol

    from .._engine.state import Portal
else:
    Protocol = object


class Listener(Protocol):
    """The methods that the runtime calls.

    A listener raises only to refuse a bridge: an exception of `start_bridge` or `suspend_bridge`
    leaves `await_`. (An exception of a signal handler leaves any of the methods.) The listener
    needs no call to learn when the last switch in each direction began: ``portal.entered`` and
    ``portal.left`` say it.
    """

    def open_portal(self, portal: Portal, /) -> None: ...
    def enter_portal(self, portal: Portal, /) -> None:
        """A portal that was opened before its task's first step is about to take that step."""

    def close_portal(self, portal: Portal, /) -> None:
        """Called a second time if a signal handler has interrupted the first call."""

    def start_bridge(self, portal: Portal, awaitable: Any, frame: FrameType, /) -> Any:
        """Returns an object for this bridge, which the other three hooks get as an argument.

        If it returns None, the other three are not called. They are called on this listener, even
        if another one is set in between.
        """

    @property
    def suspend_bridge(self) -> Optional[Callable[[Any], None]]:
        """Called with the bridge, before it switches to the event loop. None: is not called."""

    def resume_bridge(self, bridge: Any, portal: Portal, left: int, /) -> None:
        """The switch back has just happened. The switch to the event loop began at *left*."""

    def finish_bridge(self, bridge: Any, error: Optional[BaseException], left: int, /) -> object:
        """The bridge is over. The runtime ignores the result of this method.

        Called a second time if a signal handler has interrupted the first call.

        Args:
            bridge: The object that `start_bridge` returned.
            error: The exception that leaves the bridge, if any.
            left: 0. If the bridge was killed while it waited, the time at which it began to wait.
        """

    @property
    def start_step(self) -> Optional[Callable[[Portal], None]]:
        """Called with the portal, before the switch into it. None: is not called."""

    def finish_step(self, portal: Portal, /) -> None: ...


class Both:
    """Two listeners: tells the first, and then the second.

    Each gets back the object that it returned for a bridge. The two never change, so the listeners
    that were told of a bridge's start are told of its end.
    """

    __slots__ = ("_first", "_second")

    def __init__(self, first: Listener, second: Listener) -> None:
        self._first = first
        self._second = second

    def open_portal(self, portal: Portal) -> None:
        self._first.open_portal(portal)
        self._second.open_portal(portal)

    def enter_portal(self, portal: Portal) -> None:
        self._first.enter_portal(portal)
        self._second.enter_portal(portal)

    def close_portal(self, portal: Portal) -> None:
        self._first.close_portal(portal)
        self._second.close_portal(portal)

    def start_bridge(
        self, portal: Portal, awaitable: Any, frame: FrameType
    ) -> Tuple[Optional[Any], Optional[Any]]:
        first = self._first.start_bridge(portal, awaitable, frame)
        try:
            return first, self._second.start_bridge(portal, awaitable, frame)
        except BaseException as error:  # without a result, the runtime has no bridge to finish
            if first is not None:
                self._first.finish_bridge(first, error, 0)
            raise

    def suspend_bridge(self, bridge: Tuple[Optional[Any], Optional[Any]]) -> None:
        first, second = bridge
        if first is not None and self._first.suspend_bridge is not None:
            self._first.suspend_bridge(first)
        if second is not None and self._second.suspend_bridge is not None:
            self._second.suspend_bridge(second)

    def resume_bridge(
        self, bridge: Tuple[Optional[Any], Optional[Any]], portal: Portal, left: int
    ) -> None:
        first, second = bridge
        if first is not None:
            self._first.resume_bridge(first, portal, left)
        if second is not None:
            self._second.resume_bridge(second, portal, left)

    def finish_bridge(
        self,
        bridge: Tuple[Optional[Any], Optional[Any]],
        error: Optional[BaseException],
        left: int,
    ) -> None:
        first, second = bridge
        if first is not None:
            self._first.finish_bridge(first, error, left)
        if second is not None:
            self._second.finish_bridge(second, error, left)

    def start_step(self, portal: Portal) -> None:
        if self._first.start_step is not None:
            self._first.start_step(portal)
        if self._second.start_step is not None:
            self._second.start_step(portal)

    def finish_step(self, portal: Portal) -> None:
        self._first.finish_step(portal)
        self._second.finish_step(portal)


#: Held while listeners or instruments change. Reentrant, since signal handlers and finalizers may
#: change them, too. Replaced in the child of a fork.
lock = threading.RLock()
# Both are written by the setters below under the lock, from any thread.
_primary: Optional[Listener] = None
_of_instruments: Optional[Listener] = None


def set_primary(listener: Optional[Listener]) -> None:
    """Make *listener* the primary one, in place of the one before. None removes that one."""
    global _primary
    with lock:
        _primary = listener
        _publish()


def is_primary(listener: Any) -> bool:
    """Whether *listener* is the primary one."""
    return _primary is listener and listener is not None


def primary_failed(listener: Any, error: Exception) -> None:
    """Remove the primary listener because it has caught *error* in its own code. Logged once.

    If a signal handler raised *error*, it is raised again instead.
    """
    try:
        raise_if_from_signal_handler(error)
        with lock:
            if not is_primary(listener):
                return
            set_primary(None)
        tell_removed(listener, "hook", error)
    finally:
        del error  # its traceback may have this frame


def set_listener_of_instruments(listener: Optional[Listener]) -> None:
    """Have the runtime call *listener* after the primary one. None: there are no instruments.

    The caller holds the lock.
    """
    global _of_instruments
    _of_instruments = listener
    _publish()


def tell_removed(instrument: Any, hook: str, error: Exception) -> None:
    """Log that a listener or an instrument was removed because its *hook* has raised *error*."""
    tell_failure("instrument %r was removed: its %s raised %s", instrument, hook, error=error)


def _publish() -> None:
    if _primary is None:
        set_hooks(_of_instruments)
    elif _of_instruments is None:
        set_hooks(_primary)
    else:
        set_hooks(Both(_primary, _of_instruments))


def _after_fork() -> None:
    """Make a new lock in the child of a fork: a thread of the parent may have held the old one."""
    global lock
    lock = threading.RLock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
