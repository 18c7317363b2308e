"""Which `threading` lock a task holds while a bridge of it suspends.

A C lock knows no owner, and a wrapper that takes it in Python can leave it held: an exception that
arrives asynchronously (Ctrl-C, a signal handler that raises, `PyThreadState_SetAsyncExc`) may come
after the lock is taken and before the wrapper returns. So nothing here takes or releases a lock.
While debug mode is installed, `threading.Lock` and `threading.RLock` make an object around a C
lock whose ``acquire`` and ``__enter__`` are descriptors: they note who is about to take it, before
anything is taken, and give the method of the C lock itself, which the program's code then calls.
``release`` and ``__exit__`` are the C methods, with no Python in front of them. `Condition` gets
such descriptors in place, so that its instances are found whenever they were made; a ``with`` then
leaves it by the C method as well, which its own ``__exit__``, written in Python, does not ensure.

An intent is not a lock. What is noted is confirmed at the suspension, by the C lock being locked,
and

- for ``with``: by the frame that wanted it being inside that block still, which its bytecode tells;
- for ``acquire()``: by nobody having wanted it since, but for those who still wait for it. Where
  that leaves a doubt (another thread has tried, and no longer waits), nothing is reported.

Not replaced are `_thread.allocate_lock`, and what `threading` makes for its own events, semaphores
and threads. Locks that were made before debug mode was installed, or through a name that was
imported before (``from threading import Lock``), are C locks: they are found only in a ``with``
whose expression can be evaluated again without running code of the program's, a name with
attributes and constant subscripts, for which `pure_eval` is needed.
"""

from __future__ import annotations

import _thread
import ast
import contextlib
import inspect
import sys
import threading
import weakref
from operator import attrgetter, methodcaller
from types import CodeType, FrameType
from typing import Any, Callable, Dict, FrozenSet, List, Optional, Sequence, Tuple

from greenlet import getcurrent

from greenback._state import Worker
from greenback._tasks import sniffio_thread

from .._frames import can_look_at_others, current_frames
from .._sites import ASYNC, RUNTIME
from ._blocks import Call, With, call_at, inside, with_blocks
from ._calls import instruction
from ._finding import Finding
from ._prompt import inside_prompt
from ._stack import frames_from

try:
    import pure_eval
except ImportError:
    _HAS_PURE_EVAL = False
else:
    _HAS_PURE_EVAL = True

_KIND = "lock_held"
_NAMES: FrozenSet[str] = frozenset({"acquire", "acquire_lock", "__enter__"})
_LockType: Any = type(_thread.allocate_lock())
_RLockType: Any = _thread.RLock
_THREADING = vars(threading)
_THREADING_FILE = threading.__file__
_CONTEXTLIB_FILE = contextlib.__file__
_INSPECT_FILE = inspect.__file__
#: What is noted is looked through whenever it has grown to this, for locks that are free by now.
_NOTES_KEPT = 64
#: Those who want one lock at the same time, as far as they are told apart.
_CLAIMS_KEPT = 32

_is_installed = False
#: What was in `threading` before, by name.
_replaced: Dict[str, Any] = {}


class _Claim:
    """Somebody wanted a lock, and called its ``acquire``."""

    __slots__ = ("call", "depth", "frame", "name", "task", "thread", "was_free")

    def __init__(
        self, name: str, call: Call, frame: int, task: Any, was_free: bool, depth: int
    ) -> None:
        self.name = name
        self.call = call
        #: Its id: to keep a frame would keep all that its variables refer to.
        self.frame = frame
        self.thread = _thread.get_ident()
        self.task: Callable[[], Any] = _nobody if task is None else weakref.ref(task)
        self.was_free = was_free
        #: How often the thread had a reentrant lock before.
        self.depth = depth


def _nobody() -> None:
    return None


class _Book:
    """A C lock, and who has wanted it since it was last seen free.

    Written by whoever wants the lock, without a lock of its own: a list is changed by single
    operations, and what two threads confuse is not reported.
    """

    __slots__ = ("claims", "is_reentrant", "lock", "made")

    def __init__(self, lock: Any, made: str) -> None:
        self.lock = lock
        #: Where, as ``file:line``; empty if that is not known.
        self.made = made
        self.is_reentrant = type(lock) is _RLockType
        self.claims: List[_Claim] = []


