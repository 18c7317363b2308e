from __future__ import annotations

import asyncio
import functools
import os
import signal
import sys
import threading
import time
from typing import Any, Callable, Iterator, List

import pytest
import trio

import greenback

pytestmark = pytest.mark.skipif(
    not hasattr(signal, "SIGUSR1"), reason="needs signals that are free to be used"
)
KIND = "signal_handler"
IS_PYPY = sys.implementation.name == "pypy"


@pytest.fixture
def set_handler() -> Iterator[Callable[[Any], None]]:
    before = signal.getsignal(signal.SIGUSR1)
    yield lambda handler: signal.signal(signal.SIGUSR1, handler) and None
    signal.signal(signal.SIGUSR1, before)


def shapes(bridge: Callable[[], None]) -> Any:
    """Handlers of all shapes."""

    def function(signum: int, frame: Any) -> None:
        bridge()

    def any_arguments(*arguments: Any) -> None:
        bridge()

    def with_more(first: Any, signum: int, frame: Any, other: Any = None) -> None:
        bridge()

    @functools.wraps(function)
    def decorated(*arguments: Any) -> None:
        function(*arguments)

    class Owner:
        def method(self, signum: int, frame: Any) -> None:
            bridge()

        @classmethod
        def of_class(cls, signum: int, frame: Any) -> None:
            bridge()

        @staticmethod
        def static(signum: int, frame: Any) -> None:
            bridge()

        def __call__(self, signum: int, frame: Any) -> None:
            bridge()

    return {
        "function": function,
        "lambda": lambda signum, frame: bridge(),
        "any-arguments": any_arguments,
        "decorated": decorated,
        "method": Owner().method,
        "class-method": Owner.of_class,
        "static-method": Owner.static,
        "object": Owner(),
        "partial": functools.partial(with_more, 1),
    }


SHAPES = sorted(shapes(lambda: None))


def by_raise(done: Callable[[], Any]) -> None:
    signal.raise_signal(signal.SIGUSR1)


def by_kill(done: Callable[[], Any]) -> None:
    os.kill(os.getpid(), signal.SIGUSR1)
    while not done():
        pass


def by_thread_in_sleep(done: Callable[[], Any]) -> None:
    """The main thread is in the middle of a C call."""
    main = threading.get_ident()
    thread = threading.Timer(0.05, signal.pthread_kill, (main, signal.SIGUSR1))
    thread.start()
    time.sleep(0.2)
    while not done():
        pass
    thread.join()


def by_thread_in_loop(done: Callable[[], Any]) -> None:
    """The main thread is at an arbitrary bytecode."""
    main = threading.get_ident()
    thread = threading.Timer(0.02, signal.pthread_kill, (main, signal.SIGUSR1))
    thread.start()
    number = 0
    while not done():
        number += 1
    thread.join()


class TestHandler:
    @pytest.mark.parametrize("shape", SHAPES)
    def test_is_found(
        self, backend: Any, looking: Any, bridge: Any, set_handler: Any, shape: str
    ) -> None:
        """A bridge in a signal handler is found, for every kind of handler."""
        set_handler(shapes(bridge)[shape])
        found = looking.only(backend, lambda: by_raise(lambda: looking.bridges), KIND)
        assert "SIGUSR1" in found.subject
        assert any("is set for" in each for each in found.evidence)

    @pytest.mark.parametrize("send", [by_raise, by_kill, by_thread_in_sleep, by_thread_in_loop])
    def test_however_sent(
        self, backend: Any, looking: Any, bridge: Any, set_handler: Any, send: Any
    ) -> None:
        """A bridge in a signal handler is found, at any moment of the signal."""
        set_handler(lambda signum, frame: bridge())
        looking.only(backend, lambda: send(lambda: looking.bridges), KIND)

    def test_timer(self, backend: Any, looking: Any, bridge: Any) -> None:
        """A bridge in a signal handler is found where a timer sends the signal."""
        before = signal.signal(signal.SIGALRM, lambda signum, frame: bridge())

        def run() -> None:
            signal.setitimer(signal.ITIMER_REAL, 0.02)
            while not looking.bridges:
                pass

        try:
            assert "SIGALRM" in looking.only(backend, run, KIND).subject
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
            signal.signal(signal.SIGALRM, before)

    def test_removes_itself(
        self, backend: Any, looking: Any, bridge: Any, set_handler: Any
    ) -> None:
        """A bridge in a handler that removes itself before it bridges is found."""

        def handler(signum: int, frame: Any) -> None:
            signal.signal(signum, signal.SIG_IGN)
            bridge()

        set_handler(handler)
        looking.only(backend, lambda: by_raise(lambda: looking.bridges), KIND)

    def test_deep(self, backend: Any, looking: Any, bridge: Any, set_handler: Any) -> None:
        """A signal handler is found many functions above the bridge."""

        def deeper(levels: int) -> None:
            if levels:
                deeper(levels - 1)
            else:
                bridge()

        set_handler(lambda signum, frame: deeper(50))
        looking.only(backend, lambda: by_raise(lambda: looking.bridges), KIND)


