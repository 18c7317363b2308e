"""Bridges in the functions of debuggers and profilers, which run between two instructions."""

from __future__ import annotations

import sys
from types import CodeType, FrameType
from typing import Any, List, Optional

from ..evidence.names import name_of_code
from ..evidence.values import arguments_of, leads_to
from ..finding import Suspicion

KIND = "trace_function"
_EVENTS = frozenset(
    ("call", "line", "return", "exception", "opcode", "c_call", "c_return", "c_exception")
)


def suspect(frame: FrameType, caller: FrameType) -> Optional[Suspicion]:
    code = frame.f_code
    if code.co_argcount < 2 and not code.co_flags & 0x04:
        return None
    arguments = arguments_of(frame)
    for traced, event in zip(arguments, arguments[1:]):
        if traced is caller and type(event) is str and event in _EVENTS:
            return Suspicion(
                KIND,
                f"{name_of_code(frame)}, {_registered(frame, caller)}",
                (f"it was handed the frame below it and the event {event!r}",),
            )
    if sys.version_info >= (3, 12):
        return _of_monitoring(frame, caller, arguments)
    return None


def _registered(frame: FrameType, caller: FrameType) -> str:
    is_it = leads_to(frame.f_code)
    if is_it(sys.gettrace()):
        return "the trace function of sys.settrace"
    if is_it(sys.getprofile()):
        return "the profile function of sys.setprofile"
    if is_it(caller.f_trace):
        return "the local trace function of a frame"
    return "a trace or profile function"


def _of_monitoring(
    frame: FrameType, caller: FrameType, arguments: List[Any]
) -> Optional[Suspicion]:
    if sys.version_info < (3, 12):
        return None
    for code, offset in zip(arguments, arguments[1:]):
        if type(code) is CodeType and code is caller.f_code and type(offset) is int:
            tools = [sys.monitoring.get_tool(number) for number in range(6)]
            names = ", ".join(repr(name) for name in tools if name is not None)
            if not names:
                return None
            return Suspicion(
                KIND,
                f"{name_of_code(frame)}, a callback of sys.monitoring",
                (
                    "it was handed the code below it and a place in that",
                    f"sys.monitoring has the tools {names}",
                ),
            )
    return None
