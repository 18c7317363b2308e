"""Who wanted a lock, and which of them has it.

Each lock has a book. Each ``acquire()`` and ``with`` is noted in it, before it takes the lock, as a
claim. A claim alone proves nothing. It is confirmed when a bridge suspends, if the C lock is locked
and

- for ``with``: the frame that wanted the lock is still inside that block, by its bytecode;
- for ``acquire()``, and for a ``with`` in a generator, whose frame is in no stack while the
  generator is suspended: nobody has wanted the lock since, except those who still wait for it.
  Where that leaves a doubt (another thread has tried, and no longer waits), nothing is reported.

A semaphore's value tells how many permits are taken: it is that much below the highest value seen.
Those who wanted the semaphore hold it if they are as many. Not every ``acquire()`` of a semaphore
is followed by a ``release()`` in the same task: the semaphore may be a signal, or count items that
another task takes away. So an ``acquire()`` counts only in a function that also releases it.
"""

from __future__ import annotations

import _thread
import contextlib
import inspect
import sys
import threading
import weakref
from types import CodeType, FrameType
from typing import Any, Callable, Dict, FrozenSet, Iterator, List, Optional, Tuple

from sniffio import thread_local as sniffio_thread

from ....count.frames import can_look_at_others, current_frames
from ..blocks import Call, With, call_at
from ..instructions import instruction

#: Methods that take a lock.
NAMES: FrozenSet[str] = frozenset({"acquire", "acquire_lock", "__enter__"})
#: Takes back the lock of a Condition after wait().
_TAKES_BACK: CodeType = threading.Condition._acquire_restore.__code__  # type: ignore[attr-defined]
LockType: Any = type(_thread.allocate_lock())
RLockType: Any = _thread.RLock
#: The name of a Condition in reports.
CONDITION = "threading.Condition"
_THREADING_FILE = threading.__file__
_CONTEXTLIB_FILE = contextlib.__file__
_INSPECT_FILE = inspect.__file__
#: At this many notes, those of locks that are free by now are dropped.
_NOTES_KEPT = 64
#: At this many claims on one lock at the same time, all are dropped.
_CLAIMS_KEPT = 32
#: The code flags of generators and asynchronous generators. These can be suspended inside a
#: ``with``, and then are in no stack.
_GENERATOR = 0x20 | 0x200


class Claim:
    """One call that is about to take a lock: of its ``acquire`` or ``__enter__``."""

    __slots__ = ("call", "depth", "frame", "name", "task", "thread", "was_free")

    def __init__(
        self, name: str, call: Call, frame: int, task: Any, was_free: bool, depth: int
    ) -> None:
        self.name = name
        self.call = call
        #: The id of the frame: to keep the frame would keep all that its variables refer to.
        self.frame = frame
        self.thread = _thread.get_ident()
        self.task: Callable[[], Any] = _nobody if task is None else weakref.ref(task)
        self.was_free = was_free
        #: How often the thread held a reentrant lock before this claim.
        self.depth = depth


def _nobody() -> None:
    return None


#: A claim on a semaphore that counts, and is never reported.
SOMEBODY = Claim("", Call(_nobody.__code__, 0, 0, 0, True, True, True), 0, None, False, 0)


class Book:
    """A C lock, and the claims on it since it was last seen free.

    Every thread that wants the lock writes to it, without a lock of its own: a list is changed by
    single operations, and claims that two threads have confused are not reported.
    """

    __slots__ = ("claims", "is_kept", "is_reentrant", "lock", "made")

    def __init__(self, lock: Any, made: str) -> None:
        self.lock = lock
        #: Where the lock was made, as ``file:line``; empty if that is not known.
        self.made = made
        self.is_reentrant = type(lock) is RLockType
        #: The program has kept a method that takes the lock, and may call it unseen at any time.
        self.is_kept = False
        self.claims: List[Claim] = []


