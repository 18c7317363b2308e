"""Watch portals and bridges while they work.

An instrument is an object with some of the methods of `Instrument`; `add_instrument` starts
calling them and `remove_instrument` stops. The model is :class:`trio.abc.Instrument`: only the
hooks that an instrument overrides are ever called, and a program in which nobody listens pays one
check per bridge and per step.

An instrument cannot disturb the program that it watches. A hook that raises an `Exception` is
logged once, through the logger ``greenback``, and its instrument is removed. What a signal handler
raises while a hook runs is no failure of the hook, and reaches the program.
"""

from __future__ import annotations

import os
import threading
from typing import TYPE_CHECKING, Any, Callable, Dict, List, Optional, Tuple

from . import _bridge
from ._failures import tell_failure
from ._signals import is_from_signal_handler, raise_if_from_signal_handler
from ._state import Portal

if TYPE_CHECKING:
    from types import FrameType

    from typing_extensions import Protocol
else:
    Protocol = object

__all__ = ["Bridge", "Instrument", "Portal", "add_instrument", "remove_instrument"]


class Bridge:
    """One call of `greenback.await_`, as the bridge hooks see it.

    The same object is passed to every hook that one bridge causes, and no two bridges share one, so
    it can be a dictionary key.

    Attributes:
        portal: The `Portal <greenback.instruments.Portal>` that it goes through.
        awaitable: What was passed to `greenback.await_`. ``None`` once the bridge has finished.
        frame: The frame that called `greenback.await_`. ``None`` once the bridge has finished, so
            that an instrument which keeps the bridge does not keep the program's local variables.
    """

    __slots__ = ("__weakref__", "_left", "awaitable", "frame", "portal")

    portal: Portal
    awaitable: Any
    frame: Optional[FrameType]

    def __init__(self, portal: Portal, awaitable: Any, frame: FrameType) -> None:
        self.portal = portal
        self.awaitable = awaitable
        self.frame = frame
        #: When the switch to the event loop began that it waits behind; 0 while it does not wait.
        self._left = 0

    def __repr__(self) -> str:
        return f"<Bridge in {self.portal!r}>"


class Instrument:
    """The hooks, each of which does nothing here. Subclass it and override those that you want.

    Hooks are called synchronously, in the thread of the task that they speak of. They must not
    block, and a bridge that they start is not announced to any instrument.

    ``portal`` is a `Portal <greenback.instruments.Portal>`; its ``kind`` is ``"task"``, ``"run"``,
    ``"run_sync"``, ``"bestowed"`` or ``"inherited"``.
    """

    __slots__ = ("__weakref__",)

    def portal_opened(self, portal: Portal) -> None:
        """A portal exists from now on. It may not have run its first step yet."""

    def portal_closed(self, portal: Portal) -> None:
        """A portal is gone: its task or function has ended, or its scope was left."""

    def bridge_started(self, bridge: Bridge) -> None:
        """`greenback.await_` was called and is about to take the first step of its awaitable."""

    def bridge_suspended(self, bridge: Bridge) -> None:
        """The awaitable has to wait: the next thing to happen is a switch to the event loop."""

    def bridge_resumed(self, bridge: Bridge) -> None:
        """The event loop has resumed a bridge that was suspended; the switch has just happened."""

    def bridge_finished(self, bridge: Bridge, error: Optional[BaseException]) -> None:
        """A bridge is over.

        Args:
            bridge: The bridge.
            error: What it raises, or ``None`` if it returns a value.
        """

    def step_started(self, portal: Portal) -> None:
        """The event loop runs the task: the next thing to happen is a switch into the portal."""

    def step_finished(self, portal: Portal) -> None:
        """The task waits or has ended: control has just come back from the portal."""


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
        """What the other three are given of this bridge; None if they are not to be called."""

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


# An instrument and its bound method.
_Hooks = Tuple[Tuple[Any, Callable[..., None]], ...]
_HOOKS = tuple(name for name in vars(Instrument) if not name.startswith("_"))


