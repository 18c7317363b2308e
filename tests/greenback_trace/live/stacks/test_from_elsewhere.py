"""Stacks of tasks of other threads and loops."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import threading
from typing import Any, Iterator, List

import greenlet
import pytest
import trio
import trio.testing

import greenback
from greenback_trace import format_task

from .tasks import PYPY, ensured, leaf, names, parked, parked_in_trio, steps, sync

# A thread holds its loop, while another one reads its stack and makes garbage.
COLLECTING = """
import asyncio, gc, sys, threading
import greenback
from greenback_trace import format_task

tasks = []
inside, go_on = threading.Event(), threading.Event()

def hold():
    inside.set()
    go_on.wait()

async def main():
    tasks.append(asyncio.current_task())
    await greenback.with_portal_run_sync(hold)

def look(depth):
    return look(depth - 1) if depth else format_task(tasks[0])

thread = threading.Thread(target=asyncio.run, args=(main(),), daemon=True)
thread.start()
inside.wait()
if sys.implementation.name == "cpython":
    for threshold in range(1, 40):
        gc.set_threshold(threshold)
        for _ in range(10):
            for _ in range(3):
                mine = threading.local()
                mine.itself = mine
            del mine
            assert "in hold" in look(3)
            assert gc.isenabled()

def refuse(event, arguments):
    if event == "sys._current_frames":
        raise RuntimeError("refused")

gc.disable()
look(0)
assert not gc.isenabled()
gc.enable()
sys.addaudithook(refuse)
try:
    look(0)
except RuntimeError:
    assert gc.isenabled()
else:
    # PyPy tells no hook of it.
    assert sys.implementation.name == "pypy"
go_on.set()
thread.join()
print("ended")
"""


#: Files of the tests and of their tasks.
HERE = os.path.dirname(__file__)


@pytest.fixture
def alarm() -> Iterator[None]:
    """A stack without an end fails the test."""

    def too_long(*_: object) -> None:
        raise AssertionError("it has not ended")

    before = signal.signal(signal.SIGALRM, too_long)
    signal.alarm(60)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


class TestFromElsewhere:
    def test_bestowed(self) -> None:
        """A bestowed portal is seen before and after the next step of its task."""

        async def main() -> None:
            event, again = asyncio.Event(), asyncio.Event()

            async def waits() -> None:
                await leaf(event)
                sync(again)

            task = asyncio.ensure_future(waits())
            await asyncio.sleep(0)
            greenback.bestow_portal(task)
            assert names(format_task(task)) == ["waits", "leaf"]
            event.set()
            await steps()
            assert names(format_task(task)) == ["waits", "sync", "BRIDGE", "leaf"]
            again.set()
            await task

        asyncio.run(main())

    def test_inherited(self) -> None:
        """An inherited portal is seen before the first step, in the scope, and after it."""

        async def child(event: Any) -> None:
            sync(event)

        async def main() -> None:
            event = asyncio.Event()
            with greenback.portals_for_children():
                task = asyncio.ensure_future(child(event))
                text = format_task(task)
                assert names(text) == ["child"]
                assert "with a portal (inherited)" in text
                await steps()
                assert names(format_task(task)) == ["child", "sync", "BRIDGE", "leaf"]
            assert names(format_task(task)) == ["child", "sync", "BRIDGE", "leaf"]
            event.set()
            await task

        asyncio.run(main())

    @pytest.mark.parametrize("in_library", [parked, parked_in_trio])
    def test_closed_portal(self, in_library: Any) -> None:
        """A task is shown through the resting portal that a scope has left behind."""

        async def was_in_scope(event: Any) -> None:
            async with greenback.portals_for_tree():
                pass
            await leaf(event)

        text = in_library(was_in_scope)
        assert names(text) == ["was_in_scope", "leaf"]
        assert "with a portal" not in text

    @pytest.mark.usefixtures("others_are_shown")
    def test_running_in_another_thread(self) -> None:
        """A task that another thread is running is shown through its portal."""
        inside, go_on = threading.Event(), threading.Event()
        tasks: List[Any] = []

        async def block() -> None:
            inside.set()
            go_on.wait()

        def calls() -> None:
            greenback.await_(block())

        async def main() -> None:
            await greenback.ensure_portal()
            tasks.append(asyncio.current_task())
            calls()

        thread = threading.Thread(target=lambda: asyncio.run(main()))
        thread.start()
        try:
            inside.wait()
            assert names(format_task(tasks[0])) == ["main", "calls", "BRIDGE", "block"]
        finally:
            go_on.set()
            thread.join()

    @pytest.mark.usefixtures("others_are_shown", "alarm")
    def test_thread_that_leaves_a_greenlet_meanwhile(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """The stack of a thread that parks its frames meanwhile ends. (On PyPy, it is a ring.)"""
        inside, go_on = threading.Event(), threading.Event()
        running: List[Any] = []
        parked: List[Any] = []

        def block() -> None:
            inside.set()
            go_on.wait()

        def wait(event: asyncio.Event) -> None:
            parked.append(greenlet.getcurrent())
            greenback.await_(event.wait())

        async def main() -> None:
            event = asyncio.Event()
            waits = asyncio.create_task(greenback.with_portal_run_sync(wait, event))
            await asyncio.sleep(0)
            await greenback.ensure_portal()
            running.append(asyncio.current_task())
            block()
            event.set()
            await waits

        thread = threading.Thread(target=lambda: asyncio.run(main()))
        thread.start()
        try:
            inside.wait()
            now = sys._current_frames()
            before = {**now, thread.ident: parked[0].gr_frame}
            looks = [before, *[now] * 5]
            monkeypatch.setattr(sys, "_current_frames", lambda: looks.pop(0))
            assert names(format_task(running[0])) == ["main", "block"]
            # The thread is in and out of greenlets all the time.
            looks[:] = [before, now] * 20
            assert "running where this thread cannot see it" in format_task(running[0])
        finally:
            go_on.set()
            thread.join()

    @pytest.mark.usefixtures("others_are_shown")
    def test_collection_meanwhile(self) -> None:
        """A collection that frees a `threading.local` does not hang format_task() (3.11)."""
        done = subprocess.run(
            [sys.executable, "-c", COLLECTING],
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
        assert (done.returncode, done.stdout, done.stderr) == (0, "ended\n", "")

    @pytest.mark.usefixtures("others_are_shown")
    @pytest.mark.skipif(PYPY, reason="PyPy shows other threads the innermost and the main greenlet")
    def test_portals_in_another_thread(self) -> None:
        """In another thread, a portal inside the work of another portal is seen through, too."""
        inside, go_on = threading.Event(), threading.Event()
        tasks: List[Any] = []

        def block() -> None:
            inside.set()
            go_on.wait()

        async def inner() -> None:
            await greenback.with_portal_run_sync(block)

        async def outer() -> None:
            await greenback.ensure_portal()
            tasks.append(asyncio.current_task())
            trio.run(inner)

        thread = threading.Thread(target=lambda: asyncio.run(outer()))
        thread.start()
        try:
            inside.wait()
            assert names(format_task(tasks[0])) == ["outer", "inner", "block"]
        finally:
            go_on.set()
            thread.join()

    def test_running_in_a_greenlet(self) -> None:
        """A greenlet that the task has started is part of the task's stack."""

        async def main() -> str:
            await greenback.ensure_portal()

            def inner() -> str:
                return format_task(asyncio.current_task())

            return greenlet.greenlet(inner).switch()  # type: ignore[no-any-return]

        assert names(asyncio.run(main())) == ["main", "inner"]


