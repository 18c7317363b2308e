"""Context variables cross a bridge, and a portal, as they cross an `await`."""

from __future__ import annotations

import asyncio
import contextvars
import gc
import sys
import weakref
from typing import Any, List

import pytest
import trio

import greenback
from greenback import await_

from .portals import in_run, in_run_sync, in_task

PYPY = sys.implementation.name == "pypy"

var: contextvars.ContextVar[Any] = contextvars.ContextVar("var", default="nothing")
other: contextvars.ContextVar[Any] = contextvars.ContextVar("other", default="nothing")


@pytest.fixture(params=[in_run_sync, in_run, in_task], ids=lambda portal: portal.__name__)
def portal(request: pytest.FixtureRequest) -> Any:
    """Each way to call a sync function in a portal, in turn."""
    return request.param


class Thing:
    """An object whose end a weak reference shows."""


def is_dead(reference: Any) -> bool:
    if PYPY:  # no reference counts
        for _ in range(3):
            if reference() is None:
                break
            gc.collect()
    return reference() is None


class TestBothWays:
    @pytest.mark.parametrize("waits", [False, True])
    def test_through_a_bridge(self, backend: Any, portal: Any, waits: bool) -> None:
        """A coroutine sees the values that its bridge's caller has set, and vice versa."""

        async def exchange(expected: str, new: str) -> None:
            assert var.get() == expected
            if waits:
                await backend.checkpoint()
                assert var.get() == expected
            var.set(new)
            if waits:
                await backend.checkpoint()
            assert var.get() == new

        def use() -> None:
            assert var.get() == "from outside"
            var.set("from sync")
            await_(exchange("from sync", "from async"))
            assert var.get() == "from async"
            var.set("from sync again")
            await_(exchange("from sync again", "last"))

        async def main() -> None:
            var.set("from outside")
            await portal(use)
            assert var.get() == "last"
            await backend.checkpoint()
            assert var.get() == "last"

        backend.run(main)

    @pytest.mark.parametrize("waits", [False, True])
    def test_tokens(self, backend: Any, portal: Any, waits: bool) -> None:
        """A token from one side of a bridge or a portal can be reset on the other side."""

        async def make() -> Any:
            if waits:
                await backend.checkpoint()
            token = var.set("made in async")
            if waits:
                await backend.checkpoint()
            return token

        async def reset(token: Any) -> None:
            if waits:
                await backend.checkpoint()
            var.reset(token)

        tokens: List[Any] = []

        def use() -> None:
            outer = tokens.pop()
            token = await_(make())
            assert var.get() == "made in async"
            var.reset(token)
            assert var.get() == "outermost"
            token = var.set("made in sync")
            await_(reset(token))
            assert var.get() == "outermost"
            var.reset(outer)
            tokens.append(var.set("left in the portal"))

        async def main() -> None:
            tokens.append(var.set("outermost"))
            await portal(use)
            assert var.get() == "left in the portal"
            var.reset(tokens.pop())
            assert var.get() == "nothing"

        backend.run(main)

    def test_set_in_an_error(self, backend: Any, portal: Any) -> None:
        """Values stay set when an exception leaves the bridge and the portal."""

        async def fails() -> None:
            await backend.checkpoint()
            var.set("set before the error")
            raise LookupError

        async def main() -> None:
            with pytest.raises(LookupError):
                await portal(lambda: await_(fails()))
            assert var.get() == "set before the error"

        backend.run(main)

    def test_tasks_are_apart(self, backend: Any, portal: Any) -> None:
        """Tasks whose portals take turns each keep their own values, also in nested bridges."""
        finished: List[str] = []

        async def main() -> None:
            def work(name: str, depth: int) -> None:
                token = var.set((name, depth))
                for _ in range(3):
                    await_(backend.checkpoint())
                    assert var.get() == (name, depth)
                if depth:
                    await_(deeper(name, depth - 1))
                    assert var.get() == (name, depth)
                var.reset(token)

            async def deeper(name: str, depth: int) -> None:
                await backend.checkpoint()
                work(name, depth)

            def task(name: str) -> Any:
                async def body() -> None:
                    await portal(lambda: work(name, 3))
                    assert var.get() == "nothing"
                    finished.append(name)

                return body

            await backend.together(*(task(name) for name in "abcde"))

        backend.run(main)
        assert sorted(finished) == list("abcde")


