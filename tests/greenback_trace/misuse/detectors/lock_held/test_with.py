"""Locks that a task holds while its bridge suspends."""

from __future__ import annotations

import contextlib
import sys
import threading
from pathlib import Path
from typing import Any, List

import pytest

import greenback

from .holding import Forms, Opaque, genuine, kinds, made_before, subject

reentrant_before = threading.RLock()


HERE = Path(__file__).name


def line() -> int:
    return sys._getframe(1).f_lineno


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
        """The finding names the frame inside the block, at any depth of the bridge below it."""
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
        """A block that was left by return, break or an exception no longer holds its lock."""
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


the_lock: Any = None


def forms(*classes: type) -> Any:
    found = [getattr(each, name) for each in classes for name in vars(each) if name[0] != "_"]
    return pytest.mark.parametrize("form", found, ids=lambda form: form.__name__)


class TestForms:
    @kinds
    @forms(Forms, Opaque)
    def test_noted(self, kind: str, form: Any, suspend: Any, in_portal: Any) -> None:
        """A lock is found in every form and place of a ``with``."""

        def work() -> None:
            found = form(getattr(threading, kind)(), suspend)
            assert subject(found).startswith(f"threading.{kind}")
            assert any("it was noted" in each for each in found.evidence)
            assert suspend() is None

        in_portal(work)

    @pytest.mark.parametrize("kind", [0, 1], ids=["Lock", "RLock"])
    @forms(Forms)
    def test_made_before(self, kind: Any, form: Any, suspend: Any, in_portal: Any) -> None:
        """A lock made before debug mode is found where the expression can be evaluated again."""
        pytest.importorskip("pure_eval")

        def work() -> None:
            found = form(genuine[kind](), suspend)
            assert subject(found).startswith(("threading.Lock, ", "threading.RLock, "))
            assert any("evaluates to it" in each for each in found.evidence)
            assert suspend() is None

        in_portal(work)

    @kinds
    def test_in_async_functions(self, kind: str, backend: Any, suspend: Any) -> None:
        """A ``with`` around or inside of an ``async with`` is told apart from it."""
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
