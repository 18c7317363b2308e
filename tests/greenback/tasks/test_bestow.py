"""Portals that are bestowed on tasks."""

from __future__ import annotations

import asyncio
import gc
import platform
import sys
import time
import warnings
import weakref

import pytest

import greenback
from greenback.instruments import Portal

from ...conftest import BACKENDS

needs_refcounts = pytest.mark.skipif(
    platform.python_implementation() == "PyPy", reason="PyPy does not free objects at once"
)


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
                return 1  # PyPy frees them at a time of its own
            for _ in range(100):
                gc.collect()  # this does nothing while another thread (the SDK's, say) collects
                left = count_left()
                if left == 1:
                    break
                time.sleep(0.01)
            return left

        def count_left():
            portals = [thing for thing in gc.get_objects() if type(thing) is Portal]
            return len([portal for portal in portals if portal.task and portal.kind == "bestowed"])

        assert backend.run(main) == 1


class TestBestow:
    def test_parked_and_new(self, backend):
        """A parked task, and a task that has not started, can bridge from the next step on."""
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
        """A task that bestows a portal on itself can bridge after it has yielded to the loop."""

        async def main():
            greenback.bestow_portal(backend.current_task())
            with pytest.raises(RuntimeError, match="must yield to the event loop first"):
                greenback.await_(backend.checkpoint())
            await backend.checkpoint()
            greenback.await_(backend.checkpoint())
            return 5

        assert backend.run(main) == 5

    @pytest.mark.parametrize(
        ("backend", "task_is"),
        [
            (name, task_is)
            for name in BACKENDS
            for task_is in ("new", "waiting", "running")
            # Trio shows no task that has not begun.
            if name != "trio" or task_is != "new"
        ],
        indirect=["backend"],
    )
    def test_signal_handler_that_bestows_as_well(self, backend, task_is):
        """If a signal handler bestows on the same task at any place, the task has one portal."""

        def bestow(task, moment):
            """Bestow, with a handler at one of the calls and returns; returns their number."""
            seen = 0

            def profile(frame, event, argument):
                nonlocal seen
                seen += 1
                if seen == moment:
                    greenback.bestow_portal(task)

            sys.setprofile(profile)
            try:
                greenback.bestow_portal(task)
            finally:
                sys.setprofile(None)
            return seen

        async def one(moment):
            async def child():
                if task_is != "new":
                    tasks.append(backend.current_task())
                if task_is == "running":
                    seen.append(bestow(tasks[0], moment))
                else:
                    await gate.wait()
                await backend.checkpoint()
                bridged.append(greenback.await_(returns()))

            async def returns():
                await backend.checkpoint()
                return moment

            async def bestower():
                if task_is == "new":
                    tasks.append(asyncio.ensure_future(child()))
                while not tasks:
                    await backend.checkpoint()
                if task_is != "running":
                    seen.append(bestow(tasks[0], moment))
                gate.set()
                if task_is == "new":
                    await tasks[0]

            gate, tasks, seen, bridged = backend.event(), [], [], []
            await backend.together(*[bestower] if task_is == "new" else [child, bestower])
            assert bridged == [moment]
            return seen[0]

        async def main():
            moment = 1
            while await one(moment) >= moment:
                moment += 1
            return moment

        opened, closed = [], []

        class Counts(greenback.instruments.Instrument):
            def portal_opened(self, portal):
                opened.append(portal)

            def portal_closed(self, portal):
                closed.append(portal)

        counts = Counts()
        greenback.instruments.add_instrument(counts)
        try:
            moments = backend.run(main)
        finally:
            greenback.instruments.remove_instrument(counts)
        assert moments > 10
        assert len(opened) == len(closed) == moments

    def test_between_two_runs_of_a_loop(self):
        """A portal can be bestowed while no loop runs, on a task that waits for its loop."""

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
        """A task that is cancelled before its first step is not kept alive by its portal."""
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

        assert asyncio_backend.run(main) <= 1  # the loop may still hold the last task

    def test_done(self, asyncio_backend):
        """Bestowing on a finished task does nothing."""

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
        """A task that ends before its first step causes the same warnings as without a portal."""

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

            gc.collect()  # objects of earlier tests must not count
            with warnings.catch_warnings(record=True) as caught:
                warnings.simplefilter("always")
                asyncio_backend.run(main)
                gc.collect()
            return [str(w.message) for w in caught]

        assert warned(True) == warned(False)
