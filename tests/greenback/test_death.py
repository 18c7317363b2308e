"""Portals and bridges whose task, loop or worker ends early."""

from __future__ import annotations

import asyncio
import gc
import platform
import sys
import threading
import traceback
import weakref

import greenlet
import pytest

import greenback
from greenback.instruments import Portal

needs_refcounts = pytest.mark.skipif(
    platform.python_implementation() == "PyPy",
    reason="PyPy's collector does not list greenlets, nor free them at once",
)


def close_while_waiting(error, bridges):
    """Close the coroutine of a task whose finally raises *error*; return what close() raises."""

    async def victim():
        if bridges:
            await greenback.ensure_portal()
        try:
            if bridges:
                greenback.await_(asyncio.sleep(3600))
            else:
                await asyncio.sleep(3600)
        finally:
            raise error("late")

    async def main():
        task = asyncio.ensure_future(victim())
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        return task

    loop = asyncio.new_event_loop()
    task = loop.run_until_complete(main())
    task._log_destroy_pending = False
    loop.close()
    with pytest.raises(error) as caught:
        task.get_coro().close()
    return caught.value


@pytest.mark.parametrize("kind", ["bridge", "caught", "coroutine"])
def test_kept_worker(kind):
    """Switching to a worker whose portal was closed meanwhile raises, whatever the work does then.

    A thread that closes the coroutine of another thread's task cannot end the work.
    """
    workers, caught = [], []

    def bridge():
        workers.append(greenlet.getcurrent())
        try:
            greenback.await_(asyncio.sleep(3600))
        except ValueError as error:
            caught.append(error)
        if kind == "bridge":
            greenback.await_(asyncio.sleep(0))

    async def wait():
        workers.append(greenlet.getcurrent())
        try:
            await asyncio.sleep(3600)
        except ValueError as error:
            caught.append(error)
        await asyncio.sleep(0)

    def close(coroutine):
        with pytest.raises(greenlet.error):
            coroutine.close()

    async def main():
        if kind == "coroutine":
            coroutine = greenback.with_portal_run(wait)
        else:
            coroutine = greenback.with_portal_run_sync(bridge)
        coroutine.send(None)
        thread = threading.Thread(target=close, args=(coroutine,))
        thread.start()
        thread.join()
        error = ValueError("switched to")
        with pytest.raises((AttributeError, RuntimeError)):
            workers.pop().throw(error)
        assert caught == [error]

    asyncio.run(main())


def close_loop_with_parked_tasks(number):
    """Run tasks that park in a bridge, and close their loop; return the notes of their finally."""
    ended = []

    async def park(index, never):
        await greenback.ensure_portal()
        try:
            greenback.await_(never)
        finally:
            ended.append(index)

    async def main():
        never = asyncio.get_running_loop().create_future()
        main.tasks = [asyncio.ensure_future(park(i, never)) for i in range(number)]
        for _ in range(3):
            await asyncio.sleep(0)

    loop = asyncio.new_event_loop()
    loop.set_exception_handler(lambda loop, context: None)
    loop.run_until_complete(main())
    loop.close()
    return ended


