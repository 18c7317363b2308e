"""Bridges in bridges, loops in portals, and greenlets of the program in between."""

from __future__ import annotations

import asyncio
import sys
import threading

import greenlet
import pytest
import trio

import greenback

try:
    from sqlalchemy import util as sqlalchemy_util
except ImportError:
    sqlalchemy_util = None
needs_sqlalchemy = pytest.mark.skipif(
    not hasattr(sqlalchemy_util, "greenlet_spawn"), reason="SQLAlchemy needs a newer greenlet"
)

# Since Python 3.14, a thread has one running task, where each loop had one before.
HIDES_TASKS = sys.version_info >= (3, 14)


def no_portal_here():
    """Assert that the outer portal cannot be reached from here."""
    assert not greenback.has_portal()
    with pytest.raises(RuntimeError, match="create a greenback portal"):
        greenback.await_(asyncio.sleep(0))


def run_in_thread(backend, main):
    """Run where Trio and uvloop do not both claim the signal wakeup file descriptor."""

    def target():
        try:
            outcome.append(backend.run(main))
        except BaseException as error:
            outcome.append(error)

    outcome = []
    thread = threading.Thread(target=target)
    thread.start()
    thread.join()
    if isinstance(outcome[0], BaseException):
        raise outcome[0]
    return outcome[0]


class TestBridgesInBridges:
    @pytest.mark.parametrize("depth", [1, 2, 5, 20])
    def test_nested(self, backend, depth):
        """Bridges nest to any depth, in all kinds of portals."""

        async def level(n):
            await backend.checkpoint()
            if n == 0:
                return 0

            def sync():
                return 1 + greenback.await_(level(n - 1))

            async def run_in_run():
                return greenback.run(greenback.with_portal_run_sync, sync)

            return await (greenback.with_portal_run(run_in_run) if n % 2 else run_in_run())

        async def main():
            await greenback.ensure_portal()
            return await level(depth)

        assert backend.run(main) == depth


class TestOtherLoops:
    def test_trio_inside_asyncio(self, asyncio_backend):
        """Tasks of a Trio run inside an asyncio portal can use only their own portals."""

        async def child():
            no_portal_here()
            await trio.lowlevel.checkpoint()
            no_portal_here()
            await greenback.ensure_portal()
            return greenback.await_(trio.sleep(0))

        async def inner():
            no_portal_here()
            async with trio.open_nursery() as nursery:
                nursery.start_soon(child)
                nursery.start_soon(child)
            no_portal_here()
            return 5

        async def main():
            await greenback.ensure_portal()
            assert trio.run(inner) == 5
            assert greenback.await_(asyncio.sleep(0, 6)) == 6

        run_in_thread(asyncio_backend, main)

    def test_asyncio_inside_trio(self, asyncio_backend):
        """Tasks of an asyncio loop inside a Trio portal can use only their own portals."""

        async def child():
            no_portal_here()
            await asyncio.sleep(0)
            no_portal_here()
            await greenback.ensure_portal()
            return greenback.await_(asyncio.sleep(0, 5))

        async def inner():
            no_portal_here()
            result = await asyncio.gather(child(), child())
            no_portal_here()
            return result

        async def main():
            await greenback.ensure_portal()
            assert asyncio_backend.run(inner) == [5, 5]
            greenback.await_(trio.sleep(0))
            assert greenback.has_portal()

        trio.run(main)

    def test_asyncio_inside_asyncio(self, asyncio_backend):
        """Tasks of an asyncio loop that is nested by hiding the outer one use only their own."""

        async def inner():
            no_portal_here()
            await asyncio.sleep(0)
            await greenback.ensure_portal()
            return greenback.await_(asyncio.sleep(0, 5))

        async def main():
            await greenback.ensure_portal()
            outer_loop, outer_task = asyncio.get_running_loop(), asyncio.current_task()
            if HIDES_TASKS:
                asyncio.tasks._swap_current_task(outer_loop, None)
            asyncio._set_running_loop(None)
            try:
                assert asyncio_backend.run(inner) == 5
            finally:
                asyncio._set_running_loop(outer_loop)
                if HIDES_TASKS:
                    asyncio.tasks._swap_current_task(outer_loop, outer_task)
            assert asyncio.current_task() is outer_task
            assert greenback.await_(asyncio.sleep(0, 6)) == 6

        asyncio_backend.run(main)

    def test_trio_where_the_running_loop_was_taken_away(self, asyncio_backend):
        """A Trio run has portals inside a portal whose own loop is hidden, too."""

        async def inner():
            no_portal_here()
            found = await greenback.with_portal_run_sync(lambda: greenback.await_(five()))
            await greenback.ensure_portal()
            return found, greenback.await_(five())

        async def five():
            await trio.sleep(0)
            return 5

        async def main():
            def sync():
                loop = asyncio.get_running_loop()
                asyncio._set_running_loop(None)
                try:
                    return trio.run(inner)
                finally:
                    asyncio._set_running_loop(loop)

            found = await greenback.with_portal_run_sync(sync)
            await greenback.with_portal_run_sync(greenback.await_, asyncio.sleep(0))
            return found

        assert run_in_thread(asyncio_backend, main) == (5, 5)

    def test_guest_mode(self, asyncio_backend):
        """With Trio as a guest of asyncio, the tasks of each bridge to their own loop."""
        steps = []

        async def guest():
            no_portal_here()
            await greenback.ensure_portal()
            for _ in range(5):
                greenback.await_(trio.sleep(0.001))
                steps.append("trio")
            return 5

        async def main():
            loop = asyncio.get_running_loop()
            finished = loop.create_future()
            await greenback.ensure_portal()
            trio.lowlevel.start_guest_run(
                guest,
                run_sync_soon_threadsafe=loop.call_soon_threadsafe,
                done_callback=finished.set_result,
            )
            while not finished.done():
                greenback.await_(asyncio.sleep(0.001))
                steps.append("asyncio")
            return finished.result().unwrap()

        assert run_in_thread(asyncio_backend, main) == 5
        assert steps.count("trio") == 5
        assert "asyncio" in steps


