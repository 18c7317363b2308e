"""The locks that stand in for those of `threading` while debug mode is installed.

A C lock knows no owner. A wrapper that took it in Python could leave it held: an exception that
arrives asynchronously (Ctrl-C, a signal handler that raises, `PyThreadState_SetAsyncExc`) may come
after the lock is taken and before the wrapper returns. So nothing here takes or releases a lock.

While debug mode is installed, `threading.Lock` and `threading.RLock` make an object around a C
lock. Its ``acquire`` and ``__enter__`` are descriptors. They note who is about to take the lock,
before anything is taken, and give the method of the C lock itself, which the program's code then
calls. Its ``release`` and ``__exit__`` are the C methods, with no Python in front of them.

`Condition` and the semaphores are written in Python and get such descriptors in place, so that
their instances are found whenever they were made. A ``with`` then leaves a Condition by the C
method, too: an exception could interrupt the ``__exit__`` of the class before it has released.

`threading` and the import system still make C locks for their own use. So does a name that was
imported before debug mode was installed (``from threading import Lock``), and locks that were made
before remain C locks. Debug mode finds these only in a ``with`` whose expression `lookup` can
evaluate.

The methods of the C type cannot be replaced, so a lock of ours cannot be of that type. `_thread`
therefore has our types for as long as `threading` has. Code that looks at a lock's type finds what
it would find without debug mode: the name, methods that can be called with a lock, and whether the
type can be instantiated or derived from.
"""

from __future__ import annotations

import _thread
import functools
import sys
import threading
import warnings
from importlib import _bootstrap
from operator import attrgetter, methodcaller
from types import FrameType, FunctionType
from typing import Any, FrozenSet, List, Optional, Tuple

from .claims import (
    CONDITION,
    NAMES,
    Book,
    LockType,
    Permits,
    RLockType,
    call_from,
    forget,
    intend,
    note,
)

_THREADING = vars(threading)
_IMPORTLIB = vars(_bootstrap)
_THREADING_FILE = threading.__file__

_is_installed = False
#: The replacements made: the module or class, the name in it, the former value and ours.
_replaced: List[Tuple[Any, str, Any, Any]] = []


def install() -> None:
    """Make every Condition and semaphore, and all locks made from now on, note who wants them.

    A lock, Condition or semaphore that another library (like gevent) has replaced is left alone.
    """
    global _is_installed
    if _is_installed:
        return
    _is_installed = True
    # Several names of one object get the same replacement.
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
    """Undo `install`. Locks that were made in between still work, and note nothing more."""
    global _is_installed
    _is_installed = False
    while _replaced:
        place, name, genuine, replacement = _replaced.pop()
        if vars(place).get(name) is replacement:
            setattr(place, name, genuine)
    condition: Any = threading.Condition
    if type(vars(condition).get("acquire")) is _ConditionAcquire:
        del condition.acquire
    forget()  # from now on, nothing notes who takes or has taken these locks


def _replace(place: Any, name: str, replacement: Any) -> None:
    _replaced.append((place, name, vars(place)[name], replacement))
    setattr(place, name, replacement)


class _Enter:
    """``__enter__`` of our locks: notes who wants the lock, and gives the C lock's method."""

    def __get__(self, wrapper: Any, owner: Optional[type] = None) -> Any:
        if wrapper is None:
            return _enter_by_type
        if _is_installed:
            intend(wrapper._book, wrapper._name, sys._getframe(1))
        return wrapper._lock.__enter__


#: ``__enter__`` of a class, for ``type(lock).__enter__(lock)``, as ExitStack calls it. It is in C,
#: so that nothing comes between the lock's being taken and the caller's knowing of it.
_enter_by_type = methodcaller("__enter__")


class _OfLocks(type):
    """The type of our lock types: a C lock is an instance of them, and their methods accept one."""

    _genuine: Any

    def __instancecheck__(cls, instance: Any) -> bool:
        return type.__instancecheck__(cls, instance) or type(instance) is cls._genuine

    def __getattribute__(cls, name: str) -> Any:
        found = type.__getattribute__(cls, name)
        # An attribute that a derived type defines itself is neither.
        if type(found) not in (property, _Slot):
            return found
        genuine = type.__getattribute__(cls, "_genuine")
        return _by_type(genuine, name) if name in _methods_of(genuine) else found


@functools.lru_cache(maxsize=None)
def _methods_of(genuine: Any) -> FrozenSet[str]:
    return frozenset(name for name in dir(genuine) if callable(getattr(genuine, name)))


@functools.lru_cache(maxsize=None)
def _by_type(genuine: Any, name: str) -> Any:
    """A method of a lock's type, which takes the lock: ``type(lock).acquire(lock)``."""
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
            note(wrapper._book, wrapper._name, frame, call_from(frame, is_plain, True))
        return method(wrapper._lock, *rest, **kwargs)

    return call


class _Wrapper:
    # `__exit__` and `release` are the C lock's methods. A slot gives them without running Python.
    __slots__ = ("__exit__", "__weakref__", "_book", "_lock", "release")

    _name: str
    _book: Book
    _lock: Any

    @property
    def acquire(self) -> Any:
        if _is_installed:
            intend(self._book, self._name, sys._getframe(1))
        return self._lock.acquire

    __enter__ = _Enter()
    _at_fork_reinit = property(attrgetter("_lock._at_fork_reinit"))

    def __repr__(self) -> str:
        return repr(self._lock)

    def __reduce__(self) -> Any:
        return self._lock.__reduce_ex__(2)  # raises the error of a C lock


