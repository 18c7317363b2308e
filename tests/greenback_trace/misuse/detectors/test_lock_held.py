"""Locks that a task holds while its bridge suspends."""

from __future__ import annotations

import _thread
import asyncio
import contextlib
import copy
import inspect
import logging
import pickle
import queue
import sys
import threading
import warnings
import weakref
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Callable, Iterator, List, Optional

import pytest

import greenback
from greenback.instruments import Bridge, Instrument, add_instrument, remove_instrument
from greenback_trace.misuse.detectors import lock_held
from greenback_trace.misuse.finding import Finding

from ..garbage import collect

made_before = threading.Lock()
reentrant_before = threading.RLock()
genuine = (threading.Lock, threading.RLock, threading.Condition.__enter__)
HERE = Path(__file__).name


class Watcher(Instrument):
    """Asks at every suspension what the task holds, like debug mode does."""

    def __init__(self) -> None:
        self.found: List[Optional[Finding]] = []

    def bridge_suspended(self, bridge: Bridge) -> None:
        assert bridge.frame is not None
        self.found.append(lock_held.held(bridge.frame, bridge.portal.task))


@pytest.fixture(autouse=True)
def watcher() -> Iterator[Watcher]:
    lock_held.install()
    watcher = Watcher()
    add_instrument(watcher)
    yield watcher
    remove_instrument(watcher)
    lock_held.uninstall()


@pytest.fixture
def suspend(backend: Any, watcher: Watcher) -> Callable[[], Optional[Finding]]:
    """Makes a bridge that suspends, and gives what was found of it."""

    def suspend() -> Optional[Finding]:
        greenback.await_(backend.sleep(0.001))
        return watcher.found.pop()

    return suspend


@pytest.fixture
def in_portal(backend: Any) -> Callable[[Callable[[], Any]], Any]:
    def run(function: Callable[[], Any]) -> Any:
        async def main() -> Any:
            return await greenback.with_portal_run_sync(function)

        return backend.run(main)

    return run


def line() -> int:
    return sys._getframe(1).f_lineno


def subject(finding: Optional[Finding]) -> str:
    return "" if finding is None else finding.subject


kinds = pytest.mark.parametrize("kind", ["Lock", "RLock", "Condition"])


class TestHeldByWith:
    @kinds
    def test_names_the_lock_and_the_place(self, kind: str, suspend: Any, in_portal: Any) -> None:
        """The finding says which lock it is, where it was made and where it was acquired."""
        lock = getattr(threading, kind)()
        made = line() - 1

        def work() -> None:
            with lock:
                at = line() - 1
                found = suspend()
            assert found.kind == "lock_held"
            assert found.frame is sys._getframe()
            assert not found.inconclusive
            assert found.subject.startswith(f"threading.{kind}")
            assert found.subject.endswith(f"acquired at {__file__}:{at}")
            if kind != "Condition":
                assert f"made at {__file__}:{made}" in found.subject
            assert any("inside the 'with' block" in sentence for sentence in found.evidence)

        in_portal(work)

    @kinds
    def test_many_functions_above(self, kind: str, suspend: Any, in_portal: Any) -> None:
        """The frame that is inside the block is named, however deep the bridge is below it."""
        lock = getattr(threading, kind)()

        def deeper(depth: int) -> Any:
            return suspend() if depth == 0 else deeper(depth - 1)

        def work() -> None:
            with lock:
                assert deeper(20).frame is sys._getframe()

        in_portal(work)

    def test_acquired_before_the_portal(self, backend: Any, suspend: Any) -> None:
        """A lock that an async function holds around the portal is found."""
        lock = threading.Lock()

        async def main() -> None:
            with lock:
                found = await greenback.with_portal_run_sync(suspend)
            assert found.frame is sys._getframe()
            assert await greenback.with_portal_run_sync(suspend) is None

        backend.run(main)

    def test_by_an_exit_stack(self, suspend: Any, in_portal: Any) -> None:
        """A lock that was entered through an ExitStack is found until that is closed."""

        def work() -> None:
            for lock in (threading.Lock(), threading.RLock(), threading.Condition()):
                with contextlib.ExitStack() as stack:
                    stack.enter_context(lock)
                    assert f"{HERE}:{line() - 1}" in subject(suspend())
                assert suspend() is None

        in_portal(work)

    def test_made_before(self, suspend: Any, in_portal: Any) -> None:
        """A lock that was made before debug mode is found where its expression can be read."""
        pytest.importorskip("pure_eval")

        class Holder:
            locks = {"one": made_before}

        holder = Holder()
        local = made_before

        def work() -> None:
            with made_before:
                assert subject(suspend()).startswith("threading.Lock, acquired")
            with reentrant_before:
                assert subject(suspend()).startswith("threading.RLock, acquired")
            with holder.locks["one"]:
                assert subject(suspend())
            with local:
                assert subject(suspend())
            assert suspend() is None

        in_portal(work)

    def test_left_in_a_finally(self, suspend: Any, in_portal: Any) -> None:
        """A block that was left by return, break or an exception is not taken for held."""
        lock = threading.Lock()

        def returns() -> Any:
            try:
                with lock:
                    return None
            finally:
                other = threading.Thread(target=lock.acquire)
                other.start()
                other.join()
                found.append(suspend())
                lock.release()

        found: List[Any] = []

        def work() -> None:
            returns()
            for _ in range(2):
                with lock:
                    break
            found.append(suspend())
            with contextlib.suppress(ZeroDivisionError), lock:
                raise ZeroDivisionError
            found.append(suspend())

        in_portal(work)
        assert found == [None, None, None]


