"""Adapters: async functions, context managers and iterables as sync ones."""

from __future__ import annotations

import asyncio
import functools
import inspect
from contextlib import asynccontextmanager
from typing import Any, AsyncIterator, Callable, List, Optional

import pytest

import greenback
from greenback import async_context, async_iter, autoawait, decorate_as_sync


def in_portal(backend: Any, sync_fn: Callable[[], Any]) -> Any:
    return backend.run(greenback.with_portal_run_sync, sync_fn)


class TestAutoawait:
    def test_arguments_and_result(self, backend: Any) -> None:
        """The function takes the async function's arguments and returns its result."""

        @autoawait
        async def fn(*args: Any, **kwds: Any) -> Any:
            await backend.checkpoint()
            return args, kwds

        assert in_portal(backend, lambda: fn(1, 2, fn=3)) == ((1, 2), {"fn": 3})

    def test_metadata(self) -> None:
        """The function has the name, docstring and ``__wrapped__``, and is not async."""

        async def fn() -> None:
            """Do it."""

        wrapped = autoawait(fn)
        assert wrapped.__name__ == "fn"
        assert wrapped.__doc__ == "Do it."
        assert wrapped.__wrapped__ is fn  # type: ignore[attr-defined]
        assert not inspect.iscoroutinefunction(wrapped)

    def test_special_methods(self, backend: Any) -> None:
        """A method, property or magic method can be an async function inside."""

        class Rates:
            @autoawait
            async def __getitem__(self, key: str) -> str:
                await backend.checkpoint()
                return key.upper()

            @property
            @autoawait
            async def current(self) -> int:
                await backend.checkpoint()
                return 7

        rates = Rates()
        assert in_portal(backend, lambda: (rates["a"], rates.current)) == ("A", 7)

    def test_exception(self, backend: Any) -> None:
        """An exception of the async function reaches the caller."""

        @autoawait
        async def fails() -> None:
            await backend.checkpoint()
            raise LookupError("here")

        with pytest.raises(LookupError, match="here"):
            in_portal(backend, fails)

    def test_without_a_portal(self, backend: Any) -> None:
        """A call without a portal raises the no-portal error, and leaves no coroutine behind."""

        @autoawait
        async def fn() -> None:
            raise AssertionError

        async def main() -> None:
            with pytest.raises(RuntimeError, match="create a greenback portal"):
                fn()

        backend.run(main)


class TestDecorateAsSync:
    def test_lru_cache(self, backend: Any) -> None:
        """A cache made for sync functions caches results, not coroutines."""
        calls: List[int] = []

        @decorate_as_sync(functools.lru_cache(maxsize=None))
        async def fetch(key: int) -> int:
            calls.append(key)
            await backend.checkpoint()
            return key * 2

        async def main() -> None:
            for _ in range(2):
                assert [await fetch(key) for key in (1, 2)] == [2, 4]
            assert not greenback.has_portal()
            await greenback.ensure_portal()
            assert await fetch(1) == 2

        backend.run(main)
        assert calls == [1, 2]

    def test_what_the_decorator_made_is_reachable(self, backend: Any) -> None:
        """As with greenback 1.3.0, ``__wrapped__`` is the decorated function: a cache's, say."""
        calls: List[int] = []

        @decorate_as_sync(functools.lru_cache(maxsize=None))
        async def fetch(key: int) -> int:
            calls.append(key)
            return key

        async def main() -> None:
            await fetch(1)
            fetch.__wrapped__.cache_clear()  # type: ignore[attr-defined]
            await fetch(1)

        backend.run(main)
        assert calls == [1, 1]

    def test_attributes_of_the_decorator(self) -> None:
        """As with greenback 1.3.0, attributes that the decorator sets are there."""

        def marks(fn: Any) -> Any:
            @functools.wraps(fn)
            def marked(*args: Any) -> Any:
                return fn(*args)

            marked.permission = "admin"  # type: ignore[attr-defined]
            return marked

        @decorate_as_sync(marks)
        async def page() -> None:
            pass

        assert page.permission == "admin"  # type: ignore[attr-defined]

    def test_is_async(self) -> None:
        """The result is a coroutine function with the name of the decorated one."""

        def plain(fn: Any) -> Any:
            return fn

        @decorate_as_sync(plain)
        async def fetch() -> None:
            """Fetch it."""

        assert inspect.iscoroutinefunction(fetch)
        assert (fetch.__name__, fetch.__doc__) == ("fetch", "Fetch it.")

    def test_around(self, backend: Any) -> None:
        """The decorator sees arguments, result and exception, and may change them."""

        def doubles(fn: Callable[[int], int]) -> Callable[[int, int], int]:
            def doubled(first: int, second: int) -> int:
                try:
                    return 2 * fn(first + second)
                except LookupError:
                    return -1

            return doubled

        @decorate_as_sync(doubles)
        async def fetch(key: int) -> int:
            await backend.checkpoint()
            if key == 0:
                raise LookupError
            return key

        async def main() -> None:
            assert await fetch(1, 2) == 6
            assert await fetch(0, 0) == -1

        backend.run(main)


