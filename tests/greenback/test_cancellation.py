"""Cancellation enters and leaves a bridge as it does an ``await``."""

from __future__ import annotations

import asyncio
import sys

import anyio
import pytest
import trio
import trio.testing

import greenback

needs_311 = pytest.mark.skipif(
    sys.version_info < (3, 11), reason="asyncio.timeout and TaskGroup are new in Python 3.11"
)


def both_ways(backend, program):
    """The result of a program with awaits. Asserts that the result with bridges is the same.

    *program* gets an async function `wait_for_it`, by which it waits for an awaitable.
    """

    async def awaited():
        async def wait_for_it(aw):
            return await aw

        return await program(wait_for_it)

    async def bridged():
        await greenback.ensure_portal()

        async def wait_for_it(aw):
            # Unlike ensure_portal(), this is no checkpoint. At a checkpoint, `aw` could be lost.
            return await greenback.with_portal_run_sync(greenback.await_, aw)

        return await program(wait_for_it)

    expected = backend.run(awaited)
    assert backend.run(bridged) == expected
    return expected


class TestAsyncio:
    def test_task_cancel(self, asyncio_backend):
        """task.cancel() raises CancelledError, with its message, in the bridge."""

        async def program(wait):
            async def child():
                try:
                    await wait(asyncio.sleep(3600))
                except asyncio.CancelledError as error:
                    noted.append(error.args)
                    raise

            noted = []
            task = asyncio.ensure_future(child())
            for _ in range(3):
                await asyncio.sleep(0)
            if sys.version_info >= (3, 9):
                task.cancel("why")
            else:
                task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            return noted, task.cancelled()

        message = ("why",) if sys.version_info >= (3, 9) else ()
        assert both_ways(asyncio_backend, program) == ([message], True)

    def test_swallowed(self, asyncio_backend):
        """After sync code has caught a cancellation around a bridge, the task is not cancelled."""

        async def program(wait):
            async def child():
                try:
                    await wait(asyncio.sleep(3600))
                except asyncio.CancelledError:
                    return await wait(asyncio.sleep(0, "went on"))

            task = asyncio.ensure_future(child())
            for _ in range(3):
                await asyncio.sleep(0)
            task.cancel()
            return await task

        assert both_ways(asyncio_backend, program) == "went on"

    def test_wait_for(self, asyncio_backend):
        """``wait_for`` times out inside a bridge and around one."""

        async def program(wait):
            caught = []
            try:
                await wait(asyncio.wait_for(asyncio.sleep(3600), 0.001))
            except asyncio.TimeoutError:
                caught.append("inside")
            try:
                await asyncio.wait_for(wait(asyncio.sleep(3600)), 0.001)
            except asyncio.TimeoutError:
                caught.append("around")
            return caught

        assert both_ways(asyncio_backend, program) == ["inside", "around"]

    def test_shield(self, asyncio_backend):
        """A shielded future goes on when the bridge to the shield is cancelled."""

        async def program(wait):
            async def inner():
                await release.wait()
                return "finished"

            async def child():
                await wait(asyncio.shield(shielded))

            release = asyncio.Event()
            shielded = asyncio.ensure_future(inner())
            task = asyncio.ensure_future(child())
            for _ in range(3):
                await asyncio.sleep(0)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            release.set()
            return await shielded

        assert both_ways(asyncio_backend, program) == "finished"

    @needs_311
    def test_timeout(self, asyncio_backend):
        """asyncio.timeout around a bridge turns its cancellation into a TimeoutError."""

        async def program(wait):
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0.001):
                    await wait(asyncio.sleep(3600))
            return asyncio.current_task().cancelling()

        assert both_ways(asyncio_backend, program) == 0

    @needs_311
    def test_task_group(self, asyncio_backend):
        """A failing child of a TaskGroup cancels the bridges of its siblings and its parent."""

        async def program(wait):
            cancelled = []

            async def parked(name):
                try:
                    await wait(asyncio.sleep(3600))
                except asyncio.CancelledError:
                    cancelled.append(name)
                    raise

            async def fail():
                await wait(asyncio.sleep(0))
                raise KeyError

            try:
                async with asyncio.TaskGroup() as group:
                    group.create_task(parked("child"))
                    group.create_task(fail())
                    await parked("parent")
            except BaseExceptionGroup as error:  # noqa: F821  (3.11+)
                return sorted(cancelled), [type(e) for e in error.exceptions]

        assert both_ways(asyncio_backend, program) == (["child", "parent"], [KeyError])


@pytest.mark.parametrize("backend", ["trio"], indirect=True)
class TestTrio:
    def test_cancel_scopes(self, backend):
        """Cancel scopes, deadlines and shields work across a bridge."""

        async def program(wait):
            with trio.CancelScope() as outer:
                outer.cancel()
                with trio.CancelScope(shield=True):
                    await wait(trio.lowlevel.checkpoint())
                with trio.move_on_after(0, shield=True) as inner:
                    await wait(trio.sleep_forever())
                await wait(trio.lowlevel.checkpoint())
            return outer.cancelled_caught, inner.cancelled_caught

        assert both_ways(backend, program) == (True, True)

    def test_nursery(self, backend):
        """Cancelling a nursery's scope cancels the bridges of its tasks."""

        async def program(wait):
            cancelled = []

            async def parked():
                try:
                    await wait(trio.sleep_forever())
                except trio.Cancelled:
                    cancelled.append(1)
                    raise

            async with trio.open_nursery() as nursery:
                nursery.start_soon(parked)
                nursery.start_soon(parked)
                await trio.testing.wait_all_tasks_blocked()
                nursery.cancel_scope.cancel()
            return cancelled

        assert both_ways(backend, program) == [1, 1]


class TestAnyio:
    def test_task_group(self, backend):
        """anyio's task groups and scopes cancel a bridge as they do an await."""

        async def program(wait):
            cancelled = []

            async def parked(*, task_status):
                task_status.started()
                try:
                    await wait(anyio.sleep(3600))
                except anyio.get_cancelled_exc_class():
                    cancelled.append(1)
                    raise

            async with anyio.create_task_group() as group:
                await group.start(parked)
                await group.start(parked)
                group.cancel_scope.cancel()
            with anyio.move_on_after(0.001):
                await wait(anyio.sleep(3600))
                cancelled.append("not reached")
            with anyio.CancelScope() as scope:
                scope.cancel()
                with anyio.CancelScope(shield=True):
                    await wait(anyio.sleep(0))
                    cancelled.append("shielded")
                await wait(anyio.sleep(0))
                cancelled.append("not reached")
            return cancelled

        assert both_ways(backend, program) == [1, 1, "shielded"]


class TestNoCheckpointIsAdded:
    def test_others_make_no_progress(self, backend):
        """While a bridge or a portal for a call does not suspend, no other task runs."""

        async def nop():
            return 5

        def bridge():
            return [greenback.await_(nop()) for _ in range(10)]

        async def work():
            return bridge()

        async def main():
            progress = []

            async def other():
                while not finished:
                    progress.append(1)
                    await backend.checkpoint()

            async def quiet():
                while not progress:
                    await backend.checkpoint()
                before = len(progress)
                await greenback.with_portal_run(work)
                await greenback.with_portal_run_sync(bridge)
                assert len(progress) == before
                await greenback.ensure_portal()
                before = len(progress)
                bridge()
                await greenback.with_portal_run_sync(bridge)
                assert len(progress) == before
                greenback.await_(backend.checkpoint())
                finished.append(1)

            finished = []
            await backend.together(other, quiet)

        backend.run(main)
