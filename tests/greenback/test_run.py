"""`greenback.run` runs an async function from sync code anywhere."""

from __future__ import annotations

import asyncio
import contextvars
import gc
import platform
import threading
import warnings
import weakref
from typing import Any, List

import pytest
import sniffio
import trio

import greenback

LIBRARIES = ["asyncio", "trio"]
needs_refcounts = pytest.mark.skipif(
    platform.python_implementation() == "PyPy", reason="PyPy does not count references"
)
SLEEPS = {"asyncio": asyncio.sleep, "trio": trio.sleep}


async def library_and_portal(*args: Any) -> Any:
    """The name of the library that runs here; a bridge proves the portal."""
    name = sniffio.current_async_library()
    greenback.await_(SLEEPS[name](0))
    return (name, *args)


class TestNoLoop:
    def test_asyncio_is_the_default(self) -> None:
        """Plain sync code gets an asyncio loop, a portal, the arguments and the result."""
        assert greenback.run(library_and_portal, 1, 2) == ("asyncio", 1, 2)

    @pytest.mark.parametrize("name", LIBRARIES)
    def test_backend(self, name: str) -> None:
        """The caller chooses the library by *backend*."""
        assert greenback.run(library_and_portal, 1, backend=name) == (name, 1)

    @pytest.mark.parametrize("name", LIBRARIES)
    def test_exception(self, name: str) -> None:
        """The function's exception is raised, without a context of greenback's own."""

        async def fails() -> None:
            greenback.await_(SLEEPS[name](0))
            raise LookupError("no such page")

        with pytest.raises(LookupError, match="no such page") as caught:
            greenback.run(fails, backend=name)
        assert caught.value.__context__ is None
        assert caught.value.__cause__ is None

    @pytest.mark.parametrize("name", LIBRARIES)
    def test_twice(self, name: str) -> None:
        """The loop is closed afterwards, and another one can be started."""
        for _ in range(2):
            assert greenback.run(library_and_portal, backend=name) == (name,)
            assert not greenback.has_portal()
            with pytest.raises(sniffio.AsyncLibraryNotFoundError):
                sniffio.current_async_library()

    def test_loop_is_closed(self) -> None:
        """The loop that `run` starts does not stay open."""

        async def loop() -> asyncio.AbstractEventLoop:
            return asyncio.get_running_loop()

        assert greenback.run(loop).is_closed()

    def test_in_a_thread(self) -> None:
        """`run` works in any thread without a loop, as in the main thread."""
        results: List[Any] = []
        thread = threading.Thread(
            target=lambda: results.extend(
                greenback.run(library_and_portal, backend=name) for name in LIBRARIES
            )
        )
        thread.start()
        thread.join()
        assert results == [("asyncio",), ("trio",)]

    def test_in_the_thread_of_a_portal_task(self, backend: Any) -> None:
        """A thread that a task with a portal waits for has no loop, so `run` starts one in it."""

        async def main() -> None:
            await greenback.ensure_portal()
            if backend.is_trio:
                found = await trio.to_thread.run_sync(greenback.run, threading_ident)
            else:
                loop = asyncio.get_running_loop()
                found = await loop.run_in_executor(None, greenback.run, threading_ident)
            assert found != threading.get_ident()

        async def threading_ident() -> int:
            greenback.await_(asyncio.sleep(0))
            return threading.get_ident()

        backend.run(main)

    def test_awaitable_that_is_no_coroutine(self) -> None:
        """The function may return any awaitable."""

        class Later:
            def __await__(self) -> Any:
                yield
                return 5

        assert greenback.run(lambda: Later()) == 5


class TestInAPortal:
    @pytest.mark.parametrize("named", LIBRARIES)
    def test_is_a_bridge(self, backend: Any, named: str) -> None:
        """Inside a portal, the function runs in the same task, whatever *backend* says."""

        async def here(value: int) -> Any:
            await backend.checkpoint()
            return backend.current_task(), value

        def sync() -> Any:
            return greenback.run(here, 3, backend=named)

        async def main() -> None:
            task = backend.current_task()
            assert await greenback.with_portal_run_sync(sync) == (task, 3)
            await greenback.ensure_portal()
            assert sync() == (task, 3)

        backend.run(main)

    def test_context_variables(self, backend: Any) -> None:
        """Inside a portal, sync code sees the context variables that the function has set."""
        var = contextvars.ContextVar("var", default=0)

        async def sets() -> None:
            var.set(var.get() + 1)

        def sync() -> int:
            var.set(1)
            greenback.run(sets)
            return var.get()

        async def main() -> None:
            assert await greenback.with_portal_run_sync(sync) == 2

        backend.run(main)

    def test_exception(self, backend: Any) -> None:
        """The function's exception has the same context in sync code as with an ``await``."""

        async def fails() -> None:
            await backend.checkpoint()
            raise LookupError("inner")

        def sync() -> None:
            try:
                raise ValueError("outer")
            except ValueError as outer:
                with pytest.raises(LookupError) as caught:
                    greenback.run(fails)
                assert caught.value.__context__ is outer

        async def main() -> None:
            await greenback.with_portal_run_sync(sync)

        backend.run(main)

    def test_nested(self, backend: Any) -> None:
        """A function that `run` runs may use `run` again, to any depth."""

        async def down(depth: int) -> int:
            await backend.checkpoint()
            return 0 if depth == 0 else 1 + greenback.run(down, depth - 1)

        async def main() -> None:
            await greenback.ensure_portal()
            assert greenback.run(down, 20) == 20

        backend.run(main)

    @pytest.mark.parametrize("name", LIBRARIES)
    def test_nested_from_sync_code(self, name: str) -> None:
        """The outermost call starts the only loop; the inner ones bridge to it."""

        async def down(depth: int) -> List[Any]:
            await SLEEPS[name](0)
            task = {"asyncio": asyncio.current_task, "trio": trio.lowlevel.current_task}[name]()
            return [task] + ([] if depth == 0 else greenback.run(down, depth - 1, backend=name))

        assert len(set(greenback.run(down, 5, backend=name))) == 1


