"""The awaitables that `greenback.await_` takes."""

from __future__ import annotations

import asyncio
import functools
import sys
import types
from typing import Any, Callable, List

import pytest

import greenback
from greenback import await_

from .awaitables import both_ways, outcome


class OneTrap:
    """An iterator without send() and throw(), which ends at once with a value."""

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
        """await_() returns the very object that a coroutine returns, be it an exception or None."""

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
        """A coroutine that has been stepped before is refused, or goes on, as with ``await``."""

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
        """A coroutine that is finished, awaited elsewhere or running raises, as with ``await``."""

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
        """A future gives its result, whether or not it is done already."""

        async def main() -> None:
            loop = asyncio.get_running_loop()
            done, later = loop.create_future(), loop.create_future()
            done.set_result("done")
            loop.call_soon(later.set_result, "later")
            assert await portal(lambda: (await_(done), await_(later))) == ("done", "later")

        asyncio_backend.run(main)

    def test_failed_future(self, asyncio_backend: Any, portal: Any) -> None:
        """A failed future raises its own exception, each time."""

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
        """A task gives its result."""

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
        """An object with __await__ works, whatever sort of iterator that returns."""

        async def give() -> str:
            if waits:
                await backend.checkpoint()
            return "given"

        def generator() -> Any:
            return (yield from give().__await__())

        for give_iterator in (lambda: give().__await__(), generator):
            assert backend.run(portal, lambda: await_(Awaitable(give_iterator))) == "given"

    def test_plain_iterator(self, backend: Any, portal: Any) -> None:
        """The iterator of __await__ needs only __next__."""
        assert backend.run(portal, lambda: await_(Awaitable(lambda: OneTrap("value")))) == "value"

    def test_plain_iterator_that_waits(self, asyncio_backend: Any, portal: Any) -> None:
        """An iterator that has only __next__ may wait, and may be interrupted meanwhile."""

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
        """A generator marked by types.coroutine works, whether or not it waits."""

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
        """The results of asend(), athrow(), aclose() and __anext__() work."""
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
        """The awaitable of anext() works, also at the end of its iterator."""

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
        """An object with a bad __await__ raises the same error as ``await``."""
        awaited, bridged = both_ways(backend, portal, make)
        assert bridged == awaited

    def test_dunder_await_that_returns_a_coroutine(self, backend: Any, portal: Any) -> None:
        """An __await__ that returns a coroutine raises the same error as ``await``."""

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
        """An object that cannot be awaited raises the TypeError of ``await``, word for word."""
        awaited, bridged = both_ways(backend, portal, make)
        assert awaited[0] is TypeError
        assert bridged == awaited

    def test_words(self, backend: Any, portal: Any) -> None:
        """The error names the type of the object that cannot be awaited."""
        words = r"^object int can't be used in 'await' expression$"
        if sys.version_info >= (3, 14):
            words = r"^'int' object can't be awaited$"
        with pytest.raises(TypeError, match=words):
            backend.run(portal, lambda: await_(42))  # type: ignore[arg-type]

    def test_portal_goes_on(self, backend: Any, portal: Any) -> None:
        """After a TypeError the portal works as before."""

        async def give() -> int:
            await backend.checkpoint()
            return 1

        def use() -> int:
            with pytest.raises(TypeError):
                await_(42)  # type: ignore[arg-type]
            return await_(give())

        assert backend.run(portal, use) == 1