class Holder:
    def __init__(self, lock: Any) -> None:
        self.lock = lock
        self.locks = {"one": lock, "": lock, 0: lock, -1: lock, 1_000: lock}


the_lock: Any = None

LONG = """
def holding(lock, hold):
    number = 0
    with lock:
        found = hold()
        {many}
    return found
""".format(many="\n        ".join(["number = number + 1"] * 300))


class Forms:
    """Each holds a lock by a ``with`` whose expression debug mode can evaluate again."""

    @staticmethod
    def local(lock: Any, hold: Any) -> Any:
        with lock:
            return hold()

    @staticmethod
    def assigned(lock: Any, hold: Any) -> Any:
        mine = lock
        with mine:
            return hold()

    @staticmethod
    def attribute(lock: Any, hold: Any) -> Any:
        holder = Holder(lock)
        with holder.lock:
            return hold()

    @staticmethod
    def attributes(lock: Any, hold: Any) -> Any:
        holder = Holder(Holder(lock))
        with holder.lock.lock:
            return hold()

    @staticmethod
    def first(lock: Any, hold: Any) -> Any:
        locks = [lock]
        with locks[0]:
            return hold()

    @staticmethod
    def last(lock: Any, hold: Any) -> Any:
        locks = [None, lock]
        with locks[-1]:
            return hold()

    @staticmethod
    def number(lock: Any, hold: Any) -> Any:
        holder = Holder(lock)
        with holder.locks[1_000]:
            return hold()

    @staticmethod
    def string(lock: Any, hold: Any) -> Any:
        holder = Holder(lock)
        with holder.locks["one"]:
            return hold()

    @staticmethod
    def empty_string(lock: Any, hold: Any) -> Any:
        holder = Holder(lock)
        with holder.locks[""]:
            return hold()

    @staticmethod
    def attribute_of_item(lock: Any, hold: Any) -> Any:
        holders = {"one": [Holder(lock)]}
        with holders["one"][0].lock:
            return hold()

    @staticmethod
    def global_variable(lock: Any, hold: Any) -> Any:
        global the_lock
        the_lock = lock
        with the_lock:
            return hold()

    @staticmethod
    def free_variable(lock: Any, hold: Any) -> Any:
        def inner() -> Any:
            with lock:
                return hold()

        return inner()

    @staticmethod
    def cell_variable(lock: Any, hold: Any) -> Any:
        def inner() -> Any:
            return lock

        with lock:
            return inner() and hold()

    @staticmethod
    def bound(lock: Any, hold: Any) -> Any:
        with lock as taken:
            return taken is not None and hold()

    @staticmethod
    def bound_to_attribute(lock: Any, hold: Any) -> Any:
        holder = Holder(lock)
        with lock as holder.lock:
            return hold()

    @staticmethod
    def first_item(lock: Any, hold: Any) -> Any:
        with lock, contextlib.suppress(ZeroDivisionError):
            return hold()

    @staticmethod
    def second_item(lock: Any, hold: Any) -> Any:
        holder = Holder(lock)
        with contextlib.suppress(ZeroDivisionError), holder.lock:
            return hold()

    @staticmethod
    def outer(lock: Any, hold: Any) -> Any:
        with lock:
            with contextlib.suppress(ZeroDivisionError):
                return hold()

    @staticmethod
    def inner(lock: Any, hold: Any) -> Any:
        with contextlib.suppress(ZeroDivisionError):
            with lock:
                return hold()

    @staticmethod
    def after_another(lock: Any, hold: Any) -> Any:
        with contextlib.suppress(ZeroDivisionError):
            pass
        with lock:
            with contextlib.suppress(ZeroDivisionError):
                raise ZeroDivisionError
            return hold()

    @staticmethod
    def around_a_handler(lock: Any, hold: Any) -> Any:
        with lock:
            try:
                raise ZeroDivisionError
            except ZeroDivisionError:
                return hold()

    @staticmethod
    def in_a_handler(lock: Any, hold: Any) -> Any:
        try:
            raise ZeroDivisionError
        except ZeroDivisionError:
            with lock:
                return hold()

    @staticmethod
    def in_a_finally(lock: Any, hold: Any) -> Any:
        found = None
        try:
            pass
        finally:
            with lock:
                found = hold()
        return found

    @staticmethod
    def in_a_loop(lock: Any, hold: Any) -> Any:
        found = None
        for _ in range(2):
            with lock:
                found = hold()
                continue
        return found

    @staticmethod
    def in_a_generator(lock: Any, hold: Any) -> Any:
        def generator() -> Iterator[Any]:
            with lock:
                yield hold()

        (found,) = generator()
        return found

    @staticmethod
    def in_a_comprehension(lock: Any, hold: Any) -> Any:
        with lock:
            (found,) = [hold() for _ in range(1)]
        return found

    @staticmethod
    def in_a_class(lock: Any, hold: Any) -> Any:
        class Body:
            mine = lock
            with mine:
                found = hold()

        return Body.found

    @staticmethod
    def in_a_module(lock: Any, hold: Any) -> Any:
        names = {"lock": lock, "hold": hold}
        exec("with lock:\n    found = hold()", names)
        return names["found"]

    @staticmethod
    def in_a_long_function(lock: Any, hold: Any) -> Any:
        names: Any = {}
        exec(LONG, names)
        return names["holding"](lock, hold)