class Permits:
    """Stands for the C lock in the book of a semaphore."""

    __slots__ = ("_most", "_semaphore", "name")

    def __init__(self, semaphore: Any) -> None:
        is_bounded = issubclass(type(semaphore), threading.BoundedSemaphore)
        self.name = "threading.BoundedSemaphore" if is_bounded else "threading.Semaphore"
        # The semaphore refers to its book, which must not keep it alive.
        self._semaphore = weakref.ref(semaphore)
        self._most = 0

    def taken(self) -> int:
        """How many of the permits ever seen are taken."""
        semaphore = self._semaphore()
        value = self._most if semaphore is None else semaphore._value
        if value > self._most:
            self._most = value
        return self._most - value

    def locked(self) -> bool:
        return self.taken() > 0


class _Local(threading.local):
    """The books in which this thread has made a claim, by id."""

    def __init__(self) -> None:
        self.books: Dict[int, Book] = {}


_local = _Local()
#: The lock of each ``with`` that was entered, its type, and the code of the frame: by the id of the
#: frame and the offset in its code. All threads write to it, in single operations. Entries of
#: frames that are gone mean nothing.
_entered: Dict[Tuple[int, int], Tuple[Book, str, CodeType]] = {}


def intend(book: Book, name: str, frame: FrameType) -> None:
    """Note that *frame* looks up a method that takes the lock.

    Runs anywhere, finalizers and signal handlers included, before anything is taken. It catches
    nothing: an exception that is raised in here may have arrived asynchronously.
    """
    code = frame.f_code
    if code.co_filename == _THREADING_FILE:
        if code is _TAKES_BACK and not book.is_reentrant:
            # A claim of another thread is over: that thread has released the lock, or will.
            mine = _thread.get_ident()
            book.claims = [claim for claim in book.claims if claim.thread == mine]
        return
    call = call_at(frame, NAMES)
    if call is None:
        outer = _outside_exit_stack(frame)
        if outer is None:
            if not book.is_reentrant:
                book.is_kept = True
                book.claims = []
            return
        frame, code = outer, outer.f_code
        call = call_from(frame, True, True)
    note(book, name, frame, call)


def call_from(frame: FrameType, is_plain: bool, is_paired: bool) -> Call:
    """The call that a frame is executing."""
    code, offset = frame.f_code, frame.f_lasti
    return Call(code, offset, offset, frame.f_lineno or 0, False, is_plain, is_paired)


def note(book: Book, name: str, frame: FrameType, call: Call) -> None:
    """Note that *frame* makes a call that takes the lock, whose type is *name*."""
    code = frame.f_code
    lock = book.lock
    depth = 0
    if book.is_reentrant:
        depth = _depth(lock)
        book.claims = [
            claim
            for claim in book.claims
            if depth and claim.depth < depth and claim.thread == _thread.get_ident()
        ]
        was_free = True
    else:
        was_free = not lock.locked()
        if was_free or len(book.claims) >= _CLAIMS_KEPT:
            book.claims = []
    if call.is_with:
        if len(_entered) >= _NOTES_KEPT:
            _forget_free()
        _entered[id(frame), call.offset] = (book, name, code)
        if was_free and not code.co_flags & _GENERATOR and type(lock) is not Permits:
            return  # no claim is left, and the frame confirms this one
    if book.is_kept:
        return
    if type(lock) is Permits and not _may_hold(call):
        book.claims.append(SOMEBODY)
        return
    claim = Claim(name, call, id(frame), _current_task(), was_free, depth)
    book.claims.append(claim)
    books = _local.books
    if len(books) >= _NOTES_KEPT:
        for key, other in books.copy().items():
            if not is_locked(other):
                books.pop(key, None)
    books[id(book)] = book


def _outside_exit_stack(frame: FrameType) -> Optional[FrameType]:
    """The frame that called ``ExitStack.enter_context()``, if that looks up `__enter__`."""
    outer: Optional[FrameType] = frame
    # From 3.15 on, `contextlib` leaves the look-up to `inspect`.
    while outer is not None and outer.f_code.co_filename == _INSPECT_FILE:
        outer = outer.f_back
    if outer is None or outer.f_code.co_filename != _CONTEXTLIB_FILE:
        return None
    while outer is not None and outer.f_code.co_filename == _CONTEXTLIB_FILE:
        outer = outer.f_back
    return outer


def _forget_free() -> None:
    for key, (book, _, _) in _entered.copy().items():
        if not _is_taken(book):
            _entered.pop(key, None)


