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
- for ``acquire()``, and for a ``with`` in a generator, whose frame is nowhere while the generator
  is suspended: by nobody having wanted it since, but for those who still wait for it. Where that
  leaves a doubt (another thread has tried, and no longer waits), nothing is reported.

Semaphores are written in Python and have descriptors in place, like `Condition`. How many have one
is told by how far its value is below the highest that was seen. It is held by those who wanted it
if they are as many. Not every ``acquire()`` of a semaphore is followed by a ``release()`` of the
same task: it may be a signal, or the place of something that another task takes away. So it counts
only in a function that releases it as well.

Not replaced is what `threading` and the import system make for their own use. Locks that were made
before debug mode was installed, or through a name that was imported before (``from threading import
Lock``), are C locks: they are found only in a ``with`` whose expression can be evaluated again
without running code of the program's, a name with attributes and constant subscripts, for which
`pure_eval` is needed.

A lock cannot be of the C type, whose methods cannot be replaced, so that `_thread` has ours for as
long as `threading` has. Code that looks at a lock's type finds what it would find without debug
mode: methods that can be called with a lock, the name, and whether it can be made or derived from.
"""

from __future__ import annotations

import _thread
import ast
import contextlib
import functools
import inspect
import sys
import threading
import warnings
import weakref
from importlib import _bootstrap
from operator import attrgetter, methodcaller
from types import CodeType, FrameType, FunctionType
from typing import Any, Callable, Dict, FrozenSet, List, NamedTuple, Optional, Sequence, Tuple

from sniffio import thread_local as sniffio_thread

from greenback._frames import frame_around_portal, frames_from

from ...count.frames import can_look_at_others, current_frames
from ...count.names import task_name
from ...count.sites import ASYNC, RUNTIME
from ..evidence.blocks import Call, With, call_at, inside, with_blocks
from ..evidence.calls import instruction
from ..evidence.prompt import inside_prompt
from ..finding import Finding

try:
    import pure_eval
except ImportError:
    _HAS_PURE_EVAL = False
else:
    _HAS_PURE_EVAL = True

_KIND = "lock_held"
#: Methods that take a lock.
NAMES: FrozenSet[str] = frozenset({"acquire", "acquire_lock", "__enter__"})
#: Takes the lock of a Condition back after wait().
_TAKES_BACK: CodeType = threading.Condition._acquire_restore.__code__  # type: ignore[attr-defined]
_LockType: Any = type(_thread.allocate_lock())
_RLockType: Any = _thread.RLock
_THREADING = vars(threading)
_IMPORTLIB = vars(_bootstrap)
_THREADING_FILE = threading.__file__
_CONTEXTLIB_FILE = contextlib.__file__
_INSPECT_FILE = inspect.__file__
#: What is noted is looked through whenever it has grown to this, for locks that are free by now.
_NOTES_KEPT = 64
#: Those who want one lock at the same time, as far as they are told apart.
_CLAIMS_KEPT = 32
#: Of generators, asynchronous ones included: they can be suspended inside a ``with``, and be
#: nowhere in the stack.
_GENERATOR = 0x20 | 0x200

_is_installed = False
#: What was there before, and what is there now: the module or class, the name, and the two.
_replaced: List[Tuple[Any, str, Any, Any]] = []


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


#: A claim on a semaphore that is only counted.
_SOMEBODY = _Claim("", Call(_nobody.__code__, 0, 0, 0, True, True, True), 0, None, False, 0)


class _Book:
    """A C lock, and who has wanted it since it was last seen free.

    Written by whoever wants the lock, without a lock of its own: a list is changed by single
    operations, and what two threads confuse is not reported.
    """

    __slots__ = ("claims", "is_kept", "is_reentrant", "lock", "made")

    def __init__(self, lock: Any, made: str) -> None:
        self.lock = lock
        #: Where, as ``file:line``; empty if that is not known.
        self.made = made
        self.is_reentrant = type(lock) is _RLockType
        #: Somebody has kept a method that takes it, and may call it at any time unseen.
        self.is_kept = False
        self.claims: List[_Claim] = []


class _Permits:
    """What stands for the C lock in the book of a semaphore."""

    __slots__ = ("_most", "_semaphore", "name")

    def __init__(self, semaphore: Any) -> None:
        is_bounded = issubclass(type(semaphore), threading.BoundedSemaphore)
        self.name = "threading.BoundedSemaphore" if is_bounded else "threading.Semaphore"
        # A semaphore has its book, and must not be kept alive by it.
        self._semaphore = weakref.ref(semaphore)
        self._most = 0

    def taken(self) -> int:
        """How many permits are taken, of those that were ever seen."""
        semaphore = self._semaphore()
        value = self._most if semaphore is None else semaphore._value
        if value > self._most:
            self._most = value
        return self._most - value

    def locked(self) -> bool:
        return self.taken() > 0


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
        if code is _TAKES_BACK and not book.is_reentrant:
            # Unless it is this thread's, somebody has released it, or will.
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
        call = _call_from(frame, True, True)
    _note(book, name, frame, call)


def _call_from(frame: FrameType, is_plain: bool, is_paired: bool) -> Call:
    """The call that a frame is in the middle of."""
    code, offset = frame.f_code, frame.f_lasti
    return Call(code, offset, offset, frame.f_lineno or 0, False, is_plain, is_paired)


def _note(book: _Book, name: str, frame: FrameType, call: Call) -> None:
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
        if was_free and not code.co_flags & _GENERATOR and type(lock) is not _Permits:
            return  # nobody's claim is left, and this one is confirmed by the frame
    if book.is_kept:
        return
    if type(lock) is _Permits and not _may_hold(call):
        book.claims.append(_SOMEBODY)
        return
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


class _OfLocks(type):
    """Has a C lock count as an instance, and its type give methods that are called with a lock."""

    _genuine: Any

    def __instancecheck__(cls, instance: Any) -> bool:
        return type.__instancecheck__(cls, instance) or type(instance) is cls._genuine

    def __getattribute__(cls, name: str) -> Any:
        found = type.__getattribute__(cls, name)
        # What a type derived from it has of its own is neither.
        if type(found) not in (property, _Slot):
            return found
        genuine = type.__getattribute__(cls, "_genuine")
        return _by_type(genuine, name) if name in _methods_of(genuine) else found


@functools.lru_cache(maxsize=None)
def _methods_of(genuine: Any) -> FrozenSet[str]:
    return frozenset(name for name in dir(genuine) if callable(getattr(genuine, name)))


@functools.lru_cache(maxsize=None)
def _by_type(genuine: Any, name: str) -> Any:
    """What is called as ``type(lock).acquire(lock)``, and its like."""
    method = getattr(genuine, name)
    takes = name in NAMES

    @functools.wraps(method)
    def call(*args: Any, **kwargs: Any) -> Any:
        if not (args and issubclass(type(args[0]), _Wrapper)):
            return method(*args, **kwargs)  # a C lock, or an error
        wrapper, *rest = args
        if takes and _is_installed:
            frame = sys._getframe(1)
            is_plain = not rest and not kwargs
            _note(wrapper._book, wrapper._name, frame, _call_from(frame, is_plain, True))
        return method(wrapper._lock, *rest, **kwargs)

    return call


class _Wrapper:
    # These two are the C lock's methods. A slot gives them without running anything in Python.
    __slots__ = ("__exit__", "__weakref__", "_book", "_lock", "release")

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
    # The slots, where a type that is derived from it may have a method of that name.
    _set_release(wrapper, lock.release)
    _set_exit(wrapper, lock.__exit__)
    return wrapper


#: That of a slot's descriptor, which differs between interpreters.
_Slot: Any = type(vars(_Wrapper)["release"])
_set_release: Any = vars(_Wrapper)["release"].__set__
_set_exit: Any = vars(_Wrapper)["__exit__"].__set__


class Lock(_Wrapper, metaclass=_OfLocks):
    __slots__ = ()

    _genuine = _LockType
    _name = "threading.Lock"

    def __new__(cls, *args: Any, **kwargs: Any) -> Any:
        frame = sys._getframe(1)
        lock = _LockType(*args, **kwargs)  # which fails before 3.13
        return lock if _is_of_runtime(frame) else _around(cls, lock, frame)

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
    __slots__ = ()

    _genuine = _RLockType
    _name = "threading.RLock"

    def __new__(cls, *args: Any, **kwargs: Any) -> Any:
        frame = sys._getframe(1)
        lock = _RLockType(*args, **kwargs)
        return lock if _is_of_runtime(frame) else _around(cls, lock, frame)

    @property  # type: ignore[misc]
    def __class__(self) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride]
        return _RLockType

    _is_owned = property(attrgetter("_lock._is_owned"))
    _release_save = property(attrgetter("_lock._release_save"))
    _acquire_restore = property(attrgetter("_lock._acquire_restore"))
    _recursion_count = property(attrgetter("_lock._recursion_count"))
    locked = property(attrgetter("_lock.locked"))  # from 3.14 on


def _refuse_to_be_derived_from(*args: Any, **kwargs: Any) -> None:
    name = f"{_LockType.__module__}.{_LockType.__qualname__}"
    raise TypeError(f"type '{name}' is not an acceptable base type")


for _type in (Lock, RLock):
    _type.__module__ = _type._genuine.__module__
    _type.__name__ = _type._genuine.__name__
    _type.__qualname__ = _type._genuine.__qualname__
    _type.__doc__ = _type._genuine.__doc__
    try:
        type("Derived", (_type._genuine,), {})
    except TypeError:
        _type.__init_subclass__ = classmethod(_refuse_to_be_derived_from)  # type: ignore[assignment]


def _is_of_runtime(frame: FrameType) -> bool:
    """Whether it is `threading` or the import system that makes a lock, for its own use."""
    names = frame.f_globals
    return names is _THREADING or names is _IMPORTLIB


# What makes a lock is a type or a function, depending on the version.


class _MakesLock:
    """In place of `threading.Lock` where that is a function in C, which binds to no object."""

    def __init__(self, genuine: Any) -> None:
        self._genuine = genuine
        functools.update_wrapper(self, genuine)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        frame = sys._getframe(1)
        lock = self._genuine(*args, **kwargs)
        return lock if _is_of_runtime(frame) else _around(Lock, lock, frame)

    def __repr__(self) -> str:
        return repr(self._genuine)

    def __reduce__(self) -> Any:
        return self._genuine.__reduce_ex__(4)


def _makes_rlock(genuine: Any) -> Any:
    """What takes the place of `threading.RLock` where that is a function in Python."""
    texts = (text for text in genuine.__code__.co_consts[1:] if type(text) is str)
    warning = next((text for text in texts if "deprecated" in text), None)

    @functools.wraps(genuine)
    def make(*args: Any, **kwargs: Any) -> Any:
        frame = sys._getframe(1)
        if warning is not None and (args or kwargs):  # at the line that calls this
            warnings.warn(warning, DeprecationWarning, stacklevel=2)
        lock = _RLockType(*args, **kwargs)
        return lock if _is_of_runtime(frame) else _around(RLock, lock, frame)

    return make


def _in_place_of(genuine: Any, kind: Any) -> Any:
    if genuine is kind._genuine:
        return kind
    return _makes_rlock(genuine) if type(genuine) is FunctionType else _MakesLock(genuine)


_CONDITION = "threading.Condition"


def _c_lock_of(condition: Any) -> Any:
    """The C lock of a Condition; None if its lock is one of the program's own types."""
    lock: Any = object.__getattribute__(condition, "__dict__").get("_lock")
    kind = type(lock)
    if kind is _LockType or kind is _RLockType:
        return lock
    return lock._lock if kind is Lock or kind is RLock else None