class TestContextRun:
    def test_around_a_bridge(self, backend: Any, portal: Any) -> None:
        """A bridge inside Context.run() works in that context, and waits in it."""

        async def change() -> None:
            assert var.get() == "in the context"
            await backend.checkpoint()
            assert var.get() == "in the context"
            var.set("changed in the context")
            await backend.checkpoint()

        def inside() -> str:
            await_(change())
            return var.get()  # type: ignore[no-any-return]

        def use() -> None:
            var.set("in the task")
            context = contextvars.copy_context()
            context.run(var.set, "in the context")
            assert context.run(inside) == "changed in the context"
            assert var.get() == "in the task"
            assert context[var] == "changed in the context"
            await_(backend.checkpoint())
            assert var.get() == "in the task"

        async def main() -> None:
            await portal(use)
            assert var.get() == "in the task"

        backend.run(main)

    def test_others_meanwhile(self, backend: Any, portal: Any) -> None:
        """While a bridge waits inside Context.run(), other tasks and the loop run outside."""
        log: List[Any] = []

        async def main() -> None:
            go, parked = backend.event(), backend.event()

            def inside() -> None:
                var.set("in the context")
                parked.set()
                await_(go.wait())
                assert var.get() == "in the context"
                log.append("resumed")

            async def first() -> None:
                await portal(lambda: contextvars.copy_context().run(inside))
                assert var.get() == "nothing"

            async def second() -> None:
                await parked.wait()
                assert var.get() == "nothing"
                await portal(lambda: (var.set("second"), await_(backend.checkpoint())))
                assert var.get() == "second"
                go.set()

            await backend.together(first, second)

        backend.run(main)
        assert log == ["resumed"]

    def test_nested(self, backend: Any, portal: Any) -> None:
        """Nested contexts are left in order, each with its values, also by an exception."""

        def level(n: int) -> None:
            var.set(n)
            await_(backend.checkpoint())
            if n == 3:
                raise LookupError
            with pytest.raises(LookupError):
                contextvars.copy_context().run(level, n + 1)
            assert var.get() == n
            await_(backend.checkpoint())
            assert var.get() == n
            raise LookupError

        def use() -> None:
            with pytest.raises(LookupError):
                contextvars.copy_context().run(level, 0)
            assert var.get() == "nothing"

        backend.run(portal, use)

    def test_portal_inside(self, backend: Any) -> None:
        """A coroutine that opens a portal may be run in a context by hand, step by step."""

        async def opens() -> str:
            await greenback.with_portal_run_sync(
                lambda: (await_(backend.checkpoint()), var.set("inner"))
            )
            return var.get()  # type: ignore[no-any-return]

        class Steps:
            """Awaits a coroutine, and takes each of its steps in a new context."""

            def __init__(self, context: contextvars.Context) -> None:
                self.context = context

            def __await__(self) -> Any:
                coroutine = opens()
                answer = None
                while True:
                    try:
                        trap = self.context.run(coroutine.send, answer)
                    except StopIteration as stop:
                        return stop.value
                    answer = yield trap

        async def main() -> None:
            context = contextvars.copy_context()
            assert await Steps(context) == "inner"
            assert context[var] == "inner"
            assert var.get() == "nothing"

        backend.run(main)