class Manager:
    """An async context manager that keeps a log, and swallows `LookupError`."""

    def __init__(self, backend: Any, log: List[Any]) -> None:
        self.backend, self.log = backend, log

    async def __aenter__(self) -> str:
        await self.backend.checkpoint()
        self.log.append("enter")
        return "value"

    async def __aexit__(self, kind: object, error: object, traceback: object) -> Any:
        await self.backend.checkpoint()
        self.log.append((kind, error, traceback is not None))
        return [1] if kind is LookupError else 0


class TestAsyncContext:
    def test_value(self, backend: Any) -> None:
        """``with`` does what ``async with`` does."""
        log: List[Any] = []

        def sync() -> None:
            with async_context(Manager(backend, log)) as value:
                assert value == "value"
                log.append("body")

        in_portal(backend, sync)
        assert log == ["enter", "body", (None, None, False)]

    def test_exception(self, backend: Any) -> None:
        """``__aexit__`` gets the body's exception and decides whether it is raised."""
        log: List[Any] = []
        swallowed, passed = LookupError(), ValueError()

        def sync() -> None:
            with async_context(Manager(backend, log)):
                raise swallowed
            with pytest.raises(ValueError) as caught, async_context(Manager(backend, log)):
                raise passed
            assert caught.value is passed
            assert passed.__context__ is None

        in_portal(backend, sync)
        assert log == ["enter", (LookupError, swallowed, True), "enter", (ValueError, passed, True)]

    def test_raised_on_leaving(self, backend: Any) -> None:
        """An exception of ``__aexit__`` has the body's exception as its context."""

        @asynccontextmanager
        async def fails() -> AsyncIterator[None]:
            try:
                yield
            finally:
                await backend.checkpoint()
                raise KeyError("leaving")

        def sync() -> None:
            body = ValueError("body")
            with pytest.raises(KeyError) as caught, async_context(fails()):
                raise body
            assert caught.value.__context__ is body

        in_portal(backend, sync)

    def test_raised_on_entering(self, backend: Any) -> None:
        """If entering fails, ``__aexit__`` is not called."""

        class Fails(Manager):
            async def __aenter__(self) -> str:
                raise KeyError("entering")

        log: List[Any] = []

        def sync() -> None:
            with pytest.raises(KeyError), async_context(Fails(backend, log)):
                raise AssertionError

        in_portal(backend, sync)
        assert log == []

    @pytest.mark.parametrize("missing", ["both", "__aenter__", "__aexit__", "sync"])
    def test_wrong_object(self, backend: Any, missing: str) -> None:
        """An object that is no async context manager raises the same error as ``async with``."""

        async def method(*args: Any) -> None:
            raise AssertionError

        def sync_method(*args: Any) -> None:
            raise AssertionError

        attributes = {
            "both": {},
            "__aenter__": {"__aexit__": method},
            "__aexit__": {"__aenter__": method},
            "sync": {"__enter__": sync_method, "__exit__": sync_method},
        }[missing]
        wrong = type("Wrong", (), attributes)()
        caught: List[BaseException] = []

        def sync() -> None:
            try:
                with async_context(wrong):
                    raise AssertionError
            except (TypeError, AttributeError) as error:
                caught.append(error)

        async def main() -> None:
            await greenback.with_portal_run_sync(sync)
            try:
                async with wrong:
                    raise AssertionError
            except (TypeError, AttributeError) as error:
                caught.append(error)

        backend.run(main)
        bridged, awaited = caught
        assert type(bridged) is type(awaited)
        assert bridged.__context__ is None
        assert str(bridged) == str(awaited)

    def test_again(self, backend: Any) -> None:
        """A manager that can be entered several times can be entered several times here, too."""
        log: List[Any] = []

        def sync() -> None:
            manager = async_context(Manager(backend, log))
            for _ in range(2):
                with manager:
                    pass

        in_portal(backend, sync)
        assert log == ["enter", (None, None, False)] * 2

    def test_slots(self) -> None:
        """The objects are small: they have no ``__dict__``."""
        assert not hasattr(async_context(Manager(None, [])), "__dict__")


