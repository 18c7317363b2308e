"""Portals that child tasks inherit."""

from __future__ import annotations

import asyncio
import gc
import platform
import sys
import threading
import weakref
from typing import Any, List

import pytest
import trio
import trio.testing

import greenback
from greenback import await_

from .children import can_bridge, child, factory_of_loop

needs_refcounts = pytest.mark.skipif(
    platform.python_implementation() == "PyPy", reason="PyPy does not free objects at once"
)


class TestWithPortalRunTree:
    def test_result_and_arguments(self, backend: Any) -> None:
        """The function gets the arguments, and its result is returned."""

        async def fn(*args: int, **kwds: int) -> Any:
            await_(backend.checkpoint())
            return args, kwds

        async def main() -> None:
            assert await greenback.with_portal_run_tree(fn, 1, 2, a=3) == ((1, 2), {"a": 3})
            assert not greenback.has_portal()

        backend.run(main)

    def test_exception(self, backend: Any) -> None:
        """The function's exception is raised, and the scope is left."""

        async def fails() -> None:
            await_(backend.checkpoint())
            raise LookupError("here")

        async def main() -> None:
            with pytest.raises(LookupError, match="here") as caught:
                await greenback.with_portal_run_tree(fails)
            assert caught.value.__context__ is None
            assert not greenback.has_portal()
            assert await grandchildren(backend) == [False] * 3

        backend.run(main)

    def test_descendants(self, backend: Any) -> None:
        """The function, its child tasks and their children have portals."""

        async def main() -> None:
            async def tree() -> None:
                assert can_bridge(backend.checkpoint)
                assert await grandchildren(backend) == [True] * 3

            await greenback.with_portal_run_tree(tree)
            assert await grandchildren(backend) == [False] * 3

        backend.run(main)

    def test_as_the_main_function(self, backend: Any) -> None:
        """An event loop can be started with it, so that the whole program has portals."""

        async def main() -> List[bool]:
            return await grandchildren(backend)

        assert backend.run(greenback.with_portal_run_tree, main) == [True] * 3

    def test_inside_a_portal(self, backend: Any) -> None:
        """In a task with a portal, that portal stays, and children inherit, too."""

        async def main() -> None:
            await greenback.ensure_portal()
            assert await greenback.with_portal_run_tree(grandchildren, backend) == [True] * 3
            assert can_bridge(backend.checkpoint)
            assert await grandchildren(backend) == [False] * 3

        backend.run(main)

    def test_adds_no_checkpoint(self, backend: Any) -> None:
        """If the function does not wait, no other task runs."""
        others: List[int] = []

        async def other() -> None:
            others.append(1)

        async def immediate() -> int:
            return 7

        async def main() -> None:
            async def first() -> None:
                assert await greenback.with_portal_run_tree(immediate) == 7
                assert others == []

            await backend.together(first, other) if backend.is_trio is False else await first()

        backend.run(main)


async def grandchildren(backend: Any, depth: int = 3) -> List[bool]:
    """Whether a child, its child and so on can each bridge."""
    found: List[bool] = []

    async def level() -> None:
        found.append(can_bridge(backend.checkpoint))
        if len(found) < depth:
            await backend.together(level)

    await backend.together(level)
    return found


