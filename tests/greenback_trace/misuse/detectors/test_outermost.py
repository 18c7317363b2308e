"""What a portal calls directly: a worker in C has no frame that tells how it was called."""

from __future__ import annotations

import signal
import sys
import weakref
from functools import partial
from typing import Any, Callable, Iterator, List

import pytest

from greenback_trace.misuse import detect

from ..garbage import IS_PYPY

in_c = pytest.mark.skipif(IS_PYPY, reason="PyPy's functions and methods are in Python")


class Referent:
    pass


@pytest.fixture
def handled(bridge: Callable[[], None]) -> Iterator[Callable[..., None]]:
    """A handler of SIGUSR1."""

    def handle(signum: int, frame: Any) -> None:
        bridge()

    before = signal.signal(signal.SIGUSR1, handle)
    yield handle
    signal.signal(signal.SIGUSR1, before)


@pytest.fixture
def connect(bridge: Callable[[], None]) -> Callable[[], Any]:
    class Connection:
        def __del__(self) -> None:
            bridge()

    return Connection


@pytest.fixture
def callback(bridge: Callable[[], None]) -> Callable[[Any], None]:
    def callback(reference: Any) -> None:
        bridge()

    return callback


@in_c
class TestInterpreter:
    """The interpreter calls the function while the portal calls one in C."""

    def test_finalizer(self, looking: Any, backend: Any, connect: Any) -> None:
        looking.only(backend, [connect()].clear, "finalizer")

    def test_weakref_callback(self, looking: Any, backend: Any, callback: Any) -> None:
        referents = [Referent()]
        reference = weakref.ref(referents[0], callback)
        looking.only(backend, referents.clear, "weakref_callback")
        assert reference() is None

    @pytest.mark.skipif(
        sys.version_info < (3, 11), reason="the handler runs later, perhaps outside of the portal"
    )
    def test_signal_handler(self, looking: Any, backend: Any, handled: Any) -> None:
        raises = partial(signal.raise_signal, signal.SIGUSR1)
        # It may be that `raise_signal` calls what was set as the handler.
        assert [each.kind for each in looking.in_portal(backend, raises)] == ["signal_handler"]


class TestProgram:
    """The program has the portal call the same functions."""

    def test_finalizer(self, looking: Any, backend: Any, connect: Any) -> None:
        connection = connect()
        looking.none(backend, connection.__del__)
        del type(connection).__del__

    def test_weakref_callback(self, looking: Any, backend: Any, callback: Any) -> None:
        looking.none(backend, partial(callback, weakref.ref(Referent())))

    def test_signal_handler(self, looking: Any, backend: Any, handled: Any) -> None:
        looking.none(backend, partial(handled, signal.SIGUSR1, None))


def test_a_function_is_looked_at_once(
    looking: Any, backend: Any, bridge: Callable[[], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The detectors take longer than a bridge, and need not see what they know."""
    looked: List[Any] = []
    look = detect._look

    def noting(*arguments: Any) -> Any:
        looked.append(arguments[2].f_code)
        return look(*arguments)

    monkeypatch.setattr(detect, "_look", noting)

    def often(argument: object) -> None:
        for _ in range(5):
            bridge()

    looking.none(backend, partial(often, None))
    assert looked.count(often.__code__) <= 1
    looking.none(backend, partial(often, None))
    assert looked.count(often.__code__) <= 1
