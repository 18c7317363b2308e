"""The code that holds the event loop."""

from __future__ import annotations

import asyncio
import os
import sys
import threading
import time
from typing import Any, Iterator, List, Optional

import greenlet
import pytest

import greenback
from greenback._engine.state import NOWHERE, portal_of, this_home
from greenback.instruments import Instrument, Portal, add_instrument, remove_instrument
from greenback_trace.misuse.watchdog import Held, Watchdog
from tests.waiting import wait_until

SLOW = 0.05
pytestmark = pytest.mark.usefixtures("others_are_shown")


def opened() -> Portal:
    """A portal that is open, of no task."""
    portal = Portal("run", NOWHERE.library)
    portal.home = this_home()
    return portal


class Steps(Instrument):
    """Tells a watchdog of steps, as debug mode does."""

    def __init__(self, watchdog: Watchdog) -> None:
        self.watchdog = watchdog
        self.held: List[Optional[Held]] = []

    def step_started(self, portal: Portal) -> None:
        self.watchdog.start_step(portal)

    def step_finished(self, portal: Portal) -> None:
        self.held.append(self.watchdog.finish_step(portal))


@pytest.fixture
def watchdog() -> Iterator[Watchdog]:
    watchdog = Watchdog(SLOW)
    yield watchdog
    watchdog.stop()


@pytest.fixture
def steps(watchdog: Watchdog) -> Iterator[Steps]:
    steps = Steps(watchdog)
    add_instrument(steps)
    yield steps
    remove_instrument(steps)


def block(watchdog: Watchdog) -> int:
    """Holds the loop until the watchdog has seen it often. Returns the line of the loop."""
    samples = 0
    deadline = time.monotonic() + 20
    while samples < 10 and time.monotonic() < deadline:
        time.sleep(SLOW / 2)
        samples += any(step[2] is not None for step in list(watchdog._running.values()))
    return block.__code__.co_firstlineno + 5


def in_block(steps: Steps) -> Held:
    """The report about `block`. On a busy machine, other steps can be slow as well."""
    (held,) = (
        held for held in steps.held if held is not None and held.function == f"{__name__}.block"
    )
    return held


