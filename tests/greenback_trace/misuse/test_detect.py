from __future__ import annotations

import sys
from typing import Any, Callable, List

import pytest

import greenback
from greenback._frames import frames_from
from greenback_trace.misuse import detect
from greenback_trace.misuse.finding import SEVERITY

IS_PYPY = sys.implementation.name == "pypy"


class TestSupported:
    def test_is_complete(self) -> None:
        """For every kind it is stated whether this interpreter can recognise it."""
        assert set(detect.SUPPORTED) == set(SEVERITY)
        assert detect.SUPPORTED["gc_callback"] == (not IS_PYPY)


class TestAtStart:
    def test_nothing(self, backend: Any, looking: Any, bridge: Any) -> None:
        """Ordinary bridges are no misuse."""
        looking.none(backend, bridge)

    def test_every_way_of_calling(self, backend: Any, looking: Any, bridge: Any) -> None:
        """Ordinary code that calls a bridging function, in any way, is no misuse."""

        class Manager:
            def __enter__(self) -> None:
                bridge()

            def __exit__(self, *error: object) -> None:
                bridge()

        class Thing:
            def __init__(self) -> None:
                bridge()

            def __call__(self, *arguments: Any) -> int:
                bridge()
                return 1

            def __add__(self, other: Any) -> int:
                bridge()
                return 1

            def __getattr__(self, name: str) -> int:
                bridge()
                return 1

            def __iter__(self) -> Any:
                bridge()
                yield 1
                bridge()

            def __bool__(self) -> bool:
                bridge()
                return True

            @property
            def attribute(self) -> int:
                bridge()
                return 1

        def run() -> None:
            thing = Thing()
            thing(1, 2)
            thing + 1
            thing.missing
            thing.attribute
            list(thing)
            first, *_ = thing
            if thing:
                list(map(thing, [1]))
                sorted([2, 1], key=thing)
                max([1, 2], key=lambda item: thing(item))
            with Manager():
                pass
            [thing() for _ in range(2)]
            {thing(): 1 for _ in range(2)}
            f"{thing + 1}"
            bridge() if thing else None
            assert first == 1

        looking.none(backend, run)
        looking.none(backend, run)

    @pytest.mark.skipif(IS_PYPY, reason="nothing is freed when it is dropped on PyPy")
    def test_place_that_was_fine_before(self, backend: Any, looking: Any, bridge: Any) -> None:
        """A place that is known to call one function is not trusted with another."""

        class Finalized:
            def __del__(self) -> None:
                bridge()

        def call(function: Callable[[], Any]) -> None:
            function()

        def first() -> None:
            bridge()

        def second() -> None:
            bridge()

        for function in (first, second, first, lambda: bridge()):
            looking.none(backend, lambda: call(function))

        things: List[Any] = [Finalized()]
        looking.only(backend, lambda: call(things.clear), "finalizer")

    def test_long_stack(self, backend: Any, looking: Any, bridge: Any) -> None:
        """A deep stack made by recursion is looked at to its end."""

        def deeper(levels: int) -> None:
            if levels:
                deeper(levels - 1)
            else:
                bridge()

        looking.none(backend, lambda: deeper(200))

    def test_too_many_places(
        self, backend: Any, looking: Any, bridge: Any, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """The number of known places is bounded, and forgetting them changes no result."""
        monkeypatch.setattr(detect, "_CODES_KEPT", 3)

        def run() -> None:
            for number in range(10):
                names: Any = {"bridge": bridge}
                exec(f"def inner(): bridge()\ndef outer{number}(): inner()", names)
                names[f"outer{number}"]()

        looking.none(backend, run)
        assert len(detect._known.codes) < 10


class TestFramesFrom:
    def test_to_the_portal(self, backend: Any) -> None:
        """Only the stack of the portal is looked at, and nothing further out."""
        seen: List[str] = []

        def inner() -> None:
            frames = frames_from(sys._getframe())
            seen.extend(frame.f_code.co_name for frame in frames)

        def outer() -> None:
            inner()

        backend.run(greenback.with_portal_run_sync, outer)
        names = [name for name in seen if name != "run_function"]
        assert names == ["inner", "outer"]

    def test_through_greenlets(self, backend: Any) -> None:
        """The frames that started a greenlet are looked at after the greenlet's own."""
        greenlet = pytest.importorskip("greenlet")
        seen: List[str] = []

        def innermost() -> None:
            frames = frames_from(sys._getframe())
            seen.extend(frame.f_code.co_name for frame in frames)

        def inside() -> None:
            greenlet.greenlet(innermost).switch()

        def outer() -> None:
            greenlet.greenlet(inside).switch()

        backend.run(greenback.with_portal_run_sync, outer)
        names = [name for name in seen if name in ("innermost", "inside", "outer")]
        assert names == ["innermost", "inside", "outer"]