class TestContextOfTheTask:
    def test_replaced_by_trio_code(self, portal: Any) -> None:
        """If Trio's task.context is replaced between steps, the portal's code gets the new one."""

        async def main() -> None:
            task = trio.lowlevel.current_task()

            def use() -> None:
                var.set("old")
                context = contextvars.copy_context()
                context.run(var.set, "new")
                task.context = context
                assert var.get() == "old"
                await_(trio.lowlevel.checkpoint())
                assert var.get() == "new"
                var.set("changed")
                await_(trio.lowlevel.checkpoint())
                assert context[var] == "changed"

            await portal(use)
            assert var.get() == "changed"

        trio.run(main)

    def test_replaced_around_a_portal(self) -> None:
        """A coroutine that a portal's code awaits without a bridge gets the new context, too."""

        async def main() -> None:
            async def inside() -> None:
                task = trio.lowlevel.current_task()
                task.context = contextvars.copy_context()
                task.context.run(var.set, "new")
                await trio.lowlevel.checkpoint()
                assert var.get() == "new"
                await_(trio.lowlevel.checkpoint())
                assert var.get() == "new"

            await greenback.with_portal_run(inside)
            assert var.get() == "new"

        trio.run(main)

    @pytest.mark.skipif(sys.version_info < (3, 11), reason="context= came with Python 3.11")
    def test_explicit_context(self, asyncio_backend: Any, portal: Any) -> None:
        """A task that was given a context runs in that context, and so do its bridges."""

        async def main() -> None:
            context = contextvars.copy_context()

            def use() -> None:
                var.set("one")
                await_(asyncio.sleep(0))
                var.set((var.get(), "two"))

            await asyncio.get_running_loop().create_task(
                portal(use),
                context=context,
            )
            assert context[var] == ("one", "two")
            assert var.get() == "nothing"

        asyncio_backend.run(main)

    def test_bestow_shares_nothing(self, asyncio_backend: Any) -> None:
        """A portal that one task bestows on another leaves the other's context alone."""

        async def main() -> None:
            var.set("before")
            seen: List[Any] = []

            async def works() -> None:
                seen.append(var.get())
                await_(asyncio.sleep(0))
                var.set("set by the task")
                await_(asyncio.sleep(0))
                seen.append(var.get())

            async def parked() -> None:
                await asyncio.sleep(0)
                await works()

            for body in (works, parked):
                for steps in (0, 1):
                    if steps and body is works:
                        continue  # this task would bridge before it has a portal
                    var.set("before")
                    task = asyncio.get_running_loop().create_task(body())
                    for _ in range(steps):
                        await asyncio.sleep(0)
                    var.set("after")
                    greenback.bestow_portal(task)
                    await task
                    assert seen == ["before", "set by the task"]
                    assert var.get() == "after"
                    seen.clear()

        asyncio_backend.run(main)

    def test_bestow_shares_nothing_on_trio(self) -> None:
        """On Trio, a portal that one task bestows on another leaves the other's context alone."""

        async def main() -> None:
            seen: List[Any] = []
            go = trio.Event()

            async def works(task_status: Any = trio.TASK_STATUS_IGNORED) -> None:
                task_status.started(trio.lowlevel.current_task())
                await go.wait()
                seen.append(var.get())
                await_(trio.lowlevel.checkpoint())
                var.set("set by the task")
                await_(trio.lowlevel.checkpoint())
                seen.append(var.get())

            var.set("before")
            async with trio.open_nursery() as nursery:
                task = await nursery.start(works)
                var.set("after")
                greenback.bestow_portal(task)
                go.set()
            assert seen == ["before", "set by the task"]
            assert var.get() == "after"

        trio.run(main)

    def test_inherited(self, backend: Any) -> None:
        """A child that inherits a portal has a copy of its creator's context, like any child."""

        async def main() -> None:
            def work() -> None:
                assert var.get() == "parent"
                await_(backend.checkpoint())
                var.set("child")
                await_(backend.checkpoint())
                assert var.get() == "child"

            async def child() -> None:
                work()

            var.set("parent")
            with greenback.portals_for_children():
                await backend.together(child, child)
            assert var.get() == "parent"

        backend.run(main)

    def test_async_generator(self, backend: Any, portal: Any) -> None:
        """An async generator that is iterated by bridges shares the caller's context."""

        async def numbers() -> Any:
            for n in range(3):
                assert var.get() == ("consumed", n)
                other.set(n)
                yield n

        def use() -> None:
            var.set(("consumed", 0))
            for n in greenback.async_iter(numbers()):
                assert other.get() == n
                var.set(("consumed", n + 1))

        backend.run(portal, use)