class Opaque:
    """Each does so by one that has to be noted when it is entered."""

    @staticmethod
    def named(lock: Any, hold: Any) -> Any:
        with (mine := lock):
            return mine and hold()

    @staticmethod
    def of_a_call(lock: Any, hold: Any) -> Any:
        with Holder(lock).lock:
            return hold()

    @staticmethod
    def of_a_choice(lock: Any, hold: Any) -> Any:
        with lock if hold else the_lock:
            return hold()

    @staticmethod
    def of_a_variable(lock: Any, hold: Any) -> Any:
        locks, index = [lock], 0
        with locks[index]:
            return hold()

    @staticmethod
    def of_a_variable_around_a_class(lock: Any, hold: Any) -> Any:
        class Body:
            with lock:
                found = hold()

        return Body.found


def forms(*classes: type) -> Any:
    found = [getattr(each, name) for each in classes for name in vars(each) if name[0] != "_"]
    return pytest.mark.parametrize("form", found, ids=lambda form: form.__name__)


class TestForms:
    @kinds
    @forms(Forms, Opaque)
    def test_noted(self, kind: str, form: Any, suspend: Any, in_portal: Any) -> None:
        """A lock is found whatever is written after the ``with``, and wherever that is."""

        def work() -> None:
            found = form(getattr(threading, kind)(), suspend)
            assert subject(found).startswith(f"threading.{kind}")
            assert any("it was noted" in each for each in found.evidence)
            assert suspend() is None

        in_portal(work)

    @pytest.mark.parametrize("kind", [0, 1], ids=["Lock", "RLock"])
    @forms(Forms)
    def test_made_before(self, kind: Any, form: Any, suspend: Any, in_portal: Any) -> None:
        """So is one that was made before, where the expression can be evaluated again."""
        pytest.importorskip("pure_eval")

        def work() -> None:
            found = form(genuine[kind](), suspend)
            assert subject(found).startswith(("threading.Lock, ", "threading.RLock, "))
            assert any("evaluates to it" in each for each in found.evidence)
            assert suspend() is None

        in_portal(work)

    @kinds
    def test_in_async_functions(self, kind: str, backend: Any, suspend: Any) -> None:
        """A ``with`` around or inside of an ``async with`` is told from that."""
        lock = getattr(threading, kind)()

        class Nothing:
            async def __aenter__(self) -> None:
                pass

            async def __aexit__(self, *exc_info: object) -> None:
                pass

        async def main() -> None:
            async with Nothing():
                assert await greenback.with_portal_run_sync(suspend) is None
                with lock:
                    found = await greenback.with_portal_run_sync(suspend)
                    assert subject(found).endswith(f"acquired at {__file__}:{line() - 2}")
                assert await greenback.with_portal_run_sync(suspend) is None
            with lock:
                async with Nothing():
                    found = await greenback.with_portal_run_sync(suspend)
                    assert subject(found).endswith(f"acquired at {__file__}:{line() - 3}")
            async with Nothing():
                assert await greenback.with_portal_run_sync(suspend) is None

        backend.run(main)