class TestGreenletsOfOthers:
    def test_plain_greenlet(self, backend):
        """Code in a greenlet that the program made inside a portal can bridge."""

        def in_greenlet():
            greenback.await_(backend.checkpoint())
            return greenback.has_portal()

        async def main():
            await greenback.ensure_portal()
            return greenlet.greenlet(in_greenlet).switch()

        assert backend.run(main) is True

    @pytest.mark.parametrize("error", [None, LookupError("late")])
    def test_that_ends_after_its_portal(self, backend, error):
        """A greenlet that ends after its portal passes on its result; later portals work."""
        box = []

        def body():
            box[0].parent.switch("first")
            if error is not None:
                raise error
            return "last"

        def sync():
            box.append(greenlet.greenlet(body))
            return box[0].switch()

        async def fortytwo():
            await backend.checkpoint()
            return 42

        async def main():
            assert await greenback.with_portal_run_sync(sync) == "first"
            if error is None:
                assert box[0].switch() == "last"
            else:
                with pytest.raises(LookupError) as caught:
                    box[0].switch()
                assert caught.value is error
            for _ in range(3):
                assert await greenback.with_portal_run_sync(lambda: 42) == 42
                assert await greenback.with_portal_run(fortytwo) == 42

        backend.run(main)

    @needs_sqlalchemy
    def test_portal_inside_greenlet_spawn(self, asyncio_backend):
        """A coroutine that SQLAlchemy awaits for a function in its greenlet can open a portal."""

        async def work():
            return greenback.await_(asyncio.sleep(0, 5))

        def spawned():
            return sqlalchemy_util.await_only(greenback.with_portal_run(work))

        async def main():
            return await sqlalchemy_util.greenlet_spawn(spawned)

        assert asyncio_backend.run(main) == 5

    @needs_sqlalchemy
    def test_await_inside_greenlet_spawn(self, asyncio_backend):
        """In SQLAlchemy's greenlet inside a portal, both kinds of bridge work, mixed."""

        def spawned():
            result = []
            for i in range(3):
                result.append(greenback.await_(asyncio.sleep(0, i)))
                result.append(sqlalchemy_util.await_only(asyncio.sleep(0, i)))
            return result

        async def main():
            await greenback.ensure_portal()
            mine = await sqlalchemy_util.greenlet_spawn(spawned)
            theirs = greenback.await_(sqlalchemy_util.greenlet_spawn(spawned))
            return mine, theirs

        assert asyncio_backend.run(main) == ([0, 0, 1, 1, 2, 2],) * 2

    @needs_sqlalchemy
    def test_async_orm(self, asyncio_backend):
        """SQLAlchemy's async engine works inside a portal, by bridges."""
        pytest.importorskip("aiosqlite")
        sqlalchemy = pytest.importorskip("sqlalchemy")
        engines = pytest.importorskip("sqlalchemy.ext.asyncio")

        async def main():
            await greenback.ensure_portal()
            engine = engines.create_async_engine("sqlite+aiosqlite://")
            with greenback.async_context(engines.AsyncSession(engine)) as session:
                found = greenback.await_(session.execute(sqlalchemy.text("select 5"))).scalar()
            greenback.await_(engine.dispose())
            return found

        assert asyncio_backend.run(main) == 5
