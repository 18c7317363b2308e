"""Watch portals and bridges while they work.

An instrument is an object with some of the methods of `Instrument`. `add_instrument` starts
calling them, and `remove_instrument` stops. The model is :class:`trio.abc.Instrument`: only the
hooks that an instrument overrides are called. A program without instruments pays one check per
bridge and per step.

An instrument cannot disturb the program that it watches. If a hook raises an `Exception`, that is
logged once, through the logger ``greenback``, and the instrument is removed. If a signal handler
raises while a hook runs, that is no failure of the hook, and the exception reaches the program.
"""

from __future__ import annotations

from ._engine.state import Portal
from ._listener.instruments import Bridge, Instrument, add_instrument, remove_instrument

for _each in (Bridge, Instrument, add_instrument, remove_instrument):
    _each.__module__ = __name__  # their place to the user, in tracebacks and pickles
del _each

__all__ = ["Bridge", "Instrument", "Portal", "add_instrument", "remove_instrument"]