class _Local(threading.local):
    """The books in which this thread has made a claim, by their id."""

    def __init__(self) -> None:
        self.books: Dict[int, _Book] = {}


_local = _Local()
#: The lock of each ``with`` that was entered: by the id of the frame and the offset in its code.
#: Written by all threads, in single operations; entries of frames that are gone mean nothing.
_entered: Dict[Tuple[int, int], Tuple[_Book, str, CodeType]] = {}


def _intend(book: _Book, name: str, frame: FrameType) -> None:
    """Note that *frame* looks up what takes the lock.

    Runs anywhere, finalizers and signal handlers included, before anything is taken. It catches
    nothing, since what is raised in here may have been raised asynchronously.
    """
    code = frame.f_code
    if code.co_filename == _THREADING_FILE:
        return  # a Condition that takes its lock back after wait(), for one
    call = call_at(frame, _NAMES)
    if call is None:
        outer = _outside_exit_stack(frame)
        if outer is None:
            return
        frame, code = outer, outer.f_code
        call = Call(code, frame.f_lasti, frame.f_lasti, frame.f_lineno or 0, False, True)
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
        if was_free:
            return  # nobody's claim is left, and this one is confirmed by the frame
    claim = _Claim(name, call, id(frame), _current_task(), was_free, depth)
    book.claims.append(claim)
    books = _local.books
    if len(books) >= _NOTES_KEPT:
        for key, other in books.copy().items():
            if not _is_locked(other):
                books.pop(key, None)
    books[id(book)] = book


def _outside_exit_stack(frame: FrameType) -> Optional[FrameType]:
    """What has called ``ExitStack.enter_context()``, if that is what looks up `__enter__`."""
    outer: Optional[FrameType] = frame
    # From 3.15 on, it has `inspect` look it up.
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
    """The task that runs in this thread, found without raising anything."""
    if sniffio_thread.name == "trio":
        run = sys.modules.get("trio._core._run")
        return getattr(getattr(run, "GLOBAL_RUN_CONTEXT", None), "task", None)
    get_loop = getattr(sys.modules.get("asyncio.events"), "_get_running_loop", None)
    loop = None if get_loop is None else get_loop()
    current_task = getattr(sys.modules.get("asyncio.tasks"), "current_task", None)
    return None if loop is None or current_task is None else current_task(loop)


def _is_locked(book: _Book) -> bool:
    """Whether this thread can have it."""
    return bool(book.lock._is_owned() if book.is_reentrant else book.lock.locked())


def _is_taken(book: _Book) -> bool:
    """Whether anybody has it."""
    return " count=0 " not in repr(book.lock) if book.is_reentrant else bool(book.lock.locked())


_LOCKS_COUNT = hasattr(_RLockType, "_recursion_count")


def _depth(lock: Any) -> int:
    """How often this thread has a reentrant lock."""
    if _LOCKS_COUNT:
        return lock._recursion_count()  # type: ignore[no-any-return]
    return int(repr(lock).partition(" count=")[2].split()[0]) if lock._is_owned() else 0


# What takes the place of the types in `threading`.


class _Enter:
    """``__enter__`` of our locks: gives that of the C lock, after noting who wants it."""

    def __get__(self, wrapper: Any, owner: Optional[type] = None) -> Any:
        if wrapper is None:
            return _enter_by_type
        if _is_installed:
            _intend(wrapper._book, wrapper._name, sys._getframe(1))
        return wrapper._lock.__enter__


#: What is called as ``type(lock).__enter__(lock)``, like ExitStack does. In C, such that nothing
#: comes between the lock's being taken and the caller's knowing of it.
_enter_by_type = methodcaller("__enter__")


def _exit_by_type(wrapper: Any, *exc_info: Any) -> Any:
    return wrapper._lock.__exit__(*exc_info)


class _OfLocks(type):
    """Has a C lock count as an instance, and gives the methods that C looks up on the type."""

    def __instancecheck__(cls, instance: Any) -> bool:
        return type.__instancecheck__(cls, instance) or type(instance) is cls._genuine  # type: ignore[attr-defined]

    @property
    def __exit__(cls) -> Any:  # noqa: PLE0302, PYI036
        return _exit_by_type


