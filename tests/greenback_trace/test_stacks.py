"""The stack of a task."""

from __future__ import annotations

import asyncio
import sys
import threading
from typing import Any, AsyncIterator, List

import greenlet
import pytest

import greenback
from greenback_trace import format_task

PYPY = sys.implementation.name == "pypy"
needs_frames = pytest.mark.skipif(PYPY, reason="PyPy's greenlets have no gr_frame")


def names(text: str) -> List[str]:
    """The functions of the tests that a stack shows, and its bridges."""
    found = []
    for line in text.splitlines():
        if "--- bridge" in line:
            found.append("BRIDGE")
        elif ", in " in line and __file__ in line:
            found.append(line.rpartition(", in ")[2])
    return found


async def leaf(event: Any) -> None:
    await event.wait()


def sync(event: Any) -> None:
    greenback.await_(leaf(event))


async def middle(event: Any) -> None:
    sync(event)


def outer_sync(event: Any) -> None:
    greenback.await_(middle(event))


async def ensured(event: Any) -> None:
    await greenback.ensure_portal()
    sync(event)


async def nested(event: Any) -> None:
    await greenback.ensure_portal()
    outer_sync(event)


async def run(event: Any) -> None:
    await greenback.with_portal_run(middle, event)


async def run_sync(event: Any) -> None:
    await greenback.with_portal_run_sync(sync, event)


async def plain(event: Any) -> None:
    await leaf(event)


async def only_portal(event: Any) -> None:
    await greenback.ensure_portal()
    await leaf(event)


async def items(event: Any) -> AsyncIterator[int]:
    await leaf(event)
    yield 1


async def iterates(event: Any) -> None:
    async for _ in items(event):
        pass


def parked(async_fn: Any, look: Any = format_task) -> Any:
    """What *look* makes of a task of asyncio that runs *async_fn* and waits in it."""

    async def main() -> Any:
        event = asyncio.Event()
        task = asyncio.ensure_future(async_fn(event))
        for _ in range(5):
            await asyncio.sleep(0)
        try:
            return look(task)
        finally:
            event.set()
            await task

    return asyncio.run(main())


class TestParked:
    @needs_frames
    @pytest.mark.parametrize(
        ("async_fn", "expected"),
        [
            (plain, ["plain", "leaf"]),
            (only_portal, ["only_portal", "leaf"]),
            (ensured, ["ensured", "sync", "BRIDGE", "leaf"]),
            (run, ["run", "middle", "sync", "BRIDGE", "leaf"]),
            (run_sync, ["run_sync", "sync", "BRIDGE", "leaf"]),
            (
                nested,
                ["nested", "outer_sync", "BRIDGE", "middle", "sync", "BRIDGE", "leaf"],
            ),
            (iterates, ["iterates", "items", "leaf"]),
        ],
    )
    def test_all_frames(self, async_fn: Any, expected: List[str]) -> None:
        """The functions of a task are shown in order, with its bridges, whatever its portal."""
        assert names(parked(async_fn)) == expected

    @needs_frames
    def test_from_a_thread(self) -> None:
        """Another thread sees the same stack."""

        def look(task: Any) -> str:
            texts: List[str] = []
            thread = threading.Thread(target=lambda: texts.append(format_task(task)))
            thread.start()
            thread.join()
            return texts[0]

        assert names(parked(ensured, look)) == ["ensured", "sync", "BRIDGE", "leaf"]


class TestStates:
    def test_finished(self) -> None:
        """A task that has finished is said to have no stack."""

        async def main() -> str:
            task = asyncio.ensure_future(asyncio.sleep(0))
            await task
            return format_task(task)

        assert "has finished" in asyncio.run(main())

    @needs_frames
    def test_running(self) -> None:
        """A task can show its own stack, through its portal."""

        async def look() -> str:
            return format_task(asyncio.current_task())

        def calls() -> str:
            return greenback.await_(look())

        async def main() -> str:
            await greenback.ensure_portal()
            return calls()

        assert names(asyncio.run(main())) == ["main", "calls", "BRIDGE", "look"]

    def test_not_a_task(self) -> None:
        """What is no task is refused, with what to pass instead."""
        with pytest.raises(TypeError, match="5 is not a task.*current_task"):
            format_task(5)


class TestFromElsewhere:
    @needs_frames
    def test_bestowed(self) -> None:
        """A portal that somebody else has opened is seen before and after the task's next step."""

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
            for _ in range(3):
                await asyncio.sleep(0)
            assert names(format_task(task)) == ["waits", "sync", "BRIDGE", "leaf"]
            again.set()
            await task

        asyncio.run(main())

    @needs_frames
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

    @needs_frames
    def test_running_in_a_greenlet(self) -> None:
        """A greenlet that the task has started is part of the task's stack."""

        async def main() -> str:
            await greenback.ensure_portal()

            def inner() -> str:
                return format_task(asyncio.current_task())

            return greenlet.greenlet(inner).switch()  # type: ignore[no-any-return]

        assert names(asyncio.run(main())) == ["main", "inner"]


class TestTrio:
    @needs_frames
    def test_parked(self) -> None:
        """A task of Trio is shown through its portal; `iter_await_frames` ends at the portal."""
        trio = pytest.importorskip("trio", reason="Trio is not installed")
        pytest.importorskip("trio.testing")

        async def main() -> None:
            event = trio.Event()
            async with trio.open_nursery() as nursery:
                nursery.start_soon(ensured, event)
                await trio.testing.wait_all_tasks_blocked()
                (task,) = nursery.child_tasks
                assert names(format_task(task)) == ["ensured", "sync", "BRIDGE", "leaf"]
                codes = [frame.f_code.co_name for frame, _ in task.iter_await_frames()]
                assert codes[-1] == "drive"
                event.set()

        trio.run(main)


class TestOthers:
    def test_print_stack(self) -> None:
        """`print_stack` shows one frame, that of the shim: asyncio asks for no others."""

        def look(task: Any) -> List[str]:
            return [frame.f_code.co_name for frame in task.get_stack()]

        assert parked(ensured, look) == ["_from_now_on"]
        assert parked(run, look) == ["run"]

    @needs_frames
    @pytest.mark.parametrize("async_fn", [ensured, run_sync, nested])
    def test_stackscope(self, async_fn: Any) -> None:
        """stackscope shows the same functions as `format_task`."""
        stackscope = pytest.importorskip("stackscope", reason="stackscope is not installed")

        def look(task: Any) -> List[str]:
            stack = stackscope.extract(task.get_coro())
            assert stack.error is None
            return [
                frame.pyframe.f_code.co_name
                for frame in stack.frames
                if frame.pyframe.f_code.co_filename == __file__
            ]

        expected = [name for name in names(parked(async_fn)) if name != "BRIDGE"]
        assert parked(async_fn, look) == expected
