"""What stands in place of the locks: it does what they do."""

from __future__ import annotations

import _thread
import copy
import logging
import pickle
import queue
import sys
import threading
import warnings
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Callable, List

import pytest

from greenback_trace.misuse.evidence.locks import replacements

from .holding import genuine, made_before, subject


class TestLock:
    @pytest.mark.parametrize("kind", ["Lock", "RLock"])
    def test_is_like_the_c_lock(self, kind: str) -> None:
        """What is made in debug mode has the type, methods, text and errors of a C lock."""
        index = ["Lock", "RLock"].index(kind)
        c_lock: Any = genuine[index]()
        lock = getattr(threading, kind)()
        assert isinstance(lock, type(c_lock))
        assert [name for name in dir(c_lock) if not hasattr(lock, name)] == []
        assert repr(lock).partition(" at ")[0] == repr(c_lock).partition(" at ")[0]
        with pytest.raises(RuntimeError):
            lock.release()
        assert lock.acquire()
        assert lock.acquire(False) is (kind == "RLock")
        assert lock.acquire(timeout=0.001) is (kind == "RLock")
        assert lock.__exit__(None, None, None) is None
        if sys.implementation.name == "cpython":  # PyPy copies some
            for dump in (copy.copy, pickle.dumps):
                with pytest.raises(TypeError, match="cannot pickle"):
                    dump(lock)

    @pytest.mark.parametrize("kind", ["Lock", "RLock"])
    def test_its_type_is_like_that_of_a_c_lock(self, kind: str) -> None:
        """Methods of the type take a lock, whether it was made in debug mode or before."""
        c_lock: Any = genuine[["Lock", "RLock"].index(kind)]()
        lock = getattr(threading, kind)()
        for each in (lock, c_lock):
            assert type(lock).acquire(each)
            assert type(lock).acquire(each, blocking=False) is (kind == "RLock")
            type(lock).release(each)
            type(lock).__enter__(each)
            type(lock).__exit__(each, None, None, None)
        with pytest.raises(TypeError):
            type(lock).acquire(object())
        assert type(lock) is type(getattr(threading, kind)())
        assert repr(type(lock)) == repr(type(c_lock))
        assert type(lock).acquire.__name__ == type(c_lock).acquire.__name__
        assert type(lock).__doc__ == type(c_lock).__doc__

    def test_its_type_has_the_names_of_the_c_type(self) -> None:
        """What `_thread` says is the type of a lock is the type of the locks that are made."""
        assert type(threading.Lock()) is type(_thread.allocate_lock()) is _thread.LockType
        assert type(threading.RLock()) is _thread.RLock
        assert isinstance(made_before, _thread.LockType)
        assert isinstance(threading.Lock(), type(made_before))

    @pytest.mark.parametrize("kind", ["Lock", "RLock"])
    def test_can_be_made_and_derived_from_where_a_c_lock_can(self, kind: str) -> None:
        """It is a TypeError to make or derive from what C does not let be made or derived from."""
        made = genuine[["Lock", "RLock"].index(kind)]
        lock = getattr(threading, kind)()

        def fails(what: Callable[[], Any]) -> bool:
            try:
                what()
            except TypeError:
                return True
            return False

        c_type: Any = type(made())
        for base, c_base in ((type(lock), c_type), (getattr(threading, kind), made)):
            assert fails(lambda base=base: type("Own", (base,), {})) is fails(
                lambda c_base=c_base: type("Own", (c_base,), {})
            )
        assert fails(type(lock)) is fails(c_type)

    def test_derived_from(self, suspend: Any, in_portal: Any) -> None:
        """A reentrant lock of the program's own type calls the methods of that."""
        calls = []

        class Own(type(threading.RLock())):  # type: ignore[misc]
            def acquire(self, *args: Any) -> Any:
                calls.append("acquire")
                return super().acquire(*args)

            def release(self) -> None:
                calls.append("release")
                super().release()

        lock = Own()
        assert lock.acquire()
        assert lock._is_owned()
        lock.release()
        assert not lock._is_owned()
        assert calls == ["acquire", "release"]
        assert Own.acquire(lock)
        Own.release(lock)
        assert calls == ["acquire", "release"] * 2

        def work() -> None:
            with lock:
                assert subject(suspend())
            assert suspend() is None

        in_portal(work)

    def test_function_that_makes_it_does_not_bind(self) -> None:
        """As an attribute of a class, `threading.Lock` makes locks, too."""

        class Holder:
            make = threading.Lock

        assert isinstance(Holder().make(), type(made_before))
        for kind, made in zip(("Lock", "RLock"), genuine):
            for name in ("__module__", "__name__", "__doc__"):
                assert getattr(getattr(threading, kind), name) == getattr(made, name)

    def test_arguments_of_rlock(self) -> None:
        """They are warned about where they are without debug mode, at the line that passes them."""

        def warnings_of(make: Any) -> List[Any]:
            with warnings.catch_warnings(record=True) as seen:
                warnings.simplefilter("always")
                try:
                    make(1)
                except TypeError as error:
                    return [type(error)]
            return [(each.category, str(each.message), each.filename) for each in seen]

        assert warnings_of(threading.RLock) == warnings_of(genuine[1])

    def test_methods_are_those_of_the_c_lock(self) -> None:
        """Nothing in Python runs between a lock's being taken and its holder's going on."""
        builtin = type(made_before.acquire)
        for lock in (threading.Lock(), threading.RLock()):
            for name in ("acquire", "release", "__enter__", "__exit__"):
                assert type(getattr(lock, name)) is builtin

    def test_serves_the_standard_library(self) -> None:
        """Queues, events, semaphores, pools and logging work with these locks."""
        items: queue.Queue[int] = queue.Queue()
        with ThreadPoolExecutor(2) as pool:
            assert sum(pool.map(lambda n: n, range(10))) == 45
            future = pool.submit(items.get)
            items.put(5)
            assert future.result() == 5
        semaphore = threading.BoundedSemaphore(1)
        with semaphore:
            assert not semaphore.acquire(blocking=False)
        condition = threading.Condition(threading.Lock())
        with condition:
            assert not condition.wait(0.001)
            condition.notify_all()
        barrier = threading.Barrier(1)
        assert barrier.wait() == 0
        handler = logging.StreamHandler(sys.stderr)
        handler.handle(logging.makeLogRecord({"msg": ""}))

    @pytest.mark.skipif(sys.version_info < (3, 9), reason="3.8 makes new locks after a fork")
    def test_is_free_after_a_fork(self) -> None:
        """A child of a fork can free a lock that its parent held."""
        for lock in (threading.Lock(), threading.RLock()):
            lock.acquire()
            lock._at_fork_reinit()  # type: ignore[union-attr]
            assert lock.acquire(False)


