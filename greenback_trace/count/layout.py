"""Where the objects that hold counts keep their attributes: in slots, or in the structs of C code.

counts.py, totals.py and emit/spans.py derive from these classes. They add the methods, and say what
the attributes mean. C code counts in the structs without calling Python. Both engines read and
write the same objects.
"""

from __future__ import annotations

import warnings
from importlib import import_module
from typing import TYPE_CHECKING, Any, List, Optional, Set, Tuple, TypeVar

from greenback._engine.choice import compiled as engine

if TYPE_CHECKING:
    import weakref

    from . import counts
    from .counts import Histogram

_Class = TypeVar("_Class", bound=type)

#: The module that counts in C. None if the runtime's engine is in Python, which calls no C code.
compiled: Any = None

if engine is not None:
    try:
        # Not "from . import": that raises no ModuleNotFoundError.
        compiled = import_module(f"{__package__}._compiled")
    except ModuleNotFoundError:
        pass
    except ImportError as error:
        warnings.warn(
            f"greenback counts in Python, since its C code cannot be loaded: {error}",
            RuntimeWarning,
            stacklevel=2,
        )


class Tally:
    __slots__ = ("cancelled", "errors", "ok", "suspended", "suspended_ns", "time_ns")


class Node(Tally):
    __slots__ = (
        "code",
        "ends",
        "inner",
        "is_known",
        "is_without",
        "offset",
        "others",
        "outer",
        "outer_code",
        "outer_offset",
        "site",
    )


class KindTally(Tally):
    __slots__ = ("closed", "durations", "open", "opened")


class LibraryTally:
    __slots__ = ("durations", "quick", "steps", "waited")


class PortalTally(Tally):
    __slots__ = (
        "began",
        "closed",
        "counts",
        "held",
        "is_bare",
        "is_unsampled",
        "kind",
        "last",
        "library",
        "library_name",
        "opened_at",
        "postponed",
        "root",
        "running",
        "running_in_c",
        "slow_ns",
        "slow_steps",
        "spares",
        "step_max_ns",
        "switch_ns",
        "switches",
        "totals",
    )

    #: The struct makes these two on demand: most portals whose bridges C code counts need neither.
    running: Set[weakref.ref[counts.Running]]
    spares: List[counts.Running]
    running_in_c: int
    #: Arguments of `Totals._finish_failed`, from C code that found no room on the stack to call it.
    postponed: Optional[List[Tuple[Any, ...]]]

    def __init__(self) -> None:
        self.running = set()
        self.spares = []
        self.running_in_c = 0
        self.postponed = None


class Running:
    __slots__ = (
        "__weakref__",
        "awaitable",
        "is_clear",
        "node",
        "opened",
        "outermost",
        "portal",
        "runs",
        "slow_ns",
        "started",
        "suspended_ns",
        "switches",
        "tally",
    )


class Counts:
    __slots__ = (
        "is_alive",
        "kept",
        "kinds",
        "libraries",
        "nodes",
        "roots",
        "skip",
        "skipped_from",
        "slow",
        "to_loop",
        "to_task",
        "unmeasured",
    )


class Totals:
    __slots__ = (
        "_gives_outermost",
        "_lock",
        "_measurements",
        "portals",
        "quiet_until",
        "recent",
        "slow_ns",
        "unset",
    )


class Spans:
    __slots__ = (
        "_only_portals",
        "_only_suspended",
        "_portals",
        "_slow_ns",
        "_totals",
        "_tracer",
        "_waits_for_sdk",
    )


def in_c(kind: _Class) -> _Class:
    """Replace methods of a class by those in C that do the same, if there are some.

    C code finds the one in Python as ``NAME_in_python``.
    """
    if compiled is not None:
        for name, method in compiled.methods[kind.__name__].items():
            setattr(kind, f"{name}_in_python", getattr(kind, name))
            setattr(kind, name, method)
    return kind


def histogram(length: int) -> Histogram:
    """A histogram of zeros. C code has one that acts like this list."""
    return [0] * length


class Debug:
    __slots__ = (
        "_long_ns",
        "_looks_at_start",
        "_looks_for_locks",
        "_start",
        "_totals",
        "_watchdog",
        "misuses",
    )


class Watchdog:
    __slots__ = ("_idle", "_running")


IN_PYTHON = {
    each.__name__: each
    for each in (
        Tally,
        Node,
        KindTally,
        LibraryTally,
        PortalTally,
        Running,
        Counts,
        Totals,
        Spans,
        Debug,
        Watchdog,
    )
}

if compiled is not None:
    globals().update((name, getattr(compiled, name)) for name in IN_PYTHON)
    histogram = compiled.Histogram