class Countdown:
    """An async iterator that is not a generator."""

    def __init__(self, backend: Any, start: int) -> None:
        self.backend, self.left = backend, start

    def __aiter__(self) -> Countdown:
        return self

    async def __anext__(self) -> int:
        await self.backend.checkpoint()
        if self.left == 0:
            raise StopAsyncIteration("lift-off")
        self.left -= 1
        return self.left


class TestAsyncIter:
    def test_iterator(self, backend: Any) -> None:
        """A ``for`` loop gets the same values as ``async for``."""
        assert in_portal(backend, lambda: list(async_iter(Countdown(backend, 3)))) == [2, 1, 0]

    def test_iterable(self, backend: Any) -> None:
        """The iterator is the one that ``__aiter__()`` returns."""

        class Iterable:
            def __aiter__(self) -> Countdown:
                return Countdown(backend, 2)

        def sync() -> None:
            iterable = Iterable()
            assert list(async_iter(iterable)) == [1, 0]
            assert list(async_iter(iterable)) == [1, 0]
            iterator = async_iter(iterable)
            assert iter(iterator) is iterator

        in_portal(backend, sync)

    def test_iterator_has_no_generator_methods(self, backend: Any) -> None:
        """Over an iterator that is not a generator, there is no send(), throw() or close()."""
        iterator = async_iter(Countdown(backend, 1))
        assert isinstance(iterator, async_iter)
        assert not any(hasattr(iterator, name) for name in ("send", "throw", "close"))

    def test_value_of_the_end(self, backend: Any) -> None:
        """StopIteration has the same values as the StopAsyncIteration before it."""

        def delegates() -> Any:
            result = yield from async_iter(Countdown(backend, 1))
            yield result

        def sync() -> None:
            iterator = async_iter(Countdown(backend, 0))
            for _ in range(2):
                with pytest.raises(StopIteration) as caught:
                    next(iterator)
                assert caught.value.value == "lift-off"
                assert caught.value.__context__ is None
            assert list(delegates()) == [0, "lift-off"]

        in_portal(backend, sync)

    def test_error(self, backend: Any) -> None:
        """An exception of the iterator reaches the loop, and does not end the iterator."""

        class Fails(Countdown):
            async def __anext__(self) -> int:
                if self.left == 1:
                    self.left = 0
                    raise LookupError("one")
                return await super().__anext__()

        def sync() -> None:
            iterator = async_iter(Fails(backend, 2))
            assert next(iterator) == 1
            with pytest.raises(LookupError, match="one"):
                next(iterator)
            with pytest.raises(StopIteration):
                next(iterator)

        in_portal(backend, sync)

    @pytest.mark.parametrize("wrong", [[1], 5, None])
    def test_no_iterable(self, wrong: Any) -> None:
        """An object without ``__aiter__`` is refused at once; the error names its type."""
        with pytest.raises(TypeError, match=f"__aiter__ method, got {type(wrong).__name__}"):
            async_iter(wrong)

    def test_no_iterator(self) -> None:
        """An ``__aiter__()`` that returns an object without ``__anext__`` is refused at once."""

        class Wrong:
            def __aiter__(self) -> int:
                return 5

        with pytest.raises(TypeError, match=r"__anext__.*int"):
            async_iter(Wrong())  # type: ignore[arg-type]

    def test_what_next_gives_cannot_be_awaited(self, backend: Any) -> None:
        """A wrong ``__anext__`` is a TypeError, as in ``async for``."""

        class Wrong:
            def __aiter__(self) -> Wrong:
                return self

            def __anext__(self) -> int:
                return 5

        def sync() -> None:
            with pytest.raises(TypeError, match="int"):
                next(async_iter(Wrong()))  # type: ignore[arg-type]

        in_portal(backend, sync)

    def test_without_a_portal(self, backend: Any) -> None:
        """Without a portal, the iterator can be made but not used."""

        async def main() -> None:
            iterator = async_iter(Countdown(backend, 1))
            with pytest.raises(RuntimeError, match="create a greenback portal"):
                next(iterator)

        backend.run(main)

    def test_slots(self, backend: Any) -> None:
        """The objects are small: they have no ``__dict__``."""

        async def generator() -> AsyncIterator[int]:
            yield 1

        for iterable in (Countdown(backend, 1), generator()):
            assert not hasattr(async_iter(iterable), "__dict__")