class TestPortalsForTree:
    def test_no_portal_afterwards(self, backend: Any) -> None:
        """Inside there is a portal, outside there is none."""

        async def main() -> None:
            assert not greenback.has_portal()
            async with greenback.portals_for_tree():
                assert can_bridge(backend.checkpoint)
                assert await grandchildren(backend) == [True] * 3
            assert not can_bridge(backend.checkpoint)
            assert not greenback.has_portal(backend.current_task())
            assert await grandchildren(backend) == [False] * 3

        backend.run(main)

    def test_again(self, backend: Any) -> None:
        """A task can enter scopes one after another."""

        async def main() -> None:
            for _ in range(3):
                async with greenback.portals_for_tree():
                    assert can_bridge(backend.checkpoint)
                    assert await grandchildren(backend) == [True] * 3
                assert not can_bridge(backend.checkpoint)
                await backend.checkpoint()
                assert not can_bridge(backend.checkpoint)

        backend.run(main)

    def test_other_portals_afterwards(self, backend: Any) -> None:
        """The other ways to open a portal work in a task that has left a scope."""

        async def main() -> None:
            async with greenback.portals_for_tree():
                pass
            assert await greenback.with_portal_run_sync(can_bridge, backend.checkpoint)
            assert not can_bridge(backend.checkpoint)
            await greenback.ensure_portal()
            assert can_bridge(backend.checkpoint)
            async with greenback.portals_for_tree():
                assert can_bridge(backend.checkpoint)
            assert can_bridge(backend.checkpoint)

        backend.run(main)

    def test_bestow_afterwards(self, backend: Any) -> None:
        """A task that has left a scope can be given a portal by bestowing, also by itself."""

        async def main() -> None:
            async with greenback.portals_for_tree():
                pass
            greenback.bestow_portal(backend.current_task())
            assert greenback.has_portal(backend.current_task())
            await backend.checkpoint()
            assert can_bridge(backend.checkpoint)

        backend.run(main)

    def test_nested(self, backend: Any) -> None:
        """Leaving an inner scope ends neither the portal nor the scope around it."""

        async def main() -> None:
            async with greenback.portals_for_tree():
                async with greenback.portals_for_tree():
                    assert can_bridge(backend.checkpoint)
                assert can_bridge(backend.checkpoint)
                assert await grandchildren(backend) == [True] * 3
            assert not can_bridge(backend.checkpoint)
            assert await grandchildren(backend) == [False] * 3

        backend.run(main)

    def test_error_in_the_body(self, backend: Any) -> None:
        """An exception in the body closes the portal, and leaves the scope unchanged."""

        async def main() -> None:
            error = LookupError("here")
            with pytest.raises(LookupError) as caught:
                async with greenback.portals_for_tree():
                    await_(backend.checkpoint())
                    raise error
            assert caught.value is error
            assert error.__context__ is None
            assert not can_bridge(backend.checkpoint)
            assert await grandchildren(backend) == [False] * 3

        backend.run(main)

    def test_cancelled_in_the_body(self, backend: Any) -> None:
        """A cancellation inside the scope leaves it like any exception."""
        log: List[Any] = []

        async def victim() -> None:
            try:
                async with greenback.portals_for_tree():
                    log.append(can_bridge(backend.checkpoint))
                    await_(backend.sleep(3600))
            finally:
                log.append(greenback.has_portal())

        async def main() -> None:
            if backend.is_trio:
                with trio.CancelScope() as scope:
                    async with trio.open_nursery() as nursery:
                        nursery.start_soon(victim)
                        await trio.testing.wait_all_tasks_blocked()
                        scope.cancel()
            else:
                task = asyncio.ensure_future(victim())
                while not log:
                    await asyncio.sleep(0)
                task.cancel()
                await asyncio.wait([task])
                assert task.cancelled()
                assert factory_of_loop() is None
            assert log == [True, False]
            assert await grandchildren(backend) == [False] * 3

        backend.run(main)

    def test_entering_and_leaving_let_others_run(self, asyncio_backend: Any) -> None:
        """Entering and leaving let other tasks run, as upstream's do."""
        log: List[str] = []

        async def other() -> None:
            log.append("other")

        async def main() -> None:
            first = asyncio.ensure_future(other())
            async with greenback.portals_for_tree():
                log.append("inside")
                second = asyncio.ensure_future(other())
            log.append("outside")
            await asyncio.wait([first, second])

        asyncio_backend.run(main)
        assert log == ["other", "inside", "other", "outside"]

    def test_is_no_cancellation_point_on_trio(self) -> None:
        """On Trio a cancelled task can enter and leave a scope."""

        async def main() -> None:
            with trio.CancelScope() as scope:
                scope.cancel()
                async with greenback.portals_for_tree():
                    assert greenback.has_portal()
                assert not greenback.has_portal()
            assert not scope.cancelled_caught

        trio.run(main)

    def test_cancelled_while_entering_on_asyncio(self, asyncio_backend: Any) -> None:
        """A task that is cancelled while it enters has neither a portal nor a scope."""

        async def main() -> None:
            task = asyncio.current_task()
            assert task is not None
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                async with greenback.portals_for_tree():
                    raise AssertionError
            assert not can_bridge(lambda: asyncio.sleep(0))
            assert factory_of_loop() is None
            if sys.version_info >= (3, 11):
                task.uncancel()
            assert not await asyncio.ensure_future(child())

        asyncio_backend.run(main)


