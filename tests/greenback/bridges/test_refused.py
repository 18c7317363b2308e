"""The errors of `greenback.await_` where no bridge can start."""

from __future__ import annotations

import asyncio
import gc
import inspect
import threading
import warnings
from typing import Any, List

import pytest
import sniffio

import greenback
from greenback import await_

from .awaitables import outcome


class Discarded:
    """Awaitables that a program might pass where there is no portal."""

    @staticmethod
    async def coroutine() -> None:
        raise AssertionError("never to be run")

    @staticmethod
    async def agen() -> Any:
        yield 1


def assert_refused(kind: Any, match: str) -> None:
    """Bridging raises, and Python warns neither of a coroutine nor of an async generator."""
    gc.collect()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        coroutine = Discarded.coroutine()
        with pytest.raises(kind, match=match) as first:
            await_(coroutine)
        assert type(first.value) is kind
        assert first.value.__context__ is None
        assert first.value.__cause__ is None
        assert inspect.getcoroutinestate(coroutine) == inspect.CORO_CLOSED
        del coroutine
        for method in ("__anext__", "aclose"):
            generator = Discarded.agen()
            with pytest.raises(kind, match=match):
                await_(getattr(generator, method)())
            with pytest.raises(StopIteration):
                generator.aclose().send(None)  # otherwise Trio warns that it was not closed
        with pytest.raises(kind, match=match):
            await_(greenback.with_portal_run_sync(int))
        with pytest.raises(kind, match=match):
            greenback.autoawait(Discarded.coroutine)()
        gc.collect()
    assert [str(warning.message) for warning in caught] == []


