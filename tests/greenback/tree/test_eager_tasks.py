"""Portals that eager tasks inherit."""

from __future__ import annotations

import asyncio
import sys
from typing import Any, List, Optional, Tuple

import pytest

import greenback
from greenback import await_

from .children import MyTask, child

needs_eager_tasks = pytest.mark.skipif(
    sys.version_info < (3, 12), reason="eager tasks are of Python 3.12"
)


@needs_eager_tasks
class TestEagerTasks:
    @staticmethod
    def factory(which: int) -> Any:
        """asyncio's own eager factory, or one for a subclass of tasks."""
        factory = (
            asyncio.create_eager_task_factory(MyTask)  # type: ignore[attr-defined]
            if which
            else asyncio.eager_task_factory  # type: ignore[attr-defined]
        )

        def without_eager_start(loop: Any, coro: Any, **kwds: Any) -> Any:
            # uvloop 0.23 passes None. asyncio's factories take it as false since Python 3.13.3,
            # and do not take at all before.
            kwds.pop("eager_start", None)
            return factory(loop, coro, **kwds)

        return without_eager_start

    @pytest.mark.parametrize("which", [0, 1])
    def test_in_the_first_step(self, asyncio_backend: Any, which: int) -> None:
        """An eager child can bridge in its first step, before create_task() returns."""
        log: List[Any] = []

        async def eager() -> int:
            log.append(greenback.has_portal())
            await_(immediate())
            log.append("at once")
            await_(asyncio.sleep(0))
            log.append("later")
            return 7

        async def immediate() -> None:
            pass

        async def main() -> None:
            loop = asyncio.get_running_loop()
            factory = self.factory(which)
            loop.set_task_factory(factory)
            async with greenback.portals_for_tree():
                task = asyncio.create_task(eager())
                assert log == [True, "at once"]
                assert greenback.has_portal(task)
                assert await task == 7
                assert not greenback.has_portal(task)
            assert loop.get_task_factory() is factory
            assert type(task) is (MyTask if which else asyncio.Task)

        asyncio_backend.run(main)
        assert log == [True, "at once", "later"]

    @pytest.mark.parametrize("which", [0, 1])
    def test_that_never_waits(self, asyncio_backend: Any, which: int) -> None:
        """An eager child that ends in its first step leaves no portal."""

        async def eager(error: Optional[Exception]) -> bool:
            if error is not None:
                raise error
            return greenback.has_portal()

        async def main() -> None:
            asyncio.get_running_loop().set_task_factory(self.factory(which))
            async with greenback.portals_for_tree():
                task = asyncio.create_task(eager(None))
                assert task.done()
                assert task.result() is True
                assert not greenback.has_portal(task)
                failed = asyncio.create_task(eager(LookupError()))
                assert failed.done()
                assert type(failed.exception()) is LookupError

        asyncio_backend.run(main)

    @pytest.mark.skipif(
        sys.version_info < (3, 14), reason="create_task() takes eager_start since Python 3.14"
    )
    @pytest.mark.parametrize("eager_start", [True, False, None])
    @pytest.mark.parametrize("has_factory", [False, True])
    def test_as_eager_as_outside(
        self, asyncio_backend: Any, has_factory: bool, eager_start: Optional[bool]
    ) -> None:
        """With `eager_start` (also None, as from uvloop), a child starts as without a scope."""

        async def start() -> Tuple[bool, bool]:
            log: List[str] = []

            async def eager() -> bool:
                log.append("started")
                return await child()

            task = asyncio.create_task(eager(), eager_start=eager_start)  # type: ignore[call-arg]
            is_eager = bool(log)
            return is_eager, await task

        async def main() -> None:
            if has_factory:
                asyncio.get_running_loop().set_task_factory(
                    asyncio.eager_task_factory  # type: ignore[attr-defined]
                )
            is_eager, has_portal = await start()
            assert not has_portal
            if eager_start is not None:
                assert is_eager is eager_start
            async with greenback.portals_for_tree():
                assert await start() == (is_eager, True)

        asyncio_backend.run(main)

    @pytest.mark.parametrize("which", [0, 1])
    def test_grandchildren(self, asyncio_backend: Any, which: int) -> None:
        """Eager children of eager children inherit, and may bridge in between."""

        async def down(depth: int) -> List[bool]:
            found = [await child()]
            if depth:
                found += await_(asyncio.create_task(down(depth - 1)))
            return found

        async def main() -> None:
            asyncio.get_running_loop().set_task_factory(self.factory(which))
            async with greenback.portals_for_tree():
                assert await asyncio.create_task(down(4)) == [True] * 5
            assert not await asyncio.create_task(child())

        asyncio_backend.run(main)

    def test_scope_opened_in_the_first_step(self, asyncio_backend: Any) -> None:
        """A task can open a scope in its eager first step."""

        async def opens() -> List[bool]:
            with greenback.portals_for_children():
                task = asyncio.create_task(child())
                found = [await child()]
                return [*found, await task]

        async def opens_tree() -> List[bool]:
            async with greenback.portals_for_tree():
                return [await child(), await asyncio.create_task(child())]

        async def runs_tree() -> List[bool]:
            async def inner() -> List[bool]:
                return [await child(), await asyncio.create_task(child())]

            return await greenback.with_portal_run_tree(inner)

        async def main() -> None:
            asyncio.get_running_loop().set_task_factory(self.factory(0))
            assert await asyncio.create_task(opens()) == [False, True]
            assert await asyncio.create_task(runs_tree()) == [True, True]
            assert await asyncio.create_task(opens_tree()) == [True, True]
            assert not await asyncio.create_task(child())

        asyncio_backend.run(main)

    def test_created_by_sync_code(self, asyncio_backend: Any) -> None:
        """Sync code that bridges may create eager children in between."""

        def sync() -> List[bool]:
            tasks = [asyncio.create_task(child()) for _ in range(3)]
            await_(asyncio.sleep(0))
            return [await_(task) for task in tasks]

        async def main() -> None:
            asyncio.get_running_loop().set_task_factory(self.factory(0))
            async with greenback.portals_for_tree():
                assert sync() == [True] * 3

        asyncio_backend.run(main)