class Hooks:
    """The listener that tells instruments: for each hook, the bound methods of those who have it.

    There is one, which changes as instruments come and go, so that a bridge which is under way
    then is announced to those who are there in the end.
    """

    __slots__ = _HOOKS

    portal_opened: _Hooks
    portal_closed: _Hooks
    bridge_started: _Hooks
    bridge_suspended: _Hooks
    bridge_resumed: _Hooks
    bridge_finished: _Hooks
    step_started: _Hooks
    step_finished: _Hooks

    def __init__(self, instruments: List[Any]) -> None:
        self.tell(instruments)

    def tell(self, instruments: List[Any]) -> None:
        """Call the hooks of these, and of nobody else, from now on."""
        for name in _HOOKS:
            nothing = getattr(Instrument, name)
            setattr(
                self,
                name,
                tuple(
                    (instrument, getattr(instrument, name))
                    for instrument in instruments
                    if hasattr(instrument, name)
                    and getattr(type(instrument), name, None) is not nothing
                ),
            )

    # The hooks of bridges run inside the portal, where they could bridge: such a bridge is not
    # announced.

    def start_bridge(self, portal: Portal, awaitable: Any, frame: FrameType) -> Bridge:
        bridge = Bridge(portal, awaitable, frame)
        _tell_from_inside(portal, self.bridge_started, bridge)
        return bridge

    def suspend_bridge(self, bridge: Bridge) -> None:
        if self.bridge_suspended:
            _tell_from_inside(bridge.portal, self.bridge_suspended, bridge)

    def resume_bridge(self, bridge: Bridge, portal: Portal, left: int) -> None:
        if self.bridge_resumed:
            bridge._left = left
            _tell_from_inside(portal, self.bridge_resumed, bridge)

    def finish_bridge(self, bridge: Bridge, error: Optional[BaseException], left: int) -> None:
        if bridge.frame is None:
            return  # that was told before a signal handler interrupted the telling
        bridge._left = left
        try:
            _tell_from_inside(bridge.portal, self.bridge_finished, bridge, error)
        finally:
            # Whoever keeps the bridge is not to keep these.
            bridge.frame = bridge.awaitable = None

    def open_portal(self, portal: Portal) -> None:
        portal.closed = False
        _tell(self.portal_opened, portal)

    def enter_portal(self, portal: Portal) -> None:
        if _primary is not None:
            _primary.listener.enter_portal(portal)

    def close_portal(self, portal: Portal) -> None:
        if not portal.closed:
            portal.closed = True
            _tell(self.portal_closed, portal)

    def start_step(self, portal: Portal) -> None:
        _tell(self.step_started, portal)

    def finish_step(self, portal: Portal) -> None:
        _tell(self.step_finished, portal)


def _tell_from_inside(portal: Portal, hooks: _Hooks, *arguments: Any) -> None:
    portal.hushed = True
    try:
        _tell(hooks, *arguments)
    finally:
        portal.hushed = False


def _tell(hooks: _Hooks, *arguments: Any) -> None:
    for instrument, hook in hooks:
        try:
            hook(*arguments)
        except Exception as failure:
            if type(instrument) is _AsInstrument or is_from_signal_handler(failure):
                raise  # it refuses the bridge; or it is the program's
            # Any other is never felt by the program.
            _failed(instrument, getattr(hook, "__name__", "hook"), failure)


class _AsInstrument(Instrument):
    """The primary listener among instruments."""

    __slots__ = ("bridges", "listener")

    def __init__(self, listener: Listener) -> None:
        self.listener = listener
        #: What it calls the bridges that are under way.
        self.bridges: Dict[Bridge, Any] = {}

    def portal_opened(self, portal: Portal) -> None:
        self.listener.open_portal(portal)

    def portal_closed(self, portal: Portal) -> None:
        self.listener.close_portal(portal)

    def bridge_started(self, bridge: Bridge) -> None:
        frame = bridge.frame
        assert frame is not None
        its_own = self.listener.start_bridge(bridge.portal, bridge.awaitable, frame)
        if its_own is not None:
            self.bridges[bridge] = its_own

    def bridge_suspended(self, bridge: Bridge) -> None:
        its_own = self.bridges.get(bridge)
        if its_own is not None and self.listener.suspend_bridge is not None:
            self.listener.suspend_bridge(its_own)

    def bridge_resumed(self, bridge: Bridge) -> None:
        its_own = self.bridges.get(bridge)
        if its_own is not None:
            self.listener.resume_bridge(its_own, bridge.portal, bridge._left)

    def bridge_finished(self, bridge: Bridge, error: Optional[BaseException]) -> None:
        its_own = self.bridges.pop(bridge, None)
        if its_own is not None:
            self.listener.finish_bridge(its_own, error, bridge._left)

    def step_started(self, portal: Portal) -> None:
        if self.listener.start_step is not None:
            self.listener.start_step(portal)

    def step_finished(self, portal: Portal) -> None:
        self.listener.finish_step(portal)


