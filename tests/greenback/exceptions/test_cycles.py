"""Objects that an exception has passed are freed with the exception."""

from __future__ import annotations

import asyncio
import gc
import weakref
from typing import Any, List

import pytest
import trio

import greenback
from greenback import await_

from .programs import PYPY, Plain


class Thing:
    """An object whose end a weak reference shows."""


@pytest.fixture
def no_gc() -> Any:
    """No garbage collection, except on an interpreter without reference counts."""
    gc.collect()
    gc.disable()
    yield
    gc.enable()


class Failures:
    """Coroutines whose frames do not refer to their own exceptions, which would be a cycle."""

    def __init__(self, backend: Any) -> None:
        self.checkpoint = backend.checkpoint

    async def at_once(self) -> None:
        raise Plain

    async def later(self) -> None:
        await self.checkpoint()
        raise Plain

    async def while_handling(self) -> None:
        try:
            await self.checkpoint()
            raise LookupError
        except LookupError:
            await self.checkpoint()
            raise Plain


def is_dead(reference: Any) -> bool:
    if PYPY:  # no reference counts
        for _ in range(3):
            if reference() is None:
                break
            gc.collect()
    return reference() is None


@pytest.mark.usefixtures("no_gc")
class TestNoCycles:
    """An object in a frame that an exception has left is freed with the exception."""

    @pytest.mark.parametrize(
        "how", ["sync", "at_once", "later", "while_handling", "not_awaitable", "handled"]
    )
    def test_failures(self, backend: Any, portal: Any, how: str) -> None:
        """A frame is freed after its exception was handled, on either side of the portal."""
        references: List[Any] = []

        def fails() -> None:
            thing = Thing()
            references.append(weakref.ref(thing))
            if how == "sync":
                raise Plain
            if how == "not_awaitable":
                await_(42)  # type: ignore[arg-type]
            await_(getattr(Failures(backend), "later" if how == "handled" else how)())

        def inside() -> None:
            try:
                fails()
            except (Plain, TypeError):
                pass
            assert is_dead(references.pop())
            fails()

        async def main() -> None:
            if how == "handled":
                try:
                    raise KeyError
                except KeyError:
                    try:
                        await portal(inside)
                    except Plain:
                        pass
            else:
                try:
                    await portal(inside)
                except (Plain, TypeError):
                    pass
            assert is_dead(references.pop())

        backend.run(main)

    @pytest.mark.parametrize("waits", [False, True])
    @pytest.mark.parametrize("kind", ["ensure", "run", "run_sync", "inherited", "bestowed"])
    def test_failed_tasks(self, asyncio_backend: Any, kind: str, waits: bool) -> None:
        """A failed task is freed with its frames and exception when it is dropped."""
        references: List[Any] = []

        def fails() -> None:
            thing = Thing()
            references.append(weakref.ref(thing))
            failures = Failures(asyncio_backend)
            await_(failures.later() if waits else failures.at_once())

        async def body() -> None:
            if kind == "ensure":
                await greenback.ensure_portal()
                fails()
            elif kind in ("inherited", "bestowed"):
                await asyncio.sleep(0)
                fails()
            elif kind == "run":

                async def inside() -> None:
                    fails()

                await greenback.with_portal_run(inside)
            else:
                await greenback.with_portal_run_sync(fails)

        async def main() -> None:
            if kind == "inherited":
                with greenback.portals_for_children():
                    task = asyncio.get_running_loop().create_task(body())
            else:
                task = asyncio.get_running_loop().create_task(body())
            if kind == "bestowed":
                greenback.bestow_portal(task)
            await asyncio.wait([task])
            assert type(task.exception()) is Plain
            references.append(weakref.ref(task))
            del task
            await asyncio.sleep(0)
            assert [is_dead(reference) for reference in references] == [True, True]

        asyncio_backend.run(main)

    @pytest.mark.parametrize("done", [False, True])
    def test_failed_future(self, asyncio_backend: Any, portal: Any, done: bool) -> None:
        """A failed future in a local variable of the bridge's caller is freed."""
        references: List[Any] = []

        def fails() -> None:
            loop = asyncio.get_running_loop()
            future = loop.create_future()
            references.append(weakref.ref(future))
            if done:
                future.set_exception(Plain())
            else:
                loop.call_soon(set_exception, references[-1])
            try:
                await_(future)
            finally:
                # As with await: an exception that a future holds, and whose traceback has
                # the frame that holds the future, is a cycle of the caller's own making.
                del future

        def set_exception(reference: Any) -> None:
            reference().set_exception(Plain())

        async def main() -> None:
            try:
                await portal(fails)
            except Plain:
                pass
            await asyncio.sleep(0)
            assert is_dead(references.pop())

        asyncio_backend.run(main)

    def test_cancelled(self, asyncio_backend: Any, portal: Any) -> None:
        """A task that was cancelled in a bridge is freed with the objects in its frames."""
        references: List[Any] = []

        def waits() -> None:
            thing = Thing()
            references.append(weakref.ref(thing))
            await_(asyncio.sleep(3600))

        async def main() -> None:
            task = asyncio.get_running_loop().create_task(portal(waits))
            for _ in range(3):
                await asyncio.sleep(0)
            assert len(references) == 1
            task.cancel()
            await asyncio.wait([task])
            assert task.cancelled()
            references.append(weakref.ref(task))
            del task
            await asyncio.sleep(0)
            assert [is_dead(reference) for reference in references] == [True, True]

        asyncio_backend.run(main)

    def test_cancelled_on_trio(self, portal: Any) -> None:
        """Objects in the frames that a cancel scope has unwound through a bridge are freed."""
        references: List[Any] = []
        scope = trio.CancelScope()

        def waits() -> None:
            thing = Thing()
            references.append(weakref.ref(thing))
            scope.cancel()
            await_(trio.sleep(3600))

        async def main() -> None:
            with scope:
                await portal(waits)
            assert scope.cancelled_caught
            await trio.lowlevel.checkpoint()
            assert is_dead(references.pop())

        trio.run(main)

    @pytest.mark.parametrize("handled", [False, True])
    def test_no_portal(self, backend: Any, handled: bool) -> None:
        """The error for a missing portal keeps neither its callers nor the coroutine alive."""
        references: List[Any] = []

        def fails() -> None:
            thing = Thing()
            coroutine = backend.checkpoint()
            references.extend((weakref.ref(thing), weakref.ref(coroutine)))
            await_(coroutine)

        def check() -> None:
            if handled:
                try:
                    raise KeyError
                except KeyError:
                    with_error_handled()
            else:
                with_error_handled()
            assert [is_dead(reference) for reference in references] == [True, True]
            references.clear()

        def with_error_handled() -> None:
            try:
                fails()
            except RuntimeError:
                pass

        async def main() -> None:
            check()
            greenback.bestow_portal(backend.current_task())
            check()  # not resumed yet
            await backend.checkpoint()

        check()  # no library
        backend.run(main)

    def test_value(self, backend: Any, portal: Any) -> None:
        """A result of a bridge or a portal is freed when the caller drops it."""

        async def give() -> Thing:
            await backend.checkpoint()
            return Thing()

        async def main() -> None:
            def use() -> Thing:
                reference = weakref.ref(await_(give()))
                assert is_dead(reference)
                return Thing()

            reference = weakref.ref(await portal(use))
            assert is_dead(reference)

        backend.run(main)

    def test_finished_coroutine(self, backend: Any, portal: Any) -> None:
        """A coroutine that a bridge has run is freed as soon as the bridge is over."""

        def use() -> None:
            coroutine = backend.checkpoint()
            reference = weakref.ref(coroutine)
            await_(coroutine)
            del coroutine
            assert is_dead(reference)

        backend.run(portal, use)
