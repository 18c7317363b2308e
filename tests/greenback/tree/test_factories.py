"""Scopes in loops with a task factory of the application's."""

from __future__ import annotations

import asyncio
import gc
import warnings
from typing import Any, Callable, List, Optional

import pytest

import greenback

from .children import MyTask, child


class Factory:
    """An application's task factory, which notes the names of its coroutines."""

    def __init__(self, then: Optional[Callable[..., Any]] = None) -> None:
        self.names: List[str] = []
        self.then = then

    def __call__(self, loop: Any, coro: Any, **kwds: Any) -> Any:
        self.names.append(coro.__name__)
        if self.then is not None:
            return self.then(loop, coro, **kwds)
        return MyTask(coro, loop=loop, **kwds)


class TestTaskFactories:
    def test_restored(self, asyncio_backend: Any) -> None:
        """After the scope, the loop has its former factory again, or none."""

        async def main() -> None:
            loop = asyncio.get_running_loop()
            for factory in (None, Factory()):
                loop.set_task_factory(factory)
                async with greenback.portals_for_tree():
                    with greenback.portals_for_children():
                        pass
                    await asyncio.ensure_future(child())
                assert loop.get_task_factory() is factory

        asyncio_backend.run(main)

    def test_of_the_application(self, asyncio_backend: Any) -> None:
        """The application's factory makes the tasks, and gets their names as without a scope."""

        async def main() -> None:
            loop = asyncio.get_running_loop()
            factory = Factory()
            loop.set_task_factory(factory)
            async with greenback.portals_for_tree():
                task = loop.create_task(child(), name="mine")
                assert type(task) is MyTask
                assert task.get_name() == "mine"
                assert await task
            assert factory.names == ["child"]

        asyncio_backend.run(main)

    def test_that_raises(self, asyncio_backend: Any) -> None:
        """An exception of a factory reaches the task's creator, and nothing is left behind."""

        def refuses(loop: Any, coro: Any, **kwds: Any) -> Any:
            raise LookupError("no more tasks")

        async def main() -> None:
            loop = asyncio.get_running_loop()
            loop.set_task_factory(refuses)
            with greenback.portals_for_children():
                coro = child()
                with pytest.raises(LookupError, match="no more tasks"):
                    loop.create_task(coro)
                coro.close()
            assert loop.get_task_factory() is refuses
            loop.set_task_factory(None)

        with warnings.catch_warnings():
            warnings.simplefilter("error")
            asyncio_backend.run(main)
            gc.collect()

    def test_that_raises_leaves_the_coroutine(self, asyncio_backend: Any) -> None:
        """A coroutine that a factory has refused can still be awaited by its owner."""

        def refuses(loop: Any, coro: Any, **kwds: Any) -> Any:
            raise LookupError("no more tasks")

        async def main() -> None:
            loop = asyncio.get_running_loop()
            loop.set_task_factory(refuses)
            with greenback.portals_for_children():
                coro = child()
                with pytest.raises(LookupError, match="no more tasks"):
                    loop.create_task(coro)
                assert not await coro
            loop.set_task_factory(None)

        asyncio_backend.run(main)

    def test_set_inside(self, asyncio_backend: Any) -> None:
        """A factory set inside a scope makes the tasks from then on, and stays afterwards."""

        async def main() -> None:
            loop = asyncio.get_running_loop()
            factory = Factory()
            async with greenback.portals_for_tree():
                loop.set_task_factory(factory)
                task = asyncio.ensure_future(child())
                assert type(task) is MyTask
                assert not await task
            assert loop.get_task_factory() is factory
            async with greenback.portals_for_tree():
                assert await asyncio.ensure_future(child())
            assert loop.get_task_factory() is factory

        asyncio_backend.run(main)

    def test_set_inside_to_none(self, asyncio_backend: Any) -> None:
        """A factory that the application removes inside a scope does not come back."""

        async def main() -> None:
            loop = asyncio.get_running_loop()
            loop.set_task_factory(Factory())
            async with greenback.portals_for_tree():
                loop.set_task_factory(None)
            assert loop.get_task_factory() is None

        asyncio_backend.run(main)

    def test_wrapped_inside(self, asyncio_backend: Any) -> None:
        """The tasks of a factory set inside a scope inherit, if it calls the one before."""

        async def main() -> None:
            loop = asyncio.get_running_loop()
            with greenback.portals_for_children():
                factory = Factory(loop.get_task_factory())
                loop.set_task_factory(factory)
                assert await asyncio.ensure_future(child())
            assert loop.get_task_factory() is factory
            assert not await asyncio.ensure_future(child())

        asyncio_backend.run(main)

    @pytest.mark.parametrize("is_left", [True, False])
    def test_wrapped_and_entered_again(self, asyncio_backend: Any, is_left: bool) -> None:
        """Two scopes with an application's factory in between give a task one portal."""

        async def parent() -> List[bool]:
            return [await child(), await asyncio.ensure_future(child())]

        async def main() -> None:
            loop = asyncio.get_running_loop()
            first = greenback.portals_for_children()
            first.__enter__()
            factory = Factory(loop.get_task_factory())
            loop.set_task_factory(factory)
            if is_left:
                first.__exit__(None, None, None)
            with greenback.portals_for_children():
                assert await asyncio.ensure_future(parent()) == [True, True]
            if not is_left:
                assert await asyncio.ensure_future(parent()) == [True, True]
                first.__exit__(None, None, None)
            assert loop.get_task_factory() is factory
            assert await asyncio.ensure_future(parent()) == [False, False]

        asyncio_backend.run(main)

    def test_loop_that_does_not_run(self, asyncio_backend: Any) -> None:
        """A task that is created between two runs of the loop inherits no portal."""

        async def stops() -> None:
            loop = asyncio.get_running_loop()
            with greenback.portals_for_children():
                gates.append(loop.create_future())
                loop.stop()
                await gates[0]

        loops: List[Any] = []
        gates: List[Any] = []

        async def new_loop() -> None:
            loops.append(type(asyncio.get_running_loop())())

        asyncio_backend.run(new_loop)
        (loop,) = loops
        try:
            stopped = loop.create_task(stops())
            loop.run_forever()
            assert not stopped.done()
            try:
                assert loop.run_until_complete(child()) is False
            finally:
                loop.set_task_factory(None)
                gates[0].set_result(None)
                loop.run_until_complete(stopped)
        finally:
            loop.close()

    def test_that_makes_no_task(self, asyncio_backend: Any) -> None:
        """A factory may return an object that is not a task."""

        class Named(asyncio.Future):  # type: ignore[type-arg]
            def set_name(self, name: object) -> None:
                """asyncio calls this on the factory's result."""

        def deferred(loop: Any, coro: Any, **kwds: Any) -> Any:
            coro.close()
            future = Named(loop=loop)
            future.set_result("no task")
            return future

        async def main() -> None:
            loop = asyncio.get_running_loop()
            loop.set_task_factory(deferred)
            with greenback.portals_for_children():
                assert await loop.create_task(child()) == "no task"
            loop.set_task_factory(None)

        with warnings.catch_warnings():
            warnings.simplefilter("error")
            asyncio_backend.run(main)
            gc.collect()

    def test_that_wraps_the_coroutine(self, asyncio_backend: Any) -> None:
        """If a factory wraps the coroutine in another one, the child still has its portal."""
        log: List[str] = []

        def logs(loop: Any, coro: Any, **kwds: Any) -> Any:
            async def logged() -> Any:
                log.append("start")
                try:
                    return await coro
                finally:
                    log.append("end")

            return asyncio.Task(logged(), loop=loop, **kwds)

        async def main() -> None:
            loop = asyncio.get_running_loop()
            loop.set_task_factory(logs)
            with greenback.portals_for_children():
                task = loop.create_task(child())
                assert await task
                assert not greenback.has_portal(task)
            loop.set_task_factory(None)

        asyncio_backend.run(main)
        assert log == ["start", "end"]
