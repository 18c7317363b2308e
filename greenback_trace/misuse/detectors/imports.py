"""Bridges in a stack that is importing a module."""

from __future__ import annotations

from importlib import _bootstrap
from types import CodeType, FrameType
from typing import Dict, Optional

from ...count.frames import locals_of
from ..finding import Finding

KIND = "import"

#: The functions that run the code of a module while they hold its lock, each with its variable that
#: refers to the module's spec.
CODES: Dict[CodeType, str] = {
    getattr(_bootstrap, name).__code__: "spec"
    for name in ("_load_unlocked", "_exec")
    if hasattr(_bootstrap, name)
}


def find(frame: FrameType, inside: Optional[FrameType]) -> Optional[Finding]:
    """The misuse of a bridge during an import; None if the spec has no name.

    Args:
        frame: A frame of one of `CODES`.
        inside: The outermost frame inside it that runs the code of a module.
    """
    spec = locals_of(frame).get(CODES[frame.f_code])
    name = getattr(spec, "name", None)
    if type(name) is not str:
        return None
    again = frame.f_code.co_name == "_exec"
    module = inside if inside is not None else frame
    subject = f"the {'reload' if again else 'import'} of {name}"
    importer = _importer(frame)
    if importer is not None:
        subject += f" at {importer.f_code.co_filename}:{importer.f_lineno}"
    evidence = f"importlib is running the code of {name} in this stack"
    if getattr(spec, "_initializing", False):
        evidence += ", and has it marked as being imported"
    return Finding(KIND, module, subject, (evidence,))


def _importer(frame: FrameType) -> Optional[FrameType]:
    outer: Optional[FrameType] = frame
    while outer is not None and "importlib" in outer.f_code.co_filename:
        outer = outer.f_back
    return outer