def _book_of(condition: Any, c_lock: Any) -> _Book:
    names = object.__getattribute__(condition, "__dict__")
    if names["_lock"] is not c_lock:
        return names["_lock"]._book  # type: ignore[no-any-return]
    book = names.get("_greenback_book")
    if book is None or book.lock is not c_lock:
        book = names["_greenback_book"] = _Book(c_lock, "")
    return book  # type: ignore[no-any-return]


class _ConditionEnter:
    """``Condition.__enter__``, while debug mode is installed."""

    def __init__(self, genuine: Any) -> None:
        self._genuine = genuine

    def __get__(self, condition: Any, owner: Optional[type] = None) -> Any:
        if condition is None:
            return _enter_by_type
        lock = _c_lock_of(condition)
        if lock is None:
            return self._genuine.__get__(condition, owner)
        frame = sys._getframe(1)
        # Semaphores, events and queues take theirs all the time.
        if frame.f_code.co_filename != _THREADING_FILE:
            _intend(_book_of(condition, lock), _CONDITION, frame)
        return lock.__enter__


class _ConditionExit:
    """``Condition.__exit__``, while debug mode is installed: that of the C lock."""

    def __init__(self, genuine: Any) -> None:
        self._genuine = genuine

    def __get__(self, condition: Any, owner: Optional[type] = None) -> Any:
        lock = None if condition is None else _c_lock_of(condition)
        return self._genuine.__get__(condition, owner) if lock is None else lock.__exit__


