"""Failures of debug mode itself, and odd exceptions of the program."""

from __future__ import annotations

import logging
import sys
import threading
from typing import Any, Callable, Iterator

import pytest
from opentelemetry.sdk.trace import TracerProvider

import greenback
import greenback_trace
from greenback_trace import Config
from greenback_trace.misuse import listener
from greenback_trace.misuse.evidence.locks import claims

from .misusing import advised, enable

pytest.importorskip("opentelemetry.sdk.trace", reason="these tests need greenback[report]")


class TestFailures:
    def test_a_detector_that_fails(
        self, backend: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
    ) -> None:
        """A detector that fails does not disturb the program, and is logged once."""

        def fail(*args: Any) -> None:
            raise LookupError("of the detector")

        monkeypatch.setattr(listener, "at_start", fail)
        enable("raise")
        with caplog.at_level(logging.ERROR, "greenback"):
            backend.run(advised, backend)
            backend.run(advised, backend)
        assert [site.ok for site in greenback_trace.snapshot().sites] == [2]
        (record,) = caplog.records
        assert "of the detector" in record.getMessage()

    def test_telling_of_it_fails(
        self, backend: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        """The program goes on if the failure of a detector cannot be logged either."""

        class Unspeakable(Exception):
            __context__ = __traceback__ = property(lambda self: 1 / 0)

            def __repr__(self) -> str:
                raise LookupError("of the exception")

        def fail(*args: Any) -> None:
            raise Unspeakable

        def refuse(record: Any) -> bool:
            raise LookupError("of the filter")

        monkeypatch.setattr(listener, "at_start", fail)
        logger = logging.getLogger("greenback")
        for refuses in (False, True):
            enable("raise")
            if refuses:
                logger.addFilter(refuse)
            try:
                backend.run(advised, backend)
            finally:
                logger.removeFilter(refuse)
            greenback_trace.disable()
            assert [site.ok for site in greenback_trace.snapshot().sites] == [1]
        assert "Logging error" not in capsys.readouterr().err


class Odd(Exception):
    """Shadows the attributes of exceptions. Debug mode must not use any of these."""

    __context__ = property(lambda self: 1 / 0)
    if sys.implementation.name == "cpython":  # PyPy itself asks for it when it raises one
        __traceback__ = property(lambda self: 1 / 0)
    __cause__ = property(lambda self: 1 / 0)
    __class__ = property(lambda self: 1 / 0)
    exceptions = property(lambda self: 1 / 0)

    def with_traceback(self, traceback: Any) -> Any:
        raise LookupError

    def __getattr__(self, name: str) -> Any:
        raise LookupError

    def __eq__(self, other: object) -> bool:
        raise LookupError

    __hash__ = __repr__ = __str__ = __bool__ = __eq__  # type: ignore[assignment]


class TestOddExceptions:
    """An exception of the program reaches it unchanged, even one of an odd class."""

    @pytest.mark.parametrize("with_spans", [False, True])
    def test_raised_and_handled(
        self, backend: Any, with_spans: bool, caplog: pytest.LogCaptureFixture
    ) -> None:
        """Bridges that raise it, and bridges in its handler, work as without debug mode."""
        mine = Odd()

        async def fail() -> None:
            raise mine

        def work() -> None:
            try:
                greenback.await_(fail())
            except Odd:
                greenback.await_(backend.sleep(0))
                raise

        async def in_task() -> None:
            await greenback.ensure_portal()
            work()

        async def is_raised(async_fn: Callable[..., Any], *args: Any) -> bool:
            try:
                await async_fn(*args)
            except Odd as error:
                return error is mine
            return False

        provider = TracerProvider(shutdown_on_exit=False) if with_spans else None
        config = Config(mode="debug", misuse="raise,async_caller=off", spans="all")
        greenback_trace.enable(config=config, tracer_provider=provider)
        for portal in (
            (greenback.with_portal_run_sync, work),
            (greenback.with_portal_run, in_task),
            (in_task,),
        ):
            assert backend.run(is_raised, *portal)
        assert not caplog.records
        assert {site.errors for site in greenback_trace.snapshot().sites} == {0, 3}

    def test_closing_a_generator(self, backend: Any) -> None:
        """A generator that is closed while such an exception is handled may bridge."""

        def generator() -> Iterator[None]:
            try:
                yield
            finally:
                greenback.await_(backend.sleep(0))

        def work() -> None:
            items = generator()
            next(items)
            try:
                raise Odd
            except Odd:
                items.close()

        enable("raise")
        backend.run(greenback.with_portal_run_sync, work)


class TestLookingForLocks:
    """The locks that a thread has noted are looked up for the first time in that thread."""

    def bridge_in_between(
        self, backend: Any, monkeypatch: pytest.MonkeyPatch, happens: Callable[[], None]
    ) -> None:
        """Bridge, and have something happen in the middle of that look-up."""
        original = claims._Local.__init__
        armed = False

        def make(this: Any) -> None:
            nonlocal armed
            if armed:
                armed = False
                happens()
            original(this)

        def bridge() -> None:
            greenback.await_(backend.sleep(0))

        def known() -> None:
            nonlocal armed
            for is_last in (False, False, False, True):
                if is_last:  # as another thread that disables debug mode
                    other = threading.Thread(target=claims.forget)
                    other.start()
                    other.join()
                    armed = True
                bridge()

        monkeypatch.setattr(claims._Local, "__init__", make)
        enable()
        backend.run(greenback.with_portal_run_sync, known)
        assert not armed

    def test_ctrl_c(self, backend: Any, monkeypatch: pytest.MonkeyPatch) -> None:
        """An exception of a signal handler reaches the program."""

        def interrupt() -> None:
            raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            self.bridge_in_between(backend, monkeypatch, interrupt)

    def test_forgotten(self, backend: Any, monkeypatch: pytest.MonkeyPatch) -> None:
        """Another thread replaces what is being looked up."""
        self.bridge_in_between(backend, monkeypatch, claims.forget)
