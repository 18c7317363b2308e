"""Locks that a task does not hold."""

from __future__ import annotations

import asyncio
import threading
from typing import Any

import greenback

from .holding import Watcher, kinds, subject


class TestNotHeld:
    @kinds
    def test_by_another_thread(self, kind: str, suspend: Any, in_portal: Any) -> None:
        """A lock that another thread holds is not this task's, even after it tried to take it."""
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
        """A lock that another task holds across its suspension is reported for that task only."""
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
        """A lock that is acquired and released between two bridges is not reported."""

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
        """asyncio's own locks may be held across suspensions."""

        async def main() -> None:
            await greenback.ensure_portal()
            async with asyncio.Lock():
                greenback.await_(asyncio.sleep(0))

        asyncio.run(main())
        assert watcher.found == [None]
