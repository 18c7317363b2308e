"""Steps that hang: a watchdog thread logs them while they hold the event loop.

A slow step is counted and logged when it ends. A deadlock never ends, for example if sync code
waits for the event loop that it runs on. So a thread looks for steps over the limit, twice in the
time that a step may take. A bridge pays only for keeping `Home.stepping` up to date.

A C call that keeps the GIL stops this thread, too. Such a step is logged only when it ends.
"""

from __future__ import annotations

import logging
import sys
import threading
from _thread import allocate_lock
from functools import partial
from time import perf_counter_ns
from types import FrameType
from typing import TYPE_CHECKING, Any, Callable, Dict, Iterator, Optional, Tuple

from greenback._frames import is_bridge, is_own, stepping_portals

from ..count.frames import can_look_at_others
from ..count.names import task_name
from ..count.sites import site_of
from ..count.totals import Totals
from .stacks import is_running, line_of, running_stack

if TYPE_CHECKING:
    from greenback.instruments import Portal

    from .waits import Waits

#: The looks in the time that a step may take, and the least pause between two looks.
_LOOKS = 2
_PAUSE_NS = 20_000_000
#: Frames at each end of a stack; the middle is left out.
_STACK_ENDS = 50


class Step:
    """A step that is running now.

    Attributes:
        portal: The portal of the task.
        started: The time of its start, by `time.perf_counter_ns`.
    """

    __slots__ = ("portal", "started")

    def __init__(self, portal: Portal, started: int) -> None:
        self.portal = portal
        self.started = started

    def is_over(self) -> bool:
        """Whether the step has ended, as far as the watching thread can see."""
        portal = self.portal
        task = portal.task
        try:
            return task is None or portal.entered != self.started or not is_running(task)
        except Exception:  # the task is ending at this moment
            return True


class OverError(Exception):
    """The step ended while it was described."""


class Stall:
    """A step that has held the event loop for too long, and goes on.

    Raises:
        OverError: The step has ended meanwhile.

    Attributes:
        seconds: The time since the start of the step.
        function: ``module.qualname`` of the function whose bridge was the last one in the step.
        library: The async library.
        portal: The kind of portal.
        task: The name of the task, if it has one.
        held_by: The innermost function, as ``module.qualname (file:line)``.
        stack: The lines of a traceback, from the task's outermost function on.
        waits: The lock that the step waits for; None if it waits for none.
        tasks: The number of other tasks in the loop that have not ended; None if unknown.
    """

    __slots__ = (
        "function",
        "held_by",
        "library",
        "portal",
        "seconds",
        "stack",
        "task",
        "tasks",
        "waits",
    )

    def __init__(self, step: Step, now: int, function: str, totals: Totals) -> None:
        try:
            self._describe(step, now, function, totals)
        except Exception:
            if not step.is_over():
                raise
        if step.is_over():
            raise OverError

    def _describe(self, step: Step, now: int, function: str, totals: Totals) -> None:
        portal = step.portal
        task = portal.task
        self.seconds = (now - step.started) / 1e9
        self.function = function
        self.library = portal.library.name
        self.portal = portal.kind
        self.task = task_name(task)
        self.tasks = _count_others(portal)
        self.waits: Optional[Waits] = None
        self.held_by = self.stack = ""
        frames = running_stack(task)
        shown = [frame for frame in frames if is_bridge(frame) or not is_own(frame)]
        if not shown:
            self.stack = "(without the GIL, no other thread can read it)\n"
            if can_look_at_others():
                self.stack = "(it is running where another thread cannot see it)\n"
            return
        self.held_by = str(site_of(shown[-1]))
        lines = list(map(_line, shown))
        left_out = len(lines) - 2 * _STACK_ENDS
        if left_out > 0:
            lines[_STACK_ENDS:-_STACK_ENDS] = [f"  ({left_out} more)\n"]
        self.stack = "".join(lines)
        from .waits import find  # imports debug mode, which is not loaded otherwise

        self.waits = find(shown[-1], task, totals)


def _line(frame: FrameType) -> str:
    return "  --- bridge: greenback.await_ ---\n" if is_bridge(frame) else line_of(frame)


def running_steps(totals: Totals) -> Iterator[Step]:
    """The steps that threads are making now, if *totals* were told of their start."""
    for portal in stepping_portals():
        tally = portal.note
        step = Step(portal, portal.entered)
        if tally is None or tally.totals is not totals or step.started < tally.opened_at:
            continue
        if not step.is_over():
            yield step


