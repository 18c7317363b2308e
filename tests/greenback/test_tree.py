"""Portals that child tasks inherit."""

from __future__ import annotations

import asyncio
import contextvars
import gc
import platform
import sys
import threading
import warnings
import weakref
from typing import Any, Callable, List, Optional, Tuple

import pytest
import trio
import trio.testing

import greenback
from greenback import await_

needs_task_group = pytest.mark.skipif(
    sys.version_info < (3, 11), reason="asyncio.TaskGroup and context= are of Python 3.11"
)
needs_eager_tasks = pytest.mark.skipif(
    sys.version_info < (3, 12), reason="eager tasks are of Python 3.12"
)

needs_refcounts = pytest.mark.skipif(
    platform.python_implementation() == "PyPy", reason="PyPy does not free objects at once"
)


def can_bridge(checkpoint: Callable[[], Any]) -> bool:
    """Whether a bridge that suspends works here; has_portal() has to agree."""
    expected = greenback.has_portal()
    try:
        await_(checkpoint())
    except RuntimeError as error:
        assert "create a greenback portal" in str(error)
        works = False
    else:
        works = True
    assert works == expected
    return works


async def child() -> bool:
    """An asyncio task that says whether it has inherited."""
    return can_bridge(lambda: asyncio.sleep(0))


def factory_of_loop() -> Any:
    return asyncio.get_running_loop().get_task_factory()


class TestWithPortalRunTree:
    def test_result_and_arguments(self, backend: Any) -> None:
        """Arguments go to the function, and what it returns comes back."""

        async def fn(*args: int, **kwds: int) -> Any:
            await_(backend.checkpoint())
            return args, kwds

        async def main() -> None:
            assert await greenback.with_portal_run_tree(fn, 1, 2, a=3) == ((1, 2), {"a": 3})
            assert not greenback.has_portal()

        backend.run(main)

    def test_exception(self, backend: Any) -> None:
        """What the function raises is raised, and the scope is left."""

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
        """The function, the tasks that it starts and those that they start have portals."""

        async def main() -> None:
            async def tree() -> None:
                assert can_bridge(backend.checkpoint)
                assert await grandchildren(backend) == [True] * 3

            await greenback.with_portal_run_tree(tree)
            assert await grandchildren(backend) == [False] * 3

        backend.run(main)

    def test_as_the_main_function(self, backend: Any) -> None:
        """It can be what the event loop is started with, so that all of a program has portals."""

        async def main() -> List[bool]:
            return await grandchildren(backend)

        assert backend.run(greenback.with_portal_run_tree, main) == [True] * 3

    def test_inside_a_portal(self, backend: Any) -> None:
        """In a task that has a portal, that one stays, and children inherit all the same."""

        async def main() -> None:
            await greenback.ensure_portal()
            assert await greenback.with_portal_run_tree(grandchildren, backend) == [True] * 3
            assert can_bridge(backend.checkpoint)
            assert await grandchildren(backend) == [False] * 3

        backend.run(main)

    def test_adds_no_checkpoint(self, backend: Any) -> None:
        """If the function does not wait, nothing else runs."""
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
    """Whether a child, its child and so on can bridge."""
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
        """It can be entered as often as one likes."""

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
        """A portal can be bestowed on a task that has left a scope, also by itself."""

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
        """An error leaves the scope and closes the portal, and is not changed."""

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
        """A task that is cancelled inside leaves the scope like any other."""
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
        """Entering and leaving are schedule points, as upstream's are."""
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
        """A task that is cancelled on its way in has neither a portal nor a scope."""

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
        """Children inherit, the current task gets nothing."""

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
        """Of two scopes of one task, whichever is left first takes nothing from the other."""

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
        """Scopes of tasks that know nothing of each other do not disturb each other."""
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
        """A scope of a task that has itself inherited ends nothing when it is left."""

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
        """Where no event loop runs, entering says so."""
        with pytest.raises(RuntimeError), greenback.portals_for_children():
            raise AssertionError

    def test_exception_passes(self, backend: Any) -> None:
        """An error in the body is not swallowed."""

        async def main() -> None:
            with pytest.raises(LookupError), greenback.portals_for_children():
                raise LookupError
            assert await grandchildren(backend) == [False] * 3

        backend.run(main)


