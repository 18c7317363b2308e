"""Instruments: their hooks, and the listener that tells them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Callable, Dict, List, Optional, Tuple

from .._engine.state import Portal
from . import listener
from .failures import is_from_signal_handler

if TYPE_CHECKING:
    from types import FrameType


class Bridge:
    """One call of `greenback.await_`, as the bridge hooks see it.

    The same object is passed to every hook that one bridge causes, and no two bridges share one, so
    it can be a dictionary key.

    Attributes:
        portal: The `Portal <greenback.instruments.Portal>` that it goes through.
        awaitable: The argument of `greenback.await_`. ``None`` once the bridge has finished.
        frame: The frame that called `greenback.await_`. ``None`` once the bridge has finished, so
            that an instrument which keeps the bridge does not keep the program's local variables.
    """

    __slots__ = ("__weakref__", "awaitable", "frame", "portal")

    portal: Portal
    awaitable: Any
    frame: Optional[FrameType]

    def __init__(self, portal: Portal, awaitable: Any, frame: FrameType) -> None:
        self.portal = portal
        self.awaitable = awaitable
        self.frame = frame

    def __repr__(self) -> str:
        return f"<Bridge in {self.portal!r}>"


class Instrument:
    """The hooks. Each does nothing here: subclass this and override those that you want.

    Hooks are called synchronously, in the thread of the task that they are about. They must not
    block. A bridge that a hook starts is not announced to any instrument.

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
            error: The exception that it raises, or ``None`` if it returns a value.
        """

    def step_started(self, portal: Portal) -> None:
        """The event loop runs the task: the next thing to happen is a switch into the portal."""

    def step_finished(self, portal: Portal) -> None:
        """The task waits or has ended: control has just come back from the portal."""


def add_instrument(instrument: Instrument) -> None:
    """Call the hooks of *instrument* from now on, in every thread.

    Portals and bridges that are already open are not announced. The first hook that is called for
    such a portal or bridge may be the one for its end.

    Args:
        instrument: An object with some of the methods of `Instrument`. Adding the same object a
            second time does nothing.

    Raises:
        TypeError: *instrument* has none of the hooks.
    """
    if not any(hasattr(instrument, name) for name in _HOOKS):
        raise TypeError(
            f"{instrument!r} is not an instrument: it has none of the methods "
            f"{', '.join(_HOOKS)}; subclass greenback.instruments.Instrument"
        )
    with listener.lock:
        Hooks([instrument])  # reading its attributes may raise; then it is not added
        _instruments[id(instrument)] = instrument
        _publish()


def remove_instrument(instrument: Instrument) -> None:
    """Stop calling the hooks of *instrument*.

    If another thread is running one of its hooks, that hook runs to its end.

    Raises:
        KeyError: *instrument* was never added, or is removed already, perhaps because it raised.
    """
    with listener.lock:
        if _instruments.pop(id(instrument), None) is None:
            raise KeyError(instrument)
        _publish()


# An instrument and its bound method.
_Hooks = Tuple[Tuple[Any, Callable[..., None]], ...]
_HOOKS = tuple(name for name in vars(Instrument) if not name.startswith("_"))


class Hooks:
    """The listener that tells instruments. For each hook it has the instruments' bound methods.

    There is one such object, which changes as instruments come and go. So the end of a bridge is
    announced to the instruments that are there at that moment.
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
        """Call the hooks of these instruments, and of no others, from now on."""
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

    # The hooks of bridges run inside the portal, so they can bridge. Their own bridges are not
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
            _tell_from_inside(portal, self.bridge_resumed, bridge)

    def finish_bridge(self, bridge: Bridge, error: Optional[BaseException], left: int) -> None:
        if bridge.frame is None:
            return  # instruments were told before a signal handler interrupted the first call
        try:
            _tell_from_inside(bridge.portal, self.bridge_finished, bridge, error)
        finally:
            # An instrument may keep the bridge. It must not keep these two with it.
            bridge.frame = bridge.awaitable = None

    def open_portal(self, portal: Portal) -> None:
        portal.closed = False
        _tell(self.portal_opened, portal)

    def enter_portal(self, portal: Portal) -> None:
        """Instruments have no hook for this: `step_started` tells them."""

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
            if is_from_signal_handler(failure):
                raise
            # The program does not notice any other failure.
            _failed(instrument, getattr(hook, "__name__", "hook"), failure)


# Both are written here only, under the lock of listener.py, from any thread.
_instruments: Dict[int, Instrument] = {}
_hooks = Hooks([])


def _publish() -> None:
    _hooks.tell(list(_instruments.values()))
    listener.set_listener_of_instruments(_hooks if _instruments else None)


def _failed(instrument: Any, hook: str, error: Exception) -> None:
    """Remove an instrument because one of its hooks has raised *error*."""
    with listener.lock:
        if _instruments.pop(id(instrument), None) is None:
            return  # another thread has removed and logged it
        _publish()
    listener.tell_removed(instrument, hook, error)
