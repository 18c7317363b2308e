"""The lock that an expression refers to, and what is known of its holder.

An expression is a name with attributes and constant subscripts. `pure_eval` evaluates it without
running code of the program.
"""

from __future__ import annotations

import ast
import threading
from types import FrameType
from typing import Any, List, NamedTuple, Optional

from ....count.names import task_name
from ..blocks import With
from .claims import CONDITION, SOMEBODY, Book, LockType, Permits, RLockType, entered
from .replacements import Lock, RLock

try:
    import pure_eval
except ImportError:
    _HAS_PURE_EVAL = False
else:
    _HAS_PURE_EVAL = True


class Found(NamedTuple):
    """A lock that an expression refers to."""

    #: Its type, as reports name it.
    name: str
    #: The C lock, or a semaphore.
    lock: Any
    #: The claims on it, if debug mode has noted any.
    book: Optional[Book]


def lock_of(frame: FrameType, expression: str) -> Optional[Found]:
    """The lock that an expression refers to in a frame; None if it is none or cannot be told.

    No code of the program is run.

    Args:
        frame: A frame, of this thread or another one.
        expression: A name with attributes and constant subscripts, or an empty string.
    """
    if not (_HAS_PURE_EVAL and expression):
        return None
    parsed: Any = ast.parse(expression, mode="eval")
    name = next(each.id for each in ast.walk(parsed) if type(each) is ast.Name)
    # Before 3.13, `f_locals` keeps the values of the variables alive until the function returns. So
    # only frames that are inside a ``with`` or wait for a lock are asked for it, and only for names
    # that may be local.
    names = frame.f_locals if _may_be_local(frame, name) else frame.f_globals
    if name not in names:
        return None
    try:
        lock: Any = pure_eval.Evaluator({name: names[name]})[parsed.body]
    except pure_eval.CannotEval:
        return None
    if issubclass(type(lock), threading.Semaphore):  # isinstance() may ask the object
        return Found(Permits(lock).name, lock, vars(lock).get("_greenback_book"))
    kind, book = "", None
    if issubclass(type(lock), threading.Condition):
        kind, book = CONDITION, vars(lock).get("_greenback_book")
        lock = vars(lock).get("_lock")
    if type(lock) in (Lock, RLock):
        lock, book = lock._lock, lock._book
    if type(lock) is LockType:
        return Found(kind or "threading.Lock", lock, book)
    if type(lock) is RLockType:
        return Found(kind or "threading.RLock", lock, book)
    return None


def _may_be_local(frame: FrameType, name: str) -> bool:
    code = frame.f_code
    if code.co_flags & 0x01:  # CO_OPTIMIZED: of a function
        return name in (*code.co_varnames, *code.co_cellvars, *code.co_freevars)
    return name in frame.f_locals


def is_inside(frame: FrameType, block: With, found: Found) -> bool:
    """Whether a ``with`` block that a frame is inside of holds that lock."""
    noted = entered(frame, block)
    if noted is not None:
        return noted[0] is found.book or noted[0].lock is found.lock
    other = lock_of(frame, block.expression)
    return other is not None and other.lock is found.lock


def claimants(found: Found) -> List[str]:
    """Who took a lock last by calling ``acquire()``, as far as debug mode has noted it."""
    who = []
    for claim in () if found.book is None else found.book.claims:
        code = claim.call.code
        if claim.was_free and claim is not SOMEBODY:
            task = claim.task()
            thread = next((x.name for x in threading.enumerate() if x.ident == claim.thread), "?")
            name = f"thread {thread!r}" if task is None else f"task {task_name(task)!r}"
            place = f"{code.co_filename}:{claim.call.line}"
            who.append(f"{name}, in {code.co_name} ({place})")
    return who


def owner_of(found: Found) -> int:
    """The number of the thread that holds a reentrant lock; 0 if it is not known."""
    if type(found.lock) is not RLockType:
        return 0
    owner = repr(found.lock).partition(" owner=")[2].split()
    return int(owner[0]) if owner and owner[0].isdigit() else 0
