"""What `greenback.await_` takes, and what it and `has_portal` say where they cannot work."""

from __future__ import annotations

import asyncio
import functools
import gc
import importlib.util
import inspect
import os
import shutil
import subprocess
import sys
import sysconfig
import threading
import types
import warnings
from typing import Any, Callable, List, Tuple

import pytest
import sniffio
import trio

import greenback
from greenback import await_
from tests.sampling import is_small

from .portals import in_run, in_run_sync, in_task

PYPY = sys.implementation.name == "pypy"


async def in_child(sync_fn: Callable[[], Any]) -> Any:
    results: List[Any] = []

    async def child() -> None:
        try:
            results.append((sync_fn(), None))
        except BaseException as error:
            results.append((None, error))

    with greenback.portals_for_children():
        if sniffio.current_async_library() == "trio":
            async with trio.open_nursery() as nursery:
                nursery.start_soon(child)
        else:
            task = asyncio.get_running_loop().create_task(child())
            try:
                await task
            except asyncio.CancelledError:
                task.cancel()
                await asyncio.wait([task])
    value, error = results[0]
    if error is not None:
        raise error
    return value


PORTALS = [in_run_sync, in_run, in_task, in_child]


@pytest.fixture(params=PORTALS, ids=lambda portal: portal.__name__)
def portal(request: pytest.FixtureRequest) -> Any:
    """Each way to call a sync function in a portal in turn."""
    return request.param


def outcome(call: Callable[[], Any]) -> Tuple[Any, ...]:
    """What a call does: its value, or the type and the words of what it raises."""
    try:
        return "returned", call()
    except BaseException as error:
        return type(error), error.args


def both_ways(backend: Any, portal: Any, make: Callable[[], Any]) -> Tuple[Any, Any]:
    """What awaiting the result of *make* does, and what bridging to another result of it does."""

    async def awaited() -> Any:
        return await make()

    return outcome(lambda: backend.run(awaited)), outcome(
        lambda: backend.run(portal, lambda: await_(make()))
    )


class OneTrap:
    """An iterator without send() and throw(), which waits once if there is reason to."""

    def __init__(self, value: Any) -> None:
        self.value = value

    def __next__(self) -> Any:
        raise StopIteration(self.value)

    def __iter__(self) -> Any:
        return self


class Awaitable:
    def __init__(self, give: Callable[[], Any]) -> None:
        self.give = give

    def __await__(self) -> Any:
        return self.give()


class TestCoroutines:
    @pytest.mark.parametrize(
        "value",
        [
            None,
            0,
            False,
            "",
            (),
            (1, 2),
            [],
            "text",
            StopIteration(1),
            ValueError("a value"),
            StopAsyncIteration,
            object(),
        ],
        ids=lambda value: repr(value).partition(" at 0x")[0],
    )
    @pytest.mark.parametrize("waits", [False, True])
    def test_value(self, backend: Any, portal: Any, value: Any, waits: bool) -> None:
        """The very object that a coroutine returns is returned, exceptions and None included."""

        async def give() -> Any:
            if waits:
                await backend.checkpoint()
            return value

        assert backend.run(portal, lambda: await_(give())) is value

    def test_many_suspensions(self, backend: Any, portal: Any) -> None:
        """A coroutine may wait as often as it likes, in one bridge and over several."""

        async def count(n: int) -> int:
            for _ in range(n):
                await backend.checkpoint()
            return n

        assert backend.run(portal, lambda: [await_(count(n)) for n in range(5)]) == list(range(5))

    def test_half_run_coroutine(self, backend: Any, portal: Any) -> None:
        """A coroutine that somebody has stepped before is refused, or goes on, as with await."""

        @types.coroutine
        def pause() -> Any:
            yield "not for the loop"

        async def halves() -> str:
            await pause()
            return "second half"

        def half_run() -> Any:
            coroutine = halves()
            assert coroutine.send(None) == "not for the loop"
            return coroutine

        def half_run_generator() -> Any:
            generator = pause()
            assert generator.send(None) == "not for the loop"
            return generator

        awaited, bridged = both_ways(backend, portal, half_run)
        assert awaited == (RuntimeError, ("coroutine is being awaited already",))
        assert bridged == awaited
        assert both_ways(backend, portal, half_run_generator) == (
            ("returned", None),
            ("returned", None),
        )

    def test_misused_coroutine(self, backend: Any, portal: Any) -> None:
        """A coroutine that is finished, being awaited or running cannot be awaited, as ever."""

        async def nothing() -> None:
            pass

        def finished() -> Any:
            coroutine = nothing()
            coroutine.close()
            return coroutine

        awaited, bridged = both_ways(backend, portal, finished)
        assert awaited[0] is RuntimeError
        assert bridged == awaited

    def test_coroutine_in_use(self, backend: Any) -> None:
        """A second wait for a parked coroutine fails, and does not disturb the first."""

        async def main() -> List[Any]:
            go = backend.event()
            results: List[Any] = []

            async def wait() -> str:
                await go.wait()
                return "first"

            async def outer() -> str:
                return await inner

            inner = wait()
            holder = outer()

            async def first() -> None:
                results.append(await holder)

            async def second() -> None:
                await backend.checkpoint()
                await backend.checkpoint()
                results.append(outcome(lambda: await_(inner)))
                go.set()

            await backend.together(first, functools.partial(greenback.with_portal_run, second))
            return results

        error, first = backend.run(main)
        assert error == (RuntimeError, ("coroutine is being awaited already",))
        assert first == "first"