class TestInstall:
    def test_and_uninstall(self) -> None:
        """Afterwards `threading` is as before, and locks made in between still work."""
        lock, condition = threading.Lock(), threading.Condition()
        replacements.install()
        replacements.uninstall()
        replacements.uninstall()
        assert (threading.Lock, threading.RLock, threading.Condition.__enter__) == genuine
        assert "acquire" not in vars(threading.Condition)
        with lock:
            assert lock.locked()
        assert condition.acquire()
        condition.release()

    def test_a_condition_of_a_type_of_ones_own(self) -> None:
        """A Condition on a lock that is not of `threading` keeps calling that."""
        calls = []

        class Own:
            def acquire(self) -> None:
                calls.append("acquire")

            def release(self) -> None:
                calls.append("release")

            def locked(self) -> bool:  # which Condition takes from 3.14 on
                return False

            def __enter__(self) -> None:
                calls.append("enter")

            def __exit__(self, *exc_info: object) -> None:
                calls.append("exit")

        condition = threading.Condition(Own())  # type: ignore[arg-type]
        with condition:
            pass
        condition.acquire()
        condition.release()
        assert calls == ["enter", "exit", "acquire", "release"]


INTERRUPTS = """
import random, signal, sys, threading
import greenback_trace.misuse.evidence.locks.replacements as locks

class Interrupted(Exception):
    pass

def handler(*_):
    raise Interrupted

signal.signal(signal.SIGALRM, handler)
sys.setswitchinterval(0.00001)
locks.install()
for make in (threading.Lock, threading.RLock, threading.Condition):
    lock = make()
    inner = getattr(lock, "_lock", lock)
    is_taken = getattr(inner, "_is_owned", None) or inner.locked
    left_held = 0
    for _ in range(150):
        try:
            signal.setitimer(signal.ITIMER_REAL, random.uniform(0.00001, 0.0003), 2)
            while True:
                with lock:
                    pass
        except Interrupted:
            signal.setitimer(signal.ITIMER_REAL, 0)
        left_held += is_taken()
        if is_taken():
            lock.release()
    print(left_held)
"""


class TestInterrupts:
    @pytest.mark.skipif(
        sys.version_info < (3, 10) or sys.implementation.name == "pypy",
        reason="there a C lock can be left held as well",
    )
    def test_leave_no_lock_held(self, python: Any) -> None:
        """A signal handler that raises at any moment never leaves a lock held."""
        result = python("-c", INTERRUPTS)
        assert result.stderr == ""
        assert result.stdout.split() == ["0", "0", "0"]