def _around(kind: Any, lock: Any, maker: FrameType) -> Any:
    wrapper = object.__new__(kind)
    wrapper._lock = lock
    wrapper._book = Book(lock, f"{maker.f_code.co_filename}:{maker.f_lineno}")
    # By the slots themselves: a derived type may have methods of these names.
    _set_release(wrapper, lock.release)
    _set_exit(wrapper, lock.__exit__)
    return wrapper


#: The type of a slot's descriptor. It differs between interpreters.
_Slot: Any = type(vars(_Wrapper)["release"])
_set_release: Any = vars(_Wrapper)["release"].__set__
_set_exit: Any = vars(_Wrapper)["__exit__"].__set__


class Lock(_Wrapper, metaclass=_OfLocks):
    __slots__ = ()

    _genuine = LockType
    _name = "threading.Lock"

    def __new__(cls, *args: Any, **kwargs: Any) -> Any:
        frame = sys._getframe(1)
        lock = LockType(*args, **kwargs)  # fails before 3.13
        return lock if _is_of_runtime(frame) else _around(cls, lock, frame)

    @property  # type: ignore[misc]
    def __class__(self) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride]
        return LockType

    @property
    def acquire_lock(self) -> Any:
        if _is_installed:
            intend(self._book, self._name, sys._getframe(1))
        return self._lock.acquire

    release_lock = property(attrgetter("_lock.release_lock"))
    locked = property(attrgetter("_lock.locked"))
    locked_lock = property(attrgetter("_lock.locked_lock"))


class RLock(_Wrapper, metaclass=_OfLocks):
    __slots__ = ()

    _genuine = RLockType
    _name = "threading.RLock"

    def __new__(cls, *args: Any, **kwargs: Any) -> Any:
        frame = sys._getframe(1)
        lock = RLockType(*args, **kwargs)
        return lock if _is_of_runtime(frame) else _around(cls, lock, frame)

    @property  # type: ignore[misc]
    def __class__(self) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride]
        return RLockType

    _is_owned = property(attrgetter("_lock._is_owned"))
    _release_save = property(attrgetter("_lock._release_save"))
    _acquire_restore = property(attrgetter("_lock._acquire_restore"))
    _recursion_count = property(attrgetter("_lock._recursion_count"))
    locked = property(attrgetter("_lock.locked"))  # from 3.14 on


def _refuse_to_be_derived_from(*args: Any, **kwargs: Any) -> None:
    name = f"{LockType.__module__}.{LockType.__qualname__}"
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
    """Whether *frame*, which makes a lock, is of `threading` or of the import system."""
    names = frame.f_globals
    return names is _THREADING or names is _IMPORTLIB


# `threading.Lock` and `threading.RLock` are types or functions, depending on the version


class _MakesLock:
    """Stands in for `threading.Lock` where that is a function in C.

    Such a function binds to no object if it is an attribute of a class, nor does this.
    """

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
    """A function that stands in for `threading.RLock` where that is a function in Python."""
    texts = (text for text in genuine.__code__.co_consts[1:] if type(text) is str)
    warning = next((text for text in texts if "deprecated" in text), None)

    @functools.wraps(genuine)
    def make(*args: Any, **kwargs: Any) -> Any:
        frame = sys._getframe(1)
        if warning is not None and (args or kwargs):  # shown at the line that calls this
            warnings.warn(warning, DeprecationWarning, stacklevel=2)
        lock = RLockType(*args, **kwargs)
        return lock if _is_of_runtime(frame) else _around(RLock, lock, frame)

    return make


def _in_place_of(genuine: Any, kind: Any) -> Any:
    if genuine is kind._genuine:
        return kind
    return _makes_rlock(genuine) if type(genuine) is FunctionType else _MakesLock(genuine)


def _c_lock_of(condition: Any) -> Any:
    """The C lock of a Condition; None if its lock is one of the program's own types."""
    lock: Any = object.__getattribute__(condition, "__dict__").get("_lock")
    kind = type(lock)
    if kind is LockType or kind is RLockType:
        return lock
    return lock._lock if kind is Lock or kind is RLock else None


def _book_of(condition: Any, c_lock: Any) -> Book:
    names = object.__getattribute__(condition, "__dict__")
    if names["_lock"] is not c_lock:
        return names["_lock"]._book  # type: ignore[no-any-return]
    book = names.get("_greenback_book")
    if book is None or book.lock is not c_lock:
        book = names["_greenback_book"] = Book(c_lock, "")
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
        # `threading` itself enters the Conditions of its semaphores, events and barriers all the
        # time. Queues are another module's, and noted.
        if frame.f_code.co_filename != _THREADING_FILE:
            intend(_book_of(condition, lock), CONDITION, frame)
        return lock.__enter__


class _ConditionExit:
    """``Condition.__exit__``, while debug mode is installed: gives the C lock's method."""

    def __init__(self, genuine: Any) -> None:
        self._genuine = genuine

    def __get__(self, condition: Any, owner: Optional[type] = None) -> Any:
        lock = None if condition is None else _c_lock_of(condition)
        return self._genuine.__get__(condition, owner) if lock is None else lock.__exit__


class _ConditionAcquire:
    """``Condition.acquire``, while debug mode is installed.

    Without debug mode, the class has no such attribute, and every instance has its own.
    """

    def __get__(self, condition: Any, owner: Optional[type] = None) -> Any:
        if condition is None:
            raise AttributeError("type object 'Condition' has no attribute 'acquire'")
        try:
            acquire = condition.__dict__["acquire"]
        except KeyError:
            raise AttributeError("acquire") from None
        lock = _c_lock_of(condition)
        if lock is not None:
            intend(_book_of(condition, lock), CONDITION, sys._getframe(1))
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
                    book = names["_greenback_book"] = Book(Permits(semaphore), "")
                intend(book, book.lock.name, sys._getframe(1))
        return self._genuine.__get__(semaphore, owner)
