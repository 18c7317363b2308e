"""Tasks of all makes: eager, Python-implemented, subclasses; and bestowing in all their states."""

from __future__ import annotations

import asyncio
import gc
import platform
import subprocess
import sys
import warnings
import weakref

import pytest

import greenback
from greenback.instruments import Portal

needs_eager = pytest.mark.skipif(
    sys.version_info < (3, 12), reason="asyncio has eager tasks since Python 3.12"
)
needs_c_tasks = pytest.mark.skipif(
    platform.python_implementation() == "PyPy", reason="PyPy has no tasks written in C"
)

needs_refcounts = pytest.mark.skipif(
    platform.python_implementation() == "PyPy", reason="PyPy does not free objects at once"
)


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
        """A portal opened in the eager first step serves the task from then on."""
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
        """A task that ended in its eager first step is done, and bestowing does nothing."""

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
        """A task that waits after its eager first step can bridge from its next step on."""

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
        """Tasks made in Python and subclasses of tasks get portals, whatever else they refer to."""

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
                greenback.bestow_portal(task)
            assert await task is task

        asyncio_backend.run(main)

    def test_task_like_object(self, asyncio_backend):
        """A task that keeps its coroutine elsewhere is refused, and with_portal_run is named."""

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
            with pytest.raises(RuntimeError, match="with_portal_run"):
                greenback.bestow_portal(task)
            assert not greenback.has_portal(task)
            assert await task == 5
            with pytest.raises(TypeError, match="not a task"):
                greenback.bestow_portal(object())

        asyncio_backend.run(main)


class TestBestowOnOneself:
    def test_and_end_without_a_step(self, backend):
        """A task that bestows a portal on itself and ends at once leaves no portal behind."""
        tasks = []

        async def child():
            tasks.append(backend.current_task())
            greenback.bestow_portal(tasks[-1])

        async def main():
            await backend.together(*[child] * 5)
            await child()
            await backend.checkpoint()
            assert [greenback.has_portal(task) for task in tasks] == [False] * 5 + [True]
            del tasks[:]
            if platform.python_implementation() == "PyPy":
                return 1  # it frees them in its own time
            gc.collect()
            portals = [thing for thing in gc.get_objects() if type(thing) is Portal]
            return len([portal for portal in portals if portal.task and portal.kind == "bestowed"])

        assert backend.run(main) == 1


class TestBestow:
    def test_parked_and_new(self, backend):
        """A parked task, and one that has not started, can bridge from their next step on."""
        tasks, bridged = [], []

        async def child():
            tasks.append(backend.current_task())
            await gate.wait()
            greenback.await_(backend.checkpoint())
            bridged.append(greenback.has_portal())

        async def bestower():
            while len(tasks) < 2:
                await backend.checkpoint()
            for task in tasks:
                greenback.bestow_portal(task)
                assert greenback.has_portal(task)
            gate.set()

        async def main():
            nonlocal gate
            gate = backend.event()
            await backend.together(child, child, bestower)

        gate = None
        backend.run(main)
        assert bridged == [True, True]

    def test_running(self, backend):
        """A task that bestows on itself must yield first, and can bridge then."""

        async def main():
            greenback.bestow_portal(backend.current_task())
            with pytest.raises(RuntimeError, match="must yield to the event loop first"):
                greenback.await_(backend.checkpoint())
            await backend.checkpoint()
            greenback.await_(backend.checkpoint())
            return 5

        assert backend.run(main) == 5

    def test_between_two_runs_of_a_loop(self):
        """A portal can be bestowed where no loop is running, on a task that waits for the next."""

        async def opens():
            await greenback.with_portal_run_sync(greenback.await_, asyncio.sleep(0))

        async def child():
            await gate
            return greenback.await_(asyncio.sleep(0, 5))

        async def start():
            task = asyncio.ensure_future(child())
            await asyncio.sleep(0)
            return task

        loop = asyncio.new_event_loop()
        try:
            gate = loop.create_future()
            loop.run_until_complete(opens())
            task = loop.run_until_complete(start())
            greenback.bestow_portal(task)
            assert greenback.has_portal(task)
            gate.set_result(None)
            assert loop.run_until_complete(task) == 5
        finally:
            loop.close()

    @needs_refcounts
    def test_cancelled_before_the_first_step_is_freed(self, asyncio_backend):
        """Tasks that are cancelled before their first step are not kept by their portals."""
        references = []

        async def child():
            raise AssertionError("was not to run")

        async def one():
            task = asyncio.ensure_future(child())
            greenback.bestow_portal(task)
            task.cancel()
            await asyncio.wait([task])
            references.append(weakref.ref(task))

        async def main():
            for _ in range(20):
                await one()
            await asyncio.sleep(0)
            gc.collect()
            return sum(reference() is not None for reference in references)

        assert asyncio_backend.run(main) <= 1  # the loop may still hold the last one

    def test_done(self, asyncio_backend):
        """Bestowing on a task that is done does nothing."""

        async def nop():
            pass

        async def main():
            task = asyncio.ensure_future(nop())
            await task
            greenback.bestow_portal(task)
            assert not greenback.has_portal(task)

        asyncio_backend.run(main)

    @pytest.mark.parametrize("end", ["cancel", "drop"])
    def test_same_warnings_before_the_first_step(self, asyncio_backend, end):
        """A task that ends before its first step warns of what it would warn without a portal."""

        async def child():
            raise AssertionError("was not to run")

        def warned(bestow):
            async def main():
                task = asyncio.ensure_future(child())
                if bestow:
                    greenback.bestow_portal(task)
                if end == "cancel":
                    task.cancel()
                    with pytest.raises(asyncio.CancelledError):
                        await task
                assert greenback.has_portal(task) is (bestow and end == "drop")

            gc.collect()  # what earlier tests have left is not to be counted
            with warnings.catch_warnings(record=True) as caught:
                warnings.simplefilter("always")
                asyncio_backend.run(main)
                gc.collect()
            return [str(w.message) for w in caught]

        assert warned(True) == warned(False)


@needs_c_tasks
class TestUnverifiedInterpreter:
    def test_refused(self):
        """Where nobody has verified the layout of tasks, only with_portal_run opens portals."""
        program = """
import asyncio, greenback
import greenback._tasks
greenback._tasks._NEWEST_VERIFIED = (3, 7)

async def work():
    return greenback.await_(asyncio.sleep(0, 5))

async def main():
    for attempt in range(2):
        try:
            await greenback.ensure_portal()
        except RuntimeError as error:
            assert "with_portal_run" in str(error) and "verified" in str(error), error
        else:
            raise AssertionError("not refused")
        try:
            greenback.bestow_portal(asyncio.current_task())
        except RuntimeError as error:
            assert "with_portal_run" in str(error), error
        else:
            raise AssertionError("not refused")
        assert not greenback.has_portal()
        assert await greenback.with_portal_run(work) == 5

asyncio.run(main())
print("refused")
"""
        done = subprocess.run([sys.executable, "-c", program], capture_output=True)
        assert done.stdout.decode().strip() == "refused", done.stderr.decode()
