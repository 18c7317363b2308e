"""Ways to hold a lock, and a watcher of the locks that are found."""

from __future__ import annotations

import contextlib
import threading
from typing import Any, Iterator, List, Optional

import pytest

from greenback.instruments import Bridge, Instrument
from greenback_trace.misuse.detectors import lock_held
from greenback_trace.misuse.finding import Finding

made_before = threading.Lock()


genuine = (threading.Lock, threading.RLock, threading.Condition.__enter__)


class Watcher(Instrument):
    """Asks at every suspension which lock the task holds, as debug mode does."""

    def __init__(self) -> None:
        self.found: List[Optional[Finding]] = []

    def bridge_suspended(self, bridge: Bridge) -> None:
        assert bridge.frame is not None
        self.found.append(lock_held.held(bridge.frame, bridge.portal.task))


def subject(finding: Optional[Finding]) -> str:
    return "" if finding is None else finding.subject


kinds = pytest.mark.parametrize("kind", ["Lock", "RLock", "Condition"])


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
    """Each holds a lock by a ``with`` that has to be noted when it is entered."""

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


def holding(lock: Any) -> Iterator[None]:
    with lock:
        yield