class TestAsyncGenerator:
    """The same steps go to a generator and to an async generator with the same body."""

    @staticmethod
    def sync_body(log: List[Any]) -> Any:
        received: Any = None
        try:
            while True:
                try:
                    received = yield ("got", received)
                except LookupError as error:
                    log.append(type(error))
                    received = "caught"
                if received == "stop":
                    return
                if received == "fail":
                    raise KeyError("failed")
        finally:
            log.append("finally")

    @staticmethod
    async def async_body(backend: Any, log: List[Any]) -> Any:
        received: Any = None
        try:
            while True:
                try:
                    await backend.checkpoint()
                    received = yield ("got", received)
                except LookupError as error:
                    log.append(type(error))
                    received = "caught"
                await backend.checkpoint()
                if received == "stop":
                    return
                if received == "fail":
                    raise KeyError("failed")
        finally:
            await backend.checkpoint()
            log.append("finally")

    @staticmethod
    def driven(generator: Any, steps: List[Any], log: List[Any]) -> List[Any]:
        for step in steps:
            try:
                if step == "next":
                    log.append(next(generator))
                elif step == "close":
                    log.append(generator.close())
                elif isinstance(step, BaseException):
                    log.append(generator.throw(step))
                else:
                    log.append(generator.send(step))
            except BaseException as error:
                log.append((type(error), error.args))
        return log

    @pytest.mark.parametrize(
        "steps",
        [
            ["next", "a", None, "next"],
            ["next", "stop", "next"],
            ["next", "fail", "next"],
            ["next", LookupError("x"), "next"],
            ["next", ValueError("x"), "next"],
            ["next", "close", "close", "next"],
            [ValueError("x"), "next"],
            ["close", "next"],
            [None, "a"],
            ["a", "next"],
            ["next", GeneratorExit()],
            ["stop", "close"],
        ],
        ids=repr,
    )
    @pytest.mark.parametrize("delegated", [False, True])
    def test_as_a_generator(self, backend: Any, steps: List[Any], delegated: bool) -> None:
        """send(), throw() and close() work as those of a generator, also in ``yield from``."""

        def through(generator: Any) -> Any:
            return (yield from generator)

        def run(make: Callable[[List[Any]], Any]) -> List[Any]:
            log: List[Any] = []
            generator = make(log)
            if delegated:
                generator = through(generator)
            return self.driven(generator, [*steps, "close"], log)

        def sync() -> None:
            expected = run(self.sync_body)
            found = run(lambda log: async_iter(self.async_body(backend, log)))
            # CPython's error for a send() into an async generator that has not started has
            # other words.
            words = ("can't send non-None value to a just-started ", "generator")
            assert [
                (entry[0], (entry[1][0].replace("async generator", "generator"),))
                if isinstance(entry, tuple)
                and entry[0] is TypeError
                and entry[1][0].startswith(words[0])
                else entry
                for entry in found
            ] == expected

        in_portal(backend, sync)

    def test_for_loop(self, backend: Any) -> None:
        """A ``for`` loop runs the generator to its end."""

        async def numbers() -> AsyncIterator[int]:
            for number in range(3):
                await backend.checkpoint()
                yield number

        assert in_portal(backend, lambda: list(async_iter(numbers()))) == [0, 1, 2]

    @pytest.mark.filterwarnings("ignore:the \\(type, exc, tb\\) signature:DeprecationWarning")
    def test_throw_with_three_arguments(self, backend: Any) -> None:
        """throw() takes three arguments, too; Python warns of that since 3.12."""
        log: List[Any] = []

        def sync() -> None:
            generator = async_iter(self.async_body(backend, log))
            assert next(generator) == ("got", None)
            assert generator.throw(  # type: ignore[attr-defined]
                LookupError, LookupError("x"), None
            ) == ("got", "caught")
            generator.close()  # type: ignore[attr-defined]

        in_portal(backend, sync)
        assert log == [LookupError, "finally"]

    def test_generator_that_ignores_close(self, backend: Any) -> None:
        """A generator that yields while it is closed gets Python's error for that."""

        async def stubborn() -> AsyncIterator[int]:
            try:
                yield 1
            except GeneratorExit:
                yield 2

        def sync() -> None:
            generator = async_iter(stubborn())
            next(generator)
            with pytest.raises(RuntimeError, match="ignored GeneratorExit"):
                generator.close()  # type: ignore[attr-defined]

        in_portal(backend, sync)

    def test_stop_iteration_inside(self, backend: Any) -> None:
        """StopIteration or StopAsyncIteration raised in a generator is an error, not its end."""

        async def wrong(error: Exception) -> AsyncIterator[int]:
            yield 1
            raise error

        def sync() -> None:
            for error in (StopIteration(5), StopAsyncIteration(5)):
                generator = async_iter(wrong(error))
                assert next(generator) == 1
                with pytest.raises(RuntimeError, match=f"raised {type(error).__name__}") as caught:
                    next(generator)
                assert caught.value.__cause__ is error

        in_portal(backend, sync)

    def test_of_a_library(self, backend: Any) -> None:
        """An object of any type with asend(), athrow() and aclose() counts as a generator."""

        class Like:
            def __init__(self) -> None:
                self.sent: List[Any] = []

            def __aiter__(self) -> Like:
                return self

            async def __anext__(self) -> Any:
                return await self.asend(None)

            async def asend(self, value: Any) -> Any:
                await backend.checkpoint()
                self.sent.append(value)
                return value

            async def athrow(self, error: Any) -> Any:
                raise error

            async def aclose(self) -> Optional[str]:
                self.sent.append("closed")
                return "ignored"

        def sync() -> None:
            like = Like()
            generator: Any = async_iter(like)
            assert isinstance(generator, async_iter)
            assert (next(generator), generator.send(2)) == (None, 2)
            with pytest.raises(LookupError):
                generator.throw(LookupError())
            generator.close()
            assert like.sent == [None, 2, "closed"]

        in_portal(backend, sync)

    def test_cancelled_while_waiting(self, asyncio_backend: Any) -> None:
        """A cancellation is raised in the generator, at the line where it waits."""
        log: List[str] = []

        async def waits() -> AsyncIterator[int]:
            try:
                await asyncio.sleep(3600)
                yield 1
            except asyncio.CancelledError:
                log.append("cancelled")
                raise

        async def main() -> None:
            task = asyncio.ensure_future(greenback.with_portal_run_sync(list, async_iter(waits())))
            await asyncio.sleep(0)
            task.cancel()
            await asyncio.wait([task])
            assert task.cancelled()

        asyncio_backend.run(main)
        assert log == ["cancelled"]
