"""The code that holds the event loop: the stack of a slow step, taken while the step still runs.

The place where a slow step ended says little about where it spent its time. So a thread looks at
the running steps, as gevent's monitor thread does. It samples a step that has run for half as long
as a slow one may, and again at intervals, and names the code that it has seen for the longest time.

Code that never releases the GIL, such as one long call of C code, also holds up the watchdog. Such
a step has no sample, or one of the code that runs after the call. Without the GIL there is no
watchdog: see `can_look_at_others`.
"""

from __future__ import annotations

import logging
import threading
from _thread import allocate_lock, get_ident
from time import perf_counter_ns
from types import CodeType, FrameType
from typing import TYPE_CHECKING, Any, Dict, List, Optional, Tuple

from greenback._frames import frames_of_step, is_own, outwards

from ..count import layout
from ..count.frames import current_frames
from ..count.sites import Sites

if TYPE_CHECKING:
    from greenback.instruments import Portal

#: The most frames of a stack. Those in the middle of a longer one are left out.
_STACK_LIMIT = 100
#: The watchdog looks for a step this often in vain before it sleeps until the next one.
_QUIET_LOOKS = 20


class Held:
    """The code that held the event loop.

    Attributes:
        function: ``module.qualname`` of the innermost function.
        file: The file of that function.
        line: The line that it was at.
        stack: A line for each function, ``module.qualname (file:line)``, outermost first: the
            functions around the portal, then those in it.
    """

    __slots__ = ("file", "function", "line", "stack")

    def __init__(self, function: str, file: str, line: int, stack: List[str]) -> None:
        self.function = function
        self.file = file
        self.line = line
        self.stack = stack


class _Samples:
    """The samples of one step: for each innermost function and line, how long it was seen.

    The watchdog's thread writes them. The step's thread reads them when the step is over.
    """

    __slots__ = ("next_due", "seen")

    def __init__(self, next_due: int) -> None:
        self.next_due = next_due
        self.seen: Dict[Tuple[CodeType, int], Tuple[int, Held]] = {}


# A running step: its thread, its start, and its samples. C code makes such lists, too.
_Step = List[Any]
_THREAD, _STARTED, _SAMPLES = range(3)


