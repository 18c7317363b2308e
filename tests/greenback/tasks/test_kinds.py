"""Kinds of tasks: eager tasks, tasks written in Python, and subclasses of asyncio.Task."""

from __future__ import annotations

import asyncio
import platform
import sys

import pytest
import sniffio

import greenback

needs_eager = pytest.mark.skipif(
    sys.version_info < (3, 12), reason="asyncio has eager tasks since Python 3.12"
)


#: From 3.14 on, where tasks are written in C, `asyncio.current_task()` is None in others.
KNOWS_PYTHON_TASKS = sys.version_info < (3, 14) or platform.python_implementation() == "PyPy"


@needs_eager
class TestEagerTasks:
    @staticmethod
    def run(asyncio_backend, main):
        def factory(loop, coroutine, *, name=None, context=None, **newer):
            # uvloop passes `eager_start`, which the factories of older Pythons do not take.
            return asyncio.eager_task_factory(loop, coroutine, name=name, context=context)

        async def with_factory():
            asyncio.get_running_loop().set_task_factory(factory)
            return await main()

        return asyncio_backend.run(with_factory)

    @pytest.mark.parametrize("inside_worker", [False, True])
    @pytest.mark.parametrize("opener", ["ensure_portal", "with_portal_run", "with_portal_run_sync"])
    def test_portal_in_the_first_step(self, asyncio_backend, opener, inside_worker):
        """A portal opened in an eager first step works for the rest of the task."""
        order, mine = [], {}

        def sync(name):
            for i in range(3):
                greenback.await_(asyncio.sleep(0))
                order.append((name, i, asyncio.current_task() is mine[name]))

        async def child(name):
            mine[name] = asyncio.current_task()
            if opener == "ensure_portal":
                await greenback.ensure_portal()
                sync(name)
            elif opener == "with_portal_run_sync":
                await greenback.with_portal_run_sync(sync, name)
            else:

                async def work():
                    sync(name)

                await greenback.with_portal_run(work)
            return name

        async def main():
            def start():
                return [asyncio.get_running_loop().create_task(child(n)) for n in "ab"]

            if inside_worker:
                await greenback.ensure_portal()

                def both():
                    tasks = start()
                    return greenback.await_(asyncio.gather(*tasks))

                result = both()
                assert greenback.has_portal()
            else:
                result = await asyncio.gather(*start())
                assert not greenback.has_portal()
            assert result == ["a", "b"]

        self.run(asyncio_backend, main)
        assert sorted(order) == [(n, i, True) for n in "ab" for i in range(3)]

    def test_bestow_on_one_that_finished_at_once(self, asyncio_backend):
        """Bestowing on a task that ended in its eager first step does nothing."""

        async def nop():
            return 5

        async def main():
            task = asyncio.get_running_loop().create_task(nop())
            assert task.done()
            greenback.bestow_portal(task)
            assert not greenback.has_portal(task)
            assert await task == 5

        self.run(asyncio_backend, main)

    def test_bestow_on_one_that_is_parked(self, asyncio_backend):
        """A portal bestowed after an eager first step works from the next step on."""

        async def child():
            await asyncio.sleep(0)
            greenback.await_(asyncio.sleep(0))
            return 5

        async def main():
            task = asyncio.get_running_loop().create_task(child())
            greenback.bestow_portal(task)
            assert await task == 5

        self.run(asyncio_backend, main)


class TestKindsOfTask:
    @pytest.mark.parametrize("way", ["ensure", "bestow"])
    @pytest.mark.parametrize("kind", ["python", "subclass", "slot", "attribute"])
    def test_bridges(self, asyncio_backend, kind, way):
        """Tasks written in Python, and subclasses of tasks, get portals, whatever they refer to."""

        class Slot(asyncio.Task):
            __slots__ = ("mine",)

        class Subclass(asyncio.Task):
            pass

        def factory(loop, coroutine, **kwds):
            if kind == "python":
                return asyncio.tasks._PyTask(coroutine, loop=loop, **kwds)
            task = (Slot if kind == "slot" else Subclass)(coroutine, loop=loop, **kwds)
            if kind != "subclass":
                task.mine = coroutine
            return task

        async def child():
            if way == "ensure":
                await greenback.ensure_portal()
            greenback.await_(asyncio.sleep(0))
            return asyncio.current_task()

        async def main():
            asyncio.get_running_loop().set_task_factory(factory)
            task = asyncio.get_running_loop().create_task(child())
            if way == "bestow":
                try:
                    greenback.bestow_portal(task)
                except RuntimeError:
                    task.cancel()
                    raise
            assert await task is task

        if kind == "python" and not KNOWS_PYTHON_TASKS:
            # asyncio itself does not name the running task then.
            expected = sniffio.AsyncLibraryNotFoundError if way == "ensure" else RuntimeError
            with pytest.raises(
                expected, match="context" if way == "ensure" else "use asyncio.Task"
            ):
                asyncio_backend.run(main)
        else:
            asyncio_backend.run(main)

    @pytest.mark.skipif(KNOWS_PYTHON_TASKS, reason="such a task gets a portal here")
    def test_unknown_to_asyncio(self, asyncio_backend):
        """A task that asyncio does not name while it runs goes on without a portal."""

        def factory(loop, coroutine, **kwds):
            return asyncio.tasks._PyTask(coroutine, loop=loop, **kwds)

        async def child():
            await asyncio.sleep(0)
            return greenback.has_portal()

        async def main():
            asyncio.get_running_loop().set_task_factory(factory)
            async with greenback.portals_for_tree():
                task = asyncio.get_running_loop().create_task(child())
                assert await task is False
                assert not greenback.has_portal(task)

        asyncio_backend.run(main)

    def test_task_like_object(self, asyncio_backend):
        """A task that keeps its coroutine elsewhere is refused; the error names with_portal_run."""

        class Odd(asyncio.tasks._PyTask):
            @property
            def _coro(self):
                return self.elsewhere

            @_coro.setter
            def _coro(self, value):
                if "elsewhere" in self.__dict__:
                    raise AttributeError("read-only")
                self.elsewhere = value

        async def child():
            await asyncio.sleep(0)
            return 5

        async def main():
            task = Odd(child(), loop=asyncio.get_running_loop())
            remedy = "with_portal_run" if KNOWS_PYTHON_TASKS else "use asyncio.Task"
            with pytest.raises(RuntimeError, match=remedy):
                greenback.bestow_portal(task)
            assert not greenback.has_portal(task)
            assert await task == 5
            with pytest.raises(TypeError, match="not a task"):
                greenback.bestow_portal(object())

        asyncio_backend.run(main)