class TestEndInABridge:
    def test_cancelled_task_runs_its_finally_blocks(self, asyncio_backend):
        """A task that is cancelled in a bridge runs its finally blocks, and can bridge in them."""
        noted = []

        async def parked():
            await greenback.ensure_portal()
            try:
                greenback.await_(asyncio.sleep(3600))
            finally:
                greenback.await_(asyncio.sleep(0))
                noted.append("after bridge")

        async def main():
            task = asyncio.ensure_future(parked())
            await asyncio.sleep(0)
            await asyncio.sleep(0)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task

        asyncio_backend.run(main)
        assert noted == ["after bridge"]

    @pytest.mark.parametrize("opener", ["with_portal_run", "with_portal_run_sync"])
    def test_closed_coroutine_runs_its_finally_blocks(self, asyncio_backend, opener):
        """Closing a coroutine that is parked in a bridge raises GeneratorExit there."""
        noted = []

        def bridged():
            try:
                greenback.await_(asyncio.sleep(0))
            except GeneratorExit:
                noted.append("exit")
                raise

        async def work():
            bridged()

        async def main():
            function = work if opener == "with_portal_run" else bridged
            coroutine = getattr(greenback, opener)(function)
            assert coroutine.send(None) is None
            coroutine.close()
            assert not greenback.has_portal()

        asyncio_backend.run(main)
        assert noted == ["exit"]

    @pytest.mark.skipif(
        platform.python_implementation() == "PyPy",
        reason="what ignores GeneratorExit stays there until it is collected",
    )
    def test_ignored_generator_exit(self, asyncio_backend):
        """Code that goes on awaiting after GeneratorExit gets Python's error for that."""

        def stubborn():
            while True:
                try:
                    greenback.await_(asyncio.sleep(0))
                except GeneratorExit:
                    greenback.await_(asyncio.sleep(0))
                    return

        async def main():
            coroutine = greenback.with_portal_run_sync(stubborn)
            coroutine.send(None)
            with pytest.raises(RuntimeError, match="ignored GeneratorExit"):
                coroutine.close()
            # The next portal works in any case.
            await greenback.with_portal_run_sync(greenback.await_, asyncio.sleep(0))

        asyncio_backend.run(main)

    @pytest.mark.parametrize("error", [asyncio.CancelledError, SystemExit, LookupError])
    def test_closing_raises_what_finally_raises(self, error):
        """close() raises the exception of the task's finally, as with a plain coroutine."""
        bridged = close_while_waiting(error, bridges=True)
        plain = close_while_waiting(error, bridges=False)
        assert type(bridged) is type(plain) is error
        assert bridged.args == plain.args == ("late",)
        assert type(bridged.__context__) is type(plain.__context__) is GeneratorExit

    @pytest.mark.skipif(
        sys.version_info < (3, 11) or platform.python_implementation() == "PyPy",
        reason="an exception that is raised again keeps its traceback before CPython 3.11",
    )
    def test_closing_shows_no_frame_of_the_bridge(self):
        """The exception of close() has the traceback of a plain coroutine's, without ``drive``."""
        bridged = close_while_waiting(LookupError, bridges=True)
        plain = close_while_waiting(LookupError, bridges=False)
        names = [frame.name for frame in traceback.extract_tb(bridged.__traceback__)]
        expected = [frame.name for frame in traceback.extract_tb(plain.__traceback__)]
        assert (names[0], names[-1]) == (expected[0], expected[-1])
        assert "drive" not in names


class TestClosedLoop:
    @pytest.mark.parametrize("error", [asyncio.CancelledError, SystemExit])
    def test_sweep_goes_on(self, caplog, error):
        """If a swept task's finally raises, that is logged, and all other tasks are swept."""
        ended = []

        async def park(index):
            await greenback.ensure_portal()
            try:
                greenback.await_(asyncio.sleep(3600))
            finally:
                ended.append(index)
                if index == 2:
                    raise error("late")

        async def main():
            tasks = [asyncio.ensure_future(park(index)) for index in range(5)]
            await asyncio.sleep(0)
            await asyncio.sleep(0)
            for task in tasks:
                task._log_destroy_pending = False

        async def opener():
            return await greenback.with_portal_run_sync(lambda: 42)

        loop = asyncio.new_event_loop()
        loop.run_until_complete(main())
        loop.close()
        assert ended == []
        with caplog.at_level("ERROR", logger="greenback"):
            assert asyncio.run(opener()) == 42
        assert sorted(ended) == [0, 1, 2, 3, 4]
        (record,) = [record for record in caplog.records if record.name == "greenback"]
        assert record.exc_info[0] is error

    @pytest.mark.parametrize("suspends", [False, True])
    @pytest.mark.parametrize("opener", ["ensure_portal", "with_portal_run", "with_portal_run_sync"])
    @pytest.mark.parametrize("other_loop", [False, True])
    def test_swept_by_the_next_portal(self, asyncio_backend, opener, suspends, other_loop):
        """Tasks that a closed loop left in bridges end when their thread next opens a portal."""
        ended = close_loop_with_parked_tasks(100)

        def sync():
            if suspends:
                greenback.await_(asyncio.sleep(0))

        async def work():
            sync()

        async def main():
            if opener == "ensure_portal":
                await greenback.ensure_portal()
                sync()
            else:
                await getattr(greenback, opener)(work if opener == "with_portal_run" else sync)

        async def nothing():
            await asyncio.sleep(0)

        if other_loop:
            asyncio_backend.run(nothing)
        asyncio_backend.run(main)
        assert sorted(ended) == list(range(100))

    @needs_refcounts
    def test_nothing_is_left_after_the_sweep(self):
        """The swept tasks' greenlets are freed."""
        gc.collect()
        before = len(live_greenlets())
        close_loop_with_parked_tasks(100)

        async def nop():
            pass

        asyncio.run(greenback.with_portal_run(nop))
        gc.collect()
        assert len(live_greenlets()) <= before + 32


