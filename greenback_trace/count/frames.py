"""Looking at frames without changing the program."""

from __future__ import annotations

import gc
import sys
from itertools import chain
from operator import methodcaller
from types import FrameType
from typing import TYPE_CHECKING, Any, Callable, Dict, List, Mapping

if TYPE_CHECKING:
    from greenback._frames import Library

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


if _IS_CPYTHON and (3, 11) <= sys.version_info < (3, 11, 12):
    _call: Callable[[Any], Any] = methodcaller("__call__")

    def current_frames() -> Dict[int, FrameType]:
        """What `sys._current_frames` returns.

        Up to CPython 3.11.11 (gh-106883), a collection in the middle of that which frees
        a `threading.local` waits for ever for a lock of the interpreter's own, and has the GIL. So
        there is none. No other thread sees `gc` switched off, or is overruled in what it switches:
        all of this is one call of C code, unless the program has an audit hook in Python.
        """
        was_enabled: List[bool] = []
        steps = chain(
            map(was_enabled.append, map(_call, [gc.isenabled])),
            map(_call, [gc.disable, sys._current_frames]),
            # Comes to its list when that has been filled.
            map(_call, map({True: gc.enable, False: gc.isenabled}.get, was_enabled)),
        )
        try:
            return list(steps)[2]  # type: ignore[no-any-return]
        except BaseException:  # of an audit hook, or no memory
            if was_enabled == [True]:
                gc.enable()
            raise

else:

    def current_frames() -> Dict[int, FrameType]:
        """What `sys._current_frames` returns."""
        return sys._current_frames()


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