class TestHeldByAcquire:
    @kinds
    def test_until_released(self, kind: str, suspend: Any, in_portal: Any) -> None:
        """A lock is found from acquire() to release(), also from another function."""
        lock = getattr(threading, kind)()

        def take() -> int:
            lock.acquire()
            return line() - 1

        def work() -> None:
            assert suspend() is None
            at = take()
            assert subject(suspend()).endswith(f"acquired at {__file__}:{at}")
            lock.release()
            assert suspend() is None

        in_portal(work)

    @kinds
    def test_acquired_before_the_portal(self, kind: str, backend: Any, suspend: Any) -> None:
        """A lock that the task acquired before it had a portal is found."""
        lock = getattr(threading, kind)()

        async def main() -> None:
            lock.acquire()
            assert subject(await greenback.with_portal_run_sync(suspend))
            lock.release()
            assert await greenback.with_portal_run_sync(suspend) is None

        backend.run(main)

    def test_reentrant_lock_counts(self, suspend: Any, in_portal: Any) -> None:
        """A reentrant lock is held until it is released as often as it was acquired."""
        lock = threading.RLock()

        def work() -> None:
            lock.acquire()
            with lock:
                lock.acquire()
                lock.release()
            assert subject(suspend())
            lock.release()
            assert suspend() is None

        in_portal(work)

    @pytest.mark.usefixtures("others_are_shown")
    def test_while_another_thread_waits_for_it(self, suspend: Any, in_portal: Any) -> None:
        """A lock is still this task's while another thread waits for it."""
        lock = threading.Lock()
        waiting = threading.Event()

        def other() -> None:
            waiting.set()
            lock.acquire()
            lock.release()

        def work() -> None:
            lock.acquire()
            thread = threading.Thread(target=other)
            thread.start()
            waiting.wait()
            assert subject(suspend())
            lock.release()
            thread.join()
            assert suspend() is None

        in_portal(work)

    def test_condition_waited_for(self, suspend: Any, in_portal: Any) -> None:
        """A Condition's lock is the task's again after wait(), and only as long as the block."""
        condition = threading.Condition()

        def work() -> None:
            with condition:
                condition.wait(0.001)
                assert subject(suspend())
            assert suspend() is None

        in_portal(work)


def holding(lock: Any) -> Iterator[None]:
    with lock:
        yield


@contextlib.contextmanager
def held_within(lock: Any) -> Iterator[None]:
    with contextlib.suppress(ZeroDivisionError), lock:
        yield


guards = pytest.mark.parametrize(
    "kind", ["Lock", "RLock", "Condition", "Semaphore", "BoundedSemaphore"]
)