def live_greenlets():
    main = greenlet.getcurrent()  # this may create it
    # Not isinstance(): it asks a weak proxy for its object, which may be freed already.
    found = (o for o in gc.get_objects() if issubclass(type(o), greenlet.greenlet))
    return [o for o in found if o is not main and not o.dead]


def number_of_portals():
    return sum(1 for thing in gc.get_objects() if type(thing) is Portal)


@needs_refcounts
class TestNothingIsLeftBehind:
    def test_many_tasks_and_many_parked(self, backend):
        """After 20,000 tasks with portals, and 5,000 parked at once, only the pool is left."""
        count = 0

        async def short():
            nonlocal count
            await greenback.ensure_portal()
            greenback.await_(backend.checkpoint())
            count += 1

        async def main():
            nonlocal count
            for _ in range(20):
                await backend.together(*[short] * 1000)
            gate = backend.event()

            async def parked():
                nonlocal count
                await greenback.ensure_portal()
                count += 1
                if count == 25000:
                    gate.set()
                greenback.await_(gate.wait())

            await backend.together(*[parked] * 5000)

        gc.collect()
        before = len(live_greenlets())
        backend.run(main)
        gc.collect()
        assert count == 25000
        assert len(live_greenlets()) <= before + 32

    def test_short_lived_threads(self):
        """500 threads, each with a loop and a portal, leave no greenlet behind."""

        async def work():
            greenback.await_(asyncio.sleep(0))
            done.append(1)

        def in_thread():
            asyncio.run(greenback.with_portal_run(work))

        done = []
        in_thread()
        gc.collect()
        before = len(live_greenlets())
        # The garbage collector does not know parked greenlets, but it knows the objects they keep.
        portals = number_of_portals()
        for _ in range(50):
            threads = [threading.Thread(target=in_thread) for _ in range(10)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
        del threads, thread
        asyncio.run(greenback.with_portal_run(work))  # greenlet frees those of dead threads now
        gc.collect()
        assert len(done) == 502
        assert len(live_greenlets()) <= before + 1
        assert number_of_portals() <= portals + 1


class TestKilledWorker:
    @pytest.mark.skipif(
        platform.python_implementation() == "PyPy", reason="greenlet 0.4 lets it live on"
    )
    def test_that_catches_it(self, backend):
        """Sync code that catches its GreenletExit ends, and the next portal works."""
        box = []

        def stubborn():
            box.append(greenlet.getcurrent())
            try:
                greenback.await_(backend.sleep(3600))
            except greenlet.GreenletExit:
                return 5

        async def main():
            coroutine = greenback.with_portal_run_sync(stubborn)
            coroutine.send(None)
            box[0].throw(greenlet.GreenletExit)
            assert box[0].dead
            assert await greenback.with_portal_run_sync(lambda: 42) == 42
            coroutine.close()
            assert await greenback.with_portal_run_sync(lambda: 42) == 42

        backend.run(main)

    @needs_refcounts
    def test_keeps_nothing(self, backend):
        """A bridge's awaitable is freed at the end of the bridge, while its portal goes on."""
        box = []

        class Thing:
            pass

        async def takes(thing):
            await backend.sleep(3600)

        def bridges():
            thing = Thing()
            box.append(weakref.ref(thing))
            greenback.await_(takes(thing))

        def stubborn():
            box.append(greenlet.getcurrent())
            try:
                bridges()
            except greenlet.GreenletExit:
                pass

        async def main():
            coroutine = greenback.with_portal_run_sync(stubborn)
            coroutine.send(None)
            worker, thing = box
            assert thing() is not None
            worker.throw(greenlet.GreenletExit)
            gc.collect()
            assert thing() is None
            coroutine.close()

        backend.run(main)

    def test_next_portal_works(self, backend):
        """A worker that was killed during its work is not used again."""

        def suicide():
            raise greenlet.GreenletExit

        async def main():
            for _ in range(3):
                try:
                    await greenback.with_portal_run_sync(suicide)
                except greenlet.GreenletExit:
                    pass
                assert not greenback.has_portal()
                assert await greenback.with_portal_run_sync(greenback.has_portal)

        backend.run(main)
