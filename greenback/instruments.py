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

from ._engine.state import Portal
from ._listener.instruments import Bridge, Instrument, add_instrument, remove_instrument

__all__ = ["Bridge", "Instrument", "Portal", "add_instrument", "remove_instrument"]