class _ConditionAcquire:
    """``Condition.acquire``, which is an attribute of every instance."""

    def __get__(self, condition: Any, owner: Optional[type] = None) -> Any:
        if condition is None:
            raise AttributeError("type object 'Condition' has no attribute 'acquire'")
        try:
            acquire = condition.__dict__["acquire"]
        except KeyError:
            raise AttributeError("acquire") from None
        lock = _c_lock_of(condition)
        if lock is not None:
            _intend(_book_of(condition, lock), _CONDITION, sys._getframe(1))
        return acquire

    def __set__(self, condition: Any, acquire: Any) -> None:
        condition.__dict__["acquire"] = acquire

    def __delete__(self, condition: Any) -> None:
        condition.__dict__.pop("acquire", None)


class _SemaphoreMethod:
    """``acquire`` or ``__enter__`` of a semaphore, while debug mode is installed."""

    def __init__(self, genuine: Any) -> None:
        self._genuine = genuine

    def __get__(self, semaphore: Any, owner: Optional[type] = None) -> Any:
        if semaphore is not None:
            names = object.__getattribute__(semaphore, "__dict__")
            if "_value" in names:
                book = names.get("_greenback_book")
                if book is None:
                    book = names["_greenback_book"] = _Book(_Permits(semaphore), "")
                _intend(book, book.lock.name, sys._getframe(1))
        return self._genuine.__get__(semaphore, owner)


