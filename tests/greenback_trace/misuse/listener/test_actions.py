"""What becomes of a misuse: in the program, the log, the counter, the spans and the snapshot."""

from __future__ import annotations

import contextlib
import inspect
import linecache
import sys
import threading
import warnings
from typing import Any, Callable, Iterator, List

import pytest

import greenback
import greenback_trace
from greenback._engine.state import current_portal
from greenback.instruments import Instrument, add_instrument, remove_instrument
from greenback_trace import Config, MisuseError, MisuseWarning, allow
from greenback_trace.count.sites import site_of
from greenback_trace.misuse.finding import Finding
from greenback_trace.misuse.policy import actions_of
from greenback_trace.misuse.record import Misuses

from ..garbage import IS_PYPY, collect, until
from .misusing import Events, advised, enable, hold, holding, misuses_in, no_warnings

pytest.importorskip("opentelemetry.sdk.trace", reason="these tests need greenback[report]")


def in_context_manager(guard: Any, wait: Callable[[], Any]) -> None:
    @contextlib.contextmanager
    def transaction() -> Iterator[None]:
        with guard:
            yield

    with transaction():
        greenback.await_(wait())


def in_generator(guard: Any, wait: Callable[[], Any]) -> None:
    def items() -> Iterator[int]:
        with guard:
            yield 1

    for _ in items():
        greenback.await_(wait())


class TestLocks:
    @pytest.mark.parametrize("form", [holding, in_context_manager, in_generator])
    @pytest.mark.parametrize("kind", ["Lock", "RLock", "Condition", "Semaphore"])
    def test_is_counted_while_it_is_held(self, kind: str, form: Any, backend: Any) -> None:
        """One misuse for each bridge that suspends inside, and none for those after it."""

        def work() -> None:
            for _ in range(2):
                form(getattr(threading, kind)(), lambda: backend.sleep(0))
                greenback.await_(backend.sleep(0))

        enable()
        with no_warnings():
            backend.run(greenback.with_portal_run_sync, work)
        (misuse,) = greenback_trace.snapshot().misuses
        assert (misuse.kind, misuse.count) == ("lock_held", 2)
        assert misuse.subject.startswith(f"threading.{kind}")


class TestWarn:
    def test_the_bridge_goes_on(self, backend: Any) -> None:
        """Under 'warn' a misuse is shown, and the program does what it would do without."""
        enable()
        with pytest.warns(MisuseWarning, match="lock_held.*instead") as shown:
            hold(backend)
        assert [site.ok for site in greenback_trace.snapshot().sites] == [1]
        (warning,) = shown
        assert isinstance(warning.message, MisuseWarning)
        assert warning.message.misuse.kind == "lock_held"

    def test_is_shown_at_the_line(self, backend: Any) -> None:
        """The warning names the file and the line of the program, not greenback's."""
        enable()
        with pytest.warns(MisuseWarning) as shown:
            hold(backend)
        assert shown[0].filename == hold.__code__.co_filename
        assert "greenback.await_(wait())" in linecache.getline(shown[0].filename, shown[0].lineno)

    def test_each_line_once(self, backend: Any) -> None:
        """Under Python's own filters, repeats are shown once, although they are all counted."""
        enable()
        with warnings.catch_warnings(record=True) as shown:
            warnings.simplefilter("default")
            hold(backend, times=5)
        assert [warning.category for warning in shown] == [MisuseWarning]
        assert [misuse.count for misuse in greenback_trace.snapshot().misuses] == [5]

    def test_filters_that_make_errors(self, backend: Any) -> None:
        """With -W error the program still runs as it would: to raise is what 'raise' is for."""
        enable()
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            hold(backend)
        assert [misuse.kind for misuse in greenback_trace.snapshot().misuses] == ["lock_held"]
        assert [site.errors for site in greenback_trace.snapshot().sites] == [0]