class TestHeldByGenerator:
    """By one that is suspended inside of a ``with``."""

    @guards
    def test_in_a_context_manager(self, kind: str, suspend: Any, in_portal: Any) -> None:
        """A lock is found while a function is inside a context manager that is a generator."""
        lock = getattr(threading, kind)()

        def work() -> None:
            assert suspend() is None
            for _ in range(2):
                with held_within(lock):
                    found = suspend()
                    assert subject(found).startswith(f"threading.{kind}")
                    assert f"acquired at {__file__}:" in subject(found)
                    assert any("of the generator held_within" in each for each in found.evidence)
                assert suspend() is None

        in_portal(work)

    @guards
    def test_iterated_over(self, kind: str, suspend: Any, in_portal: Any) -> None:
        """A lock is found until the generator is exhausted, closed or has raised."""
        lock = getattr(threading, kind)()

        def work() -> None:
            for _ in holding(lock):
                assert subject(suspend())
            assert suspend() is None
            generator: Any = holding(lock)
            next(generator)
            assert subject(suspend())
            generator.close()
            assert suspend() is None
            generator = holding(lock)
            next(generator)
            with contextlib.suppress(LookupError):
                generator.throw(LookupError)
            assert suspend() is None

        in_portal(work)

    @guards
    def test_in_an_async_context_manager(self, kind: str, backend: Any, suspend: Any) -> None:
        """A lock that an asynchronous generator holds is found as well."""
        lock = getattr(threading, kind)()

        @contextlib.asynccontextmanager
        async def transaction() -> Any:
            with lock:
                yield

        async def main() -> None:
            async with transaction():
                assert subject(await greenback.with_portal_run_sync(suspend))
            assert await greenback.with_portal_run_sync(suspend) is None

        backend.run(main)

    @guards
    def test_of_another_task(self, kind: str, watcher: Watcher) -> None:
        """A generator that another task has started is that task's."""
        lock = getattr(threading, kind)()

        async def holder(held: asyncio.Event, done: asyncio.Event) -> None:
            def work() -> None:
                with held_within(lock):
                    held.set()
                    greenback.await_(done.wait())

            await greenback.with_portal_run_sync(work)

        async def main() -> None:
            held, done = asyncio.Event(), asyncio.Event()
            task = asyncio.ensure_future(holder(held, done))
            await held.wait()
            assert subject(watcher.found.pop())
            await greenback.ensure_portal()
            greenback.await_(asyncio.sleep(0))
            assert watcher.found.pop() is None
            done.set()
            await task

        asyncio.run(main())

    @guards
    @pytest.mark.parametrize("how", ["call", "kept", "unseen", "generator"])
    def test_taken_by_another_thread_since(
        self, kind: str, how: str, suspend: Any, in_portal: Any
    ) -> None:
        """What a generator has let go of, and another thread has taken since, is not the task's."""
        lock = getattr(threading, kind)()
        kept = lock.acquire if how == "kept" else None
        taken, done = threading.Event(), threading.Event()

        def other() -> None:
            generator = holding(lock)
            if how == "generator":
                next(generator)
            elif how == "unseen":
                lock.acquire()
            else:
                kept() if kept is not None else lock.acquire()
            taken.set()
            done.wait()
            if how == "generator":
                generator.close()  # type: ignore[attr-defined]
            else:
                lock.release()

        def work() -> None:
            for _ in holding(lock):
                pass
            thread = threading.Thread(target=other)
            thread.start()
            taken.wait()
            found = suspend()
            done.set()
            thread.join()
            assert found is None

        in_portal(work)

    def test_taken_back_by_another_thread(self, suspend: Any, in_portal: Any) -> None:
        """A Condition's lock is another thread's after its wait()."""
        lock = threading.Lock()
        condition = threading.Condition(lock)
        waiting, woken, done = threading.Event(), threading.Event(), threading.Event()

        def other() -> None:
            with condition:
                waiting.set()
                condition.wait()
                woken.set()
                done.wait()

        def work() -> None:
            thread = threading.Thread(target=other)
            thread.start()
            waiting.wait()
            with held_within(condition):
                condition.notify()
            woken.wait()
            assert suspend() is None
            done.set()
            thread.join()

        in_portal(work)


semaphores = pytest.mark.parametrize("kind", ["Semaphore", "BoundedSemaphore"])


