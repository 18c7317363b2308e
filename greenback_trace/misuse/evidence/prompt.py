"""Bridges that a user asks for at the prompt of a debugger. They are no misuse of the program.

A debugger stops the program inside its trace function, or its callback of `sys.monitoring`, and
there runs what its user types. The stack tells that from a trace function that bridges by itself.
Between the bridge and the program is the method in which `pdb`, or a debugger derived from it, runs
a command, or the method in which pydevd (of debugpy and PyCharm) waits for its user. With other
debuggers, and with conditions of breakpoints, it is code compiled from a text that is in no file,
inside a trace function.
"""

from __future__ import annotations

import inspect
import sys
from types import FrameType
from typing import List, Optional

from greenback._frames import frames_from

from ..detectors import trace_function
from .values import arguments_of, class_attribute, leads_to

#: Where debuggers run the input of their users: module, class, method. A subclass may override the
#: method.
_PROMPTS = (("bdb", "Bdb", "onecmd"), ("pydevd", "PyDB", "do_wait_suspend"))
_FUNCTION = inspect.CO_OPTIMIZED | inspect.CO_NEWLOCALS


def inside_prompt(frame: FrameType) -> Optional[List[FrameType]]:
    """The frames from *frame* out to the debugger whose user asked for it; None without one.

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
    """Whether a frame runs the code of a text, as ``exec()`` and ``eval()`` do."""
    code = frame.f_code
    return code.co_filename[:1] == code.co_name[:1] == "<" and not code.co_flags & _FUNCTION