class TestOrdinaryCode:
    @pytest.mark.parametrize("shape", SHAPES)
    def test_called(
        self, backend: Any, looking: Any, bridge: Any, set_handler: Any, shape: str
    ) -> None:
        """A handler that the program calls is no misuse, even with the frame of a signal."""
        function = shapes(bridge)[shape]
        set_handler(function)

        def with_frame() -> None:
            function(signal.SIGUSR1, sys._getframe())

        def from_list() -> None:
            handlers = [function]
            handlers[0](int(signal.SIGUSR1), sys._getframe())

        def from_registry() -> None:
            handler: Any = signal.getsignal(signal.SIGUSR1)
            handler(2, None)

        for call in (lambda: function(2, None), with_frame, from_list, from_registry):
            looking.none(backend, call)

    def test_opaque_is_inconclusive(self, backend: Any, looking: Any, bridge: Any) -> None:
        """A call of the result of a call is inconclusive: it may be an implicit one."""

        def get() -> Any:
            return lambda signum, frame: bridge()

        found = looking.in_portal(backend, lambda: get()(2, sys._getframe()))
        assert [(each.kind, each.inconclusive) for each in found] == [(KIND, True)]
        looking.none(backend, lambda: get()(2, None))

    def test_same_parameters(self, backend: Any, looking: Any, bridge: Any) -> None:
        """A function that takes a number and a frame is no handler."""

        def handler(signum: int, frame: Any) -> None:
            bridge()

        def call(function: Any) -> None:
            function(15, sys._getframe())

        looking.none(backend, lambda: call(handler))

    def test_of_event_loop(self, looking: Any) -> None:
        """Handlers that asyncio calls from its loop are safe."""

        async def main() -> None:
            loop = asyncio.get_running_loop()
            called = asyncio.Event()

            def handler(*arguments: Any) -> None:
                assert not greenback.has_portal()
                called.set()

            loop.add_signal_handler(signal.SIGUSR1, handler, signal.SIGUSR1, None)
            try:
                by_raise(lambda: True)
                greenback.await_(called.wait())
            finally:
                loop.remove_signal_handler(signal.SIGUSR1)

        def run() -> None:
            asyncio.run(greenback.with_portal_run(main))

        greenback.instruments.add_instrument(looking)
        try:
            run()
        finally:
            greenback.instruments.remove_instrument(looking)
        assert [each.kind for each in looking.findings] == ["async_caller"]

    def test_of_trio(self, looking: Any) -> None:
        """Signals received by Trio's open_signal_receiver are safe."""

        def receive(signals: Any) -> List[int]:
            by_raise(lambda: True)
            return [greenback.await_(signals.__anext__())]

        async def main() -> None:
            with trio.open_signal_receiver(signal.SIGUSR1) as signals:
                assert receive(signals) == [signal.SIGUSR1]

        greenback.instruments.add_instrument(looking)
        try:
            trio.run(greenback.with_portal_run, main)
        finally:
            greenback.instruments.remove_instrument(looking)
        assert looking.bridges
        assert not looking.findings
