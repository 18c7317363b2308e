"""Two threads that meet at each instruction, as on a build without the GIL.

With the GIL, CPython 3.10 and later switches threads at few places only: in calls and loops. A race
anywhere else shows only without the GIL. So these functions stop one thread before each of its
instructions in turn, and let a second thread do all its work at that moment.
"""

from __future__ import annotations

import itertools
import sys
import threading
from types import FrameType, ModuleType
from typing import Any, Callable, Iterable, List, Optional, Tuple

#: After so many seconds, the second thread counts as waiting for something other than `Turns.lock`.
_PATIENCE = 30


class Turns:
    """Whose turn it is. It is the first thread's again when the second has ended or must wait."""

    def __init__(self) -> None:
        self._back = threading.Event()

    def lock(self) -> Any:
        """A reentrant lock, to replace one that both threads take."""
        return _Lock(self._back)

    def give(self, second: Callable[[], object]) -> threading.Thread:
        def run() -> None:
            try:
                second()
            finally:
                self._back.set()

        thread = threading.Thread(target=run)
        thread.start()
        assert self._back.wait(_PATIENCE), "the second thread waits for the first"
        return thread


class _Lock:
    def __init__(self, back: threading.Event) -> None:
        self._lock = threading.RLock()
        self._back = back

    def acquire(self, blocking: bool = True) -> bool:
        if self._lock.acquire(blocking=False):
            return True
        if blocking:
            self._back.set()
            self._lock.acquire()
        return blocking

    def release(self) -> None:
        self._lock.release()

    def __enter__(self) -> None:
        self.acquire()

    def __exit__(self, *exc_info: object) -> None:
        self.release()


#: Returns three functions: the first thread's, the second thread's, and the check at the end.
Prepare = Callable[[Turns], Tuple[Callable[[], object], Callable[[], object], Callable[[], object]]]


def at_each_instruction(
    prepare: Prepare, *modules: ModuleType, numbers: Optional[Iterable[int]] = None
) -> None:
    """Let two threads meet at each instruction that the first thread executes in *modules*.

    Args:
        prepare: Called for each instruction, with a new `Turns`.
        modules: The modules in which to stop the first thread.
        numbers: Stop at these instructions only, counted from 1. There is no end to them.
    """
    assert CAN_STOP
    files = [module.__file__ for module in modules]
    before = sys.gettrace()
    meetings = 0
    for number in numbers or itertools.count(1):
        turns = Turns()
        first, second, look = prepare(turns)
        met = _meet(first, lambda: turns.give(second), number - 1, files)
        sys.settrace(before)
        if met is None:
            second()  # it undoes the preparations
            break
        met.join()
        look()
        meetings += 1
    assert meetings, "the first thread executes nothing there"


def _meet(
    first: Callable[[], object],
    give: Callable[[], threading.Thread],
    number: int,
    files: List[Optional[str]],
) -> Optional[threading.Thread]:
    """Run *first*, stopped before an instruction; None if there are fewer instructions."""
    met: List[threading.Thread] = []

    def trace(frame: FrameType, event: str, argument: Any) -> Any:
        nonlocal number
        if frame.f_code.co_filename not in files:
            return None
        frame.f_trace_opcodes = True
        if event == "opcode":
            if number == 0:
                sys.settrace(None)
                met.append(give())
            number -= 1
        return trace

    sys.settrace(trace)
    try:
        first()
    finally:
        sys.settrace(None)
    return met[0] if met else None


def _can_stop() -> bool:
    """Whether the interpreter calls trace functions for instructions."""
    events: List[str] = []

    def trace(frame: FrameType, event: str, argument: Any) -> Any:
        frame.f_trace_opcodes = True
        events.append(event)
        return trace

    def traced() -> None:
        pass

    before = sys.gettrace()
    sys.settrace(trace)
    traced()
    sys.settrace(before)
    return "opcode" in events


CAN_STOP = _can_stop()
