"""The answers of `greenback.has_portal`."""

from __future__ import annotations

import asyncio
import sys
import threading
from typing import Any, List, Tuple

import pytest
import trio

import greenback
from greenback import await_

from .awaitables import outcome


class Unhashable:
    __hash__ = None  # type: ignore[assignment]


class BadHash:
    def __hash__(self) -> int:
        raise ValueError("no hash today")


class Equal:
    """An object with the hash of another one, which raises when it is compared."""

    def __init__(self, to: Any) -> None:
        self.hash = hash(to)

    def __hash__(self) -> int:
        return self.hash

    def __eq__(self, other: object) -> bool:
        raise ValueError("no comparison today")


class TestHasPortal:
    def test_values(self, backend: Any, portal: Any) -> None:
        """has_portal() is true wherever await_() works: in sync code, and behind a bridge."""

        async def inside() -> Tuple[bool, bool]:
            before = greenback.has_portal()
            await backend.checkpoint()
            return before, greenback.has_portal(backend.current_task())

        async def main() -> None:
            assert not greenback.has_portal()
            assert not greenback.has_portal(backend.current_task())
            assert await portal(
                lambda: (
                    greenback.has_portal(),
                    greenback.has_portal(backend.current_task()),
                    *await_(inside()),
                )
            ) == (True, True, True, True)

        backend.run(main)

    def test_other_task(self, backend: Any, portal: Any) -> None:
        """has_portal() answers for other tasks: parked, with and without a portal, and done."""
        seen: List[bool] = []

        async def main() -> None:
            go = backend.event()
            tasks: List[Any] = []

            def park() -> None:
                tasks.append(backend.current_task())
                await_(go.wait())

            async def plain() -> None:
                tasks.append(backend.current_task())
                await go.wait()

            async def look() -> None:
                while len(tasks) < 2:
                    await backend.checkpoint()
                await backend.checkpoint()
                seen.extend(greenback.has_portal(task) for task in (tasks[0], tasks[1]))
                go.set()

            async def first() -> None:
                await portal(park)

            async def second() -> None:
                while not tasks:
                    await backend.checkpoint()
                await plain()

            await backend.together(first, second, look)
            seen.extend(greenback.has_portal(task) for task in tasks)

        backend.run(main)
        assert seen == [True, False, False, False]

    @pytest.mark.parametrize(
        "thing",
        [42, "text", [], {}, object(), Unhashable(), BadHash(), asyncio.Future, trio],
        ids=lambda thing: type(thing).__name__,
    )
    def test_no_task(self, backend: Any, portal: Any, thing: Any) -> None:
        """For an object that is no task, has_portal() is false, inside and outside of portals."""
        assert greenback.has_portal(thing) is False
        assert backend.run(portal, lambda: greenback.has_portal(thing)) is False

    def test_no_task_that_looks_like_one(self, backend: Any) -> None:
        """For an object that raises when it is compared with a task, has_portal() is false."""

        async def main() -> bool:
            await greenback.ensure_portal()
            return greenback.has_portal(Equal(backend.current_task()))

        assert backend.run(main) is False

    @pytest.mark.skipif(sys.version_info < (3, 12), reason="eager tasks came with Python 3.12")
    def test_eagerly_finished_task(self, asyncio_backend: Any) -> None:
        """For a task that ended in its eager first step, has_portal() is false."""

        async def main() -> None:
            loop = asyncio.get_running_loop()
            # Not asyncio.eager_task_factory: on 3.13.0 it takes no argument that uvloop passes.
            loop.set_task_factory(
                lambda loop, coro, **kwds: asyncio.Task(
                    coro, loop=loop, **{**kwds, "eager_start": True}
                )
            )
            task = loop.create_task(greenback.with_portal_run_sync(int))
            assert task.done()
            assert not greenback.has_portal(task)
            greenback.bestow_portal(task)
            assert not greenback.has_portal(task)

        asyncio_backend.run(main)

    def test_other_thread(self, backend: Any) -> None:
        """A thread without a loop can ask for a task of another thread."""
        answers: List[Any] = []

        async def main() -> None:
            await greenback.ensure_portal()
            task = backend.current_task()
            thread = threading.Thread(target=lambda: answers.append(greenback.has_portal(task)))
            thread.start()
            thread.join()

        backend.run(main)
        assert answers == [True]

    def test_agrees_with_await(self, backend: Any, portal: Any) -> None:
        """At each place, await_() works if has_portal() is true, and fails if it is false."""

        async def nothing() -> str:
            return "works"

        def check() -> bool:
            works = outcome(lambda: await_(nothing())) == ("returned", "works")
            assert works is greenback.has_portal()
            return works

        async def main() -> List[bool]:
            answers = [check()]
            answers.append(await portal(check))
            with greenback.portals_for_children():
                answers.append(await greenback.with_portal_run_sync(check))
            return answers

        assert backend.run(main) == [False, True, True]
        assert check() is False


class TestLeftScope:
    def test_first_step(self, backend: Any) -> None:
        """A scope that is left in its portal's first step closes the portal.

        The test runs in a thread of its own, so that its remains do not disturb other tests.
        """
        answers: List[Any] = []

        async def main() -> None:
            async with greenback.portals_for_tree():
                answers.append(greenback.has_portal())
            answers.append(greenback.has_portal())

        def in_thread() -> None:
            for _ in range(3):
                answers.append(outcome(lambda: backend.run(main)))

        thread = threading.Thread(target=in_thread)
        thread.start()
        thread.join()
        assert answers == [True, False, ("returned", None)] * 3