class TestRaise:
    def test_at_a_suspension(self, backend: Any) -> None:
        """await_ raises before it suspends, and what it was given is closed."""
        enable("raise")
        closed: List[str] = []

        async def wait() -> None:
            try:
                await backend.sleep(0)
            finally:
                closed.append("closed")

        lock = threading.Lock()

        def work() -> None:
            with pytest.raises(MisuseError, match="lock_held") as caught:
                holding(lock, wait)
            assert closed == ["closed"]
            assert caught.value.misuse.kind == "lock_held"
            assert not lock.locked()

        backend.run(greenback.with_portal_run_sync, work)

    def test_at_the_start(self, backend: Any) -> None:
        """await_ raises before the coroutine has begun, and the coroutine is closed."""
        enable("async_caller=raise")

        async def main() -> None:
            await greenback.ensure_portal()
            coroutine = backend.sleep(0)
            with pytest.raises(MisuseError, match="async_caller"):
                greenback.await_(coroutine)
            assert inspect.getcoroutinestate(coroutine) == "CORO_CLOSED"

        backend.run(main)

    def test_is_reported_too(self, backend: Any, events: Events) -> None:
        """What is raised is also logged and counted: Python only prints it in a finalizer."""
        enable("raise")
        with pytest.raises(MisuseError):
            hold(backend)
        assert [event["kind"] for event in misuses_in(events)] == ["lock_held"]
        assert [misuse.count for misuse in greenback_trace.snapshot().misuses] == [1]

    def test_in_a_finalizer(self, backend: Any, events: Events) -> None:
        """The exception ends in Python's hook for those that nobody can catch, and is reported."""
        enable("raise")
        swallowed: List[Any] = []

        class Connection:
            def __del__(self) -> None:
                greenback.await_(backend.sleep(0))

        def work() -> None:
            connection = Connection()
            del connection
            collect()

        hook, sys.unraisablehook = sys.unraisablehook, lambda args: swallowed.append(args.exc_type)
        try:
            until(
                lambda: greenback_trace.snapshot().misuses,
                lambda: backend.run(greenback.with_portal_run_sync, work),
            )
        finally:
            sys.unraisablehook = hook
        if not IS_PYPY:
            assert swallowed == [MisuseError]
        (misuse,) = greenback_trace.snapshot().misuses
        assert misuse.kind == "finalizer"
        assert "Connection" in misuse.subject
        assert [event["kind"] for event in misuses_in(events)] == ["finalizer"]

    def test_counts_as_a_bridge_that_failed(self, backend: Any) -> None:
        """A refused bridge is counted once, as an error, and is not under way afterwards."""
        enable("raise,async_caller=raise")
        with pytest.raises(MisuseError):
            backend.run(advised, backend)
        with pytest.raises(MisuseError):
            hold(backend)
        snapshot = greenback_trace.snapshot()
        assert [(site.ok, site.errors) for site in snapshot.sites] == [(0, 1), (0, 1)]
        assert set(snapshot.active.values()) == {0}

    def test_what_is_not_certain(self, backend: Any) -> None:
        """An inconclusive misuse is shown as a warning, and nothing is raised."""
        misuses = Misuses(actions_of("raise"), 10)

        def work() -> Any:
            frame = sys._getframe()
            portal: Any = current_portal()[2]
            finding = Finding("finalizer", frame, "something", ("It may be.",), inconclusive=True)
            return misuses.report(
                finding, site_of(frame), frame, portal, lambda finding, site: None
            )

        with pytest.warns(MisuseWarning, match="inconclusive"):
            assert backend.run(greenback.with_portal_run_sync, work) is None
        assert [misuse.inconclusive for misuse in misuses.all()] == [True]

    def test_with_instruments(self, backend: Any) -> None:
        """An instrument that listens hears of the bridge, which is refused all the same."""
        finished: List[Any] = []

        class Listening(Instrument):
            def bridge_finished(self, bridge: Any, error: Any) -> None:
                finished.append(type(error))

        instrument = Listening()
        enable("raise")
        add_instrument(instrument)
        try:
            with pytest.raises(MisuseError):
                hold(backend)
        finally:
            remove_instrument(instrument)
        assert finished == [MisuseError]
        assert [site.errors for site in greenback_trace.snapshot().sites] == [1]


class TestAdvice:
    def test_is_only_logged(self, backend: Any, events: Events) -> None:
        """Advice is logged at info and counted; 'raise' does not raise for it."""
        enable("raise")
        with warnings.catch_warnings(record=True) as shown:
            warnings.simplefilter("always")
            backend.run(advised, backend)
        assert not shown
        assert [(event["kind"], event["level"]) for event in misuses_in(events)] == [
            ("async_caller", "info")
        ]
        assert [misuse.severity for misuse in greenback_trace.snapshot().misuses] == ["advice"]

    def test_that_is_named(self, backend: Any) -> None:
        """Advice whose kind is named is shown like the rest."""
        enable("async_caller=warn")
        with pytest.warns(MisuseWarning, match="async_caller"):
            backend.run(advised, backend)


