"""Bridges in the callbacks of weak references and proxies."""

from __future__ import annotations

import weakref
from types import FrameType
from typing import Any, Optional

from ..evidence.names import name_of_code
from ..evidence.values import arguments_of, takes_arguments
from ..finding import Suspicion

KIND = "weakref_callback"


def suspect(frame: FrameType, caller: FrameType) -> Optional[Suspicion]:
    code = frame.f_code
    if not takes_arguments(code):
        return None
    for value in reversed(arguments_of(frame)):
        if is_dead(value):
            what = "proxy" if isinstance(value, weakref.ProxyTypes) else "reference"
            return Suspicion(
                KIND,
                f"{name_of_code(frame)}, called back for a weak {what}",
                (f"it was handed a weak {what} whose object is gone",),
                handed=value,
            )
    return None


def is_dead(value: Any) -> bool:
    """Whether it is a weak reference or proxy whose object is gone, without asking the object."""
    kind = type(value)
    if kind in weakref.ProxyTypes:
        text = repr(value)
        return " to NoneType at " in text or text.endswith("; dead>")
    return issubclass(kind, weakref.ReferenceType) and weakref.ReferenceType.__call__(value) is None