def _count_others(portal: Portal) -> Optional[int]:
    """The number of other tasks in the loop, without Trio's system tasks; None if unknown."""
    task = portal.task
    try:
        if portal.library.name == "trio":
            runner = task._runner
            return sum(
                each is not task and (each is runner.main_task or not _is_of_trio(each, runner))
                for each in list(runner.tasks)
            )
        loop = portal.library.loop_of(task)
        return len(sys.modules["asyncio"].all_tasks(loop) - {task})
    except Exception:  # they change meanwhile
        return None


def _is_of_trio(task: Any, runner: Any) -> bool:
    nursery = task.parent_nursery
    return nursery is None or nursery.parent_task is runner.init_task


class Stalls:
    """The watching thread, which the first portal starts.

    Args:
        totals: The counts, with the open portals and the time that a step may take (``slow_ns``).
        tell: Called in the thread for a step over the limit, and again each time that the step has
            taken twice as long. Its arguments: the function of the last bridge in the step,
            whether this is the first call for the step, and a function that returns the `Stall`.
    """

    __slots__ = (
        "__weakref__",
        "_is_idle",
        "_pause",
        "_starting",
        "_stopped",
        "_tell",
        "_told",
        "_totals",
        "_wake",
    )

    def __init__(
        self, totals: Totals, tell: Callable[[str, bool, Callable[[], Stall]], None]
    ) -> None:
        self._totals = totals
        self._tell = tell
        self._pause = max(totals.slow_ns // _LOOKS, _PAUSE_NS)
        self._stopped = False
        self.after_fork()

    def after_fork(self) -> None:
        """Start over in a forked child, which lacks the thread. Takes no lock."""
        #: For each portal, the start of its step and the time after which to tell of it next.
        self._told: Dict[Portal, Tuple[int, int]] = {}
        #: Taken for good when the thread is started.
        self._starting = allocate_lock()
        #: The thread waits for this lock.
        self._wake = allocate_lock()
        self._wake.acquire()
        #: The thread waits without a time-out, or does not run yet: the next portal wakes it.
        self._is_idle = True

    def watch(self, portal: Portal) -> None:
        """Start or wake the thread. Called for each portal that is opened."""
        if not self._is_idle:
            return
        self._is_idle = False
        if self._stopped:
            return
        if not self._starting.acquire(False):
            self._release()
            return
        try:
            threading.Thread(target=self._run, name="greenback stalls", daemon=True).start()
        except RuntimeError:
            pass  # the interpreter is shutting down, or there are too many threads

    def is_awake(self) -> bool:
        """Whether `watch` has nothing to do. When that changes, `Totals.quiet_until` becomes 0."""
        return not self._is_idle

    def stop(self) -> None:
        """End the thread."""
        self._stopped = True
        self._release()

    def _release(self) -> None:
        try:
            self._wake.release()
        except RuntimeError:
            pass  # another thread has released it already

    # What runs in the thread

    def _run(self) -> None:
        wake = self._wake
        try:
            while not self._stopped:
                self._look()
                if self._totals.portals:
                    wake.acquire(True, self._pause / 1e9)
                    continue
                self._told.clear()
                self._is_idle = True
                self._totals.quiet_until = 0  # the next portal calls `watch`
                if not self._totals.portals:  # else a portal was opened that did not wake this
                    wake.acquire()
                self._is_idle = False
        except Exception:
            logging.getLogger("greenback").exception("nothing tells of stalled steps any more")

    def _look(self) -> None:
        told: Dict[Portal, Tuple[int, int]] = {}
        for step in list(running_steps(self._totals)):
            portal, started = step.portal, step.started
            if portal not in self._told or self._told[portal][0] != started:
                limit = self._totals.slow_ns
            else:
                limit = self._told[portal][1]
            now = perf_counter_ns()
            if now - started > limit:
                is_first = limit == self._totals.slow_ns
                while now - started > limit:
                    limit *= 2
                self._tell_of(step, now, is_first)
            told[portal] = started, limit
        self._told = told

    def _tell_of(self, step: Step, now: int, is_first: bool) -> None:
        try:
            function = self._totals.holder(step.portal)
            self._tell(function, is_first, partial(Stall, step, now, function, self._totals))
        except OverError:
            return
        except Exception:
            if not step.is_over():  # else its portal was closed meanwhile
                logging.getLogger("greenback").exception("a stalled step could not be told of")


def seconds_stalled(totals: Totals) -> Dict[str, float]:
    """The seconds that the longest step over the limit has held its loop, by library."""
    now = perf_counter_ns()
    found: Dict[str, float] = {}
    for step in running_steps(totals):
        held = now - step.started
        if held > totals.slow_ns:
            name = step.portal.library.name
            found[name] = max(found.get(name, 0), held / 1e9)
    return found