class TestTrioNurseries:
    def test_nursery_from_outside(self) -> None:
        """A task of a nursery that was open before the scope does not inherit."""
        found: List[Tuple[str, bool]] = []

        async def say(name: str) -> None:
            found.append((name, can_bridge(trio.lowlevel.checkpoint)))

        async def main() -> None:
            async with trio.open_nursery() as outer:
                with greenback.portals_for_children():
                    outer.start_soon(say, "outer")
                    async with trio.open_nursery() as inner:
                        inner.start_soon(say, "inner")
                        outer.start_soon(say, "outer again")
                        async with trio.open_nursery() as innermost:
                            innermost.start_soon(say, "innermost")
                outer.start_soon(say, "afterwards")

        trio.run(main)
        assert dict(found) == {
            "outer": False,
            "outer again": False,
            "inner": True,
            "innermost": True,
            "afterwards": False,
        }

    def test_child_starts_a_task_outside(self) -> None:
        """It is the nursery that counts, and not the task that calls start_soon()."""
        found: List[bool] = []

        async def say() -> None:
            found.append(can_bridge(trio.lowlevel.checkpoint))

        async def starts(nursery: trio.Nursery) -> None:
            assert greenback.has_portal()
            nursery.start_soon(say)

        async def main() -> None:
            async with trio.open_nursery() as outer:
                with greenback.portals_for_children():
                    async with trio.open_nursery() as inner:
                        inner.start_soon(starts, outer)

        trio.run(main)
        assert found == [False]

    def test_nursery_start(self) -> None:
        """A task that is started with start() inherits, before and after it has reported."""
        found: List[bool] = []

        async def service(task_status: Any = trio.TASK_STATUS_IGNORED) -> None:
            found.append(can_bridge(trio.lowlevel.checkpoint))
            task_status.started()
            found.append(can_bridge(trio.lowlevel.checkpoint))

        async def main() -> None:
            async with greenback.portals_for_tree():
                async with trio.open_nursery() as nursery:
                    await nursery.start(service)

        trio.run(main)
        assert found == [True, True]

    def test_system_tasks(self) -> None:
        """A system task is nobody's child."""
        found: List[bool] = []

        async def say() -> None:
            found.append(can_bridge(trio.lowlevel.checkpoint))

        async def main() -> None:
            async with greenback.portals_for_tree():
                trio.lowlevel.spawn_system_task(say)
                while not found:
                    await trio.lowlevel.checkpoint()

        trio.run(main)
        assert found == [False]

    def test_child_that_is_cancelled_before_its_first_step(self) -> None:
        """Such a child ends as it would without a portal, and nothing warns."""
        ran: List[int] = []

        async def never() -> None:
            await trio.lowlevel.checkpoint()
            ran.append(1)

        async def main() -> None:
            async with greenback.portals_for_tree():
                async with trio.open_nursery() as nursery:
                    nursery.cancel_scope.cancel()
                    nursery.start_soon(never)

        trio.run(main)
        gc.collect()
        assert ran == []


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
        """Scopes do not take away what the instrument of the run gives."""

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
        """Only the hooks that it needs are called by Trio, and none for each step."""
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
        """After the last scope no instrument slows the run down."""

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


