"""Semaphores that a task holds."""

from __future__ import annotations

import inspect
import threading
import weakref
from typing import Any

import pytest

from ...garbage import collect
from .holding import Forms, Opaque, holding, subject

the_lock: Any = None


def forms(*classes: type) -> Any:
    found = [getattr(each, name) for each in classes for name in vars(each) if name[0] != "_"]
    return pytest.mark.parametrize("form", found, ids=lambda form: form.__name__)


semaphores = pytest.mark.parametrize("kind", ["Semaphore", "BoundedSemaphore"])


class TestSemaphores:
    @semaphores
    @forms(Forms, Opaque)
    def test_held_by_with(self, kind: str, form: Any, suspend: Any, in_portal: Any) -> None:
        """A semaphore is found inside every form of ``with``, and not after it."""

        def work() -> None:
            semaphore = getattr(threading, kind)(2)
            found = form(semaphore, suspend)
            assert subject(found).startswith(f"threading.{kind}, acquired at ")
            assert suspend() is None

        in_portal(work)

    @semaphores
    def test_held_by_acquire(self, kind: str, suspend: Any, in_portal: Any) -> None:
        """A semaphore is found after acquire(), in a function that also releases it."""

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
        """A semaphore that others release is not held by the task that acquired it."""

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
        """A semaphore of which a thread has a permit is not held by a task that has released it."""

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
        """The methods of semaphores, on an instance or the class, are those of `threading`."""
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
