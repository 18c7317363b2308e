"""Locks that a task holds without a ``with`` in its own stack."""

from __future__ import annotations

import asyncio
import contextlib
import sys
import threading
from typing import Any, Iterator

import pytest

import greenback

from .holding import Watcher, holding, kinds, subject


def line() -> int:
    return sys._getframe(1).f_lineno


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


@contextlib.contextmanager
def held_within(lock: Any) -> Iterator[None]:
    with contextlib.suppress(ZeroDivisionError), lock:
        yield


guards = pytest.mark.parametrize(
    "kind", ["Lock", "RLock", "Condition", "Semaphore", "BoundedSemaphore"]
)


class TestHeldByGenerator:
    """Locks held by a generator that is suspended inside of a ``with``."""

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
        """A lock that an asynchronous generator holds is found."""
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
        """A lock of a generator that another task has started is that task's."""
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
        """A lock that a generator has released and another thread has taken is not the task's."""
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
