"""Bridges that somebody asks for at the prompt of a debugger. They are no misuse of the program's.

A debugger holds the program up inside its trace function, or its callback of `sys.monitoring`, and
runs there what its user types. What is on the stack tells that from a trace function that bridges
by itself: between the bridge and the program is the method in which `pdb`, and all that is derived
from it, runs a command, or in which pydevd (of debugpy and PyCharm) waits for its user. For other
debuggers, and for the conditions of breakpoints, it is code that was compiled from a text which no
file has, inside a trace function.
"""

from __future__ import annotations

import inspect
import sys
from types import FrameType
from typing import List, Optional

from greenback._frames import frames_from

from ..detectors import trace_function
from .values import arguments_of, class_attribute, leads_to

#: Where debuggers run what their users ask for: module, class, method. Subclasses may have their
#: own method.
_PROMPTS = (("bdb", "Bdb", "onecmd"), ("pydevd", "PyDB", "do_wait_suspend"))
_FUNCTION = inspect.CO_OPTIMIZED | inspect.CO_NEWLOCALS


def inside_prompt(frame: FrameType) -> Optional[List[FrameType]]:
    """The frames from *frame* out to a debugger that was asked for it; None if there is none.

    Args:
        frame: A frame of the greenlet that is running now.
    """
    frames: List[FrameType] = []
    to_text: Optional[List[FrameType]] = None
    for each in frames_from(frame):
        if _is_prompt(each):
            return frames
        caller = each.f_back
        if to_text and caller is not None and trace_function.suspect(each, caller) is not None:
            return to_text
        frames.append(each)
        if to_text is None and _is_text(each):
            to_text = frames.copy()
    return None


def _is_prompt(frame: FrameType) -> bool:
    code = frame.f_code
    for module, name, method in _PROMPTS:
        if code.co_name == method and module in sys.modules:
            base = vars(sys.modules[module]).get(name)
            arguments = arguments_of(frame)
            kind = type(arguments[0]) if arguments else None
            if kind is not None and isinstance(base, type) and issubclass(kind, base):
                return leads_to(code)(class_attribute(kind, method))
    return False


def _is_text(frame: FrameType) -> bool:
    """Whether it is the code of a text, as ``exec()`` and ``eval()`` run it."""
    code = frame.f_code
    return code.co_filename[:1] == code.co_name[:1] == "<" and not code.co_flags & _FUNCTION
