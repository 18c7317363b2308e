"""Bridges in `__del__`."""

from __future__ import annotations

import contextlib
import functools
import gc
import operator
from typing import Any, Callable, Iterator, List

import pytest

import greenback
from greenback_trace.count.frames import can_look_at_others

from ...garbage import IS_PYPY, collect
from .finalized import KIND, by_assignment, by_clear, by_del, by_return, by_subscript, refcounted


def finalized_class(bridge: Callable[[], None]) -> Any:
    class Connection:
        other: Any = None

        def __del__(self) -> None:
            bridge()

    return Connection


def as_temporary(make: Callable[[], Any]) -> None:
    make()


def by_attribute(make: Callable[[], Any]) -> None:
    holder = make()
    holder.held = make()
    holder.held = None
    del holder


def by_pop(make: Callable[[], Any]) -> None:
    [make()].pop()


def by_loop(make: Callable[[], Any]) -> None:
    for made in [make(), make()]:
        assert made is not None
    del made


def by_argument(make: Callable[[], Any]) -> None:
    def use(made: Any) -> None:
        pass

    use(make())


def by_comprehension(make: Callable[[], Any]) -> None:
    [None for made in [make()]]


def by_exception(make: Callable[[], Any]) -> None:
    try:
        made = make()
        assert made is not None
        raise ValueError
    except ValueError:
        del made


def by_generator(make: Callable[[], Any]) -> None:
    def generator() -> Iterator[None]:
        made = make()
        assert made is not None
        yield

    for _ in generator():
        pass


def by_item(make: Callable[[], Any]) -> None:
    [None, make()][0]


def by_comparison(make: Callable[[], Any]) -> None:
    [make()] == 1  # noqa: B015


def by_condition(make: Callable[[], Any]) -> None:
    if not [make()]:
        raise AssertionError


def by_format(make: Callable[[], Any]) -> None:
    _ = f"{make()}{make()!r:>10}"


def by_context(make: Callable[[], Any]) -> None:
    with contextlib.nullcontext(make()), contextlib.nullcontext():
        pass


def by_unpacking(make: Callable[[], Any]) -> None:
    _, second = [make(), 1]
    _ = second


DROPS: List[Any] = [
    by_del,
    by_assignment,
    by_return,
    as_temporary,
    by_attribute,
    by_subscript,
    by_clear,
    by_pop,
    by_loop,
    by_argument,
    by_comprehension,
    by_exception,
    by_generator,
    by_item,
    by_comparison,
    by_condition,
    by_format,
    by_context,
    by_unpacking,
]


