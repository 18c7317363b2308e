"""What a detector has found."""

from __future__ import annotations

from types import FrameType
from typing import Any, Callable, Dict, NamedTuple, Optional, Tuple

#: How bad a kind of misuse is.
SEVERITY: Dict[str, str] = {
    "finalizer": "error",
    "weakref_callback": "error",
    "signal_handler": "error",
    "gc_callback": "error",
    "trace_function": "error",
    "import": "warning",
    "lock_held": "warning",
    "async_caller": "advice",
}


class Suspicion(NamedTuple):
    """What a frame is, if its caller's code did not call it."""

    kind: str
    #: As in `Finding`.
    subject: str
    evidence: Tuple[str, ...]
    #: The attributes through which it is called, where it is called by an attribute.
    names: Tuple[str, ...] = ()
    #: What an explicit call would have to pass last.
    handed: Any = None
    #: A slow look for what makes us sure, where the caller's code leaves it open.
    confirm: Optional[Callable[[], Optional[str]]] = None


class Finding:
    """One misuse, as a detector sees it.

    Attributes:
        kind: A key of `SEVERITY`.
        frame: The offending frame.
        subject: One phrase that names what offends.
        evidence: Sentences that say what makes us sure.
        inconclusive: The evidence cannot tell an explicit call from an implicit one.
    """

    __slots__ = ("evidence", "frame", "inconclusive", "kind", "subject")

    def __init__(
        self,
        kind: str,
        frame: FrameType,
        subject: str,
        evidence: Tuple[str, ...],
        inconclusive: bool = False,
    ) -> None:
        self.kind = kind
        self.frame = frame
        self.subject = subject
        self.evidence = evidence
        self.inconclusive = inconclusive