class _Wrapper:
    # These two are the C lock's methods. A slot gives them without running anything in Python.
    __slots__ = ("__exit__", "__weakref__", "_book", "_lock", "release")

    _genuine: Any
    _name: str
    _book: _Book
    _lock: Any

    @property
    def acquire(self) -> Any:
        if _is_installed:
            _intend(self._book, self._name, sys._getframe(1))
        return self._lock.acquire

    __enter__ = _Enter()
    _at_fork_reinit = property(attrgetter("_lock._at_fork_reinit"))

    def __repr__(self) -> str:
        return repr(self._lock)

    def __reduce__(self) -> Any:
        return self._lock.__reduce_ex__(2)  # which raises what it raises for a C lock


def _around(kind: Any, lock: Any, maker: FrameType) -> Any:
    wrapper = object.__new__(kind)
    wrapper._lock = lock
    wrapper._book = _Book(lock, f"{maker.f_code.co_filename}:{maker.f_lineno}")
    wrapper.release = lock.release
    wrapper.__exit__ = lock.__exit__
    return wrapper


class Lock(_Wrapper, metaclass=_OfLocks):
    """In place of `threading.Lock`."""

    __slots__ = ()

    _genuine = _LockType
    _name = "threading.Lock"

    def __new__(cls) -> Any:
        frame = sys._getframe(1)
        lock = _thread.allocate_lock()
        return lock if frame.f_globals is _THREADING else _around(cls, lock, frame)

    @property  # type: ignore[misc]
    def __class__(self) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride]
        return _LockType

    @property
    def acquire_lock(self) -> Any:
        if _is_installed:
            _intend(self._book, self._name, sys._getframe(1))
        return self._lock.acquire

    release_lock = property(attrgetter("_lock.release_lock"))
    locked = property(attrgetter("_lock.locked"))
    locked_lock = property(attrgetter("_lock.locked_lock"))


class RLock(_Wrapper, metaclass=_OfLocks):
    """In place of `threading.RLock`."""

    __slots__ = ()

    _genuine = _RLockType
    _name = "threading.RLock"

    def __new__(cls, *args: Any, **kwargs: Any) -> Any:
        frame = sys._getframe(1)
        lock = _RLockType(*args, **kwargs)
        return lock if frame.f_globals is _THREADING else _around(cls, lock, frame)

    @property  # type: ignore[misc]
    def __class__(self) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride]
        return _RLockType

    _is_owned = property(attrgetter("_lock._is_owned"))
    _release_save = property(attrgetter("_lock._release_save"))
    _acquire_restore = property(attrgetter("_lock._acquire_restore"))
    _recursion_count = property(attrgetter("_lock._recursion_count"))
    locked = property(attrgetter("_lock.locked"))  # from 3.14 on


for _type in (Lock, RLock):
    _type.__module__ = "threading"


_CONDITION = "threading.Condition"


def _book_of(condition: Any) -> Optional[_Book]:
    """That of the lock of a Condition; None if its lock is one of the program's own types."""
    lock: Any = getattr(condition, "_lock", None)
    if type(lock) in (Lock, RLock):
        return lock._book  # type: ignore[no-any-return]
    if type(lock) not in (_LockType, _RLockType):
        return None
    book = condition.__dict__.get("_greenback_book")
    if book is None or book.lock is not lock:
        book = condition.__dict__["_greenback_book"] = _Book(lock, "")
    return book  # type: ignore[no-any-return]


class _ConditionEnter:
    """``Condition.__enter__``, while debug mode is installed."""

    def __init__(self, genuine: Any) -> None:
        self._genuine = genuine

    def __get__(self, condition: Any, owner: Optional[type] = None) -> Any:
        if condition is None:
            return _enter_by_type
        book = _book_of(condition)
        if book is None:
            return self._genuine.__get__(condition, owner)
        _intend(book, _CONDITION, sys._getframe(1))
        return book.lock.__enter__