class TestInALoopWithoutAPortal:
    @pytest.mark.parametrize("named", LIBRARIES)
    def test_task(self, backend: Any, named: str) -> None:
        """In a loop without a portal, the error names the need, and the function is not called."""
        called: List[int] = []

        async def never() -> None:
            called.append(1)

        async def main() -> None:
            with pytest.raises(RuntimeError, match="create a greenback portal") as caught:
                greenback.run(never, backend=named)
            assert not isinstance(caught.value, sniffio.AsyncLibraryNotFoundError)
            assert "await greenback.ensure_portal()" in str(caught.value)
            assert "await greenback.with_portal_run(" in str(caught.value)

        with warnings.catch_warnings():
            warnings.simplefilter("error")
            backend.run(main)
            gc.collect()
        assert not called

    @needs_refcounts
    def test_error_keeps_no_frame_alive(self, backend: Any) -> None:
        """After the error is handled, the objects of the caller's frame are freed at once."""

        class Held:
            pass

        references: List[Any] = []

        async def never() -> None:
            raise AssertionError

        def sync() -> None:
            held = Held()
            references.append(weakref.ref(held))
            try:
                greenback.run(never)
            except RuntimeError:
                pass

        async def main() -> None:
            sync()
            assert references[0]() is None

        gc.collect()
        gc.disable()
        try:
            backend.run(main)
        finally:
            gc.enable()

    @pytest.mark.parametrize("named", LIBRARIES)
    def test_callback(self, backend: Any, named: str) -> None:
        """In a callback, which is no task, `run` raises, even if other tasks have portals."""
        caught: List[BaseException] = []

        async def never() -> None:
            raise AssertionError

        def callback() -> None:
            try:
                greenback.run(never, backend=named)
            except BaseException as error:
                caught.append(error)

        async def main() -> None:
            await greenback.ensure_portal()
            if backend.is_trio:
                trio.lowlevel.current_trio_token().run_sync_soon(callback)
                while not caught:
                    await trio.lowlevel.checkpoint()
            else:
                asyncio.get_running_loop().call_soon(callback)
                await asyncio.sleep(0)

        backend.run(main)
        (error,) = caught
        if backend.is_trio:  # it runs these in a task of its own
            assert type(error) is RuntimeError
            assert "create a greenback portal" in str(error)
        else:
            assert type(error) is sniffio.AsyncLibraryNotFoundError
            assert "this is a callback of a running event loop" in str(error)

    def test_another_library_is_running(self) -> None:
        """An unknown async library is named in the error, and no loop is started."""

        async def never() -> None:
            raise AssertionError

        token = sniffio.current_async_library_cvar.set("curio")
        try:
            with pytest.raises(RuntimeError, match="greenback does not support curio"):
                greenback.run(never)
        finally:
            sniffio.current_async_library_cvar.reset(token)


class TestBadBackend:
    @pytest.mark.parametrize("bad", ["curio", "uvloop", "", None])
    def test_no_loop(self, bad: Any) -> None:
        """An unknown *backend* is refused by its name."""

        async def never() -> None:
            raise AssertionError

        with pytest.raises(ValueError, match=repr(bad)) as caught:
            greenback.run(never, backend=bad)
        assert "'asyncio'" in str(caught.value)
        assert "'trio'" in str(caught.value)

    def test_in_a_portal(self, backend: Any) -> None:
        """An unknown *backend* is refused also where `run` would start no loop."""

        async def never() -> None:
            raise AssertionError

        async def main() -> None:
            await greenback.ensure_portal()
            with pytest.raises(ValueError, match="'curio'"):
                greenback.run(never, backend="curio")

        backend.run(main)


class TestAnotherLoopInside:
    # uvloop and Trio both want the descriptor that wakes them up at a signal.
    @pytest.mark.filterwarnings("ignore:It looks like Trio's signal handling:RuntimeWarning")
    def test_trio_under_asyncio(self, asyncio_backend: Any) -> None:
        """In a task of Trio inside an asyncio loop, `run` bridges to Trio."""

        async def in_trio() -> Any:
            await greenback.ensure_portal()
            return greenback.run(library_and_portal)

        def sync() -> Any:
            return trio.run(in_trio), greenback.run(library_and_portal)

        async def main() -> None:
            found = await greenback.with_portal_run_sync(sync)
            assert found == (("trio",), ("asyncio",))

        asyncio_backend.run(main)

    def test_asyncio_under_trio(self) -> None:
        """In a task of asyncio inside a Trio run, `run` bridges to asyncio."""

        async def in_asyncio() -> Any:
            await greenback.ensure_portal()
            greenback.await_(asyncio.sleep(0))
            greenback.run(asyncio.sleep, 0)
            return "asyncio"

        def sync() -> Any:
            return asyncio.run(in_asyncio()), greenback.run(library_and_portal)

        async def main() -> None:
            assert await greenback.with_portal_run_sync(sync) == ("asyncio", ("trio",))

        trio.run(main)