class TestAsyncioTasks:
    @pytest.mark.parametrize(
        "start",
        [
            lambda coro: asyncio.get_running_loop().create_task(coro),
            asyncio.ensure_future,
            asyncio.gather,
            lambda coro: asyncio.wait_for(coro, 3600),
            asyncio.shield,
        ],
        ids=["create_task", "ensure_future", "gather", "wait_for", "shield"],
    )
    def test_ways_to_start_one(self, asyncio_backend: Any, start: Callable[..., Any]) -> None:
        """A task inherits whichever function of asyncio has made it."""

        async def main() -> None:
            async with greenback.portals_for_tree():
                assert await start(child()) in (True, [True])
            task = asyncio.ensure_future(child())
            assert not await task

        asyncio_backend.run(main)

    @needs_task_group
    def test_task_group(self, asyncio_backend: Any) -> None:
        """Tasks of a group inherit, also if the group was opened before the scope."""

        async def main() -> None:
            async with asyncio.TaskGroup() as group:
                before = group.create_task(child())
                with greenback.portals_for_children():
                    inside = group.create_task(child())
                after = group.create_task(child())
            assert [task.result() for task in (before, inside, after)] == [False, True, False]

        asyncio_backend.run(main)

    @needs_task_group
    def test_explicit_context(self, asyncio_backend: Any) -> None:
        """A task with a context of its own inherits, runs in that, and so do its children."""
        var = contextvars.ContextVar("var", default="unset")

        async def in_context(depth: int) -> List[Any]:
            found = [(can_bridge(lambda: asyncio.sleep(0)), var.get())]
            if depth == 0:
                return found
            context = contextvars.Context()
            context.run(var.set, depth)
            loop = asyncio.get_running_loop()
            return found + await loop.create_task(in_context(depth - 1), context=context)

        async def main() -> None:
            context = contextvars.Context()
            context.run(var.set, "top")
            loop = asyncio.get_running_loop()
            with greenback.portals_for_children():
                task = loop.create_task(in_context(2), context=context)
                assert await task == [(True, "top"), (True, 2), (True, 1)]

        asyncio_backend.run(main)

    @needs_task_group
    def test_callback_of_a_task_with_an_explicit_context(self, asyncio_backend: Any) -> None:
        """A callback is code of the task that has scheduled it, whatever context that is in."""

        async def schedules() -> bool:
            loop = asyncio.get_running_loop()
            made = loop.create_future()
            loop.call_soon(lambda: made.set_result(loop.create_task(child())))
            return bool(await (await made))

        async def main() -> None:
            loop = asyncio.get_running_loop()
            with greenback.portals_for_children():
                assert await loop.create_task(schedules())
                assert await loop.create_task(schedules(), context=contextvars.Context())

        asyncio_backend.run(main)

    def test_callbacks(self, asyncio_backend: Any) -> None:
        """A task that a callback creates is a child of the task that has scheduled the callback."""

        async def by_callback() -> bool:
            loop = asyncio.get_running_loop()
            made = loop.create_future()
            loop.call_soon(lambda: made.set_result(loop.create_task(child())))
            return bool(await (await made))

        async def outside(go: asyncio.Event) -> bool:
            await go.wait()
            return await by_callback()

        async def main() -> None:
            go = asyncio.Event()
            other = asyncio.ensure_future(outside(go))
            with greenback.portals_for_children():
                assert await by_callback()
                go.set()
                assert not await other
            assert not await by_callback()

        asyncio_backend.run(main)

    def test_callback_that_outlives_the_scope(self, asyncio_backend: Any) -> None:
        """A callback that was scheduled inside and runs after the scope gives nothing any more."""

        async def main() -> None:
            loop = asyncio.get_running_loop()
            made = loop.create_future()
            with greenback.portals_for_children():
                loop.call_soon(lambda: made.set_result(loop.create_task(child())))
            assert not await (await made)

        asyncio_backend.run(main)

    def test_server(self, asyncio_backend: Any) -> None:
        """The handlers of a server that was started inside have portals."""
        found: List[bool] = []

        async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            line = await_(reader.readline()) if greenback.has_portal() else b"no portal"
            found.append(can_bridge(lambda: asyncio.sleep(0)))
            writer.write(line.upper())
            writer.close()

        async def main() -> None:
            async with greenback.portals_for_tree():
                server = await asyncio.start_server(handle, "127.0.0.1", 0)
                reader, writer = await asyncio.open_connection(*server.sockets[0].getsockname()[:2])
                writer.write(b"hello\n")
                assert await reader.read() == b"HELLO\n"
                writer.close()
                await writer.wait_closed()
                server.close()
                await server.wait_closed()

        asyncio_backend.run(main)
        assert found == [True]

    def test_executor(self, asyncio_backend: Any) -> None:
        """A function in a thread is no task."""

        async def main() -> None:
            async with greenback.portals_for_tree():
                loop = asyncio.get_running_loop()
                assert not await loop.run_in_executor(None, greenback.has_portal)
                context = contextvars.copy_context()
                assert not await loop.run_in_executor(None, context.run, greenback.has_portal)

        asyncio_backend.run(main)

    def test_loop_in_a_thread_that_has_the_context(self, asyncio_backend: Any) -> None:
        """Tasks of another loop are not covered by a scope whose context they have inherited."""

        async def callbacks_task() -> bool:
            loop = asyncio.get_running_loop()
            made = loop.create_future()
            loop.call_soon(lambda: made.set_result(loop.create_task(child())))
            return bool(await (await made))

        async def other_main() -> List[bool]:
            go = asyncio.Event()

            async def not_covered() -> bool:
                await go.wait()
                return await callbacks_task()

            other = asyncio.ensure_future(not_covered())
            with greenback.portals_for_children():
                go.set()
                return [await other, await child()]

        async def main() -> None:
            async with greenback.portals_for_tree():
                context = contextvars.copy_context()
                found = await asyncio.get_running_loop().run_in_executor(
                    None, context.run, asyncio.run, other_main()
                )
                assert found == [False, False]

        asyncio_backend.run(main)

    @pytest.mark.filterwarnings("ignore:It looks like Trio's signal handling:RuntimeWarning")
    def test_trio_inside(self, asyncio_backend: Any) -> None:
        """Tasks of a Trio run inside a task of the tree are not its children."""

        async def main() -> None:
            async with greenback.portals_for_tree():
                assert trio.run(say) == [False] * 3

        async def say() -> List[bool]:
            found = [can_bridge(trio.lowlevel.checkpoint)]

            async def nested() -> None:
                found.append(can_bridge(trio.lowlevel.checkpoint))

            async with trio.open_nursery() as nursery:
                nursery.start_soon(nested)
                nursery.start_soon(nested)
            return found

        asyncio_backend.run(main)

    def test_created_outside(self, asyncio_backend: Any) -> None:
        """A task of somebody else, and what it creates while the scope is open, do not inherit."""

        async def stranger(go: asyncio.Event) -> List[bool]:
            await go.wait()
            return [await child(), await asyncio.ensure_future(child())]

        async def main() -> None:
            go = asyncio.Event()
            other = asyncio.ensure_future(stranger(go))
            async with greenback.portals_for_tree():
                go.set()
                assert await other == [False, False]

        asyncio_backend.run(main)

    def test_stranger_with_a_portal_of_its_own(self, asyncio_backend: Any) -> None:
        """A portal alone, without a scope, is not inherited."""

        async def stranger(go: asyncio.Event) -> List[bool]:
            await greenback.ensure_portal()
            await go.wait()
            return [await child(), await asyncio.ensure_future(child())]

        async def main() -> None:
            go = asyncio.Event()
            other = asyncio.ensure_future(stranger(go))
            async with greenback.portals_for_tree():
                go.set()
                assert await other == [True, False]

        asyncio_backend.run(main)

    def test_outlives_the_scope(self, asyncio_backend: Any) -> None:
        """A task keeps its portal until it ends; what it creates after the scope has none."""

        async def long(left: asyncio.Event) -> List[bool]:
            found = [await child(), await asyncio.ensure_future(child())]
            await left.wait()
            return [*found, await child(), await asyncio.ensure_future(child())]

        async def main() -> None:
            left = asyncio.Event()
            async with greenback.portals_for_tree():
                task = asyncio.ensure_future(long(left))
                for _ in range(6):
                    await asyncio.sleep(0)
            left.set()
            assert await task == [True, True, True, False]
            # Not even if the task that opened that scope has opened another one since.
            left = asyncio.Event()
            async with greenback.portals_for_tree():
                task = asyncio.ensure_future(long(left))
                for _ in range(6):
                    await asyncio.sleep(0)
            async with greenback.portals_for_tree():
                left.set()
                assert await task == [True, True, True, False]

        asyncio_backend.run(main)

    def test_two_scopes_cover_the_creator(self, asyncio_backend: Any) -> None:
        """A task that two scopes cover inherits until the last of them is left."""

        async def middle(go: List[asyncio.Event]) -> List[bool]:
            found = []
            for event in go:
                await event.wait()
                found.append(await asyncio.ensure_future(child()))
            return found

        async def main() -> None:
            go = [asyncio.Event() for _ in range(3)]
            outer, inner = greenback.portals_for_children(), greenback.portals_for_children()
            outer.__enter__()
            inner.__enter__()
            task = asyncio.ensure_future(middle(go))
            for event, scope in zip(go, (outer, inner, None)):
                event.set()
                for _ in range(6):
                    await asyncio.sleep(0)
                if scope is not None:
                    scope.__exit__(None, None, None)
            assert await task == [True, True, False]
            assert factory_of_loop() is None

        asyncio_backend.run(main)

    def test_entered_and_left_in_different_contexts(self, asyncio_backend: Any) -> None:
        """A scope can be left in another context than it was entered in."""

        async def main() -> None:
            scope = greenback.portals_for_children()
            contextvars.copy_context().run(scope.__enter__)
            assert await asyncio.ensure_future(child())
            scope.__exit__(None, None, None)
            assert not await asyncio.ensure_future(child())
            assert factory_of_loop() is None

        asyncio_backend.run(main)

    def test_cancelled_before_the_first_step(self, asyncio_backend: Any) -> None:
        """A task that never begins is cancelled, and nothing warns of its coroutine."""

        async def never() -> None:
            raise AssertionError

        async def main() -> None:
            async with greenback.portals_for_tree():
                task = asyncio.ensure_future(never())
                task.cancel()
                await asyncio.wait([task])
                assert task.cancelled()
                assert not greenback.has_portal(task)

        with warnings.catch_warnings():
            warnings.simplefilter("error")
            asyncio_backend.run(main)
            gc.collect()

    def test_names(self, asyncio_backend: Any) -> None:
        """What shows the coroutine of a task shows the one that it was made for."""

        async def main() -> None:
            async with greenback.portals_for_tree():
                task = asyncio.ensure_future(child())
                coroutine = task.get_coro()
                assert coroutine.__name__ == "child"
                assert coroutine.__qualname__ == child.__qualname__
                assert "child()" in repr(task)
                assert asyncio.iscoroutine(coroutine)
                assert await task

        asyncio_backend.run(main)

    def test_exception(self, asyncio_backend: Any) -> None:
        """What a child raises is what its task raises."""

        async def fails() -> None:
            await_(asyncio.sleep(0))
            raise LookupError("here")

        async def main() -> None:
            async with greenback.portals_for_tree():
                with pytest.raises(LookupError, match="here") as caught:
                    await asyncio.ensure_future(fails())
                assert caught.value.__context__ is None

        asyncio_backend.run(main)

    def test_generator_based_coroutine(self, asyncio_backend: Any) -> None:
        """A task of an object that merely is like a coroutine inherits as well."""
        from collections.abc import Coroutine

        class Like(Coroutine):  # type: ignore[type-arg]
            def __init__(self) -> None:
                self.inner = child()

            def send(self, value: Any) -> Any:
                return self.inner.send(value)

            def throw(self, *error: Any) -> Any:
                return self.inner.throw(*error)

            def close(self) -> None:
                self.inner.close()

            def __await__(self) -> Any:
                return self.inner.__await__()

        async def main() -> None:
            async with greenback.portals_for_tree():
                assert await asyncio.ensure_future(Like())

        asyncio_backend.run(main)

    def test_not_a_coroutine(self, asyncio_backend: Any) -> None:
        """create_task() refuses what it refuses anyway, in the same words."""

        async def main() -> None:
            loop = asyncio.get_running_loop()
            with pytest.raises(TypeError) as outside:
                loop.create_task(42)  # type: ignore[arg-type]
            with greenback.portals_for_children():
                with pytest.raises(TypeError) as inside:
                    loop.create_task(42)  # type: ignore[arg-type]
            assert str(inside.value) == str(outside.value)

        asyncio_backend.run(main)


