from __future__ import annotations

import functools
import gc
from typing import Any, Callable, Iterator

import pytest

KIND = "gc_callback"
pytestmark = pytest.mark.skipif(not hasattr(gc, "callbacks"), reason="PyPy has no gc.callbacks")


def shapes(bridge: Callable[[], None]) -> Any:
    """Hooks of all shapes, which bridge once."""
    done = []

    def once() -> None:
        if not done:
            done.append(1)
            bridge()

    def function(phase: str, info: Any) -> None:
        once()

    def any_arguments(*arguments: Any) -> None:
        once()

    def with_more(first: Any, phase: str, info: Any) -> None:
        once()

    class Owner:
        def method(self, phase: str, info: Any) -> None:
            once()

        def __call__(self, phase: str, info: Any) -> None:
            once()

    return {
        "function": function,
        "lambda": lambda phase, info: once(),
        "any-arguments": any_arguments,
        "method": Owner().method,
        "object": Owner(),
        "partial": functools.partial(with_more, 1),
    }


SHAPES = sorted(shapes(lambda: None))


@pytest.fixture
def hook() -> Iterator[Callable[[Any], None]]:
    before = gc.callbacks[:]
    yield gc.callbacks.append
    gc.callbacks[:] = before


class TestHook:
    @pytest.mark.parametrize("shape", SHAPES)
    def test_of_called_collection(
        self, backend: Any, looking: Any, bridge: Any, hook: Any, shape: str
    ) -> None:
        """A bridge in a hook of gc.callbacks is found, for every kind of hook."""

        def run() -> None:
            hook(shapes(bridge)[shape])
            gc.collect()

        assert "gc.callbacks" in looking.only(backend, run, KIND).subject

    def test_that_takes_itself_off(
        self, backend: Any, looking: Any, bridge: Any, hook: Any
    ) -> None:
        """A hook that removes itself when it runs is found."""

        def once(phase: str, info: Any) -> None:
            gc.callbacks.remove(once)
            bridge()

        def run() -> None:
            hook(once)
            gc.collect()

        assert "gc.callbacks" in looking.only(backend, run, KIND).subject

    def test_of_any_collection(self, backend: Any, looking: Any, bridge: Any, hook: Any) -> None:
        """A bridge in a hook is found in a collection that begins at an arbitrary moment."""

        def run() -> None:
            hook(shapes(bridge)["function"])
            kept: Any = None
            for _ in range(1_000_000):
                kept = [kept] if looking.bridges else [[kept], {}]
                if looking.bridges:
                    break

        before = gc.get_threshold()
        gc.set_threshold(50, 2, 2)
        try:
            looking.only(backend, run, KIND)
        finally:
            gc.set_threshold(*before)


class TestOrdinaryCode:
    @pytest.mark.parametrize("shape", SHAPES)
    def test_called(self, backend: Any, looking: Any, bridge: Any, hook: Any, shape: str) -> None:
        """A hook that the program calls is no misuse."""
        function = shapes(bridge)[shape]
        looking.none(backend, lambda: function("start", {"generation": 2}))

    def test_called_while_registered(
        self, backend: Any, looking: Any, bridge: Any, hook: Any
    ) -> None:
        """A hook in gc.callbacks that the program calls is no misuse."""

        def function(phase: str, info: Any) -> None:
            if info.get("mine"):
                bridge()

        hook(function)
        call = function
        looking.none(backend, lambda: call("stop", {"generation": 0, "mine": True}))
