"""Reading frames without changing the program."""

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
    """Whether this thread can read the frames of other threads.

    Without the GIL, other threads run meanwhile. To read the variables of a frame that runs, or is
    resumed at this moment, can crash the interpreter then. A GIL that is enabled stays so.
    """
    is_gil_enabled = getattr(sys, "_is_gil_enabled", None)  # from 3.13 on
    return is_gil_enabled is None or is_gil_enabled()


def can_look_at(library: Library, task: Any) -> bool:
    """Whether this thread can read the frames of a task."""
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
        """Call `sys._current_frames` without a garbage collection in the middle.

        Up to CPython 3.11.11 (gh-106883), such a collection hangs with the GIL held if it frees a
        `threading.local`: it waits for a lock of the interpreter that this thread has. So `gc` is
        switched off. No other thread sees that, or has a switch of its own overruled: all of it is
        one call of C code, unless the program has an audit hook in Python.
        """
        was_enabled: List[bool] = []
        steps = chain(
            map(was_enabled.append, map(_call, [gc.isenabled])),
            map(_call, [gc.disable, sys._current_frames]),
            # chain() comes to this last, when the list has been filled.
            map(_call, map({True: gc.enable, False: gc.isenabled}.get, was_enabled)),
        )
        try:
            return list(steps)[2]  # type: ignore[no-any-return]
        except BaseException:  # an audit hook raised, or memory ran out
            if was_enabled == [True]:
                gc.enable()
            raise

else:

    def current_frames() -> Dict[int, FrameType]:
        """Call `sys._current_frames`."""
        return sys._current_frames()


if sys.version_info >= (3, 13):

    def locals_of(frame: FrameType) -> Mapping[str, Any]:
        """The local variables of a frame."""
        return frame.f_locals

else:

    def locals_of(frame: FrameType) -> Mapping[str, Any]:
        """The local variables of a frame.

        A function's frame keeps the dictionary that ``f_locals`` makes, and so keeps objects alive
        after the function has dropped them. So this empties the dictionary and returns a copy. Two
        cases are left alone: other code refers to the dictionary, or a trace function is active
        (the interpreter sets the variables from the dictionary after a call of it).
        """
        names = frame.f_locals
        if not frame.f_code.co_flags & 0x01:  # CO_OPTIMIZED is set for functions only
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