class TestPortalsForChildren:
    def test_not_the_task_itself(self, backend: Any) -> None:
        """Children inherit; the current task gets no portal."""

        async def main() -> None:
            with greenback.portals_for_children():
                assert not can_bridge(backend.checkpoint)
                assert await grandchildren(backend) == [True] * 3
                assert not can_bridge(backend.checkpoint)
            assert await grandchildren(backend) == [False] * 3

        backend.run(main)

    def test_nested(self, backend: Any) -> None:
        """Leaving an inner scope does not end the one around it."""

        async def main() -> None:
            with greenback.portals_for_children():
                with greenback.portals_for_children():
                    assert await grandchildren(backend) == [True] * 3
                assert await grandchildren(backend) == [True] * 3
            assert await grandchildren(backend) == [False] * 3

        backend.run(main)

    def test_overlapping(self, backend: Any) -> None:
        """Two scopes of one task can be left in any order; each works until its own end."""

        async def main() -> None:
            first, second = greenback.portals_for_children(), greenback.portals_for_children()
            first.__enter__()
            second.__enter__()
            first.__exit__(None, None, None)
            assert await grandchildren(backend) == [True] * 3
            second.__exit__(None, None, None)
            assert await grandchildren(backend) == [False] * 3

        backend.run(main)

    def test_in_several_tasks(self, backend: Any) -> None:
        """Scopes of independent tasks do not disturb each other."""
        found: List[Any] = []
        first_is_in: Any = None
        second_is_in: Any = None
        first_is_out: Any = None

        async def first() -> None:
            with greenback.portals_for_children():
                first_is_in.set()
                await second_is_in.wait()
                found.append(("first", await grandchildren(backend)))
            first_is_out.set()
            found.append(("first, outside", await grandchildren(backend)))

        async def second() -> None:
            await first_is_in.wait()
            with greenback.portals_for_children():
                second_is_in.set()
                await first_is_out.wait()
                found.append(("second", await grandchildren(backend)))

        async def third() -> None:
            await second_is_in.wait()
            found.append(("third", await grandchildren(backend)))

        async def main() -> None:
            nonlocal first_is_in, second_is_in, first_is_out
            # Before Python 3.10, an event takes its loop when it is made.
            first_is_in, second_is_in = backend.event(), backend.event()
            first_is_out = backend.event()
            await backend.together(first, second, third)
            assert sorted(found) == [
                ("first", [True] * 3),
                ("first, outside", [False] * 3),
                ("second", [True] * 3),
                ("third", [False] * 3),
            ]

        backend.run(main)

    def test_in_a_child(self, backend: Any) -> None:
        """A task that has inherited keeps its portal when it leaves a scope of its own."""

        async def inherits() -> None:
            assert can_bridge(backend.checkpoint)
            async with greenback.portals_for_tree():
                assert await grandchildren(backend) == [True] * 3
            assert can_bridge(backend.checkpoint)
            assert await grandchildren(backend) == [True] * 3

        async def main() -> None:
            with greenback.portals_for_children():
                await backend.together(inherits)

        backend.run(main)

    def test_no_library(self) -> None:
        """If no event loop runs, entering says so."""
        with pytest.raises(RuntimeError), greenback.portals_for_children():
            raise AssertionError

    def test_exception_passes(self, backend: Any) -> None:
        """An exception in the body is not swallowed."""

        async def main() -> None:
            with pytest.raises(LookupError), greenback.portals_for_children():
                raise LookupError
            assert await grandchildren(backend) == [False] * 3

        backend.run(main)