class TestNothingKept:
    """An idle worker in the pool keeps nothing of its last portal alive."""

    @pytest.fixture(autouse=True)
    def no_gc(self) -> Any:
        gc.collect()
        gc.disable()
        yield
        gc.enable()

    @pytest.mark.parametrize("waits", [False, True])
    @pytest.mark.parametrize("fails", [False, True])
    def test_functions(self, backend: Any, portal: Any, waits: bool, fails: bool) -> None:
        """The function, its closure, result, exception and context variables are freed."""
        references: List[Any] = []

        def note(thing: Any) -> Any:
            references.append(weakref.ref(thing))
            return thing

        class Failure(Exception):
            pass

        async def task() -> None:
            thing = note(Thing())

            async def give() -> Any:
                note(thing)
                if waits:
                    await backend.checkpoint()
                return note(Thing())

            def work() -> Any:
                var.set(note(Thing()))
                await_(give())
                contextvars.copy_context().run(lambda: (other.set(note(Thing())), await_(give())))
                if fails:
                    raise note(Failure())
                return note(Thing())

            note(work)
            try:
                await portal(work)
            except Failure:
                pass
            note(backend.current_task())

        async def main() -> None:
            await backend.together(task, task)
            await backend.checkpoint()
            await backend.checkpoint()
            assert len(references) >= 18
            alive = [reference() for reference in references if not is_dead(reference)]
            assert alive == []

        backend.run(main)

    def test_coroutine_portal(self, backend: Any) -> None:
        """with_portal_run() keeps no arguments and no coroutine alive while its task goes on."""

        async def call() -> List[Any]:
            async def work(thing: Thing, keyword: Thing) -> Thing:
                await_(backend.checkpoint())
                return Thing()

            one, two = Thing(), Thing()
            result = await greenback.with_portal_run(work, one, keyword=two)
            return [weakref.ref(thing) for thing in (one, two, result, work)]

        async def main() -> None:
            # In a frame of its own: before 0.28, Trio looks into the frames' f_locals, which
            # makes copies of their variables.
            references = await call()
            assert len(references) == 4
            for reference in references:
                assert is_dead(reference)

        backend.run(main)

    def test_thrown_in(self, asyncio_backend: Any) -> None:
        """A task that was cancelled in a bridge leaves nothing in its worker."""

        async def main() -> None:
            references: List[Any] = []

            def work() -> None:
                thing = Thing()
                references.append(weakref.ref(thing))
                var.set(thing)
                await_(asyncio.sleep(3600))

            task = asyncio.get_running_loop().create_task(greenback.with_portal_run_sync(work))
            await asyncio.sleep(0)
            await asyncio.sleep(0)
            task.cancel()
            await asyncio.wait([task])
            references.append(weakref.ref(task))
            del task
            await asyncio.sleep(0)
            assert len(references) == 2
            for reference in references:
                assert is_dead(reference)

        asyncio_backend.run(main)

    def test_while_it_works_for_another(self, backend: Any) -> None:
        """A worker that works for its next portal keeps nothing of the one before."""

        async def main() -> None:
            references: List[Any] = []

            def first() -> None:
                thing = Thing()
                references.append(weakref.ref(thing))
                token = var.set(thing)
                await_(backend.checkpoint())
                var.reset(token)

            def second() -> None:
                for reference in references:
                    assert is_dead(reference)
                await_(backend.checkpoint())
                for reference in references:
                    assert is_dead(reference)

            await greenback.with_portal_run_sync(first)
            var.set("something else")  # the token in the context's history is gone
            await greenback.with_portal_run_sync(second)
            assert len(references) == 1

        backend.run(main)


@pytest.mark.parametrize("is_bridge", [False, True])
def test_each_step_in_another_context(is_bridge):
    """Code outside can run each step of a task in another context. The work runs in that one."""
    number = contextvars.ContextVar("number")
    seen = []

    async def work():
        for _ in range(3):
            seen.append(number.get())
            if is_bridge:
                greenback.await_(asyncio.sleep(0))
            else:
                await asyncio.sleep(0)
        return "done"

    async def main():
        coroutine = greenback.with_portal_run(work)
        for each in range(3):
            context = contextvars.copy_context()
            context.run(number.set, each)
            context.run(coroutine.send, None)
        with pytest.raises(StopIteration, match="done"):
            coroutine.send(None)

    asyncio.run(main())
    assert seen == [0, 1, 2]
