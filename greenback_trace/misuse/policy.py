"""What a misuse is, what is done about it, and how it is worded."""

from __future__ import annotations

import threading
import types
from contextvars import ContextVar
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Dict, List, Optional, Tuple, Type

from greenback._frames import frames_down_to, is_bridge, is_own

from ..count.names import task_name
from ..count.sites import OTHER, Site, site_of
from ..emit.sdk import is_collecting
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


class MisuseError(RuntimeError):
    """What `greenback.await_` raises in place of a bridge that is a misuse, if it is told to.

    Attributes:
        misuse: The `Misuse`.
    """

    def __init__(self, misuse: Misuse) -> None:
        super().__init__(misuse)
        self.misuse = misuse


class MisuseWarning(RuntimeWarning):
    """Shown at the line that makes a bridge a misuse.

    Attributes:
        misuse: The `Misuse`.
    """

    def __init__(self, misuse: Misuse) -> None:
        super().__init__(misuse)
        self.misuse = misuse


# What is done about a misuse. Advice that nobody has named is only logged.

OFF, LOG, WARN, RAISE = "off", "log", "warn", "raise"
_ACTIONS = (WARN, RAISE, OFF)


def actions_of(text: str) -> Dict[str, str]:
    """What is done about each kind, by a setting like ``raise,import=warn``.

    Raises:
        ValueError: It is not such a setting.
    """
    first, *rest = [part.strip() for part in text.split(",")]
    if "=" in first:
        first, rest = WARN, [first, *rest]
    if first not in _ACTIONS:
        raise ValueError(text)
    actions = {
        kind: LOG if severity == "advice" and first != OFF else first
        for kind, severity in SEVERITY.items()
    }
    for part in rest:
        kind, _, action = part.partition("=")
        kind, action = kind.strip(), action.strip()
        if kind not in actions or action not in _ACTIONS:
            raise ValueError(text)
        actions[kind] = action
    return actions


ALLOWED_ACTIONS = (
    "warn, raise or off, then any number of ,kind=warn, ,kind=raise or ,kind=off where kind is one "
    f"of {', '.join(SEVERITY)}"
)


class _Local(threading.local):
    def __init__(self) -> None:
        self.kinds: List[str] = []


_allowed: ContextVar[Tuple[str, ...]] = ContextVar("greenback-allowed-misuse", default=())
# Of finalizers that a collection runs, where setting a context variable can crash: see emit/sdk.py.
_allowed_in_collection = _Local()


class allow:  # noqa: N801  (used like a function)
    """A context manager inside of which one kind of misuse is no misuse.

    It goes for the bridges of the task that is running, and of tasks that are started inside.

    Args:
        kind: The kind of misuse.
        reason: Why the bridge is safe here all the same, for whoever reads the code.

    Raises:
        ValueError: There is no such kind, or *reason* is empty.
    """

    def __init__(self, kind: str, *, reason: str) -> None:
        if kind not in SEVERITY:
            raise ValueError(
                f"allow({kind!r}) names no kind of misuse; it must be one of {', '.join(SEVERITY)}"
            )
        if not reason.strip():
            raise ValueError(
                f"allow({kind!r}) was given no reason; say why the bridge is safe there, as in "
                f"allow({kind!r}, reason='nobody else takes this lock')"
            )
        self.kind = kind
        self.reason = reason
        self._before: List[Optional[Tuple[str, ...]]] = []

    def __enter__(self) -> None:
        if is_collecting():
            _allowed_in_collection.kinds.append(self.kind)
            self._before.append(None)
        else:
            before = _allowed.get()
            self._before.append(before)
            _allowed.set((*before, self.kind))

    def __exit__(
        self,
        kind: Optional[Type[BaseException]],
        error: Optional[BaseException],
        traceback: Optional[types.TracebackType],
    ) -> None:
        before = self._before.pop()
        if before is None:
            _allowed_in_collection.kinds.remove(self.kind)
        else:
            # Not by a token, which is good only in the context in which it was made.
            _allowed.set(before)


def is_allowed(kind: str) -> bool:
    return kind in _allowed.get() or kind in _allowed_in_collection.kinds


# Wording


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
