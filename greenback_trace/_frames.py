"""Looking at frames without changing the program."""

from __future__ import annotations

import sys
from types import FrameType
from typing import Any, Mapping

_IS_CPYTHON = sys.implementation.name == "cpython"


if sys.version_info >= (3, 13):

    def locals_of(frame: FrameType) -> Mapping[str, Any]:
        """The local variables of a frame."""
        return frame.f_locals

else:

    def locals_of(frame: FrameType) -> Mapping[str, Any]:
        """The local variables of a frame, which keeps no copy of them where that can be helped.

        A function's frame holds on to the dictionary that it makes of them, and so keeps objects
        alive after the function has dropped them. It is emptied, unless somebody else has it too,
        or a trace function is at work, after which variables are set from it.
        """
        names = frame.f_locals
        if not frame.f_code.co_flags & 0x01:  # CO_OPTIMIZED: not of a module or a class
            return names
        copy = dict(names)
        if (
            _IS_CPYTHON
            and sys.getrefcount(names) <= 3
            and frame.f_trace is None
            and sys.gettrace() is None
            and sys.getprofile() is None
        ):
            names.clear()
        return copy