class _ConditionExit:
    """``Condition.__exit__``, while debug mode is installed: that of the C lock."""

    def __init__(self, genuine: Any) -> None:
        self._genuine = genuine

    def __get__(self, condition: Any, owner: Optional[type] = None) -> Any:
        book = None if condition is None else _book_of(condition)
        return self._genuine.__get__(condition, owner) if book is None else book.lock.__exit__


class _ConditionAcquire:
    """``Condition.acquire``, which is an attribute of every instance."""

    def __get__(self, condition: Any, owner: Optional[type] = None) -> Any:
        if condition is None:
            raise AttributeError("type object 'Condition' has no attribute 'acquire'")
        try:
            acquire = condition.__dict__["acquire"]
        except KeyError:
            raise AttributeError("acquire") from None
        book = _book_of(condition)
        if book is not None:
            _intend(book, _CONDITION, sys._getframe(1))
        return acquire

    def __set__(self, condition: Any, acquire: Any) -> None:
        condition.__dict__["acquire"] = acquire

    def __delete__(self, condition: Any) -> None:
        condition.__dict__.pop("acquire", None)


def install() -> None:
    """Have the locks that are made from now on, and every Condition, note who wants them.

    What something else, like gevent, has replaced already is left alone.
    """
    global _is_installed
    if _is_installed:
        return
    _is_installed = True
    for name, replacement in (("Lock", Lock), ("RLock", RLock)):
        genuine = getattr(threading, name)
        if type(genuine()) is replacement._genuine:
            _replaced[name] = genuine
            setattr(threading, name, replacement)
    condition: Any = threading.Condition
    if condition.__module__ == "threading" and "acquire" not in vars(condition):
        _replaced["Condition"] = condition.__enter__, condition.__exit__
        condition.__enter__ = _ConditionEnter(condition.__enter__)
        condition.__exit__ = _ConditionExit(condition.__exit__)
        condition.acquire = _ConditionAcquire()


def uninstall() -> None:
    """Undo `install`. Locks that were made in between go on as mere locks."""
    global _is_installed
    _is_installed = False
    for name, replacement in (("Lock", Lock), ("RLock", RLock)):
        if name in _replaced and getattr(threading, name) is replacement:
            setattr(threading, name, _replaced[name])
    if "Condition" in _replaced:
        condition: Any = threading.Condition
        condition.__enter__, condition.__exit__ = _replaced["Condition"]
        del condition.acquire
    _replaced.clear()
    _entered.clear()


# At a suspension


def are_noted() -> bool:
    """Whether this thread may hold a lock that it has acquired by calling ``acquire()``."""
    return bool(_local.books)


def held(frame: FrameType, task: object) -> Optional[Finding]:
    """The lock that *task* holds, innermost first; None if it holds none, or nothing is sure.

    Args:
        frame: The innermost one of the portal. Those from there on are looked at, and the async
            functions around the portal.
        task: The task whose bridge is about to suspend: the one that runs.
    """
    found = _held(frame, task, None)
    if found is not None:
        asked = inside_prompt(frame)
        if asked is not None:  # what the program and the debugger hold meanwhile is of no interest
            return _held(frame, task, asked)
    return found


def _held(
    frame: FrameType, task: object, among: Optional[Sequence[FrameType]]
) -> Optional[Finding]:
    """The same; only what was acquired in one of the frames *among*, unless that is None."""
    for outer in with_blocks(frame):
        if among is not None and outer not in among:
            continue
        for block in inside(outer):
            found = _by_with(outer, block)
            if found is not None:
                return found
    books = _local.books
    if not books:
        return None
    for key, book in books.copy().items():
        if not _is_locked(book):
            books.pop(key, None)
            book.claims = []
            continue
        for claim in book.claims[::-1]:
            if claim.task() is not task or task is None or not _has_it(book, claim):
                continue
            if among is None:
                return _by_acquire(book, claim, [*frames_from(frame), *_around_portal()])
            if _frame_of(claim, among) is not None:
                return _by_acquire(book, claim, among)
    return None


