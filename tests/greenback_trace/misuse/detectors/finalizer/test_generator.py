"""Bridges in generators that are collected."""

from __future__ import annotations

import contextlib
from typing import Any, Callable, Iterator, List

import pytest
import trio

import greenback

from ...garbage import collect
from .finalized import KIND, by_assignment, by_clear, by_del, by_return, by_subscript, refcounted


def throw_exit(generator: Any) -> None:
    with pytest.raises(GeneratorExit):
        generator.throw(GeneratorExit())


def long_loop(generator: Any) -> None:
    lines = ["    number = 1"] * 300
    exec("\n".join(["for each in generator:", *lines]), {"generator": generator})


class TestGenerator:
    def generator(self, bridge: Callable[[], None]) -> Iterator[None]:
        try:
            yield
        finally:
            bridge()

    def caught(self, bridge: Callable[[], None]) -> Iterator[None]:
        try:
            yield
        except GeneratorExit:
            pass
        bridge()

    async def coroutine(self, bridge: Callable[[], None], waits: Any) -> None:
        try:
            await waits
        finally:
            bridge()

    @refcounted
    @pytest.mark.parametrize(
        ("which", "drop"),
        [
            *(
                ("generator", drop)
                for drop in (by_del, by_assignment, by_return, by_subscript, by_clear)
            ),
            # In a call, and no longer handling GeneratorExit, it would be like any other.
            *(("caught", drop) for drop in (by_del, by_assignment, by_subscript)),
        ],
    )
    def test_dropped(self, backend: Any, looking: Any, bridge: Any, which: str, drop: Any) -> None:
        """The finally block of a generator that is dropped is a finalizer."""

        def make() -> Any:
            generator = getattr(self, which)(bridge)
            next(generator)
            return generator

        found = looking.only(backend, lambda: drop(make), KIND)
        assert which in found.subject
        assert "generator" in found.subject

    def test_collected(self, backend: Any, looking: Any, bridge: Any) -> None:
        """The finally block of a generator that the collector frees is a finalizer."""

        def cycle() -> None:
            holder: List[Any] = []
            generator = self.generator(bridge)
            next(generator)
            holder += [generator, holder]

            def keep(generator: Any) -> Iterator[None]:
                yield from generator

            del generator, holder
            collect()

        looking.only(backend, cycle, KIND)

    @refcounted
    def test_loop_left(self, backend: Any, looking: Any, bridge: Any) -> None:
        """A generator that a loop leaves early is being collected."""

        def leave() -> None:
            for _ in self.generator(bridge):
                break

        looking.only(backend, leave, KIND)

    @refcounted
    def test_delegating(self, backend: Any, looking: Any, bridge: Any) -> None:
        """A generator is being collected if the one that delegates to it is dropped."""

        def delegating() -> Iterator[None]:
            yield from self.generator(bridge)

        def make() -> Any:
            generator = delegating()
            next(generator)
            return generator

        looking.only(backend, lambda: by_del(make), KIND)

    @refcounted
    def test_coroutine(self, backend: Any, looking: Any, bridge: Any) -> None:
        """The finally block of a coroutine that is dropped is a finalizer."""

        class Waits:
            def __await__(self) -> Iterator[None]:
                yield

        def make() -> Any:
            coroutine = self.coroutine(bridge, Waits())
            coroutine.send(None)
            return coroutine

        assert "coroutine" in looking.only(backend, lambda: by_del(make), KIND).subject

    @pytest.mark.parametrize(
        "use",
        [
            lambda generator: generator.close(),
            lambda generator: [close() for close in [generator.close]],
            throw_exit,
            lambda generator: [*generator],
            lambda generator: list(generator),
            lambda generator: next(generator, None),
            lambda generator: [each or 1 for each in generator],
            lambda generator: all(each or 1 for each in generator),
            lambda generator: tuple(each for each in generator),
            lambda generator: {*generator},
            long_loop,
            lambda generator: contextlib.closing(generator).__exit__(None, None, None),
        ],
        ids=[
            "close",
            "bound-close",
            "throw",
            "star",
            "list",
            "next",
            "comprehension",
            "all",
            "tuple",
            "set",
            "long-loop",
            "closing",
        ],
    )
    def test_used(self, backend: Any, looking: Any, bridge: Any, use: Any) -> None:
        """A generator that the program closes or exhausts is no misuse."""

        def run() -> None:
            generator = self.generator(bridge)
            next(generator)
            use(generator)

        looking.none(backend, run)

    def test_cancelled_below_others(self, backend: Any, looking: Any, bridge: Any) -> None:
        """A coroutine that is cancelled deep in a chain of them is not being collected."""

        async def task(cancel: Callable[[], None]) -> None:
            await greenback.ensure_portal()
            await outer(cancel)

        async def outer(cancel: Callable[[], None]) -> None:
            await inner(cancel)

        async def inner(cancel: Callable[[], None]) -> None:
            cancel()
            try:
                await backend.sleep(60)
            finally:
                clean_up()

        def clean_up() -> None:
            with contextlib.suppress(trio.Cancelled):
                bridge()

        looking.none(backend, lambda: greenback.await_(backend.cancelled_in(task)))

    def test_thrown_into_below_others(self, backend: Any, looking: Any, bridge: Any) -> None:
        """An exception thrown into a generator through one that yields from it collects nothing."""

        def inner() -> Iterator[None]:
            try:
                yield
            finally:
                bridge()

        def outer() -> Iterator[None]:
            yield from inner()

        def work() -> None:
            generator: Any = outer()
            next(generator)
            with pytest.raises(LookupError):
                generator.throw(LookupError())

        looking.none(backend, work)

    def test_raises_exit_itself(self, backend: Any, looking: Any, bridge: Any) -> None:
        """A generator that handles a GeneratorExit raised by the program is no misuse."""

        def stop() -> None:
            raise GeneratorExit

        def generator() -> Iterator[None]:
            try:
                stop()
            except GeneratorExit:
                bridge()
            yield

        async def coroutine() -> None:
            try:
                raise GeneratorExit from ValueError()
            finally:
                bridge()

        async def use() -> None:
            with pytest.raises(GeneratorExit):
                await greenback.with_portal_run_tree(coroutine)

        looking.none(backend, lambda: generator().send(None))
        looking.none(backend, lambda: greenback.await_(use()))

    @refcounted
    def test_raises_another_exit(self, backend: Any, looking: Any, bridge: Any) -> None:
        """A generator that raises another GeneratorExit while it is collected is a misuse."""

        def generator() -> Iterator[None]:
            try:
                yield
            except GeneratorExit:
                try:
                    raise GeneratorExit
                finally:
                    bridge()

        def make() -> Any:
            made = generator()
            next(made)
            return made

        looking.only(backend, lambda: by_clear(make), KIND)

    def test_context_manager(self, backend: Any, looking: Any, bridge: Any) -> None:
        """The end of a context manager that is a generator is no misuse."""

        @contextlib.contextmanager
        def manager() -> Iterator[None]:
            try:
                yield
            finally:
                bridge()

        def use() -> None:
            with manager():
                pass
            with pytest.raises(ValueError, match="x"), manager():
                raise ValueError("x")

        looking.none(backend, use)

    def test_asynchronous_generator_closed(self, backend: Any, looking: Any, bridge: Any) -> None:
        """An asynchronous generator that is closed with aclose() is no misuse."""

        def helper() -> None:
            bridge()

        async def generator() -> Any:
            try:
                yield
            finally:
                helper()

        async def use() -> None:
            made = generator()
            async for _ in made:
                break
            await made.aclose()

        looking.none(backend, lambda: greenback.await_(use()))