class TestFinishStep:
    def test_names_the_code_that_held_the_loop(
        self, backend: Any, watchdog: Watchdog, steps: Steps
    ) -> None:
        """The report names the function that blocked, not where the step ended."""
        lines = []

        def site() -> None:
            greenback.await_(backend.sleep(0))
            lines.append(block(watchdog))
            greenback.await_(backend.sleep(0))

        async def main() -> None:
            await greenback.with_portal_run_sync(site)

        backend.run(main)
        held = in_block(steps)
        assert (held.file, held.line) == (__file__, lines[0])

    def test_stack_leads_through_the_portal(
        self, backend: Any, watchdog: Watchdog, steps: Steps
    ) -> None:
        """The stack has the functions in the portal in order, after those around it."""

        def outer() -> None:
            inner()

        def inner() -> None:
            block(watchdog)

        async def main() -> None:
            await greenback.with_portal_run_sync(outer)

        backend.run(main)
        held = in_block(steps)
        names = [line.partition(" (")[0].rpartition(".")[2] for line in held.stack]
        assert names[-3:] == ["outer", "inner", "block"]
        assert not any("greenback._" in line for line in held.stack)
        if sys.implementation.name != "pypy":
            assert names.index("main") < names.index("outer")

    def test_in_a_greenlet_of_the_tasks_own(
        self, backend: Any, watchdog: Watchdog, steps: Steps
    ) -> None:
        """Functions in a greenlet that the task's code has started are shown after its starter."""

        def starter() -> None:
            greenlet.greenlet(block).switch(watchdog)

        async def main() -> None:
            await greenback.with_portal_run_sync(starter)

        backend.run(main)
        held = in_block(steps)
        names = [line.partition(" (")[0].rpartition(".")[2] for line in held.stack]
        assert names[-2:] == ["starter", "block"]

    def test_thread_that_leaves_a_greenlet_meanwhile(
        self, watchdog: Watchdog, steps: Steps, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """The frames that a thread was in, and has parked since, have an end: on PyPy, a ring."""
        parked: List[Any] = []
        looked: List[None] = []
        current_frames = sys._current_frames

        def frames() -> Any:
            looked.append(None)
            return {here: parked[0]} if len(looked) == 1 else current_frames()

        def wait(future: Any) -> Any:
            # Nothing but greenback's own frames is in the portal's greenlet.
            return greenback.with_portal_run_sync(greenback.await_, future)

        async def main() -> None:
            future = asyncio.get_running_loop().create_future()
            waits = asyncio.create_task(wait(future))
            await asyncio.sleep(0)
            parked.append(portal_of(waits).resume.gr_frame)  # type: ignore[union-attr]
            monkeypatch.setattr(sys, "_current_frames", frames)
            await greenback.with_portal_run_sync(block, watchdog)
            future.set_result(None)
            await waits

        here = threading.get_ident()
        asyncio.run(main())
        assert in_block(steps).function == f"{__name__}.block"

    def test_the_longest_is_named(self, watchdog: Watchdog) -> None:
        """Of several functions that held the loop in turn, the one with the most time is named."""
        portal = opened()

        def briefly(seconds: float) -> None:
            time.sleep(seconds)

        watchdog.start_step(portal)
        for _ in range(5):
            briefly(SLOW / 10)
        block(watchdog)
        held = watchdog.finish_step(portal)
        assert held is not None
        assert held.function == f"{__name__}.block"

    def test_quick_steps_have_no_report(self, backend: Any) -> None:
        """A step that is not slow is not reported, even if it was sampled."""
        watchdog = Watchdog(3_600)
        watchdog._interval = 1_000_000
        portal = opened()
        watchdog.start_step(portal)
        block(watchdog)
        assert watchdog.finish_step(portal) is None
        assert watchdog.finish_step(portal) is None
        watchdog.stop()


class TestThread:
    def test_starts_with_the_first_step_and_rests_without_any(self, watchdog: Watchdog) -> None:
        """There is no thread before the first step, and the thread sleeps while no step runs."""
        assert watchdog._thread is None
        portal = opened()
        for _ in range(2):
            watchdog.start_step(portal)
            block(watchdog)
            assert watchdog.finish_step(portal) is not None
            wait_until(lambda: watchdog._idle)
        thread = watchdog._thread
        assert thread is not None
        assert thread.daemon
        watchdog.stop()
        thread.join(30)
        assert not thread.is_alive()

    def test_many_threads(self, watchdog: Watchdog) -> None:
        """Steps of several threads at once are told apart."""
        held = {}

        def loop(name: str) -> None:
            portal = opened()
            for _ in range(100):
                watchdog.start_step(portal)
                watchdog.finish_step(portal)
            watchdog.start_step(portal)
            places[name]()
            held[name] = watchdog.finish_step(portal)

        def first() -> None:
            block(watchdog)

        def second() -> None:
            block(watchdog)

        places = {"first": first, "second": second}
        threads = [threading.Thread(target=loop, args=(name,)) for name in places]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        for name in places:
            assert f".{name} (" in held[name].stack[-2]

    def test_of_a_closed_portal(self, watchdog: Watchdog) -> None:
        """A step of a portal that is over, since its worker was killed, is not kept."""
        portal = opened()
        watchdog.start_step(portal)
        portal.home = None
        while watchdog._running:
            time.sleep(0.001)

    @pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
    def test_in_a_forked_child(self, python: Any) -> None:
        """A forked child, which has no such thread, starts its own."""
        result = python("-c", FORK)
        assert result.stderr == ""
        assert result.stdout == "__main__.hold\n__main__.hold\n"

    def test_does_not_hold_up_the_end_of_the_program(self, python: Any) -> None:
        """A program can end in the middle of a step."""
        result = python("-c", UNFINISHED)
        assert (result.returncode, result.stderr) == (0, "")


FORK = """
import os, sys, time, warnings
from greenback._engine.state import NOWHERE, Portal, this_home
from greenback_trace.misuse.watchdog import Watchdog
warnings.simplefilter("ignore")

def hold():
    for _ in range(200):
        time.sleep(0.1)
        samples = watchdog._running[portal][2]
        if samples is not None and samples.seen:
            return

watchdog, portal = Watchdog(0.05), Portal("run", NOWHERE.library)
portal.home = this_home()
watchdog.start_step(portal)
hold()
child = os.fork()
if not child:
    watchdog.after_fork()
    assert watchdog.finish_step(portal) is None
    watchdog.start_step(portal)
    hold()
print(watchdog.finish_step(portal).function, flush=True)
if child:
    assert os.waitpid(child, 0)[1] == 0
else:
    os._exit(0)
"""

UNFINISHED = """
import time
from greenback._engine.state import NOWHERE, Portal, this_home
from greenback_trace.misuse.watchdog import Watchdog
watchdog, portal = Watchdog(0.001), Portal("run", NOWHERE.library)
portal.home = this_home()
watchdog.start_step(portal)
time.sleep(0.1)
"""
