"""Two threads that meet at each instruction, as they do on a build without the GIL.

With the GIL, CPython 3.10 and later has other threads run at few places: in calls and loops. What
is lost in between is lost elsewhere. So one thread is stopped before each of its instructions, one
after the other, and a second one does all that it does at that moment.
"""

from __future__ import annotations

import sys
import threading
from types import FrameType, ModuleType
from typing import Any, Callable, List, Optional, Tuple

#: Seconds after which the second thread is taken to wait for something that is not `Turns.lock`.
_PATIENCE = 30


class Turns:
    """Whose turn it is: the first thread's again when the second has ended, or has to wait."""

    def __init__(self) -> None:
        self._back = threading.Event()

    def lock(self) -> Any:
        """A reentrant lock, to be put in the place of one that both threads take."""
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


#: Gives what the first thread does, what the second does, and what is to be looked at in the end.
Prepare = Callable[[Turns], Tuple[Callable[[], object], Callable[[], object], Callable[[], object]]]


def at_each_instruction(prepare: Prepare, *modules: ModuleType) -> None:
    """Let two threads meet at each instruction that the first one executes in *modules*.

    Args:
        prepare: Called for each of them, with whose turn it is.
        modules: Where the first thread is stopped.
    """
    assert CAN_STOP
    files = [module.__file__ for module in modules]
    before = sys.gettrace()
    number = 0
    while True:
        turns = Turns()
        first, second, look = prepare(turns)
        met = _meet(first, lambda: turns.give(second), number, files)
        sys.settrace(before)
        if met is None:
            second()  # it undoes what has been prepared for it
            break
        met.join()
        look()
        number += 1
    assert number, "the first thread executes nothing there"


def _meet(
    first: Callable[[], object],
    give: Callable[[], threading.Thread],
    number: int,
    files: List[Optional[str]],
) -> Optional[threading.Thread]:
    """Run *first*, and stop it before an instruction; None if there are less."""
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
    """Whether the interpreter tells trace functions of instructions."""
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