class _Leaving(Instrument):
    """A listener that is told of nothing but the end of what it was told the beginning of."""

    __slots__ = ("bridge_finished",)

    def __init__(self, former: _AsInstrument) -> None:
        self.bridge_finished = former.bridge_finished  # type: ignore[method-assign]


# These are written under _lock, from any thread.
_instruments: Dict[int, Instrument] = {}
_primary: Optional[_AsInstrument] = None
#: Listeners that are gone, while bridges of theirs are under way.
_leaving: List[_AsInstrument] = []
_hooks = Hooks([])
_lock = threading.RLock()


def set_primary(listener: Optional[Listener]) -> None:
    """Have the runtime call *listener* directly: what traces pays for no detour.

    There is one at most, which this replaces. It is told before any instrument. The end of a bridge
    goes to whoever was told of its beginning.
    """
    global _primary
    with _lock:
        if _primary is not None and _primary.bridges:
            _leaving.append(_primary)
        _primary = None if listener is None else _AsInstrument(listener)
        _publish()


def is_primary(listener: Any) -> bool:
    """Whether *listener* is the one that the runtime calls."""
    return _primary is not None and _primary.listener is listener


def primary_failed(listener: Any, error: Exception) -> None:
    """Remove the primary listener because it has caught *error* of its own. Logged once.

    Where *error* is not its own, but a signal handler's, it is raised again.
    """
    try:
        raise_if_from_signal_handler(error)
        with _lock:
            if not is_primary(listener):
                return
            set_primary(None)
        _log_failure(listener, "hook", error)
    finally:
        del error  # its traceback may have this frame


def add_instrument(instrument: Instrument) -> None:
    """Call the hooks of *instrument* from now on, in every thread.

    Portals and bridges that are already open are not announced: the first hook that speaks of one
    may be the one that ends it.

    Args:
        instrument: An object with some of the methods of `Instrument`. Adding one that is
            there already does nothing.

    Raises:
        TypeError: It has none of the hooks.
    """
    if not any(hasattr(instrument, name) for name in _HOOKS):
        raise TypeError(
            f"{instrument!r} is not an instrument: it has none of the methods "
            f"{', '.join(_HOOKS)}; subclass greenback.instruments.Instrument"
        )
    with _lock:
        Hooks([instrument])  # if looking at it raises, it is not added
        _instruments[id(instrument)] = instrument
        _publish()


def remove_instrument(instrument: Instrument) -> None:
    """Stop calling the hooks of *instrument*.

    A hook that another thread is in the middle of runs to its end.

    Raises:
        KeyError: It was never added, or is removed already, perhaps because it raised.
    """
    with _lock:
        if _instruments.pop(id(instrument), None) is None:
            raise KeyError(instrument)
        _publish()


def _publish() -> None:
    _leaving[:] = [former for former in _leaving if former.bridges]
    leaving: List[Any] = [_Leaving(former) for former in _leaving]
    primary: List[Any] = [] if _primary is None else [_primary]
    _hooks.tell(primary + list(_instruments.values()) + leaving)
    if _instruments:
        _bridge.set_hooks(_hooks)
    else:
        _bridge.set_hooks(None if _primary is None else _primary.listener)


def _failed(instrument: Any, hook: str, error: Exception) -> None:
    """Remove an instrument because a hook of it has raised *error*."""
    with _lock:
        if _instruments.pop(id(instrument), None) is None:
            return  # another thread came first, and has logged it
        _publish()
    _log_failure(instrument, hook, error)


def _log_failure(instrument: Any, hook: str, error: Exception) -> None:
    tell_failure("instrument %r was removed: its %s raised %s", instrument, hook, error=error)


def _after_fork() -> None:
    """In the child of a fork: another thread may have held the lock, and is not there any more."""
    global _lock
    _lock = threading.RLock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