def install() -> None:
    """Have locks that are made from now on, and every Condition and semaphore, note who wants them.

    What something else, like gevent, has replaced already is left alone.
    """
    global _is_installed
    if _is_installed:
        return
    _is_installed = True
    # Names of one thing stay names of one thing.
    for place, name, kind in (
        (threading, "Lock", Lock),
        (threading, "RLock", RLock),
        (_thread, "allocate_lock", Lock),
        (_thread, "allocate", Lock),
        (_thread, "LockType", Lock),
        (_thread, "lock", Lock),
        (_thread, "RLock", RLock),
    ):
        genuine = vars(place).get(name)
        former = next((each[3] for each in _replaced if each[2] is genuine), None)
        if former is not None:
            _replace(place, name, former)
        elif genuine is kind._genuine or (genuine and type(genuine()) is kind._genuine):
            _replace(place, name, _in_place_of(genuine, kind))
    semaphore: Any = threading.Semaphore
    if semaphore.__module__ == "threading":
        for name in ("acquire", "__enter__"):
            _replace(semaphore, name, _SemaphoreMethod(vars(semaphore)[name]))
    condition: Any = threading.Condition
    if condition.__module__ == "threading" and "acquire" not in vars(condition):
        _replace(condition, "__enter__", _ConditionEnter(condition.__enter__))
        _replace(condition, "__exit__", _ConditionExit(condition.__exit__))
        condition.acquire = _ConditionAcquire()


def uninstall() -> None:
    """Undo `install`. Locks that were made in between go on as mere locks."""
    global _is_installed, _local
    _is_installed = False
    while _replaced:
        place, name, genuine, replacement = _replaced.pop()
        if vars(place).get(name) is replacement:
            setattr(place, name, genuine)
    condition: Any = threading.Condition
    if type(vars(condition).get("acquire")) is _ConditionAcquire:
        del condition.acquire
    _entered.clear()
    _local = _Local()  # nobody sees who takes these locks from now on


def _replace(place: Any, name: str, replacement: Any) -> None:
    _replaced.append((place, name, vars(place)[name], replacement))
    setattr(place, name, replacement)


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
    frames: List[FrameType] = []
    frame = frame_around_portal()
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
    found = lock_of(frame, block.expression)
    if found is None or issubclass(type(found.lock), threading.Semaphore):
        return ""
    is_held = found.lock._is_owned() if type(found.lock) is _RLockType else found.lock.locked()
    return found.name if is_held else ""


class Found(NamedTuple):
    """A lock that an expression refers to."""

    #: Its type.
    name: str
    #: The C lock, or a semaphore.
    lock: Any
    #: Who has wanted it, if debug mode has noted that.
    book: Optional[_Book]


