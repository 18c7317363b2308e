"""Portals that tasks of asyncio inherit."""

from __future__ import annotations

import asyncio
import contextvars
import gc
import sys
import warnings
from typing import Any, Callable, List

import pytest
import trio
import trio.testing

import greenback
from greenback import await_

from .children import can_bridge, child, factory_of_loop

needs_task_group = pytest.mark.skipif(
    sys.version_info < (3, 11), reason="asyncio.TaskGroup and context= are of Python 3.11"
)


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
        """A task inherits, whichever function of asyncio has made it."""

        async def main() -> None:
            async with greenback.portals_for_tree():
                assert await start(child()) in (True, [True])
            task = asyncio.ensure_future(child())
            assert not await task

        asyncio_backend.run(main)

    @needs_task_group
    def test_task_group(self, asyncio_backend: Any) -> None:
        """Tasks of a TaskGroup inherit, even if the group was opened before the scope."""

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
        """A task with its own context inherits and runs in that context; its children, too."""
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
        """A callback counts as code of the task that scheduled it, in any context."""

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
        """A task that a callback creates is a child of the task that scheduled the callback."""

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
        """The tasks of a callback that runs after the scope do not inherit."""

        async def main() -> None:
            loop = asyncio.get_running_loop()
            made = loop.create_future()
            with greenback.portals_for_children():
                loop.call_soon(lambda: made.set_result(loop.create_task(child())))
            assert not await (await made)

        asyncio_backend.run(main)

    def test_server(self, asyncio_backend: Any) -> None:
        """The handlers of a server that was started in a scope have portals."""
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
        """A function in a thread, which is no task, has no portal."""

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
        """Tasks from before the scope, and their new children, do not inherit."""

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
        """Without a scope, a portal is not inherited."""

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
        """A task keeps its portal until it ends; its children from after the scope have none."""

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
            # Not even if the scope's task has opened another scope since.
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
        """A task that is cancelled before its first step causes no warning for its coroutine."""

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
        """get_coro() and repr() show the coroutine that the task was made for."""

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
        """An exception of a child is its task's exception."""

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
        """A task of an object that only resembles a coroutine inherits, too."""
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
        """create_task() refuses the same objects as without a scope, in the same words."""

        async def main() -> None:
            loop = asyncio.get_running_loop()
            with pytest.raises(TypeError) as outside:
                loop.create_task(42)  # type: ignore[arg-type]
            with greenback.portals_for_children():
                with pytest.raises(TypeError) as inside:
                    loop.create_task(42)  # type: ignore[arg-type]
            assert str(inside.value) == str(outside.value)

        asyncio_backend.run(main)
