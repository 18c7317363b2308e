"""The result of a detector, and the kinds of misuse that there are."""

from __future__ import annotations

from types import FrameType
from typing import Any, Callable, Dict, NamedTuple, Optional, Tuple

#: The severity of each kind of misuse.
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
    """The kind of misuse that a frame is part of, unless its caller's code has called it."""

    kind: str
    #: As in `Finding`.
    subject: str
    evidence: Tuple[str, ...]
    #: The attributes by which an explicit call would call it.
    names: Tuple[str, ...] = ()
    #: The last argument that an explicit call would have to pass.
    handed: Any = None
    #: A slow search for certain evidence, for where the caller's code leaves it open.
    confirm: Optional[Callable[[], Optional[str]]] = None


class Finding:
    """One misuse, as a detector sees it.

    Attributes:
        kind: A key of `SEVERITY`.
        frame: The offending frame.
        subject: One phrase that names the offender.
        evidence: Sentences that say how it was recognised.
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
