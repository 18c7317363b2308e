"""The names of code and of classes in reports."""

from __future__ import annotations

from types import FrameType

from ...count.frames import locals_of
from ...count.names import full_name
from ...count.sites import _guess_qualname
from .values import PARTIAL_CALL


def name_of_code(frame: FrameType) -> str:
    """The qualified name of a frame's function."""
    if frame.f_code is PARTIAL_CALL:
        function = locals_of(frame)["self"].func
        return getattr(function, "__qualname__", None) or repr(function)
    name = getattr(frame.f_code, "co_qualname", None)
    if name is None:
        try:
            name = _guess_qualname(frame)
        except ReferenceError:  # its first argument is a dead weak proxy
            name = frame.f_code.co_name
        locals_of(frame)  # makes the frame let go of the variables that were looked at
    return name


def name_of_type(kind: type) -> str:
    """``module.qualname``; without the module for builtins."""
    name = full_name(kind)
    return name[len("__main__.") :] if name.startswith("__main__.") else name