def _around_portal() -> List[FrameType]:
    """The frames of the task's async functions outside of the portal, innermost first."""
    current: Any = getcurrent()
    while current is not None and type(current) is not Worker:
        current = current.parent
    frames: List[FrameType] = []
    if current is None or current.parent is None:
        return frames
    frame = current.parent.gr_frame
    while frame is not None:
        code = frame.f_code
        # The first function that is neither is the event loop's.
        if code.co_flags & ASYNC:
            frames.append(frame)
        elif not code.co_filename.startswith(RUNTIME):
            break
        frame = frame.f_back
    return frames


def _by_with(frame: FrameType, block: With) -> Optional[Finding]:
    noted = _entered.get((id(frame), block.offset))
    if noted is not None and noted[2] is frame.f_code:
        book, name, _ = noted
        if not _is_locked(book):
            return None
        made = book.made
        how = "it was noted when the block was entered"
    else:
        name = _evaluated_again(frame, block)
        if not name:
            return None
        made = ""
        how = f"{block.expression!r} evaluates to it"
    place = f"{frame.f_code.co_filename}:{block.line}"
    how = f"{frame.f_code.co_name} is inside the 'with' block at {place}, and {how}."
    return _finding(frame, name, made, place, how)


def _evaluated_again(frame: FrameType, block: With) -> str:
    """The type of the lock that the expression of a ``with`` refers to, if that is held."""
    if not (_HAS_PURE_EVAL and block.expression):
        return ""
    if block.is_global and block.name in frame.f_globals:
        first = frame.f_globals[block.name]
    else:
        # This keeps what the variables refer to alive until the function returns, before 3.13:
        # hence only for what a ``with`` is inside of that does not call anything.
        local = frame.f_locals
        if block.name not in local:
            return ""
        first = local[block.name]
    expression: Any = ast.parse(block.expression, mode="eval")
    try:
        lock: Any = pure_eval.Evaluator({block.name: first})[expression.body]
    except pure_eval.CannotEval:
        return ""
    name = ""
    if issubclass(type(lock), threading.Condition):  # isinstance() may ask the object
        name, lock = _CONDITION, vars(lock).get("_lock")
    if type(lock) in (Lock, RLock):
        lock = lock._lock  # made while debug mode was on, and entered before
    if type(lock) is _LockType:
        return (name or "threading.Lock") if lock.locked() else ""
    if type(lock) is _RLockType:
        return (name or "threading.RLock") if lock._is_owned() else ""
    return ""


def _has_it(book: _Book, claim: _Claim) -> bool:
    if claim.call.is_with:
        return False  # confirmed by the frame, or not at all
    if book.is_reentrant:
        return claim.thread == _thread.get_ident() and _depth(book.lock) > claim.depth
    if not claim.was_free and not claim.call.is_plain:
        return False  # it may have timed out
    frames: Optional[Dict[int, FrameType]] = None
    claims = book.claims
    for index, other in enumerate(claims):
        if other is claim or other.was_free:
            continue
        if other.thread == claim.thread:
            # It has had its answer before anything else ran in this thread: a no, or the lock.
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


def _waits(claim: _Claim, innermost: Optional[FrameType]) -> bool:
    """Whether a thread is where it was when it wanted the lock."""
    return (
        innermost is not None
        and id(innermost) == claim.frame
        and innermost.f_code is claim.call.code
        and claim.call.offset <= instruction(innermost)[1] <= claim.call.end
    )


def _frame_of(claim: _Claim, frames: Sequence[FrameType]) -> Optional[FrameType]:
    """Which of the frames made a claim."""
    code: CodeType = claim.call.code
    return next((each for each in frames if id(each) == claim.frame and each.f_code is code), None)


def _by_acquire(book: _Book, claim: _Claim, frames: Sequence[FrameType]) -> Finding:
    code: CodeType = claim.call.code
    place = f"{code.co_filename}:{claim.call.line}"
    return _finding(
        _frame_of(claim, frames) or frames[0],
        claim.name,
        book.made,
        place,
        f"This task has acquired it in {code.co_name} at {place}, and nobody has since.",
    )


def _finding(frame: FrameType, name: str, made: str, place: str, how: str) -> Finding:
    origin = f" (made at {made})" if made else ""
    return Finding(
        _KIND, frame, f"{name}{origin}, acquired at {place}", (how, "It is locked now."), False
    )
