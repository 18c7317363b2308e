"""What is done about a misuse: the actions of a setting, what is raised or shown, and `allow`."""

from __future__ import annotations

import threading
import types
from contextvars import ContextVar
from typing import Dict, List, Optional, Tuple, Type

from ..emit.sdk import is_collecting
from .finding import SEVERITY
from .wording import Misuse

# Advice that nobody has named is only logged.
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


class MisuseError(RuntimeError):
    """What `greenback.await_` raises in place of a bridge that is a misuse, if it is told to.

    Attributes:
        misuse: The `Misuse`.
    """

    __module__ = "greenback_trace"  # as it is documented, and printed in tracebacks

    def __init__(self, misuse: Misuse) -> None:
        super().__init__(misuse)
        self.misuse = misuse


class MisuseWarning(RuntimeWarning):
    """Shown at the line that makes a bridge a misuse.

    Attributes:
        misuse: The `Misuse`.
    """

    __module__ = "greenback_trace"  # as it is documented, and printed in tracebacks

    def __init__(self, misuse: Misuse) -> None:
        super().__init__(misuse)
        self.misuse = misuse


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