def lock_of(frame: FrameType, expression: str) -> Optional[Found]:
    """The lock that an expression refers to in a frame; None if it cannot be told.

    Nothing of the program's is run.

    Args:
        frame: A frame, which may be another thread's.
        expression: A name with attributes and constant subscripts; or empty.
    """
    if not (_HAS_PURE_EVAL and expression):
        return None
    parsed: Any = ast.parse(expression, mode="eval")
    name = next(each.id for each in ast.walk(parsed) if type(each) is ast.Name)
    # This keeps what the variables refer to alive until the function returns, before 3.13: hence
    # only for what a ``with`` is inside of that does not call anything, and for what waits.
    names = frame.f_locals if _may_be_local(frame, name) else frame.f_globals
    if name not in names:
        return None
    try:
        lock: Any = pure_eval.Evaluator({name: names[name]})[parsed.body]
    except pure_eval.CannotEval:
        return None
    if issubclass(type(lock), threading.Semaphore):  # isinstance() may ask the object
        return Found(_Permits(lock).name, lock, vars(lock).get("_greenback_book"))
    kind, book = "", None
    if issubclass(type(lock), threading.Condition):
        kind, book = _CONDITION, vars(lock).get("_greenback_book")
        lock = vars(lock).get("_lock")
    if type(lock) in (Lock, RLock):
        lock, book = lock._lock, lock._book
    if type(lock) is _LockType:
        return Found(kind or "threading.Lock", lock, book)
    if type(lock) is _RLockType:
        return Found(kind or "threading.RLock", lock, book)
    return None


def _may_be_local(frame: FrameType, name: str) -> bool:
    code = frame.f_code
    if code.co_flags & 0x01:  # CO_OPTIMIZED: of a function
        return name in (*code.co_varnames, *code.co_cellvars, *code.co_freevars)
    return name in frame.f_locals


def is_inside(frame: FrameType, block: With, found: Found) -> bool:
    """Whether a ``with`` that a frame is inside of is one of that lock."""
    noted = _entered.get((id(frame), block.offset))
    if noted is not None and noted[2] is frame.f_code:
        return noted[0] is found.book or noted[0].lock is found.lock
    other = lock_of(frame, block.expression)
    return other is not None and other.lock is found.lock


def claimants(found: Found) -> List[str]:
    """Who had a lock last by calling ``acquire()``, as far as debug mode has noted it."""
    who = []
    for claim in () if found.book is None else found.book.claims:
        code = claim.call.code
        if claim.was_free and claim is not _SOMEBODY:
            task = claim.task()
            thread = next((x.name for x in threading.enumerate() if x.ident == claim.thread), "?")
            name = f"thread {thread!r}" if task is None else f"task {task_name(task)!r}"
            place = f"{code.co_filename}:{claim.call.line}"
            who.append(f"{name}, in {code.co_name} ({place})")
    return who


def owner_of(found: Found) -> int:
    """The number of the thread that has a reentrant lock; 0 if that is not known."""
    if type(found.lock) is not _RLockType:
        return 0
    owner = repr(found.lock).partition(" owner=")[2].split()
    return int(owner[0]) if owner and owner[0].isdigit() else 0


def _has_it(book: _Book, claim: _Claim) -> bool:
    call = claim.call
    if call.is_with and not call.code.co_flags & _GENERATOR:
        return False  # confirmed by the frame, or not at all
    if type(book.lock) is _Permits:
        return _may_hold(call) and book.lock.taken() == len(book.claims)
    if book.is_reentrant:
        return claim.thread == _thread.get_ident() and _depth(book.lock) > claim.depth
    if not claim.was_free and not call.is_plain:
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


def _may_hold(call: Call) -> bool:
    """Whether a call can have taken a semaphore that is then held, as far as that is told here."""
    is_confirmed_by_frame = call.is_with and not call.code.co_flags & _GENERATOR
    return call.is_plain and call.is_paired and not is_confirmed_by_frame


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
    where = f"in {code.co_name} at {place}"
    if claim.call.is_with:
        where = f"by the 'with' block at {place} of the generator {code.co_name}"
    return _finding(
        _frame_of(claim, frames) or frames[0],
        claim.name,
        book.made,
        place,
        f"This task has acquired it {where}, and nobody has since.",
    )


def _finding(frame: FrameType, name: str, made: str, place: str, how: str) -> Finding:
    origin = f" (made at {made})" if made else ""
    return Finding(
        _KIND, frame, f"{name}{origin}, acquired at {place}", (how, "It is locked now."), False
    )
