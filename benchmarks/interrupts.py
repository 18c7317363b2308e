"""Whether an exception that arrives asynchronously can leave a lock of debug mode held.

    python benchmarks/interrupts.py [rounds]

Every round interrupts a loop that takes and releases a lock at a random moment, by a signal handler
that raises or by `PyThreadState_SetAsyncExc`, and then looks at the lock. Printed is in how many
rounds it was held, next to the same for the C lock and for a lock whose methods are written in
Python. An explicit ``acquire()`` before a ``try`` is not safe with any lock: there, the C lock's
figure is what ours is measured by.
"""

from __future__ import annotations

import _thread
import ctypes
import random
import signal
import sys
import threading
import time
from typing import Any, Callable, Dict, Tuple

from greenback_trace.misuse.evidence.locks import replacements


class Interrupted(Exception):  # noqa: N818
    pass


class InPython:
    """What a wrapper would be that takes the lock in Python."""

    def __init__(self) -> None:
        self._lock = _thread.allocate_lock()
        self.locked = self._lock.locked
        self._notes: Any = None

    def acquire(self) -> bool:
        taken = self._lock.acquire()
        self._notes = sys._getframe(1).f_code
        return taken

    def release(self) -> None:
        self._notes = None
        self._lock.release()

    def __enter__(self) -> bool:
        return self.acquire()

    def __exit__(self, *exc_info: object) -> None:
        self.release()


def by_with(lock: Any) -> None:
    while True:
        with lock:
            pass


def by_acquire(lock: Any) -> None:
    while True:
        lock.acquire()
        try:
            pass
        finally:
            lock.release()


def by_signal(work: Callable[[Any], None], lock: Any) -> None:
    try:
        # Again after a while: where Python calls a finalizer, it swallows the first one.
        signal.setitimer(signal.ITIMER_REAL, random.uniform(0.000_01, 0.000_3), 2)
        work(lock)
    except Interrupted:
        signal.setitimer(signal.ITIMER_REAL, 0)


_go = _thread.allocate_lock()
_go.acquire()


def _raise_in(ident: int) -> None:
    while True:
        _go.acquire()
        time.sleep(random.uniform(0.000_01, 0.000_3))
        ctypes.pythonapi.PyThreadState_SetAsyncExc(
            ctypes.c_ulong(ident), ctypes.py_object(Interrupted)
        )


def by_thread(work: Callable[[Any], None], lock: Any) -> None:
    try:
        _go.release()
        work(lock)
    except Interrupted:
        pass


def count_left_held(
    make: Callable[[], Any],
    work: Callable[[Any], None],
    interrupt: Callable[[Callable[[Any], None], Any], None],
    rounds: int,
) -> int:
    left_held = 0
    lock = make()
    for _ in range(rounds):
        interrupt(work, lock)
        if is_taken(lock):
            left_held += 1
            lock = make()
    return left_held


def is_taken(lock: Any) -> bool:
    lock = getattr(lock, "_lock", lock)  # of a Condition
    return bool(lock._is_owned() if hasattr(lock, "_is_owned") else lock.locked())


def condition_of_lock() -> threading.Condition:
    return threading.Condition(threading.Lock())


def main() -> None:
    rounds = int(sys.argv[1]) if len(sys.argv) > 1 else 1_500

    def handler(*_: object) -> None:
        raise Interrupted

    signal.signal(signal.SIGALRM, handler)
    sys.setswitchinterval(0.000_01)
    interrupts: Tuple[Any, ...] = (by_signal,)
    if sys.implementation.name == "cpython":
        interrupts += (by_thread,)
        threading.Thread(target=_raise_in, args=(threading.get_ident(),), daemon=True).start()
    replacements.install()
    makers: Dict[str, Any] = {
        "Lock": threading.Lock,
        "RLock": threading.RLock,
        "Condition": threading.Condition,
        "Condition of a Lock": condition_of_lock,
        "Condition without debug mode": None,
        "C lock": _thread.allocate_lock,
        "C RLock": _thread.RLock,
        "lock in Python": InPython,
    }
    for work in (by_with, by_acquire):
        for interrupt in interrupts:
            for name, make in makers.items():
                replacements.install()
                if make is None:
                    replacements.uninstall()
                    make = threading.Condition
                left_held = count_left_held(make, work, interrupt, rounds)
                print(f"{work.__name__} {interrupt.__name__}, {name}: {left_held}", flush=True)


if __name__ == "__main__":
    main()