class TestSemaphores:
    @semaphores
    @forms(Forms, Opaque)
    def test_held_by_with(self, kind: str, form: Any, suspend: Any, in_portal: Any) -> None:
        """A semaphore is found inside its ``with``, whatever the form, and not after it."""

        def work() -> None:
            semaphore = getattr(threading, kind)(2)
            found = form(semaphore, suspend)
            assert subject(found).startswith(f"threading.{kind}, acquired at ")
            assert suspend() is None

        in_portal(work)

    @semaphores
    def test_held_by_acquire(self, kind: str, suspend: Any, in_portal: Any) -> None:
        """It is found after acquire(), in a function that releases it as well."""

        def work() -> None:
            semaphore = getattr(threading, kind)(2)
            semaphore.acquire()
            try:
                assert subject(suspend()).startswith(f"threading.{kind}, acquired at ")
            finally:
                semaphore.release()
            assert suspend() is None

        in_portal(work)

    @semaphores
    def test_that_is_a_signal(self, kind: str, suspend: Any, in_portal: Any) -> None:
        """One that another task or thread releases is not held by the task that acquired it."""

        def work() -> None:
            free, full = getattr(threading, kind)(3), threading.Semaphore(0)

            def produce() -> None:
                free.acquire()
                full.release()

            def consume() -> None:
                full.acquire()
                assert suspend() is None
                free.release()

            produce()
            produce()
            assert suspend() is None
            consume()
            consume()
            assert suspend() is None

        in_portal(work)

    @semaphores
    def test_held_by_somebody_else(self, kind: str, suspend: Any, in_portal: Any) -> None:
        """One of which another has a permit is not held by a task that has given back its own."""

        def work() -> None:
            semaphore = getattr(threading, kind)(2)
            mine, other = holding(semaphore), threading.Thread(target=semaphore.acquire)
            next(mine)
            other.start()
            other.join()
            mine.close()  # type: ignore[attr-defined]
            assert suspend() is None

        in_portal(work)

    @semaphores
    def test_are_as_before(self, kind: str) -> None:
        """Their methods, by an instance or the class, are those of `threading`."""
        semaphore = getattr(threading, kind)()
        assert inspect.isfunction(getattr(threading, kind).acquire)
        assert inspect.ismethod(semaphore.acquire)
        assert getattr(threading, kind).acquire(semaphore)
        assert not semaphore.acquire(blocking=False)
        semaphore.release()
        gone = weakref.ref(semaphore)
        with semaphore:
            pass
        del semaphore
        collect()
        assert gone() is None


class TestNotHeld:
    @kinds
    def test_by_another_thread(self, kind: str, suspend: Any, in_portal: Any) -> None:
        """A lock that another thread holds is not this task's, also after it tried in vain."""
        lock = getattr(threading, kind)()
        held, done = threading.Event(), threading.Event()

        def other() -> None:
            with lock:
                held.set()
                done.wait()

        def work() -> None:
            thread = threading.Thread(target=other)
            thread.start()
            held.wait()
            assert suspend() is None
            assert not lock.acquire(blocking=False)
            assert suspend() is None
            assert not lock.acquire(timeout=0.001)
            assert suspend() is None
            done.set()
            thread.join()

        in_portal(work)

    @kinds
    def test_by_another_task(self, kind: str, watcher: Watcher) -> None:
        """A lock that another task holds across its suspension is reported for that one only."""
        lock = getattr(threading, kind)()

        async def holder(held: asyncio.Event, done: asyncio.Event) -> None:
            def work() -> None:
                lock.acquire()
                held.set()
                greenback.await_(done.wait())
                lock.release()

            await greenback.with_portal_run_sync(work)

        async def main() -> None:
            held, done = asyncio.Event(), asyncio.Event()
            task = asyncio.ensure_future(holder(held, done))
            await held.wait()
            assert subject(watcher.found.pop())
            await greenback.ensure_portal()
            greenback.await_(asyncio.sleep(0))
            assert watcher.found.pop() is None
            if kind == "Lock":
                assert not lock.acquire(blocking=False)
                greenback.await_(asyncio.sleep(0))
                assert watcher.found.pop() is None
            done.set()
            await task

        asyncio.run(main())

    def test_between_two_bridges(self, suspend: Any, in_portal: Any) -> None:
        """What is acquired and released between two bridges is of no interest."""

        def work() -> None:
            for lock in (threading.Lock(), threading.RLock(), threading.Condition()):
                assert suspend() is None
                with lock:
                    pass
                lock.acquire()
                lock.release()
                assert suspend() is None

        in_portal(work)

    def test_looked_up_and_not_called(self, suspend: Any, in_portal: Any) -> None:
        """A reference to acquire() is not a call of it."""
        lock = threading.Lock()

        def work() -> None:
            acquire = lock.acquire
            assert hasattr(lock, "acquire")
            thread = threading.Thread(target=acquire)
            thread.start()
            thread.join()
            assert suspend() is None
            lock.release()

        in_portal(work)

    def test_locks_of_the_async_library(self, watcher: Watcher) -> None:
        """asyncio's own locks are there to be held across suspensions."""

        async def main() -> None:
            await greenback.ensure_portal()
            async with asyncio.Lock():
                greenback.await_(asyncio.sleep(0))

        asyncio.run(main())
        assert watcher.found == [None]


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
        lock_held.install()
        lock_held.uninstall()
        lock_held.uninstall()
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
import greenback_trace.misuse.detectors.lock_held as locks

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