class TestTwoLoops:
    def test_trio_inside_asyncio(self) -> None:
        """Trio inside of asyncio: each task is shown from its own beginning."""
        texts: List[str] = []

        async def inner(outer_task: Any) -> None:
            def calls() -> None:
                texts.extend(map(format_task, (outer_task, trio.lowlevel.current_task())))

            await greenback.with_portal_run_sync(calls)

        async def outer() -> None:
            await greenback.ensure_portal()
            trio.run(inner, asyncio.current_task())

        asyncio.run(outer())
        assert [names(text) for text in texts] == [["outer", "inner", "calls"], ["inner", "calls"]]

    def test_asyncio_inside_trio(self) -> None:
        """asyncio inside of Trio: the same, also for a task that waits in the inner loop."""
        texts: List[str] = []

        async def inner(outer_task: Any) -> None:
            event = asyncio.Event()
            task = asyncio.ensure_future(ensured(event))
            await steps()

            def calls() -> None:
                texts.extend(map(format_task, (outer_task, asyncio.current_task(), task)))

            await greenback.with_portal_run_sync(calls)
            event.set()
            await task

        async def outer() -> None:
            await greenback.ensure_portal()
            asyncio.run(inner(trio.lowlevel.current_task()))

        trio.run(outer)
        assert [names(text) for text in texts] == [
            ["outer", "inner", "calls"],
            ["inner", "calls"],
            ["ensured", "sync", "BRIDGE", "leaf"],
        ]

    def test_guest_mode(self) -> None:
        """Two loops that take turns in one thread see each other's tasks parked."""
        texts: List[str] = []

        async def guest(host_task: Any, tasks: List[Any], go_on: Any) -> None:
            texts.append(format_task(host_task))
            await greenback.ensure_portal()
            event = trio.Event()
            tasks += [trio.lowlevel.current_task(), event]
            go_on.set()
            sync(event)

        async def host() -> None:
            go_on, over = asyncio.Event(), asyncio.Event()
            tasks: List[Any] = []
            trio.lowlevel.start_guest_run(
                guest,
                asyncio.current_task(),
                tasks,
                go_on,
                run_sync_soon_threadsafe=asyncio.get_running_loop().call_soon_threadsafe,
                done_callback=lambda outcome: over.set(),
            )
            await greenback.with_portal_run_sync(sync, go_on)
            guest_task, event = tasks
            texts.append(format_task(guest_task))
            event.set()
            await over.wait()

        asyncio.run(host())
        assert [names(text) for text in texts] == [
            ["host", "sync", "BRIDGE", "leaf"],
            ["guest", "sync", "BRIDGE", "leaf"],
        ]