def _current_task() -> Any:
    """The task that runs in this thread. Finding it raises nothing."""
    if sniffio_thread.name == "trio":
        run = sys.modules.get("trio._core._run")
        return getattr(getattr(run, "GLOBAL_RUN_CONTEXT", None), "task", None)
    get_loop = getattr(sys.modules.get("asyncio.events"), "_get_running_loop", None)
    loop = None if get_loop is None else get_loop()
    current_task = getattr(sys.modules.get("asyncio.tasks"), "current_task", None)
    return None if loop is None or current_task is None else current_task(loop)


def is_locked(book: Book) -> bool:
    """Whether the lock is taken: a reentrant one by this thread, another one by anybody."""
    return bool(book.lock._is_owned() if book.is_reentrant else book.lock.locked())


def _is_taken(book: Book) -> bool:
    """Whether anybody has taken the lock."""
    return " count=0 " not in repr(book.lock) if book.is_reentrant else bool(book.lock.locked())


_LOCKS_COUNT = hasattr(RLockType, "_recursion_count")


def _depth(lock: Any) -> int:
    """How often this thread holds a reentrant lock."""
    if _LOCKS_COUNT:
        return lock._recursion_count()  # type: ignore[no-any-return]
    return int(repr(lock).partition(" count=")[2].split()[0]) if lock._is_owned() else 0


# At a suspension


def are_noted() -> bool:
    """Whether this thread may hold a lock that it took by calling ``acquire()``."""
    return bool(_local.books)


def entered(frame: FrameType, block: With) -> Optional[Tuple[Book, str]]:
    """The book and the type of the lock of a ``with`` that *frame* is inside of, if noted."""
    noted = _entered.get((id(frame), block.offset))
    if noted is None or noted[2] is not frame.f_code:
        return None
    return noted[0], noted[1]


def confirmed(task: object) -> Iterator[Tuple[Book, Claim]]:
    """The locks that *task* certainly holds, each with the claim by which it does.

    Locks held by a ``with`` of a frame in the stack are not among them: see `entered`.

    Args:
        task: The task that runs in this thread.
    """
    books = _local.books
    for key, book in books.copy().items():
        if not is_locked(book):
            books.pop(key, None)
            book.claims = []
            continue
        for claim in book.claims[::-1]:
            if claim.task() is task and task is not None and _has_it(book, claim):
                yield book, claim


def _has_it(book: Book, claim: Claim) -> bool:
    call = claim.call
    if call.is_with and not call.code.co_flags & _GENERATOR:
        return False  # only the frame can confirm it
    if type(book.lock) is Permits:
        return _may_hold(call) and book.lock.taken() == len(book.claims)
    if book.is_reentrant:
        return claim.thread == _thread.get_ident() and _depth(book.lock) > claim.depth
    if not claim.was_free and not call.is_plain:
        return False  # the call may have timed out
    frames: Optional[Dict[int, FrameType]] = None
    claims = book.claims
    for index, other in enumerate(claims):
        if other is claim or other.was_free:
            continue
        if other.thread == claim.thread:
            # That call ended before anything else ran in this thread: without the lock, or with it.
            if other.call.is_plain and index > claims.index(claim):
                return False
            continue
        if not can_look_at_others():
            return False
        if frames is None:
            frames = current_frames()
        if not _waits(other, frames.get(other.thread)):
            return False
    return True


def _may_hold(call: Call) -> bool:
    """Whether the claim of a call on a semaphore can be confirmed at all."""
    is_confirmed_by_frame = call.is_with and not call.code.co_flags & _GENERATOR
    return call.is_plain and call.is_paired and not is_confirmed_by_frame


def _waits(claim: Claim, innermost: Optional[FrameType]) -> bool:
    """Whether the thread of a claim is still in the call that wants the lock."""
    return (
        innermost is not None
        and id(innermost) == claim.frame
        and innermost.f_code is claim.call.code
        and claim.call.offset <= instruction(innermost)[1] <= claim.call.end
    )


def forget() -> None:
    """Forget all claims. No new ones are made."""
    global _local
    _entered.clear()
    _local = _Local()