@layout.in_c
class Watchdog(layout.Watchdog):
    """Samples the stacks of slow steps, in a thread that starts with the first step.

    Args:
        slow_seconds: A step that takes longer is slow.
    """

    __slots__ = (
        "__weakref__",
        "_interval",
        "_sites",
        "_slow_ns",
        "_starting",
        "_stopped",
        "_thread",
        "_wake",
    )

    def __init__(self, slow_seconds: float) -> None:
        self._slow_ns = int(slow_seconds * 1e9)
        self._interval = max(self._slow_ns // 2, 1_000_000)
        self._stopped = False
        self.after_fork()

    def after_fork(self) -> None:
        """Start anew in a forked child, which does not have the thread. Takes no lock."""
        #: The threads of the steps write it, in single operations.
        self._running: Dict[Portal, _Step] = {}
        self._sites = Sites(1)
        self._thread: Optional[threading.Thread] = None
        #: The step that starts the thread takes it, and never releases it.
        self._starting = allocate_lock()
        #: The thread waits for this lock. A release wakes it.
        self._wake = allocate_lock()
        self._wake.acquire()
        #: The thread waits without a time-out, or does not exist yet: the next step wakes it.
        self._idle = True

    def start_step(self, portal: Portal) -> None:
        """Note that a step begins in this thread. `benchmarks` measures the cost."""
        self._running[portal] = [get_ident(), perf_counter_ns(), None]
        if self._idle:
            self._rouse()

    def finish_step(self, portal: Portal) -> Optional[Held]:
        """Note that the step is over. Returns what held the loop, if it was slow and was seen."""
        step = self._running.pop(portal, None)
        if step is None or step[_SAMPLES] is None:
            return None
        if perf_counter_ns() - step[_STARTED] < self._slow_ns:
            return None
        seen = list(step[_SAMPLES].seen.values())
        return max(seen, key=lambda one: one[0])[1] if seen else None  # the first of equals

    def excuse(self, portal: Portal, taken: int) -> None:
        """Subtract nanoseconds that debug mode itself has taken from the step."""
        step = self._running.get(portal)
        if step is not None:
            step[_STARTED] += taken

    def stop(self) -> None:
        """End the thread. Steps that begin later are not sampled."""
        self._stopped = True
        self._idle = False
        self._release()

    def _rouse(self) -> None:
        self._idle = False
        if self._stopped:
            return
        if not self._starting.acquire(False):
            self._release()  # works also where another thread is about to start it
            return
        self._thread = threading.Thread(target=self._watch, name="greenback watchdog", daemon=True)
        try:
            self._thread.start()
        except RuntimeError:
            pass  # the interpreter is shutting down, or there are too many threads

    def _release(self) -> None:
        try:
            self._wake.release()
        except RuntimeError:
            pass  # another thread has woken it already

    # In the thread of the watchdog

    def _watch(self) -> None:
        wake = self._wake
        quiet = 0
        try:
            while not self._stopped:
                pause = self._look(perf_counter_ns())
                if pause is None and quiet < _QUIET_LOOKS:
                    # Another step is likely to come. A step that had to wake this thread would lose
                    # the GIL to it, and the thread would then find no running step: every second
                    # step took 20 us more.
                    quiet += 1
                    wake.acquire(True, self._interval / 1e9)
                elif pause is None:
                    quiet = 0
                    self._idle = True
                    if self._running:  # a step has begun that saw no need to wake this thread
                        self._idle = False
                        continue
                    wake.acquire()
                else:
                    quiet = 0
                    wake.acquire(True, pause / 1e9)
        except Exception:
            logging.getLogger("greenback").exception("the watchdog of slow steps has stopped")

    def _look(self, now: int) -> Optional[int]:
        """Sample the steps that are due. Returns the nanoseconds until the next, if any."""
        next_due = None
        # copy(), since list() of items is interrupted by finalizers before CPython 3.12.
        for portal, step in self._running.copy().items():
            if portal.home is None:  # it is over: the step of a killed worker has never begun
                self._running.pop(portal, None)
                continue
            samples = step[_SAMPLES]
            due = step[_STARTED] + self._interval if samples is None else samples.next_due
            if due <= now:
                if samples is None:
                    samples = step[_SAMPLES] = _Samples(due)
                self._sample(portal, step, samples)
                # At ever longer intervals: a step of an hour is not sampled 72,000 times.
                due = now + max(self._interval, (now - step[_STARTED]) // 10)
                samples.next_due = due
            next_due = due if next_due is None else min(next_due, due)
        return None if next_due is None else max(next_due - now, 1_000_000)

    def _sample(self, portal: Portal, step: _Step, samples: _Samples) -> None:
        frame = current_frames().get(step[_THREAD])
        if self._running.get(portal) is not step:
            return  # the step ended before the frame was taken
        innermost = next((each for each in outwards(frame) if not is_own(each)), None)
        if innermost is None:
            return
        line = innermost.f_lineno or 0
        key = (innermost.f_code, line)
        known = samples.seen.get(key)
        if known is not None:
            samples.seen[key] = (known[0] + self._interval, known[1])
            return
        frames = frames_of_step(portal, innermost)
        stack = [_described(frame) for frame in frames if not is_own(frame)]
        if len(stack) > _STACK_LIMIT:
            left_out = len(stack) - _STACK_LIMIT
            half = _STACK_LIMIT // 2
            stack[half:-half] = [f"... {left_out} more ..."]
        function = self._sites.calling(innermost).function
        held = Held(function, innermost.f_code.co_filename, line, stack)
        samples.seen[key] = (self._interval, held)


def _described(frame: FrameType) -> str:
    code = frame.f_code
    name = getattr(code, "co_qualname", code.co_name)
    module = frame.f_globals.get("__name__", "?")
    return f"{module}.{name} ({code.co_filename}:{frame.f_lineno})"
