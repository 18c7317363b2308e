"""The listener: whom the runtime tells of portals, bridges and steps.

The runtime calls one listener at most. There are two that can ask for it: the *primary* one, which
is that of tracing, and the one that tells instruments. Where only one of them is there, the runtime
calls it directly. Where both are, it calls `Both`.
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
    """What the runtime tells of portals, bridges and steps.

    It never raises, except to refuse a bridge: what `start_bridge` and `suspend_bridge` raise
    leaves `await_`. (What a signal handler raises leaves any of them.) When the last switch in
    either direction began is in ``portal.entered`` and ``portal.left``: no call is needed.
    """

    def open_portal(self, portal: Portal, /) -> None: ...
    def enter_portal(self, portal: Portal, /) -> None:
        """A portal that was opened before its task's first step is about to take that step."""

    def close_portal(self, portal: Portal, /) -> None:
        """Called again where a signal handler has interrupted it."""

    def start_bridge(self, portal: Portal, awaitable: Any, frame: FrameType, /) -> Any:
        """What the other three are given of this bridge; None if they are not to be called.

        They are called of the same listener, whichever is set in between.
        """

    @property
    def suspend_bridge(self) -> Optional[Callable[[Any], None]]:
        """Not called where it is None."""

    def resume_bridge(self, bridge: Any, portal: Portal, left: int, /) -> None:
        """The switch back has just happened, after the one that began at *left*."""

    def finish_bridge(self, bridge: Any, error: Optional[BaseException], left: int, /) -> object:
        """It is over. *left* is 0, or when it began to wait if it is killed while it waits.

        Called again where a signal handler has interrupted it.

        The runtime asks for no result.
        """

    @property
    def start_step(self) -> Optional[Callable[[Portal], None]]:
        """Not called where it is None."""

    def finish_step(self, portal: Portal, /) -> None: ...


class Both:
    """Two listeners: tells the first, and then the second.

    What each has given for a bridge it gets back. Which two they are never changes, so the end of
    a bridge goes to those who were told of its beginning.
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
        except BaseException as error:  # the runtime knows of no bridge that it could finish
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


#: Held by whoever changes who listens. Reentrant, for signal handlers and finalizers that do.
lock = threading.RLock()
# These are written under the lock, from any thread.
_primary: Optional[Listener] = None
_of_instruments: Optional[Listener] = None


def set_primary(listener: Optional[Listener]) -> None:
    """Have the runtime call *listener*, instead of the primary one before it. None for nobody."""
    global _primary
    with lock:
        _primary = listener
        _publish()


def is_primary(listener: Any) -> bool:
    """Whether *listener* is the primary one."""
    return _primary is listener and listener is not None


def primary_failed(listener: Any, error: Exception) -> None:
    """Remove the primary listener because it has caught *error* of its own. Logged once.

    Where *error* is not its own, but a signal handler's, it is raised again.
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
    """Have the runtime call *listener*, after the primary one. None where there are no instruments.

    The caller has the lock.
    """
    global _of_instruments
    _of_instruments = listener
    _publish()


def tell_removed(instrument: Any, hook: str, error: Exception) -> None:
    """Log that a listener or an instrument was removed, because a hook of it has raised *error*."""
    tell_failure("instrument %r was removed: its %s raised %s", instrument, hook, error=error)


def _publish() -> None:
    if _primary is None:
        set_hooks(_of_instruments)
    elif _of_instruments is None:
        set_hooks(_primary)
    else:
        set_hooks(Both(_primary, _of_instruments))


def _after_fork() -> None:
    """In the child of a fork: another thread may have held the lock, and is not there any more."""
    global lock
    lock = threading.RLock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