class TestNoPortal:
    WORDS = r"create a greenback portal.*'await greenback.ensure_portal\(\)'.*"

    def test_task(self, backend: Any) -> None:
        """In a task without a portal, the error says which functions open one."""

        async def main() -> None:
            assert_refused(RuntimeError, self.WORDS)
            assert_refused(RuntimeError, r"await greenback.with_portal_run\(")

        backend.run(main)

    def test_after_the_portal(self, backend: Any, portal: Any) -> None:
        """Code that runs after a portal's function has ended cannot use the portal."""

        async def main() -> None:
            await greenback.with_portal_run_sync(lambda: None)
            assert_refused(RuntimeError, self.WORDS)
            await greenback.with_portal_run_sync(lambda: await_(backend.checkpoint()))
            assert_refused(RuntimeError, self.WORDS)

        backend.run(main)

    def test_after_a_failure(self, backend: Any) -> None:
        """A portal whose function has raised is closed, too."""

        async def main() -> None:
            for waits in (False, True):
                with pytest.raises(ZeroDivisionError):
                    await greenback.with_portal_run_sync(
                        lambda: (waits and await_(backend.checkpoint()), 1 // 0)
                    )
                assert_refused(RuntimeError, self.WORDS)

        backend.run(main)

    def test_other_task(self, backend: Any) -> None:
        """No other task can use a portal, even while its own task is parked in a bridge."""

        async def main() -> None:
            go = backend.event()

            async def other() -> None:
                await backend.checkpoint()
                assert not greenback.has_portal()
                assert_refused(RuntimeError, self.WORDS)
                go.set()

            await backend.together(
                lambda: greenback.with_portal_run_sync(lambda: await_(go.wait())), other
            )

        backend.run(main)

    def test_other_awaitables_are_left_alone(self, asyncio_backend: Any) -> None:
        """A future or a task that was passed stays as it is: other tasks may wait for it."""

        async def main() -> None:
            future = asyncio.get_running_loop().create_future()
            task = asyncio.get_running_loop().create_task(asyncio.sleep(0, "ran"))
            for aw in (future, task):
                with pytest.raises(RuntimeError, match="create a greenback portal"):
                    await_(aw)
            assert not future.done()
            assert await task == "ran"

        asyncio_backend.run(main)

    def test_in_an_except_block(self, backend: Any) -> None:
        """The error's context is the exception that is being handled, and no other."""

        async def main() -> None:
            for _ in range(2):
                try:
                    raise KeyError("handled")
                except KeyError as handled:
                    with pytest.raises(RuntimeError) as caught:
                        await_(Discarded.coroutine())
                    assert caught.value.__context__ is handled
                    assert handled.__context__ is None

        backend.run(main)

    def test_coroutine_of_another_task(self, backend: Any) -> None:
        """A refused bridge does not close a coroutine that another task waits for."""

        async def main() -> List[str]:
            go = backend.event()
            log: List[str] = []

            async def wait() -> None:
                await go.wait()
                log.append("waited")

            coroutine = wait()

            async def first() -> None:
                await coroutine

            async def second() -> None:
                await backend.checkpoint()
                with pytest.raises(RuntimeError, match="create a greenback portal"):
                    await_(coroutine)
                go.set()

            await backend.together(first, second)
            return log

        assert backend.run(main) == ["waited"]


class TestBestowedButNotResumed:
    def test_error(self, backend: Any) -> None:
        """A portal bestowed on the running task works from its next step on, and says so."""

        async def main() -> int:
            greenback.bestow_portal(backend.current_task())
            assert not greenback.has_portal()
            assert not greenback.has_portal(backend.current_task())
            assert_refused(RuntimeError, "must yield to the event loop")
            await backend.checkpoint()
            assert greenback.has_portal()

            async def give() -> int:
                await backend.checkpoint()
                return 1

            return await_(give())

        assert backend.run(main) == 1

    def test_again(self, backend: Any) -> None:
        """A portal may be bestowed twice, or ensured after it was bestowed."""

        async def main() -> None:
            greenback.bestow_portal(backend.current_task())
            greenback.bestow_portal(backend.current_task())
            assert_refused(RuntimeError, "must yield to the event loop")
            await greenback.ensure_portal()
            await_(backend.checkpoint())
            greenback.bestow_portal(backend.current_task())
            await_(backend.checkpoint())

        backend.run(main)

    def test_functions_before_the_next_step(self, backend: Any) -> None:
        """with_portal_run still runs its function right after a portal was bestowed on its task."""

        async def main() -> Any:
            greenback.bestow_portal(backend.current_task())
            return await greenback.with_portal_run_sync(lambda: "ran")

        assert backend.run(main) == "ran"


class TestNoLibrary:
    def test_await(self) -> None:
        """If no async library runs, a bridge raises AsyncLibraryNotFoundError."""
        assert_refused(sniffio.AsyncLibraryNotFoundError, "async library")

    def test_callback(self, asyncio_backend: Any, portal: Any) -> None:
        """In a callback of an event loop, which is no task, a bridge raises."""

        async def main() -> Any:
            future = asyncio.get_running_loop().create_future()

            def callback() -> None:
                assert not greenback.has_portal()
                try:
                    assert_refused(sniffio.AsyncLibraryNotFoundError, "async library")
                except BaseException as error:
                    future.set_exception(error)
                else:
                    future.set_result("refused")

            asyncio.get_running_loop().call_soon(callback)
            return await portal(lambda: await_(future))

        assert asyncio_backend.run(main) == "refused"

    def test_thread(self, backend: Any, portal: Any) -> None:
        """A thread that a portal's code starts cannot use the portal."""
        errors: List[Any] = []

        def in_thread() -> None:
            coroutine = Discarded.coroutine()
            errors.append(outcome(lambda: await_(coroutine))[0])
            errors.append(greenback.has_portal())

        def use() -> None:
            thread = threading.Thread(target=in_thread)
            thread.start()
            thread.join()
            await_(backend.checkpoint())

        backend.run(portal, use)
        assert errors == [sniffio.AsyncLibraryNotFoundError, False]

    @pytest.mark.parametrize("kind", ["with_portal_run", "with_portal_run_sync", "ensure_portal"])
    def test_portal_functions(self, kind: str) -> None:
        """If no async library runs, a portal function raises, and calls nothing."""
        function = getattr(greenback, kind)
        called: List[int] = []
        args = () if kind == "ensure_portal" else (lambda: called.append(1),)
        with pytest.raises(sniffio.AsyncLibraryNotFoundError):
            function(*args).send(None)
        assert called == []

    def test_after_a_loop(self, backend: Any, portal: Any) -> None:
        """After a loop has ended, a bridge raises as if there had been none."""
        backend.run(portal, lambda: await_(backend.checkpoint()))
        assert not greenback.has_portal()
        assert_refused(sniffio.AsyncLibraryNotFoundError, "async library")


class TestOtherLibrary:
    @pytest.fixture(params=["thread-local", "context-variable"])
    def curio(self, request: pytest.FixtureRequest) -> Any:
        """Makes sniffio name a library that greenback does not know."""
        if request.param == "thread-local":
            before, sniffio.thread_local.name = sniffio.thread_local.name, "curio"
            yield
            sniffio.thread_local.name = before
        else:
            token = sniffio.current_async_library_cvar.set("curio")
            yield
            sniffio.current_async_library_cvar.reset(token)

    def test_await(self, curio: Any) -> None:
        """An error names a library that greenback does not know."""
        assert_refused(RuntimeError, "^greenback does not support curio: ")
        assert not greenback.has_portal()

    @pytest.mark.parametrize("kind", ["with_portal_run", "with_portal_run_sync", "ensure_portal"])
    def test_portal_functions(self, curio: Any, kind: str) -> None:
        """Under an unknown library no portal can be opened, and the error names the library."""
        args = () if kind == "ensure_portal" else (lambda: None,)
        with pytest.raises(RuntimeError, match="^greenback does not support curio: "):
            getattr(greenback, kind)(*args).send(None)

    def test_run(self, curio: Any) -> None:
        """Under an unknown library greenback.run() names it, and does not call the function."""
        with pytest.raises(RuntimeError, match="^greenback does not support curio: "):
            greenback.run(Discarded.coroutine)

    def test_inside_a_portal(self, backend: Any, portal: Any) -> None:
        """A bridge raises where another library announces itself inside a portal's code."""

        def use() -> None:
            before, sniffio.thread_local.name = sniffio.thread_local.name, "curio"
            try:
                assert not greenback.has_portal()
                assert_refused(RuntimeError, "^greenback does not support curio: ")
            finally:
                sniffio.thread_local.name = before
            assert greenback.has_portal()
            await_(backend.checkpoint())

        backend.run(portal, use)
