"""Watch portals and bridges while they work.

An instrument is an object with some of the methods of `Instrument`; `add_instrument` starts
calling them and `remove_instrument` stops. The model is :class:`trio.abc.Instrument`: only the
hooks that an instrument overrides are ever called, and a program in which nobody listens pays one
check per bridge and per step.

An instrument cannot disturb the program that it watches. A hook that raises an `Exception` is
logged once, through the logger ``greenback``, and its instrument is removed.
"""

from __future__ import annotations

import logging
import threading
from typing import TYPE_CHECKING, Any, Callable, Dict, List, Optional, Tuple

from . import _bridge
from ._state import Portal

if TYPE_CHECKING:
    from types import FrameType

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


# An instrument and its bound method.
_Hooks = Tuple[Tuple[Any, Callable[..., None]], ...]
_HOOKS = tuple(name for name in vars(Instrument) if not name.startswith("_"))


class Hooks:
    """What the runtime calls: for each hook, the bound methods of those who override it.

    Never changed once it is in use; adding or removing an instrument makes a new one.
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

    def __init__(self, instruments: List[Instrument]) -> None:
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
    # announced. The loops are written out because they are on the path of every bridge.

    def start_bridge(self, portal: Portal, awaitable: Any, frame: FrameType) -> Bridge:
        bridge = Bridge(portal, awaitable, frame)
        portal.hushed = True
        try:
            for instrument, hook in self.bridge_started:
                try:
                    hook(bridge)
                except Exception as failure:  # an instrument is never felt by the program
                    _failed(instrument, hook, failure)
        finally:
            portal.hushed = False
        return bridge

    def suspend_bridge(self, bridge: Bridge) -> None:
        if self.bridge_suspended:
            _tell_from_inside(self.bridge_suspended, bridge)

    def resume_bridge(self, bridge: Bridge) -> None:
        if self.bridge_resumed:
            _tell_from_inside(self.bridge_resumed, bridge)

    def finish_bridge(self, bridge: Bridge, error: Optional[BaseException]) -> None:
        portal = bridge.portal
        portal.hushed = True
        try:
            for instrument, hook in self.bridge_finished:
                try:
                    hook(bridge, error)
                except Exception as failure:  # an instrument is never felt by the program
                    _failed(instrument, hook, failure)
        finally:
            portal.hushed = False

    def open_portal(self, portal: Portal) -> None:
        _tell(self.portal_opened, portal)

    def close_portal(self, portal: Portal) -> None:
        _tell(self.portal_closed, portal)

    def start_step(self, portal: Portal) -> None:
        _tell(self.step_started, portal)

    def finish_step(self, portal: Portal) -> None:
        _tell(self.step_finished, portal)


def _tell_from_inside(hooks: _Hooks, bridge: Bridge) -> None:
    portal = bridge.portal
    portal.hushed = True
    try:
        _tell(hooks, bridge)
    finally:
        portal.hushed = False


def _tell(hooks: _Hooks, subject: Any) -> None:
    for instrument, hook in hooks:
        try:
            hook(subject)
        except Exception as failure:  # an instrument is never felt by the program
            _failed(instrument, hook, failure)


# Written under _lock by add_instrument and remove_instrument, from any thread.
_instruments: Dict[int, Instrument] = {}
_lock = threading.RLock()


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
    _bridge.set_hooks(Hooks(list(_instruments.values())) if _instruments else None)


def _failed(instrument: Any, hook: Callable[..., None], error: Exception) -> None:
    """Remove an instrument because a hook of it has raised *error*."""
    with _lock:
        if _instruments.pop(id(instrument), None) is None:
            return  # another thread came first, and has logged it
        _publish()
    logging.getLogger("greenback").error(
        "instrument %r was removed: its %s raised %r",
        instrument,
        getattr(hook, "__name__", "hook"),
        error,
        exc_info=error,
    )