class TestOff:
    def test_everything(self, backend: Any, events: Events) -> None:
        """With 'off', debug mode traces and says nothing of misuse."""
        enable("off")
        hold(backend)
        backend.run(advised, backend)
        assert greenback_trace.snapshot().misuses == ()
        assert not misuses_in(events)
        assert len(greenback_trace.snapshot().sites) == 2

    def test_one_kind(self, backend: Any, events: Events) -> None:
        """A kind that is off is neither reported nor counted."""
        enable("raise,lock_held=off")
        hold(backend)
        assert greenback_trace.snapshot().misuses == ()

    def test_tracing_alone(self, backend: Any) -> None:
        """Tracing without debug mode looks for nothing."""
        greenback_trace.enable(config=Config(mode="on", misuse="raise"))
        hold(backend)
        assert greenback_trace.snapshot().misuses == ()

    def test_disabled(self, backend: Any) -> None:
        """After disable() nothing is looked for, and the snapshot keeps what was found."""
        enable("raise")
        with pytest.raises(MisuseError):
            hold(backend)
        greenback_trace.disable()
        hold(backend)
        assert [misuse.count for misuse in greenback_trace.snapshot().misuses] == [1]


class TestAllowed:
    def test_one_site(self, backend: Any, events: Events) -> None:
        """Inside allow(), that kind is not misuse; outside of it, it is."""
        enable("raise")
        with allow("lock_held", reason="a test"):
            hold(backend)
        assert greenback_trace.snapshot().misuses == ()
        assert not misuses_in(events)
        with allow("import", reason="a test"), pytest.raises(MisuseError):
            hold(backend)

    def test_inside_the_portal(self, backend: Any) -> None:
        """It holds across bridges in sync code of the task."""
        enable("raise")
        lock = threading.Lock()

        def work() -> None:
            with allow("lock_held", reason="a test"):
                holding(lock, lambda: backend.sleep(0))
                holding(lock, lambda: backend.sleep(0))
            with pytest.raises(MisuseError):
                holding(lock, lambda: backend.sleep(0))

        backend.run(greenback.with_portal_run_sync, work)


class TestFromEnvironment:
    def test_debug(self, python: Any) -> None:
        """GREENBACK_TRACE=debug with GREENBACK_TRACE_MISUSE=raise raises, and reports."""
        done = python("-c", _HOLDING, GREENBACK_TRACE="debug", GREENBACK_TRACE_MISUSE="raise")
        assert "MisuseError: lock_held" in done.stderr
        assert "greenback.misuse" in done.stderr
        assert done.returncode == 1

    def test_by_default(self, python: Any) -> None:
        """Without GREENBACK_TRACE_MISUSE a misuse is a warning, at the line of the program."""
        done = python("-c", _HOLDING, GREENBACK_TRACE="debug")
        assert done.returncode == 0, done.stderr
        assert "<string>:6: MisuseWarning: lock_held" in done.stderr

    def test_without_the_extra(self, python: Any) -> None:
        """Where the extra 'debug' is not installed, one warning names it, and it looks on."""
        hidden = "import sys; sys.modules.update(executing=None, pure_eval=None)\n"
        done = python("-c", hidden + _HOLDING, GREENBACK_TRACE="debug")
        assert done.returncode == 0, done.stderr
        assert done.stderr.count("pip install 'greenback[debug]'") == 1
        assert "MisuseWarning: lock_held" in done.stderr

    def test_tracing_alone(self, python: Any) -> None:
        """Without debug mode, nothing that looks for misuse is even imported."""
        loaded = (
            "import sys; print([n for n in sys.modules if n.startswith('greenback_trace.misuse')])"
        )
        done = python("-c", _HOLDING + loaded, GREENBACK_TRACE="1")
        assert done.returncode == 0, done.stderr
        assert "greenback_trace.misuse.policy" in done.stdout
        for name in ("listener", "detect", "detectors.lock_held", "evidence.locks", "watchdog"):
            assert name not in done.stdout


_HOLDING = """
import asyncio, threading
import greenback
def work(lock):
    with lock:
        greenback.await_(asyncio.sleep(0))
asyncio.run(greenback.with_portal_run_sync(work, threading.Lock()))
"""