class TestDel:
    @refcounted
    @pytest.mark.parametrize("drop", DROPS)
    def test_by_reference_count(self, backend: Any, looking: Any, bridge: Any, drop: Any) -> None:
        """A bridge in a __del__ is found, at every instruction that drops the last reference."""
        found = looking.in_portal(backend, lambda: drop(finalized_class(bridge)))
        assert found
        for each in found:
            assert (each.kind, each.inconclusive) == (KIND, False), each.evidence
            assert each.frame.f_code.co_name == "__del__"
            assert "Connection" in each.subject

    def test_by_collector_called(self, backend: Any, looking: Any, bridge: Any) -> None:
        """A bridge in the __del__ of an object that gc.collect() frees is found."""

        def cycle() -> None:
            made = finalized_class(bridge)()
            made.other = made
            del made
            collect()

        assert looking.only(backend, cycle, KIND).frame.f_code.co_name == "__del__"

    def test_by_collector_anywhere(self, backend: Any, looking: Any, bridge: Any) -> None:
        """A bridge in a __del__ that the collector runs at an arbitrary moment is found."""

        def cycle() -> None:
            kept: List[Any] = []
            made = finalized_class(bridge)()
            made.other = made
            del made
            for _ in range(1_000_000):
                if looking.bridges:
                    break
                # PyPy counts how much there is, CPython how many there are.
                kept.append([None] * 10_000 if IS_PYPY else {"other": kept})
                if len(kept) > 1_000:
                    kept.clear()

        if IS_PYPY:
            looking.only(backend, cycle, KIND)
            return
        before = gc.get_threshold()
        # Zero: a build without the GIL would wait for more garbage than there is.
        gc.set_threshold(50, 0, 0)
        try:
            looking.only(backend, cycle, KIND)
        finally:
            gc.set_threshold(*before)

    @pytest.mark.skipif(IS_PYPY, reason="PyPy's collector keeps no such lists")
    @pytest.mark.skipif(not can_look_at_others(), reason="without the GIL, it keeps none either")
    def test_by_collector_in_opaque_call(self, backend: Any, looking: Any, bridge: Any) -> None:
        """A finalizer run by the collector is certain, even in a call that cannot be evaluated."""

        def cycle() -> None:
            made = finalized_class(bridge)()
            made.other = made
            del made
            [gc.collect][len(opaque())]()

        def opaque() -> List[int]:
            return []

        looking.only(backend, cycle, KIND)

    @refcounted
    def test_inherited(self, backend: Any, looking: Any, bridge: Any) -> None:
        """A __del__ of a base class, or one that calls its base class's, is a finalizer."""
        base = finalized_class(bridge)

        class Inherits(base):
            pass

        class Extends(base):
            def __del__(self) -> None:
                super().__del__()

        found = looking.only(backend, lambda: by_del(Inherits), KIND)
        assert "Inherits" in found.subject
        found = looking.only(backend, lambda: by_del(Extends), KIND)
        assert found.frame.f_code is Extends.__del__.__code__

    @refcounted
    def test_deep(self, backend: Any, looking: Any, bridge: Any) -> None:
        """A finalizer is found many functions above the bridge."""

        def deeper(levels: int) -> None:
            if levels:
                deeper(levels - 1)
            else:
                bridge()

        looking.only(backend, lambda: by_del(finalized_class(lambda: deeper(50))), KIND)

    @refcounted
    def test_other_name(self, backend: Any, looking: Any, bridge: Any) -> None:
        """A finalizer is found if its function is not named __del__."""

        class Connection:
            def close(self) -> None:
                bridge()

            __del__ = close

        looking.only(backend, lambda: by_del(Connection), KIND)
        looking.only(backend, lambda: by_clear(Connection), KIND)

    @refcounted
    def test_decorated(self, backend: Any, looking: Any, bridge: Any) -> None:
        """A decorated finalizer is found."""

        def decorator(function: Any) -> Any:
            @functools.wraps(function)
            def wrapper(*args: Any) -> Any:
                return function(*args)

            return wrapper

        class Connection:
            @decorator
            def __del__(self) -> None:
                bridge()

        looking.only(backend, lambda: by_del(Connection), KIND)

    @refcounted
    def test_in_greenlet_of_the_program(self, backend: Any, looking: Any, bridge: Any) -> None:
        """A finalizer is found through greenlets that the task's code has started itself."""
        greenlet = pytest.importorskip("greenlet")

        class Connection:
            def __del__(self) -> None:
                greenlet.greenlet(bridge).switch()

        looking.only(backend, lambda: by_del(Connection), KIND)

    @refcounted
    def test_innermost_once(self, backend: Any, looking: Any, bridge: Any) -> None:
        """Where bridges are inside bridges, each misuse is named once, by the innermost one."""
        inner = finalized_class(bridge)

        async def nested() -> None:
            by_del(inner)

        outer = finalized_class(lambda: greenback.await_(nested()))
        found = looking.in_portal(backend, lambda: by_del(outer))
        assert [each.frame.f_code for each in found] == [
            outer.__del__.__code__,
            inner.__del__.__code__,
        ]

        async def harmless() -> None:
            bridge()

        outer = finalized_class(lambda: greenback.await_(harmless()))
        looking.in_portal(backend, lambda: by_del(outer))


def finalizer_of(made: Any) -> Any:
    return made.__del__