class TestAutoPortalInstrument:
    def test_passed_to_run(self) -> None:
        """Every task of the run has a portal: the main one, its children and system tasks."""
        found: List[bool] = []

        async def say() -> None:
            found.append(can_bridge(trio.lowlevel.checkpoint))

        async def main() -> None:
            await say()
            async with trio.open_nursery() as nursery:
                nursery.start_soon(say)
            trio.lowlevel.spawn_system_task(say)
            while len(found) < 3:
                await trio.lowlevel.checkpoint()

        trio.run(main, instruments=[greenback.AutoPortalInstrument()])
        assert found == [True] * 3

    def test_scopes_inside(self) -> None:
        """Leaving a scope does not end the effect of the run's instrument."""

        async def main() -> None:
            async with greenback.portals_for_tree():
                assert can_bridge(trio.lowlevel.checkpoint)
            assert can_bridge(trio.lowlevel.checkpoint)
            with greenback.portals_for_children():
                pass
            async with trio.open_nursery() as nursery:
                nursery.start_soon(say)

        async def say() -> None:
            assert can_bridge(trio.lowlevel.checkpoint)

        trio.run(main, instruments=[greenback.AutoPortalInstrument()])

    def test_is_a_trio_instrument(self) -> None:
        """Trio calls only the hooks that are needed, and none for each step."""
        instrument = greenback.AutoPortalInstrument()
        assert not any(
            hasattr(instrument, name)
            and (
                not hasattr(trio.abc.Instrument, name)
                or getattr(type(instrument), name) is not getattr(trio.abc.Instrument, name)
            )
            for name in ("before_task_step", "after_task_step", "task_scheduled", "before_io_wait")
        )

    def test_nothing_is_left(self) -> None:
        """After the last scope, the run has no instrument any more."""

        async def main() -> None:
            async with greenback.portals_for_tree():
                pass
            with greenback.portals_for_children():
                pass
            for thing in gc.get_objects():
                if type(thing) is greenback.AutoPortalInstrument:
                    with pytest.raises(KeyError):
                        trio.lowlevel.remove_instrument(thing)

        trio.run(main)


@needs_refcounts
class TestNothingIsKept:
    def test_loop_of_a_task_that_never_leaves_its_scope(self) -> None:
        """A task that is dropped inside a scope is freed, and so is its loop."""

        async def forever() -> None:
            with greenback.portals_for_children():
                await asyncio.get_running_loop().create_future()

        def drop() -> List[Any]:
            loop = asyncio.new_event_loop()
            task: Any = loop.create_task(forever())
            loop.run_until_complete(asyncio.sleep(0))
            loop.close()
            task._log_destroy_pending = False
            return [weakref.ref(loop), weakref.ref(task)]

        references = [reference for _ in range(3) for reference in drop()]
        gc.collect()
        assert [reference() for reference in references] == [None] * 6

    def test_by_an_idle_worker(self, asyncio_backend: Any) -> None:
        """A worker whose first portal was inherited keeps neither the scope's task nor the loop."""
        references: List[Any] = []
        alive: List[Any] = []

        async def bridges() -> None:
            await_(asyncio.sleep(0))

        async def opener() -> None:
            references.append(weakref.ref(asyncio.current_task()))
            with greenback.portals_for_children():
                await asyncio.create_task(bridges())

        async def main() -> None:
            references.append(weakref.ref(asyncio.get_running_loop()))
            await asyncio.create_task(opener())

        def in_thread() -> None:
            # A new thread has no worker yet, so the inherited portal makes the first one.
            asyncio_backend.run(main)
            gc.collect()
            alive.extend(reference() is not None for reference in references)

        thread = threading.Thread(target=in_thread)
        thread.start()
        thread.join()
        assert alive == [False, False]