@needs_refcounts
class TestNothingIsKept:
    def test_loop_of_a_task_that_never_leaves_its_scope(self) -> None:
        """A task that is dropped inside a scope keeps neither itself nor its loop alive."""

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
            # A thread of its own has no worker yet, so that the inherited portal makes the first.
            asyncio_backend.run(main)
            gc.collect()
            alive.extend(reference() is not None for reference in references)

        thread = threading.Thread(target=in_thread)
        thread.start()
        thread.join()
        assert alive == [False, False]


class MyTask(asyncio.Task):  # type: ignore[type-arg]
    """What an application's factory may make."""


class Factory:
    """An application's task factory, which keeps account."""

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
        """On leaving, the loop has the factory that it had, which may be none."""

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
        """The application's factory makes the tasks, and sees the names that it would see."""

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
        """What a factory raises goes to who wanted a task, and nothing is left behind."""

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
        """A coroutine that a factory has refused still can be awaited by its owner."""

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
        """One that is set inside makes the tasks from then on, and is still set afterwards."""

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
        """Nor does leaving bring back a factory that the application has taken away."""

        async def main() -> None:
            loop = asyncio.get_running_loop()
            loop.set_task_factory(Factory())
            async with greenback.portals_for_tree():
                loop.set_task_factory(None)
            assert loop.get_task_factory() is None

        asyncio_backend.run(main)

    def test_wrapped_inside(self, asyncio_backend: Any) -> None:
        """One that is set inside and calls the one before has its tasks inherit."""

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
        """Two scopes with the application's factory in between give a task one portal."""

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
        """Whoever creates a task between two runs of the loop is no child of anybody."""

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
        """One that returns something else than a task is the application's own business."""

        class Named(asyncio.Future):  # type: ignore[type-arg]
            def set_name(self, name: object) -> None:
                """asyncio calls this on whatever a factory returns."""

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
        """One that runs the coroutine inside another one leaves the child its portal."""
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


@needs_eager_tasks
class TestEagerTasks:
    @staticmethod
    def factory(which: int) -> Any:
        """asyncio's own factory, or that for a subclass."""
        factory = (
            asyncio.create_eager_task_factory(MyTask)  # type: ignore[attr-defined]
            if which
            else asyncio.eager_task_factory  # type: ignore[attr-defined]
        )

        def without_eager_start(loop: Any, coro: Any, **kwds: Any) -> Any:
            # uvloop 0.23 passes None, which asyncio's factories take for no since Python 3.13.3,
            # and do not take at all before.
            kwds.pop("eager_start", None)
            return factory(loop, coro, **kwds)

        return without_eager_start

    @pytest.mark.parametrize("which", [0, 1])
    def test_in_the_first_step(self, asyncio_backend: Any, which: int) -> None:
        """An eager child can bridge in the step that it takes before its task is returned."""
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
        """An eager child that ends in its first step is done, and leaves no portal."""

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
        """With `eager_start`, and uvloop's None for it, a child starts when it would outside."""

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
        """Eager children of eager children inherit, bridging in between as they like."""

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