class Explicit:
    """Calls of a `__del__` by the program. Each is followed by the object's real end."""

    @staticmethod
    def plainly(made: Any) -> None:
        made.__del__()

    @staticmethod
    def by_class(made: Any) -> None:
        type(made).__del__(made)

    @staticmethod
    def by_other_name(made: Any) -> None:
        close = made.__del__
        close()

    @staticmethod
    def from_list(made: Any) -> None:
        actions = [made.__del__]
        actions[0]()

    @staticmethod
    def through_partial(made: Any) -> None:
        close = functools.partial(type(made).__del__, made)
        close()

    @staticmethod
    def passed_on(made: Any) -> None:
        def call(function: Any) -> None:
            function()

        call(made.__del__)

    @staticmethod
    def passed_to_c(made: Any) -> None:
        sorted([made], key=type(made).__del__)

    @staticmethod
    def of_opaque_object(made: Any) -> None:
        def get() -> Any:
            return made

        get().__del__()


class TestExplicitCall:
    @pytest.mark.parametrize(
        "call",
        [
            Explicit.plainly,
            Explicit.by_class,
            Explicit.by_other_name,
            Explicit.from_list,
            Explicit.through_partial,
            Explicit.passed_on,
            Explicit.passed_to_c,
            Explicit.of_opaque_object,
        ],
        ids=lambda call: call.__name__,
    )
    def test_is_not_misuse(self, backend: Any, looking: Any, bridge: Any, call: Any) -> None:
        """A __del__ that the program calls, in any way, is no misuse."""
        made = finalized_class(bridge)()
        looking.none(backend, lambda: call(made))
        type(made).__del__ = lambda self: None

    @pytest.mark.parametrize(
        "call",
        [
            lambda made: finalizer_of(made)(),
            lambda made: operator.methodcaller("__del__")(made),
            lambda made: list(map(type(made).__del__, [made])),
        ],
        ids=["call-of-a-call", "methodcaller", "map"],
    )
    def test_opaque_is_inconclusive(
        self, backend: Any, looking: Any, bridge: Any, call: Any
    ) -> None:
        """A call that cannot be told from an implicit one is inconclusive."""
        made = finalized_class(bridge)()
        found = looking.in_portal(backend, lambda: call(made))
        assert [(each.kind, each.inconclusive) for each in found] == [(KIND, True)]
        type(made).__del__ = lambda self: None

    def test_mere_name(self, backend: Any, looking: Any, bridge: Any) -> None:
        """A function that is merely named __del__ is no finalizer."""

        class Namesake:
            pass

        def __del__(self: Any) -> None:
            bridge()

        other = __del__
        looking.none(backend, lambda: __del__(Namesake()))
        looking.none(backend, lambda: other(Namesake()))

    def test_as_exit(self, backend: Any, looking: Any, bridge: Any) -> None:
        """A with block whose end calls the function that is also the finalizer is no misuse."""

        class Connection:
            def close(self, *error: Any) -> None:
                bridge()

            __del__ = close
            __exit__ = close

            def __enter__(self) -> None:
                pass

        made = Connection()

        def use() -> None:
            with made:
                pass

        looking.none(backend, use)
        Connection.__del__ = lambda self: None  # type: ignore[misc]

    @pytest.mark.parametrize("source", ["with made: pass", "with get(): pass"])
    def test_as_enter(self, backend: Any, looking: Any, bridge: Any, source: str) -> None:
        """A with block whose start calls that function is no misuse, with or without its source."""

        class Connection:
            def begin(self) -> None:
                bridge()

            __del__ = begin
            __enter__ = begin

            def __exit__(self, *error: object) -> None:
                pass

        made = Connection()

        def get() -> Connection:
            return made

        def use() -> None:
            with made:
                pass

        def use_what_is_returned() -> None:
            with get():
                pass

        for function in (
            use,
            use_what_is_returned,
            lambda: exec(source, {"made": made, "get": get}),
        ):
            looking.none(backend, function)
        Connection.__del__ = lambda self: None
