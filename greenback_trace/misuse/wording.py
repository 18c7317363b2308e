"""How a misuse is worded: the report, which is data, and the text of it."""

from __future__ import annotations

import threading
import types
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Dict, Optional, Tuple

from greenback._frames import frames_down_to, is_bridge, is_own

from ..count.names import task_name
from ..count.sites import OTHER, Site, site_of
from ..live.stacks import line_of
from .explained import explained_at
from .finding import SEVERITY, Finding

if TYPE_CHECKING:
    from greenback.instruments import Portal

#: Entries of a stack that are kept: these many at each end of a longer one.
_STACK_ENDS = 100

_LATER = "only note there what is to be done, and do it in a task"
_INSTEAD: Dict[str, str] = {
    "finalizer": (
        "release it where the program knows that it is done with it: 'async with', "
        f"greenback.async_context, or an explicit close(); or {_LATER}"
    ),
    "weakref_callback": _LATER,
    "signal_handler": (
        "loop.add_signal_handler() or trio.open_signal_receiver(), whose handlers run as part of "
        f"the event loop; or {_LATER}"
    ),
    "gc_callback": _LATER,
    "trace_function": _LATER,
    "import": "bridge in a function that is called once the import is over",
    "lock_held": (
        "a lock of the async library, as in 'with greenback.async_context(asyncio.Lock()):'; or "
        "release the lock before the bridge"
    ),
    "async_caller": "'await' it: the function that calls greenback.await_ is an async one",
}
WHERE: Dict[str, str] = {
    "finalizer": "a bridge inside a finalizer",
    "weakref_callback": "a bridge inside the callback of a weak reference",
    "signal_handler": "a bridge inside a signal handler",
    "gc_callback": "a bridge inside a hook of the garbage collector",
    "trace_function": "a bridge inside a trace or profile function",
    "import": "a bridge while a module is being imported",
    "lock_held": "a bridge that suspends while its task holds a lock",
    "async_caller": "a bridge called by an async function",
}


@dataclass(frozen=True)
class Misuse:
    """A bridge from a place where suspending is unsafe.

    Attributes:
        kind: ``"finalizer"``, ``"weakref_callback"``, ``"signal_handler"``, ``"gc_callback"``,
            ``"trace_function"``, ``"import"``, ``"lock_held"`` or ``"async_caller"``.
        severity: ``"error"``, ``"warning"`` or ``"advice"``.
        site: Where `greenback.await_` was called, as ``module.qualname (file:line)``.
        function: The first part of it, ``module.qualname``.
        offender: The frame that makes it a misuse, written like *site*: the finalizer's, the
            handler's, the one that has acquired the lock.
        subject: What that is: whose finalizer, the handler of which signal, which lock.
        evidence: What it was recognised by, in sentences.
        inconclusive: The evidence cannot tell an explicit call from one by the interpreter. Such a
            misuse is reported and never raised.
        stack: The stack of the task, through its portals, outermost first, formatted as in a
            traceback.
        task: The name of the task.
        thread: The name of the thread.
        trace_id: The trace of the span that it was noted on, if there is one, in hexadecimal.
        span_id: That span.
        count: How many of this kind there were at this site so far, this one included.
        instead: What to write instead.
        link: Where this is explained: an address below `Config.docs`, or without that a command.
    """

    kind: str
    severity: str
    site: str
    function: str
    offender: str
    subject: str
    evidence: Tuple[str, ...]
    inconclusive: bool
    stack: Tuple[str, ...]
    task: Optional[str]
    thread: str
    trace_id: Optional[str]
    span_id: Optional[str]
    count: int
    instead: str
    link: str

    def __str__(self) -> str:
        """What happened, where, and what to write instead, in one line."""
        doubt = " (inconclusive)" if self.inconclusive else ""
        return (
            f"{self.kind}{doubt}: {WHERE[self.kind]}, {self.subject}, at {self.site}; "
            f"instead: {self.instead}. See {self.link}"
        )

    def format(self) -> str:
        """The whole report, as text of several lines."""
        through = [f"{self.severity} {self.kind}"]
        if self.inconclusive:
            through.append("inconclusive")
        lines = [
            f"greenback misuse ({', '.join(through)}): {WHERE[self.kind]}",
            f"  what:     {self.subject}",
            f"  offender: {self.offender}",
            f"  bridge:   {self.site}",
            f"  in:       task {self.task!r}, thread {self.thread!r}",
            f"  count:    {self.count} at this site",
        ]
        if self.span_id is not None:
            lines.append(f"  span:     {self.span_id} of trace {self.trace_id}")
        lines += [f"  evidence: {sentence}" for sentence in self.evidence]
        lines += [f"  instead:  {self.instead}", f"  see:      {self.link}"]
        lines.append("  Stack, outermost first:")
        return "\n".join(lines) + "\n" + "".join(self.stack)


def describe(
    finding: Finding,
    site: Site,
    frame: types.FrameType,
    portal: Portal,
    count: int,
    span: Optional[Tuple[str, str]],
    docs: Optional[str] = None,
) -> Misuse:
    """The report of a *finding* about the bridge that *frame* has called.

    Args:
        docs: The address of the documentation, if there is one.
    """
    trace_id, span_id = span or (None, None)
    return Misuse(
        kind=finding.kind,
        severity=SEVERITY[finding.kind],
        site=str(site),
        function=site.function,
        offender=str(site if site is OTHER else site_of(finding.frame)),
        subject=finding.subject,
        evidence=tuple(finding.evidence),
        inconclusive=finding.inconclusive,
        stack=_stack(frame, portal.library.coroutine_of(portal.task)),
        task=task_name(portal.task),
        thread=threading.current_thread().name,
        trace_id=trace_id,
        span_id=span_id,
        count=count,
        instead=_INSTEAD[finding.kind],
        link=explained_at(finding.kind, docs),
    )


def _stack(frame: types.FrameType, coroutine: Any) -> Tuple[str, ...]:
    """The entries from the outermost function of the task to *frame*."""
    coroutine = getattr(coroutine, "shim", coroutine)
    first = getattr(coroutine, "cr_frame", getattr(coroutine, "gi_frame", None))
    shown = [each for each in frames_down_to(frame, first) if is_bridge(each) or not is_own(each)]
    left_out = len(shown) - 2 * _STACK_ENDS
    if left_out <= 0:
        return tuple(map(_entry, shown))
    return (
        *map(_entry, shown[:_STACK_ENDS]),
        f"  ({left_out} more)\n",
        *map(_entry, shown[-_STACK_ENDS:]),
    )


def _entry(frame: types.FrameType) -> str:
    return "  --- bridge: greenback.await_ ---\n" if is_bridge(frame) else line_of(frame)
