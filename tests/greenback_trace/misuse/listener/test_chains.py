"""Facts that are remembered about sync chains."""

from __future__ import annotations

import threading
import types
import weakref
from typing import Any, Dict, Iterator, List

import pytest

import greenback
import greenback_trace
from greenback_trace import MisuseWarning

from ..garbage import IS_PYPY
from .misusing import enable, no_warnings

pytest.importorskip("opentelemetry.sdk.trace", reason="these tests need greenback[report]")


class TestChains:
    """Facts about a sync chain do not hide what may differ the next time."""

    def test_called_from_inside_a_lock(self, backend: Any) -> None:
        """A chain that was fine is looked at again from an async function that holds a lock."""
        enable()
        lock = threading.Lock()

        def inner() -> None:
            greenback.await_(backend.sleep(0))

        def outer() -> None:
            inner()

        async def without() -> None:
            outer()

        async def within() -> None:
            with lock:
                outer()

        async def main() -> None:
            await greenback.ensure_portal()
            for _ in range(3):
                await without()
            for _ in range(3):
                await within()
            await without()

        with pytest.warns(MisuseWarning, match="acquired at"):
            backend.run(main)
        (misuse,) = greenback_trace.snapshot().misuses
        assert (misuse.kind, misuse.count) == ("lock_held", 3)

    def test_acquired_meanwhile(self, backend: Any) -> None:
        """A lock that was taken by calling acquire() is found in a known chain."""
        enable()
        lock = threading.Lock()

        def ask() -> None:
            greenback.await_(backend.sleep(0))

        def work() -> None:
            for _ in range(3):
                ask()
            lock.acquire()
            for _ in range(2):
                ask()
            lock.release()
            ask()

        with no_warnings():
            backend.run(greenback.with_portal_run_sync, work)
        (misuse,) = greenback_trace.snapshot().misuses
        assert (misuse.kind, misuse.count) == ("lock_held", 2)

    @pytest.mark.skipif(IS_PYPY, reason="nothing is freed when it is dropped on PyPy")
    @pytest.mark.parametrize("depth", [0, 50])
    def test_called_by_the_interpreter(self, backend: Any, depth: int) -> None:
        """A known chain is found out where an object's end begins it, or what is beyond its end."""
        enable()

        def deep(levels: int) -> None:  # a chain ends after 32 functions
            if levels:
                deep(levels - 1)
            else:
                greenback.await_(backend.sleep(0))

        class Connection:
            def __del__(self) -> None:
                deep(depth)

        async def main() -> None:
            await greenback.ensure_portal()
            connections = [Connection() for _ in range(2)]
            for _ in range(3):
                for each in connections:
                    each.__del__()
            del each
            connections.clear()

        with pytest.warns(MisuseWarning, match="finalizer"):
            backend.run(main)
        (misuse,) = greenback_trace.snapshot().misuses
        assert (misuse.kind, misuse.count) == ("finalizer", 2)

    @pytest.mark.skipif(IS_PYPY, reason="nothing is freed when it is dropped on PyPy")
    def test_in_a_collected_coroutine(self, backend: Any) -> None:
        """A known chain is found out where a coroutine cleans up since it is collected."""
        enable()

        def clean_up() -> None:
            greenback.await_(backend.sleep(0))

        @types.coroutine
        def step(fails: bool) -> Iterator[None]:
            if fails:
                raise LookupError
            yield

        async def work(fails: bool) -> None:
            try:
                await step(fails)
            except BaseException:
                clean_up()

        async def main() -> None:
            await greenback.ensure_portal()
            for _ in range(3):
                await work(True)
            coroutine = work(False)
            coroutine.send(None)
            del coroutine

        with pytest.warns(MisuseWarning, match="finalizer"):
            backend.run(main)
        (misuse,) = greenback_trace.snapshot().misuses
        assert (misuse.kind, misuse.count) == ("finalizer", 1)

    @pytest.mark.skipif(IS_PYPY, reason="nothing is freed when it is dropped on PyPy")
    def test_more_than_are_told_apart(self, backend: Any) -> None:
        """If there are more callers than are remembered, each of them is looked at."""
        enable(sites=1)  # which makes 20 callers
        is_on = True

        class Dropped:
            def __del__(self) -> None:
                if is_on:  # else, in any later test in which the collector frees it
                    greenback.await_(backend.sleep(0))

        caller = "def caller(thing):\n    thing.__del__()\n"
        callers: List[Dict[str, Any]] = [{} for _ in range(40)]
        for names in callers:
            exec(caller, names)
        kept = Dropped()

        def work() -> None:
            for _ in range(2):
                for names in callers:
                    names["caller"](kept)
            things = [Dropped()]
            assert not greenback_trace.snapshot().misuses
            things.clear()

        try:
            with no_warnings():
                backend.run(greenback.with_portal_run_sync, work)
        finally:
            is_on = False
        (misuse,) = greenback_trace.snapshot().misuses
        assert (misuse.kind, misuse.count) == ("finalizer", 1)

    @pytest.mark.skipif(IS_PYPY, reason="nothing is freed when it is dropped on PyPy")
    @pytest.mark.parametrize("suspends", [False, True])
    def test_keep_nothing_alive(self, backend: Any, suspends: bool) -> None:
        """A known chain keeps no objects of its functions alive."""
        enable()

        async def nothing() -> None:
            pass

        class Thing:
            pass

        def inner() -> None:
            greenback.await_(backend.sleep(0) if suspends else nothing())

        def outer() -> Any:
            thing = Thing()
            inner()
            return weakref.ref(thing)

        async def main() -> List[Any]:
            await greenback.ensure_portal()
            found = []
            for _ in range(3):  # no comprehension: that may be the outermost function itself
                found.append(outer()())
            return found

        assert backend.run(main) == [None, None, None]
