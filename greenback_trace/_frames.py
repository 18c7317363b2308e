"""Looking at frames without changing the program."""

from __future__ import annotations

import sys
from types import FrameType
from typing import TYPE_CHECKING, Any, Mapping

if TYPE_CHECKING:
    from greenback._tasks import Library

_IS_CPYTHON = sys.implementation.name == "cpython"


def can_look_at_others() -> bool:
    """Whether the frames of other threads can be looked at.

    Without the GIL, they run meanwhile. To read the variables of a frame that runs, or those of one
    that is resumed at this moment, can crash the interpreter then. Once the GIL is there, it stays.
    """
    is_gil_enabled = getattr(sys, "_is_gil_enabled", None)  # from 3.13 on
    return is_gil_enabled is None or is_gil_enabled()


def can_look_at(library: Library, task: Any) -> bool:
    """Whether the frames of a task can be looked at from this thread."""
    if can_look_at_others():
        return True
    if library.name == "trio":
        run: Any = sys.modules["trio._core._run"]
        return getattr(run.GLOBAL_RUN_CONTEXT, "runner", None) is task._runner
    loop = library.loop_of(task)
    return loop is library.loop() or not loop.is_running()


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