class TestOtherAwaitables:
    def test_future(self, asyncio_backend: Any, portal: Any) -> None:
        """A future is waited for whether or not it is done, and gives its result."""

        async def main() -> None:
            loop = asyncio.get_running_loop()
            done, later = loop.create_future(), loop.create_future()
            done.set_result("done")
            loop.call_soon(later.set_result, "later")
            assert await portal(lambda: (await_(done), await_(later))) == ("done", "later")

        asyncio_backend.run(main)

    def test_failed_future(self, asyncio_backend: Any, portal: Any) -> None:
        """A future that failed raises its own exception, each time that it is asked."""

        async def main() -> None:
            future = asyncio.get_running_loop().create_future()
            error = LookupError("failed")
            future.set_exception(error)

            def ask() -> BaseException:
                with pytest.raises(LookupError) as caught:
                    await_(future)
                return caught.value

            assert await portal(ask) is error
            assert await portal(ask) is error

        asyncio_backend.run(main)

    def test_task(self, asyncio_backend: Any, portal: Any) -> None:
        """A task is waited for."""

        async def work() -> str:
            await asyncio.sleep(0)
            return "worked"

        assert (
            asyncio_backend.run(
                portal, lambda: await_(asyncio.get_running_loop().create_task(work()))
            )
            == "worked"
        )

    @pytest.mark.parametrize("waits", [False, True])
    def test_dunder_await(self, backend: Any, portal: Any, waits: bool) -> None:
        """An object with __await__ is awaited, whatever sort of iterator that returns."""

        async def give() -> str:
            if waits:
                await backend.checkpoint()
            return "given"

        def generator() -> Any:
            return (yield from give().__await__())

        for give_iterator in (lambda: give().__await__(), generator):
            assert backend.run(portal, lambda: await_(Awaitable(give_iterator))) == "given"

    def test_plain_iterator(self, backend: Any, portal: Any) -> None:
        """An iterator that has __next__ only is good enough for __await__."""
        assert backend.run(portal, lambda: await_(Awaitable(lambda: OneTrap("value")))) == "value"

    def test_plain_iterator_that_waits(self, asyncio_backend: Any, portal: Any) -> None:
        """An iterator that has __next__ only may wait, and be interrupted while it does."""

        class Steps:
            def __init__(self, number: int) -> None:
                self.left = number

            def __iter__(self) -> Any:
                return self

            def __next__(self) -> None:
                if not self.left:
                    raise StopIteration("last")
                self.left -= 1

        async def main() -> None:
            assert await portal(lambda: await_(Awaitable(lambda: Steps(2)))) == "last"
            task = asyncio.get_running_loop().create_task(
                portal(lambda: await_(Awaitable(lambda: Steps(99))))
            )
            for _ in range(2):  # in_child takes a step of its own
                await asyncio.sleep(0)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task

        asyncio_backend.run(main)

    def test_generator_based_coroutine(self, backend: Any, portal: Any) -> None:
        """A generator marked by types.coroutine is awaited, suspended or not."""

        @types.coroutine
        def waits() -> Any:
            yield from backend.checkpoint().__await__()
            return "waited"

        @types.coroutine
        def at_once() -> Any:
            if False:
                yield
            return "at once"

        assert backend.run(portal, lambda: (await_(waits()), await_(at_once()))) == (
            "waited",
            "at once",
        )

    def test_async_generator_methods(self, backend: Any, portal: Any) -> None:
        """What asend(), athrow(), aclose() and __anext__() return can be bridged to."""
        log: List[Any] = []

        async def numbers() -> Any:
            try:
                got = yield 1
                while True:
                    await backend.checkpoint()
                    try:
                        got = yield got * 2
                    except ValueError as error:
                        got = len(error.args[0])
            finally:
                await backend.checkpoint()
                log.append("closed")

        def use() -> None:
            generator = numbers()
            log.append(await_(generator.__anext__()))
            log.append(await_(generator.asend(21)))
            log.append(await_(generator.athrow(ValueError("four"))))
            await_(generator.aclose())
            with pytest.raises(StopAsyncIteration):
                await_(generator.__anext__())

        backend.run(portal, use)
        assert log == [1, 42, 8, "closed"]

    @pytest.mark.skipif(sys.version_info < (3, 10), reason="anext() came with Python 3.10")
    def test_anext_with_a_default(self, backend: Any, portal: Any) -> None:
        """The awaitable that anext() makes works, with and without something left to give."""

        async def one() -> Any:
            await backend.checkpoint()
            yield 1

        def use() -> Any:
            generator = one()
            return await_(anext(generator, "none")), await_(anext(generator, "none"))  # noqa: F821

        assert backend.run(portal, use) == (1, "none")

    @pytest.mark.parametrize(
        "make",
        [
            lambda: Awaitable(lambda: 42),
            lambda: Awaitable(lambda: [1, 2]),
            lambda: Awaitable(lambda: None),
            lambda: Awaitable(lambda: 1 // 0),
            lambda: Awaitable(lambda: next(iter(()))),
        ],
        ids=["number", "list", "none", "raises", "raises-StopIteration"],
    )
    def test_broken_dunder_await(self, backend: Any, portal: Any, make: Any) -> None:
        """An object whose __await__ is no good raises what await raises."""
        awaited, bridged = both_ways(backend, portal, make)
        assert bridged == awaited

    def test_dunder_await_that_returns_a_coroutine(self, backend: Any, portal: Any) -> None:
        """__await__ must not return a coroutine, as ever."""

        async def nothing() -> None:
            pass

        made: List[Any] = []

        def give() -> Any:
            made.append(nothing())
            return made[-1]

        awaited, bridged = both_ways(backend, portal, lambda: Awaitable(give))
        for coroutine in made:
            coroutine.close()
        assert awaited[0] is TypeError
        assert bridged == awaited


class TestNotAwaitable:
    @pytest.mark.parametrize(
        "make",
        [
            lambda: 42,
            lambda: None,
            lambda: "text",
            list,
            lambda: Awaitable,
            lambda: (),
            lambda: asyncio.sleep,
            lambda: (x for x in ()),
            lambda: types.SimpleNamespace(__await__=lambda: iter(())),
        ],
        ids=[
            "int",
            "None",
            "str",
            "list",
            "class",
            "tuple",
            "async-function",
            "generator",
            "instance-attribute",
        ],
    )
    def test_error(self, backend: Any, portal: Any, make: Any) -> None:
        """What cannot be awaited raises the TypeError that await raises, word for word."""
        awaited, bridged = both_ways(backend, portal, make)
        assert awaited[0] is TypeError
        assert bridged == awaited

    def test_words(self, backend: Any, portal: Any) -> None:
        """The error says what it was that cannot be awaited."""
        words = r"^object int can't be used in 'await' expression$"
        if sys.version_info >= (3, 14):
            words = r"^'int' object can't be awaited$"
        with pytest.raises(TypeError, match=words):
            backend.run(portal, lambda: await_(42))  # type: ignore[arg-type]

    def test_portal_goes_on(self, backend: Any, portal: Any) -> None:
        """After such an error the portal works as before."""

        async def give() -> int:
            await backend.checkpoint()
            return 1

        def use() -> int:
            with pytest.raises(TypeError):
                await_(42)  # type: ignore[arg-type]
            return await_(give())

        assert backend.run(portal, use) == 1


CYTHON_SOURCE = """
# cython: language_level=3

async def immediate(value):
    return value

async def through(awaitable):
    return await awaitable

async def cleans_up(awaitable, log):
    try:
        return await awaitable
    except BaseException as error:
        log.append(type(error))
        raise
    finally:
        log.append("finally")

async def fails(error):
    raise error
"""


@pytest.fixture(scope="module")
def compiled(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A module of coroutine functions that Cython has compiled."""
    if PYPY:
        pytest.skip("Cython's C code is compiled for CPython here")
    if is_small():
        pytest.skip("another Python compiles it")
    if importlib.util.find_spec("Cython") is None:
        pytest.skip("Cython is not installed")
    if importlib.util.find_spec("setuptools") is None:
        pytest.skip("setuptools, with which Cython compiles, is not installed")
    compiler = (sysconfig.get_config_var("CC") or "cc").split()[0]
    if shutil.which(compiler) is None:
        pytest.skip(f"there is no C compiler {compiler}")
    folder = tmp_path_factory.mktemp("cython")
    (folder / "compiled_coroutines.pyx").write_text(CYTHON_SOURCE)
    done = subprocess.run(
        # From 3.12 on, distutils is what setuptools brings with it.
        [
            sys.executable,
            "-c",
            "import setuptools; from Cython.Build.Cythonize import main; "
            "main(['-i', '-3', 'compiled_coroutines.pyx'])",
        ],
        cwd=str(folder),
        capture_output=True,
        text=True,
        env={**os.environ, "CFLAGS": "-O0"},
        check=False,
    )
    assert done.returncode == 0, done.stderr
    built = next(path for path in folder.iterdir() if path.suffix in (".so", ".pyd"))
    spec = importlib.util.spec_from_file_location("compiled_coroutines", str(built))
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


class TestCython:
    def test_value(self, backend: Any, portal: Any, compiled: Any) -> None:
        """A coroutine made by Cython gives its value, whether or not it waits."""

        async def give() -> str:
            await backend.checkpoint()
            return "given"

        def use() -> Any:
            return (
                await_(compiled.immediate(None)),
                await_(compiled.immediate("x")),
                await_(compiled.through(give())),
                await_(compiled.through(compiled.immediate(1))),
            )

        probe = compiled.immediate(1)
        probe.close()
        assert type(probe) is not types.CoroutineType
        assert backend.run(portal, use) == (None, "x", "given", 1)

    def test_exception(self, backend: Any, portal: Any, compiled: Any) -> None:
        """A coroutine made by Cython raises what it raises."""
        for error in (ValueError("x"), KeyboardInterrupt(), GeneratorExit(), StopIteration(1)):
            awaited, bridged = both_ways(backend, portal, lambda: compiled.fails(error))
            assert bridged == awaited

    def test_cancellation(self, asyncio_backend: Any, portal: Any, compiled: Any) -> None:
        """A coroutine made by Cython that waits in a bridge can be cancelled."""
        log: List[Any] = []

        async def main() -> None:
            forever = asyncio.get_running_loop().create_future()
            task = asyncio.get_running_loop().create_task(
                portal(lambda: await_(compiled.cleans_up(forever, log)))
            )
            await asyncio.sleep(0)
            await asyncio.sleep(0)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task

        asyncio_backend.run(main)
        assert log == [asyncio.CancelledError, "finally"]

    def test_closed_without_portal(self, backend: Any, compiled: Any) -> None:
        """Where there is no portal, a coroutine made by Cython is closed too."""

        async def main() -> None:
            coroutine = compiled.immediate(1)
            with pytest.raises(RuntimeError, match="create a greenback portal"):
                await_(coroutine)
            with pytest.raises(RuntimeError, match="cannot reuse already awaited coroutine"):
                await coroutine

        backend.run(main)

    def test_sync_function(self, backend: Any, portal: Any, compiled: Any) -> None:
        """Code compiled by Cython between a portal and a bridge runs in a task as any other."""

        async def pages() -> Any:
            await backend.checkpoint()
            return await compiled.through(greenback.with_portal_run_sync(read))

        def read() -> Any:
            return await_(compiled.through(backend.checkpoint())), "read"

        assert backend.run(portal, lambda: await_(pages())) == (None, "read")


class Discarded:
    """The awaitables that somebody might pass where there is no portal."""

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
                generator.aclose().send(None)  # or Trio warns that nobody has closed it
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
        """What kept a reference to await_ cannot use the portal after its function has ended."""

        async def main() -> None:
            await greenback.with_portal_run_sync(lambda: None)
            assert_refused(RuntimeError, self.WORDS)
            await greenback.with_portal_run_sync(lambda: await_(backend.checkpoint()))
            assert_refused(RuntimeError, self.WORDS)

        backend.run(main)

    def test_after_a_failure(self, backend: Any) -> None:
        """A portal whose function has raised is gone too."""

        async def main() -> None:
            for waits in (False, True):
                with pytest.raises(ZeroDivisionError):
                    await greenback.with_portal_run_sync(
                        lambda: (waits and await_(backend.checkpoint()), 1 // 0)
                    )
                assert_refused(RuntimeError, self.WORDS)

        backend.run(main)

    def test_other_task(self, backend: Any) -> None:
        """A portal helps no other task, even while its own task is parked in a bridge."""

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
        """A future or a task that was passed is not touched: others may be waiting for it."""

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
        """The error's context is the exception that is being handled, and nothing else."""

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
        """Bestowing twice, or ensuring after bestowing, is harmless."""

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
        """Where no async library runs, AsyncLibraryNotFoundError is raised."""
        assert_refused(sniffio.AsyncLibraryNotFoundError, "async library")

    def test_callback(self, asyncio_backend: Any, portal: Any) -> None:
        """A callback of an event loop is no task, so that a bridge fails there."""

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
        """A thread that a portal's code starts has no part in the portal."""
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
        """A portal cannot be opened where no async library runs; the function is not called."""
        function = getattr(greenback, kind)
        called: List[int] = []
        args = () if kind == "ensure_portal" else (lambda: called.append(1),)
        with pytest.raises(sniffio.AsyncLibraryNotFoundError):
            function(*args).send(None)
        assert called == []

    def test_after_a_loop(self, backend: Any, portal: Any) -> None:
        """A loop that has ended leaves nothing behind that would make a bridge seem possible."""
        backend.run(portal, lambda: await_(backend.checkpoint()))
        assert not greenback.has_portal()
        assert_refused(sniffio.AsyncLibraryNotFoundError, "async library")


class TestOtherLibrary:
    @pytest.fixture(params=["thread-local", "context-variable"])
    def curio(self, request: pytest.FixtureRequest) -> Any:
        """Makes sniffio say that a library runs that greenback has never heard of."""
        if request.param == "thread-local":
            before, sniffio.thread_local.name = sniffio.thread_local.name, "curio"
            yield
            sniffio.thread_local.name = before
        else:
            token = sniffio.current_async_library_cvar.set("curio")
            yield
            sniffio.current_async_library_cvar.reset(token)

    def test_await(self, curio: Any) -> None:
        """A library that greenback does not know is named in the error."""
        assert_refused(RuntimeError, "^greenback does not support curio: ")
        assert not greenback.has_portal()

    @pytest.mark.parametrize("kind", ["with_portal_run", "with_portal_run_sync", "ensure_portal"])
    def test_portal_functions(self, curio: Any, kind: str) -> None:
        """A portal cannot be opened under such a library, and the error names it."""
        args = () if kind == "ensure_portal" else (lambda: None,)
        with pytest.raises(RuntimeError, match="^greenback does not support curio: "):
            getattr(greenback, kind)(*args).send(None)

    def test_run(self, curio: Any) -> None:
        """greenback.run() says the same, and does not call the function."""
        with pytest.raises(RuntimeError, match="^greenback does not support curio: "):
            greenback.run(Discarded.coroutine)

    def test_inside_a_portal(self, backend: Any, portal: Any) -> None:
        """A library that announces itself inside a portal's code has no portal there."""

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


class Unhashable:
    __hash__ = None  # type: ignore[assignment]


class BadHash:
    def __hash__(self) -> int:
        raise ValueError("no hash today")


class Equal:
    """Compares with what has the same hash, and fails at it."""

    def __init__(self, to: Any) -> None:
        self.hash = hash(to)

    def __hash__(self) -> int:
        return self.hash

    def __eq__(self, other: object) -> bool:
        raise ValueError("no comparison today")


class TestHasPortal:
    def test_values(self, backend: Any, portal: Any) -> None:
        """It is true wherever await_ would work: in sync code, and in what that bridges to."""

        async def inside() -> Tuple[bool, bool]:
            before = greenback.has_portal()
            await backend.checkpoint()
            return before, greenback.has_portal(backend.current_task())

        async def main() -> None:
            assert not greenback.has_portal()
            assert not greenback.has_portal(backend.current_task())
            assert await portal(
                lambda: (
                    greenback.has_portal(),
                    greenback.has_portal(backend.current_task()),
                    *await_(inside()),
                )
            ) == (True, True, True, True)

        backend.run(main)

    def test_other_task(self, backend: Any, portal: Any) -> None:
        """Another task is told of: parked, with and without a portal, and done."""
        seen: List[bool] = []

        async def main() -> None:
            go = backend.event()
            tasks: List[Any] = []

            def park() -> None:
                tasks.append(backend.current_task())
                await_(go.wait())

            async def plain() -> None:
                tasks.append(backend.current_task())
                await go.wait()

            async def look() -> None:
                while len(tasks) < 2:
                    await backend.checkpoint()
                await backend.checkpoint()
                seen.extend(greenback.has_portal(task) for task in (tasks[0], tasks[1]))
                go.set()

            async def first() -> None:
                await portal(park)

            async def second() -> None:
                while not tasks:
                    await backend.checkpoint()
                await plain()

            await backend.together(first, second, look)
            seen.extend(greenback.has_portal(task) for task in tasks)

        backend.run(main)
        assert seen == [True, False, False, False]

    @pytest.mark.parametrize(
        "thing",
        [42, "text", [], {}, object(), Unhashable(), BadHash(), asyncio.Future, trio],
        ids=lambda thing: type(thing).__name__,
    )
    def test_no_task(self, backend: Any, portal: Any, thing: Any) -> None:
        """What is no task has no portal, inside a portal and outside of all; it is not an error."""
        assert greenback.has_portal(thing) is False
        assert backend.run(portal, lambda: greenback.has_portal(thing)) is False

    def test_no_task_that_looks_like_one(self, backend: Any) -> None:
        """Nor is it an error if the thing fails when it is compared with a task."""

        async def main() -> bool:
            await greenback.ensure_portal()
            return greenback.has_portal(Equal(backend.current_task()))

        assert backend.run(main) is False

    @pytest.mark.skipif(sys.version_info < (3, 12), reason="eager tasks came with Python 3.12")
    def test_eagerly_finished_task(self, asyncio_backend: Any) -> None:
        """A task that ended in its eager first step has no portal."""

        async def main() -> None:
            loop = asyncio.get_running_loop()
            # Not asyncio.eager_task_factory: on 3.13.0 it takes no argument that uvloop passes.
            loop.set_task_factory(
                lambda loop, coro, **kwds: asyncio.Task(
                    coro, loop=loop, **{**kwds, "eager_start": True}
                )
            )
            task = loop.create_task(greenback.with_portal_run_sync(int))
            assert task.done()
            assert not greenback.has_portal(task)
            greenback.bestow_portal(task)
            assert not greenback.has_portal(task)

        asyncio_backend.run(main)

    def test_other_thread(self, backend: Any) -> None:
        """A task of another thread is told of from a thread that runs nothing."""
        answers: List[Any] = []

        async def main() -> None:
            await greenback.ensure_portal()
            task = backend.current_task()
            thread = threading.Thread(target=lambda: answers.append(greenback.has_portal(task)))
            thread.start()
            thread.join()

        backend.run(main)
        assert answers == [True]

    def test_agrees_with_await(self, backend: Any, portal: Any) -> None:
        """Whatever has_portal() says at a place, await_ then works or fails there."""

        async def nothing() -> str:
            return "works"

        def check() -> bool:
            works = outcome(lambda: await_(nothing())) == ("returned", "works")
            assert works is greenback.has_portal()
            return works

        async def main() -> List[bool]:
            answers = [check()]
            answers.append(await portal(check))
            with greenback.portals_for_children():
                answers.append(await greenback.with_portal_run_sync(check))
            return answers

        assert backend.run(main) == [False, True, True]
        assert check() is False


class TestLeftScope:
    def test_first_step(self, backend: Any) -> None:
        """A scope that is left within the first step of its portal takes the portal with it.

        It runs in a thread of its own, so that nothing that it leaves behind hurts other tests.
        """
        answers: List[Any] = []

        async def main() -> None:
            async with greenback.portals_for_tree():
                answers.append(greenback.has_portal())
            answers.append(greenback.has_portal())

        def in_thread() -> None:
            for _ in range(3):
                answers.append(outcome(lambda: backend.run(main)))

        thread = threading.Thread(target=in_thread)
        thread.start()
        thread.join()
        assert answers == [True, False, ("returned", None)] * 3
