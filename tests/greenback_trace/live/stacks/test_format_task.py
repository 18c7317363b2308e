"""The stack of a task."""

from __future__ import annotations

import asyncio
import os
import sys
import threading
from typing import Any, AsyncIterator, List

import greenlet
import pytest
import trio
import trio.testing

import greenback
from greenback._frames import outermost_first, outwards
from greenback_trace import format_task

from .tasks import (
    ensured,
    leaf,
    names,
    nested,
    only_portal,
    parked,
    parked_in_trio,
    plain,
    run,
    run_sync,
    steps,
    sync,
)

#: Files of the tests and of their tasks.
HERE = os.path.dirname(__file__)


async def items(event: Any) -> AsyncIterator[int]:
    await leaf(event)
    yield 1


async def iterates(event: Any) -> None:
    async for _ in items(event):
        pass


SHAPES = [
    (plain, ["plain", "leaf"]),
    (only_portal, ["only_portal", "leaf"]),
    (ensured, ["ensured", "sync", "BRIDGE", "leaf"]),
    (run, ["run", "middle", "sync", "BRIDGE", "leaf"]),
    (run_sync, ["run_sync", "sync", "BRIDGE", "leaf"]),
    (nested, ["nested", "outer_sync", "BRIDGE", "middle", "sync", "BRIDGE", "leaf"]),
    (iterates, ["iterates", "items", "leaf"]),
]


class TestParked:
    @pytest.mark.parametrize(("async_fn", "expected"), SHAPES)
    @pytest.mark.parametrize("in_library", [parked, parked_in_trio])
    def test_all_frames(self, in_library: Any, async_fn: Any, expected: List[str]) -> None:
        """With each kind of portal, a task's functions and bridges are shown in order."""
        assert names(in_library(async_fn)) == expected

    @pytest.mark.parametrize("in_library", [parked, parked_in_trio])
    def test_only_the_program(self, in_library: Any) -> None:
        """No line names a function of greenback or greenlet."""
        text = in_library(nested)
        for module in (greenback, greenlet):
            assert module.__file__ is not None
            assert module.__file__.replace("__init__.py", "") not in text

    @pytest.mark.usefixtures("others_are_shown")
    @pytest.mark.parametrize("in_library", [parked, parked_in_trio])
    def test_from_a_thread(self, in_library: Any) -> None:
        """Another thread sees the same stack."""

        def look(task: Any) -> str:
            texts: List[str] = []
            thread = threading.Thread(target=lambda: texts.append(format_task(task)))
            thread.start()
            thread.join()
            return texts[0]

        assert names(in_library(ensured, look)) == ["ensured", "sync", "BRIDGE", "leaf"]

    def test_in_a_greenlet(self) -> None:
        """A bridge in a greenlet of the task is shown below the start of the greenlet."""

        def starts_greenlet(event: Any) -> None:
            greenlet.greenlet(sync).switch(event)

        async def task(event: Any) -> None:
            await greenback.ensure_portal()
            starts_greenlet(event)

        assert names(parked(task)) == ["task", "starts_greenlet", "sync", "BRIDGE", "leaf"]

    @pytest.mark.skipif(sys.version_info < (3, 12), reason="eager tasks came with Python 3.12")
    def test_eager(self) -> None:
        """An eager task that began in an except block is shown where it first waits."""

        async def main() -> List[str]:
            asyncio.get_running_loop().set_task_factory(asyncio.eager_task_factory)
            event = asyncio.Event()
            async with greenback.portals_for_tree():
                try:
                    raise LookupError
                except LookupError:
                    task = asyncio.ensure_future(leaf(event))
                shown = names(format_task(task))
            event.set()
            await task
            return shown

        assert asyncio.run(main()) == ["leaf"]


class TestHeader:
    def test_with_a_portal(self) -> None:
        """The first line names the task, its library and its portal, not the shim."""

        async def main() -> str:
            event = asyncio.Event()
            task = asyncio.ensure_future(ensured(event))
            task.set_name("checkout")
            await steps()
            text = format_task(task)
            event.set()
            await task
            return text

        header = asyncio.run(main()).splitlines()[0]
        assert header == "Stack of asyncio task 'checkout', with a portal (task), outermost first:"

    def test_without_a_portal(self) -> None:
        """The first line of a task without a portal names no portal."""
        header = parked_in_trio(plain).splitlines()[0]
        assert header == f"Stack of trio task '{plain.__module__}.plain', outermost first:"


class TestStates:
    def test_not_begun(self) -> None:
        """A task before its first step is shown at the beginning of its function."""

        async def main() -> None:
            event = asyncio.Event()
            task = asyncio.ensure_future(plain(event))
            assert names(format_task(task)) == ["plain"]
            greenback.bestow_portal(task)
            text = format_task(task)
            assert names(text) == ["plain"]
            assert "with a portal (bestowed)" in text
            event.set()
            await task

        asyncio.run(main())

    def test_finished(self) -> None:
        """A finished task has no stack, as the text says, with or without a portal."""

        async def main() -> None:
            task = asyncio.ensure_future(greenback.ensure_portal())
            task.set_name("over")
            await task
            assert format_task(task) == "asyncio task 'over' has finished: it has no stack.\n"

        asyncio.run(main())

    def test_running(self, backend: Any) -> None:
        """A task can show its own stack, through its portal."""

        async def look() -> str:
            return format_task(current_task(backend))

        def calls() -> str:
            return greenback.await_(look())

        async def main() -> str:
            await greenback.ensure_portal()
            return calls()

        async def main_of_sync() -> str:
            return await greenback.with_portal_run_sync(calls)

        assert names(backend.run(main)) == ["main", "calls", "BRIDGE", "look"]
        expected = ["main_of_sync", "calls", "BRIDGE", "look"]
        assert names(backend.run(main_of_sync)) == expected

    def test_running_without_a_portal(self, backend: Any) -> None:
        """A task without a portal can show its own stack, too."""

        async def main() -> str:
            return format_task(current_task(backend))

        assert names(backend.run(main)) == ["main"]

    def test_bestowed_on_itself(self, backend: Any) -> None:
        """A task that has just bestowed a portal on itself is shown to its running function."""

        async def inner() -> str:
            task = current_task(backend)
            greenback.bestow_portal(task)
            text = format_task(task)
            await backend.sleep(0)
            return text

        async def main() -> str:
            return await inner()

        assert names(backend.run(main)) == ["main", "inner"]

    def test_not_a_task(self) -> None:
        """The error for an object that is no task says what to pass instead."""
        coroutine = plain(None)
        for value in (5, None, coroutine):
            with pytest.raises(
                TypeError, match=r" is not a task.*; pass .*current_task\(\)"
            ) as info:
                format_task(value)
            assert str(info.value).startswith(repr(value))
        coroutine.close()


def current_task(backend: Any) -> Any:
    return asyncio.current_task() if backend.name == "asyncio" else trio.lowlevel.current_task()


class TestFrames:
    def test_left_meanwhile(self) -> None:
        """If a thread leaves a frame while it is read, the stack ends there, as PyPy shows it."""

        class Left:
            f_code = sys._getframe().f_code

            @property
            def f_back(self) -> Any:
                raise SystemError("unexpected internal exception")

        frame: Any = Left()
        assert list(outwards(frame)) == outermost_first(frame) == [frame]
