"""Instruments: which hooks are called, when, with what; the program never notices."""

from __future__ import annotations

import asyncio
import functools
import gc
import logging
import signal
import threading
import types
import weakref
from typing import Any, Callable, Iterator, List, Optional, Tuple

import greenlet
import pytest
import trio

import greenback
from greenback import await_
from greenback._engine import bridge as _bridge
from greenback._listener import instruments as _instruments
from greenback._listener import listener
from greenback.instruments import Bridge, Instrument, Portal, add_instrument, remove_instrument

HOOKS = [
    "portal_opened",
    "portal_closed",
    "bridge_started",
    "bridge_suspended",
    "bridge_resumed",
    "bridge_finished",
    "step_started",
    "step_finished",
]

OPENED, CLOSED = "portal_opened", "portal_closed"
STARTED, SUSPENDED = "bridge_started", "bridge_suspended"
RESUMED, FINISHED = "bridge_resumed", "bridge_finished"
STEP, STOP = "step_started", "step_finished"


class Recorder(Instrument):
    """An instrument that notes every call of a hook with its arguments."""

    def __init__(self) -> None:
        self.calls: List[Tuple[Any, ...]] = []

    def names(self) -> List[str]:
        return [call[0] for call in self.calls]

    def portal_opened(self, portal: Portal) -> None:
        self.calls.append((OPENED, portal))

    def portal_closed(self, portal: Portal) -> None:
        self.calls.append((CLOSED, portal))

    def bridge_started(self, bridge: Bridge) -> None:
        self.calls.append((STARTED, bridge))

    def bridge_suspended(self, bridge: Bridge) -> None:
        self.calls.append((SUSPENDED, bridge))

    def bridge_resumed(self, bridge: Bridge) -> None:
        self.calls.append((RESUMED, bridge))

    def bridge_finished(self, bridge: Bridge, error: Optional[BaseException]) -> None:
        self.calls.append((FINISHED, bridge, error))

    def step_started(self, portal: Portal) -> None:
        self.calls.append((STEP, portal))

    def step_finished(self, portal: Portal) -> None:
        self.calls.append((STOP, portal))


async def immediate(value: Any = None) -> Any:
    return value


@pytest.fixture
def recorder() -> Iterator[Recorder]:
    """An instrument that stays added for the length of the test."""
    instrument = Recorder()
    add_instrument(instrument)
    yield instrument
    try:
        remove_instrument(instrument)
    except KeyError:
        pass


@pytest.fixture
def added() -> Iterator[Callable[[Any], Any]]:
    """A function that adds instruments; those still there are removed at the end."""
    instruments: List[Any] = []

    def add(instrument: Any) -> Any:
        add_instrument(instrument)
        instruments.append(instrument)
        return instrument

    yield add
    for instrument in instruments:
        try:
            remove_instrument(instrument)
        except KeyError:
            pass


class TestHooks:
    @pytest.mark.parametrize("kind", ["run", "run_sync"])
    def test_portal_functions(self, backend: Any, recorder: Recorder, kind: str) -> None:
        """A portal of a function opens, takes its steps, and closes when the function ends."""

        def sync() -> None:
            await_(immediate())
            await_(backend.checkpoint())

        async def fn() -> None:
            sync()

        async def main() -> None:
            if kind == "run":
                await greenback.with_portal_run(fn)
            else:
                await greenback.with_portal_run_sync(sync)

        backend.run(main)
        names = recorder.names()
        first = [OPENED, STEP, STARTED, FINISHED, STARTED]
        rest = [SUSPENDED, STOP, STEP, RESUMED] * names.count(SUSPENDED)
        assert names.count(SUSPENDED) > 0
        assert names == [*first, *rest, FINISHED, STOP, CLOSED]
        self.check_arguments(recorder, kind)

    def test_task(self, backend: Any, recorder: Recorder) -> None:
        """The portal of ensure_portal() opens at once, works from the next step on, and closes
        when the task ends."""

        async def task() -> None:
            await greenback.ensure_portal()
            recorder.calls.append(("body",))
            await_(immediate())
            recorder.calls.append(("end",))

        async def main() -> None:
            await backend.together(task)

        backend.run(main)
        names = recorder.names()
        assert [name for name in names if name not in (STEP, STOP)] == [
            OPENED,
            "body",
            STARTED,
            FINISHED,
            "end",
            CLOSED,
        ]
        assert names[-2:] == [STOP, CLOSED]
        assert names[names.index("body") - 1] == STEP
        recorder.calls = [call for call in recorder.calls if len(call) > 1]
        self.check_arguments(recorder, "task")

    def test_bestowed(self, backend: Any, recorder: Recorder) -> None:
        """A portal that another task bestows opens when it is bestowed."""
        go = []

        async def task(status: Any = None) -> None:
            while not go:
                await backend.checkpoint()
            await_(immediate())

        async def main() -> None:
            if backend.is_trio:
                tasks: List[Any] = []

                async def says() -> None:
                    tasks.append(trio.lowlevel.current_task())
                    await task()

                async with trio.open_nursery() as nursery:
                    nursery.start_soon(says)
                    while not tasks:
                        await trio.lowlevel.checkpoint()
                    greenback.bestow_portal(tasks[0])
                    assert recorder.names() == [OPENED]
                    go.append(1)
            else:
                other = asyncio.ensure_future(task())
                await asyncio.sleep(0)
                greenback.bestow_portal(other)
                assert recorder.names() == [OPENED]
                go.append(1)
                await other

        backend.run(main)
        names = [name for name in recorder.names() if name not in (STEP, STOP)]
        assert names == [OPENED, STARTED, FINISHED, CLOSED]
        assert recorder.names()[-2:] == [STOP, CLOSED]
        self.check_arguments(recorder, "bestowed")

    def test_inherited(self, backend: Any, recorder: Recorder) -> None:
        """An inherited portal opens and closes with its task."""

        async def child() -> None:
            await_(immediate())

        async def main() -> None:
            with greenback.portals_for_children():
                await backend.together(child)

        backend.run(main)
        assert recorder.names() == [OPENED, STEP, STARTED, FINISHED, STOP, CLOSED]
        self.check_arguments(recorder, "inherited")

    def test_scope(self, backend: Any, recorder: Recorder) -> None:
        """The portal of portals_for_tree() closes when its scope is left, and opens again."""

        async def main() -> None:
            for _ in range(2):
                async with greenback.portals_for_tree():
                    await_(immediate())

        backend.run(main)
        names = [name for name in recorder.names() if name not in (STEP, STOP)]
        assert names == [OPENED, STARTED, FINISHED, CLOSED] * 2

    def test_cancelled_before_the_first_step(
        self, asyncio_backend: Any, recorder: Recorder
    ) -> None:
        """A task that never begins never has a portal, so none is announced."""

        async def never() -> None:
            raise AssertionError

        async def main() -> None:
            with greenback.portals_for_children():
                inherited = asyncio.ensure_future(never())
            bestowed = asyncio.ensure_future(never())
            greenback.bestow_portal(bestowed)
            inherited.cancel()
            bestowed.cancel()
            await asyncio.wait([inherited, bestowed])

        asyncio_backend.run(main)
        gc.collect()
        assert recorder.names() == []

    def test_bridge(self, backend: Any, added: Callable[[Any], Any]) -> None:
        """A bridge shows its portal, its awaitable and the frame that called await_()."""
        seen: List[Any] = []

        class Looks(Instrument):
            def bridge_started(self, bridge: Bridge) -> None:
                assert bridge.frame is not None
                seen.append((bridge.frame.f_code.co_name, bridge.awaitable, bridge.portal.kind))

            bridge_suspended = bridge_started
            bridge_resumed = bridge_started

            def bridge_finished(self, bridge: Bridge, error: Optional[BaseException]) -> None:
                self.bridge_started(bridge)

        def the_caller() -> None:
            awaitables.append(backend.checkpoint())
            await_(awaitables[0])

        awaitables: List[Any] = []
        added(Looks())
        backend.run(greenback.with_portal_run_sync, the_caller)
        assert len(seen) >= 4
        assert set(seen) == {("the_caller", awaitables[0], "run_sync")}

    def test_nested_bridges(self, backend: Any, recorder: Recorder) -> None:
        """A bridge inside another bridge's coroutine is announced as a bridge of its own."""

        def inner() -> None:
            await_(immediate())

        async def middle() -> None:
            inner()

        backend.run(greenback.with_portal_run_sync, lambda: await_(middle()))
        bridges = [call[:2] for call in recorder.calls if call[0] in (STARTED, FINISHED)]
        assert [name for name, _ in bridges] == [STARTED, STARTED, FINISHED, FINISHED]
        (_, outer), (_, inner_bridge), (_, first_end), (_, last_end) = bridges
        assert (first_end, last_end) == (inner_bridge, outer)
        assert outer is not inner_bridge

    @pytest.mark.parametrize("suspends", [False, True])
    def test_error(self, backend: Any, recorder: Recorder, suspends: bool) -> None:
        """A bridge that raises finishes with its error."""
        error = LookupError("here")

        async def fails() -> None:
            if suspends:
                await backend.checkpoint()
            raise error

        def sync() -> None:
            with pytest.raises(LookupError) as caught:
                await_(fails())
            assert caught.value is error
            assert error.__context__ is None
            with pytest.raises(TypeError):
                await_(42)  # type: ignore[arg-type]

        backend.run(greenback.with_portal_run_sync, sync)
        ends = [call for call in recorder.calls if call[0] == FINISHED]
        assert ends[0][2] is error
        assert type(ends[1][2]) is TypeError

    def test_cancelled(self, backend: Any, recorder: Recorder) -> None:
        """A bridge whose task is cancelled finishes with the cancellation as its error."""

        def sync() -> None:
            await_(backend.sleep(3600))

        async def main() -> None:
            if backend.is_trio:
                with trio.CancelScope() as scope:
                    async with trio.open_nursery() as nursery:
                        nursery.start_soon(greenback.with_portal_run_sync, sync)
                        while SUSPENDED not in recorder.names():
                            await trio.lowlevel.checkpoint()
                        scope.cancel()
            else:
                task = asyncio.ensure_future(greenback.with_portal_run_sync(sync))
                await asyncio.sleep(0)
                task.cancel()
                await asyncio.wait([task])

        backend.run(main)
        assert recorder.names()[-3:] == [FINISHED, STOP, CLOSED]
        assert recorder.calls[-3][2].__class__ is backend.cancelled

    def test_called_by_a_greenlet(self, backend: Any, recorder: Recorder) -> None:
        """A greenlet of the program's that runs `await_` itself has no function that calls it."""

        async def value() -> int:
            await backend.checkpoint()
            return 42

        async def main() -> None:
            await greenback.with_portal_run_sync(sync)

        def sync() -> None:
            assert greenlet.greenlet(await_).switch(value()) == 42

        backend.run(main)
        assert recorder.names().count(STARTED) == recorder.names().count(FINISHED) == 1

    def test_without_a_portal(self, backend: Any, recorder: Recorder) -> None:
        """A call of await_() that is refused is not announced as a bridge."""

        async def main() -> None:
            with pytest.raises(RuntimeError):
                await_(immediate())

        backend.run(main)
        assert recorder.calls == []

    def test_portal_inside_a_portal(self, backend: Any, recorder: Recorder) -> None:
        """A portal function in a task that has a portal opens none."""

        def sync() -> None:
            await_(greenback.with_portal_run_sync(lambda: await_(immediate())))

        backend.run(greenback.with_portal_run_sync, sync)
        assert recorder.names().count(OPENED) == recorder.names().count(CLOSED) == 1

    def test_portals_are_distinct(self, backend: Any, recorder: Recorder) -> None:
        """While there is an instrument, each portal is a new object, so it can be a key."""

        async def main() -> None:
            for _ in range(5):
                await greenback.with_portal_run_sync(lambda: await_(immediate()))
                await greenback.with_portal_run(immediate)

        backend.run(main)
        opened = [call[1] for call in recorder.calls if call[0] == OPENED]
        assert len(set(opened)) == len(opened) == 10
        assert len({call[1] for call in recorder.calls if call[0] == STARTED}) == 5

    def test_threads(self, asyncio_backend: Any, added: Callable[[Any], Any]) -> None:
        """Hooks run in the thread of the task that they are about."""
        seen: List[int] = []

        class Where(Instrument):
            def bridge_started(self, bridge: Bridge) -> None:
                seen.append(threading.get_ident())

        added(Where())
        idents: List[int] = []

        def in_thread() -> None:
            idents.append(threading.get_ident())
            asyncio_backend.run(greenback.with_portal_run_sync, lambda: await_(immediate()))

        # Both uvloop and asyncio get a thread in which no loop has run before.
        threads = [threading.Thread(target=in_thread) for _ in range(3)]
        for thread in threads:
            thread.start()
            thread.join()
        assert seen == idents

    @staticmethod
    def check_arguments(recorder: Recorder, kind: str) -> None:
        """All hooks of a task get the same portal, and all hooks of a bridge the same bridge."""
        portals = {
            id(call[1].portal if isinstance(call[1], Bridge) else call[1])
            for call in recorder.calls
        }
        assert len(portals) == 1
        portal = recorder.calls[0][1]
        assert isinstance(portal, Portal)
        assert portal.kind == kind
        assert portal.library.name in ("asyncio", "trio")
        for call in recorder.calls:
            if call[0] == FINISHED:
                assert call[2] is None
        started = [call[1] for call in recorder.calls if call[0] == STARTED]
        finished = [call[1] for call in recorder.calls if call[0] == FINISHED]
        assert started == finished


class TestAddAndRemove:
    def test_order(self, backend: Any, added: Callable[[Any], Any]) -> None:
        """Several instruments are called once each, in the order in which they were added."""
        log: List[str] = []

        class Says(Instrument):
            def __init__(self, name: str) -> None:
                self.name = name

            def bridge_started(self, bridge: Bridge) -> None:
                log.append(self.name)

        for name in "abc":
            instrument = added(Says(name))
        add_instrument(instrument)
        backend.run(greenback.with_portal_run_sync, lambda: await_(immediate()))
        assert log == ["a", "b", "c"]

    def test_removed(self, backend: Any) -> None:
        """A removed instrument is not called, and cannot be removed again."""
        recorder = Recorder()
        add_instrument(recorder)
        remove_instrument(recorder)
        backend.run(greenback.with_portal_run_sync, lambda: await_(immediate()))
        assert recorder.calls == []
        with pytest.raises(KeyError):
            remove_instrument(recorder)

    def test_equal_instruments(self, backend: Any, added: Callable[[Any], Any]) -> None:
        """Instruments are told apart by identity, and need not be hashable."""

        class Equal(Recorder):
            __hash__ = None  # type: ignore[assignment]

            def __eq__(self, other: object) -> bool:
                return True

        first, second = added(Equal()), added(Equal())
        remove_instrument(first)
        backend.run(greenback.with_portal_run_sync, lambda: await_(immediate()))
        assert first.calls == []
        assert STARTED in second.names()

    def test_no_instrument(self) -> None:
        """An object with none of the hooks is refused; the error lists the hooks."""
        with pytest.raises(TypeError, match="portal_opened"):
            add_instrument(object())  # type: ignore[arg-type]

    def test_only_overridden_hooks(
        self, backend: Any, added: Callable[[Any], Any], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Hooks that an instrument does not override are never called."""
        called: List[str] = []
        for name in HOOKS:
            monkeypatch.setattr(Instrument, name, lambda *args, name=name: called.append(name))

        class One(Instrument):
            def bridge_suspended(self, bridge: Bridge) -> None:
                called.append("mine")

        added(One())
        backend.run(greenback.with_portal_run_sync, lambda: await_(backend.checkpoint()))
        assert set(called) == {"mine"}

    def test_need_not_be_a_subclass(self, backend: Any, added: Callable[[Any], Any]) -> None:
        """An object of any class with some of the hooks is an instrument."""

        class Duck:
            def __init__(self) -> None:
                self.seen = 0

            def bridge_started(self, bridge: Bridge) -> None:
                self.seen += 1

        duck = added(Duck())
        backend.run(greenback.with_portal_run_sync, lambda: await_(immediate()))
        assert duck.seen == 1

    def test_methods_of_the_object(self, backend: Any, added: Callable[[Any], Any]) -> None:
        """An object whose hooks are in its own ``__dict__`` is an instrument, too."""
        seen: List[Any] = []
        added(types.SimpleNamespace(bridge_started=seen.append))
        backend.run(greenback.with_portal_run_sync, lambda: await_(immediate()))
        assert len(seen) == 1

    def test_added_in_a_bridge(self, backend: Any, added: Callable[[Any], Any]) -> None:
        """An instrument added during a bridge is told of the next one; the open one ends well."""
        recorder = Recorder()

        async def adds() -> int:
            added(recorder)
            await backend.checkpoint()
            return 7

        def sync() -> None:
            assert await_(adds()) == 7
            assert not {STARTED, SUSPENDED, RESUMED} & set(recorder.names())
            assert await_(immediate(8)) == 8

        backend.run(greenback.with_portal_run_sync, sync)
        assert recorder.names().count(STARTED) == 1
        assert CLOSED in recorder.names()

    def test_added_in_a_bridge_again(self, backend: Any) -> None:
        """Each instrument added during a bridge gets a new portal, though in the same worker."""
        portals: List[Any] = []

        class Keeps(Recorder):
            def portal_closed(self, portal: Any) -> None:
                portals.append(portal)

        async def main() -> None:
            for _ in range(3):
                keeps = Keeps()

                async def adds() -> None:
                    add_instrument(keeps)
                    await backend.checkpoint()

                await greenback.with_portal_run_sync(lambda: await_(adds()))
                remove_instrument(keeps)

        backend.run(main)
        assert len(set(map(id, portals))) == 3

    def test_removed_in_a_bridge(self, backend: Any, recorder: Recorder) -> None:
        """An instrument removed during a bridge is not called from that moment on."""
        calls: List[Any] = []

        async def removes() -> int:
            remove_instrument(recorder)
            calls.extend(recorder.calls)
            await backend.checkpoint()
            return 7

        def sync() -> None:
            assert await_(removes()) == 7
            assert await_(immediate(8)) == 8

        backend.run(greenback.with_portal_run_sync, sync)
        assert recorder.calls == calls
        assert [call[0] for call in calls] == [OPENED, STEP, STARTED]

    def test_removes_itself(self, backend: Any, added: Callable[[Any], Any]) -> None:
        """A hook may remove its own instrument, and add another one."""
        log: List[str] = []
        recorder = Recorder()

        class Once(Instrument):
            def bridge_started(self, bridge: Bridge) -> None:
                log.append("once")
                remove_instrument(self)
                added(recorder)

        added(Once())

        def sync() -> None:
            await_(immediate())
            await_(immediate())

        backend.run(greenback.with_portal_run_sync, sync)
        assert log == ["once"]
        assert recorder.names().count(STARTED) == 1

    def test_is_let_go(self) -> None:
        """After its removal nothing keeps an instrument alive."""
        recorder = Recorder()
        reference = weakref.ref(recorder)
        add_instrument(recorder)
        remove_instrument(recorder)
        del recorder
        gc.collect()
        assert reference() is None


class TestBroken:
    """An instrument that raises is removed and logged once; the program does not notice."""

    @staticmethod
    def program(backend: Any) -> List[Any]:
        """A program with all kinds of portals and bridges."""
        log: List[Any] = []

        async def fails() -> None:
            await backend.checkpoint()
            raise LookupError

        def sync() -> None:
            log.append(await_(immediate(1)))
            await_(backend.checkpoint())
            try:
                raise ValueError
            except ValueError as outer:
                try:
                    await_(fails())
                except LookupError as error:
                    log.append(error.__context__ is outer)

        async def main() -> None:
            await greenback.with_portal_run_sync(sync)
            await backend.together(sync_in_task)

        async def sync_in_task() -> None:
            await greenback.ensure_portal()
            sync()

        backend.run(main)
        return log

    def broken(self, hook: str, how: str) -> Any:
        def fails(*args: Any) -> None:
            self.calls.append(hook)
            raise ZeroDivisionError(hook)

        self.calls: List[str] = []
        if how == "method":
            return type("Broken", (Instrument,), {hook: lambda self, *args: fails()})()
        if how == "staticmethod":
            return type("Broken", (Instrument,), {hook: staticmethod(fails)})()
        if how == "classmethod":
            return type("Broken", (Instrument,), {hook: classmethod(fails)})()

        class Plain:
            __call__ = staticmethod(fails)

        return type("Broken", (Instrument,), {hook: Plain()})()

    @pytest.mark.parametrize("hook", HOOKS)
    def test_every_hook(
        self, backend: Any, hook: str, added: Callable[[Any], Any], caplog: Any
    ) -> None:
        """Whichever hook raises, the program behaves as without the instrument."""
        self.check(backend, added, caplog, hook, "method")

    @pytest.mark.parametrize("how", ["staticmethod", "classmethod", "object"])
    def test_every_kind_of_callable(
        self, backend: Any, how: str, added: Callable[[Any], Any], caplog: Any
    ) -> None:
        """A hook need not be a plain method for its instrument to be removed."""
        self.check(backend, added, caplog, "bridge_started", how)

    def check(
        self, backend: Any, added: Callable[[Any], Any], caplog: Any, hook: str, how: str
    ) -> None:
        expected = self.program(backend)
        recorder = added(Recorder())
        broken = added(self.broken(hook, how))
        with caplog.at_level(logging.DEBUG, "greenback"):
            assert self.program(backend) == expected == [1, True] * 2
        assert self.calls == [hook]
        (record,) = [record for record in caplog.records if record.name == "greenback"]
        assert record.levelno == logging.ERROR
        assert "ZeroDivisionError" in record.getMessage()
        assert "Broken" in record.getMessage()
        assert record.exc_info is not None
        with pytest.raises(KeyError):
            remove_instrument(broken)
        assert recorder.names().count(STARTED) == recorder.names().count(FINISHED) == 6
        assert recorder.names().count(STEP) == recorder.names().count(STOP)

    def test_is_called_no_more(
        self, backend: Any, added: Callable[[Any], Any], caplog: Any
    ) -> None:
        """After a hook has raised, no hook of its instrument is called."""
        calls: List[str] = []

        class Broken(Recorder):
            def step_started(self, portal: Portal) -> None:
                calls.append(STEP)
                raise ZeroDivisionError

            def step_finished(self, portal: Portal) -> None:
                calls.append(STOP)

        added(Broken())
        with caplog.at_level(logging.CRITICAL, "greenback"):
            self.program(backend)
        assert calls == [STEP]


class TimeUp(Exception):
    """The exception of the signal handlers in these tests."""


def raise_time_up(*args: Any) -> None:
    raise TimeUp


class Handler:
    """A handler that is a callable object, or has a method for it."""

    def __call__(self, number: int, frame: Any) -> None:
        raise TimeUp

    def method(self, number: int, frame: Any) -> None:
        self(number, frame)


@pytest.mark.skipif(not hasattr(signal, "SIGUSR1"), reason="has no signals to spare")
class TestSignalHandler:
    """An exception of a signal handler is no failure of the hook that it interrupts."""

    @pytest.mark.parametrize("hook", [STARTED, SUSPENDED, RESUMED, FINISHED])
    def test_hooks(self, backend: Any, hook: str, added: Callable[[Any], Any]) -> None:
        """A signal handler's exception leaves the bridge, whichever hook it interrupts."""
        self.check(backend, added, hook, raise_time_up)

    @pytest.mark.parametrize(
        "handler",
        [
            functools.partial(raise_time_up, "something"),
            functools.partial(functools.partial(raise_time_up)),
            Handler(),
            Handler().method,
            functools.partial(Handler().method),
        ],
        ids=["partial", "partials", "object", "method", "partial method"],
    )
    def test_handlers(self, backend: Any, handler: Any, added: Callable[[Any], Any]) -> None:
        """A signal handler's exception is recognised for every kind of callable."""
        self.check(backend, added, STARTED, handler)

    def check(
        self, backend: Any, added: Callable[[Any], Any], hook: str, handler: Callable[..., None]
    ) -> None:
        pending = [signal.SIGUSR1]

        def interrupted(self: Any, *args: Any) -> None:
            if pending:
                signal.raise_signal(pending.pop())

        def program() -> None:
            with pytest.raises(TimeUp):
                await_(backend.checkpoint())
            await_(backend.checkpoint())

        instrument = added(type("Interrupted", (Instrument,), {hook: interrupted})())
        before = signal.signal(signal.SIGUSR1, handler)
        try:
            backend.run(greenback.with_portal_run_sync, program)
        finally:
            signal.signal(signal.SIGUSR1, before)
        assert not pending
        remove_instrument(instrument)  # it is still added
        added(instrument)

    def test_another_thread(
        self, backend: Any, added: Callable[[Any], Any], caplog: pytest.LogCaptureFixture
    ) -> None:
        """If a hook in another thread calls the handler's function, its exception is a failure."""

        class Broken(Instrument):
            def bridge_started(self, bridge: Bridge) -> None:
                raise_time_up()

        def program() -> None:
            backend.run(greenback.with_portal_run_sync, await_, immediate(1))

        broken = added(Broken())
        before = signal.signal(signal.SIGUSR1, raise_time_up)
        try:
            thread = threading.Thread(target=program)
            thread.start()
            thread.join()
        finally:
            signal.signal(signal.SIGUSR1, before)
        with pytest.raises(KeyError):
            remove_instrument(broken)
        (record,) = caplog.records
        assert "TimeUp" in record.getMessage()


class TestHooksThatBridge:
    def test_is_not_announced(self, backend: Any, added: Callable[[Any], Any]) -> None:
        """A hook may bridge and wait; no instrument is told of that."""

        class Bridges(Recorder):
            def bridge_started(self, bridge: Bridge) -> None:
                super().bridge_started(bridge)
                await_(backend.checkpoint())

            def bridge_suspended(self, bridge: Bridge) -> None:
                super().bridge_suspended(bridge)
                await_(backend.checkpoint())

            def bridge_resumed(self, bridge: Bridge) -> None:
                super().bridge_resumed(bridge)
                await_(immediate())

            def bridge_finished(self, bridge: Bridge, error: Optional[BaseException]) -> None:
                super().bridge_finished(bridge, error)
                await_(backend.checkpoint())

        async def waits() -> int:
            await backend.checkpoint()
            return 7

        def sync() -> None:
            assert await_(waits()) == 7
            assert await_(immediate(8)) == 8

        instruments = [added(Bridges()), added(Recorder())]
        backend.run(greenback.with_portal_run_sync, sync)
        for instrument in instruments:
            names = [name for name in instrument.names() if name.startswith("bridge")]
            waited = [SUSPENDED, RESUMED] * names.count(SUSPENDED)
            assert names == [STARTED, *waited, FINISHED, STARTED, FINISHED]

    def test_by_way_of_others(self, backend: Any, recorder: Recorder) -> None:
        """Bridges of other tasks are announced while a hook waits."""

        class Waits(Instrument):
            def bridge_started(self, bridge: Bridge) -> None:
                await_(backend.checkpoint())

        waits = Waits()
        add_instrument(waits)

        def sync() -> None:
            await_(immediate())

        async def task() -> None:
            await greenback.with_portal_run_sync(sync)

        async def main() -> None:
            await backend.together(task, task, task)

        try:
            backend.run(main)
        finally:
            remove_instrument(waits)
        assert recorder.names().count(STARTED) == recorder.names().count(FINISHED) == 3


class TestNothingIsKept:
    @pytest.mark.parametrize("ends", ["returns", "raises", "removed"])
    def test_frames_and_awaitables(self, backend: Any, ends: str, recorder: Recorder) -> None:
        """An instrument that keeps a bridge does not keep the program's variables."""

        class Thing:
            pass

        references: List[Any] = []

        async def takes(thing: Thing) -> None:
            await backend.checkpoint()
            if ends == "removed":
                remove_instrument(recorder)
            if ends == "raises":
                raise LookupError

        def sync() -> None:
            thing = Thing()
            references.append(weakref.ref(thing))
            try:
                await_(takes(thing))
            except LookupError:
                pass

        backend.run(greenback.with_portal_run_sync, sync)
        # The recorder itself keeps these errors.
        bridges = [call[1] for call in recorder.calls if call[0] == STARTED]
        recorder.calls.clear()
        gc.collect()
        (bridge,) = bridges
        assert bridge.frame is None
        assert bridge.awaitable is None
        assert references[0]() is None

    def test_portals(self, backend: Any, recorder: Recorder) -> None:
        """An instrument that keeps a portal does not keep the objects of its work."""

        class Thing:
            pass

        references: List[Any] = []

        async def main() -> None:
            thing = Thing()
            references.append(weakref.ref(thing))
            await greenback.with_portal_run_sync(lambda thing: thing and None, thing)

        backend.run(main)
        gc.collect()
        assert OPENED in recorder.names()
        assert references[0]() is None


class Listening:
    """A listener that notes all its calls, and gives each bridge a number."""

    def __init__(self, calls: List[Any], suspends: bool = True) -> None:
        self.calls = calls
        self.bridges = 0
        self.suspend_bridge = self.noting_suspension if suspends else None
        self.start_step = None

    def open_portal(self, portal: Portal) -> None:
        self.calls.append(OPENED)

    def enter_portal(self, portal: Portal) -> None:
        self.calls.append("portal_entered")

    def close_portal(self, portal: Portal) -> None:
        self.calls.append(CLOSED)

    def start_bridge(self, portal: Portal, awaitable: Any, frame: Any) -> int:
        self.bridges += 1
        self.calls.append((STARTED, self.bridges))
        return self.bridges

    def noting_suspension(self, bridge: int) -> None:
        self.calls.append((SUSPENDED, bridge))

    def resume_bridge(self, bridge: int, portal: Portal, left: int) -> None:
        assert portal.left == left
        self.calls.append((RESUMED, bridge))

    def finish_bridge(self, bridge: int, error: Optional[BaseException], left: int) -> None:
        self.calls.append((FINISHED, bridge, type(error)))

    def finish_step(self, portal: Portal) -> None:
        self.calls.append(STOP)


def bridges_in(calls: List[Any]) -> List[Any]:
    return [call for call in calls if type(call) is tuple]


NoneType = type(None)


class TestPrimaryListener:
    """The primary listener, tracing's, is called before any instrument."""

    @pytest.fixture(autouse=True)
    def _removed_afterwards(self) -> Iterator[None]:
        before = listener._primary
        yield
        listener.set_primary(before)

    def test_is_called_directly(self, recorder: Recorder) -> None:
        """If only one listener is set, the runtime calls it directly."""
        primary: Any = Listening([])
        listener.set_primary(None)
        assert type(_bridge._hooks) is _instruments.Hooks
        listener.set_primary(primary)
        assert type(_bridge._hooks) is listener.Both
        remove_instrument(recorder)
        assert _bridge._hooks is primary
        listener.set_primary(None)
        assert _bridge._hooks is None
        assert not listener.is_primary(None)

    @pytest.mark.parametrize("suspends", [True, False])
    def test_beside_an_instrument(self, backend: Any, suspends: bool, recorder: Recorder) -> None:
        """Both listeners are told of everything, the primary one first, with their own objects."""
        calls: List[Any] = []
        primary: Any = Listening(calls, suspends)
        recorder.calls = calls
        listener.set_primary(primary)

        async def fails() -> None:
            raise LookupError

        async def once() -> None:
            await backend.checkpoint()

        def sync() -> None:
            await_(immediate())
            await_(once())
            with pytest.raises(LookupError):
                await_(fails())

        backend.run(greenback.with_portal_run_sync, sync)
        told = [call for call in calls if type(call) is not tuple or type(call[1]) is int]
        of_instrument = [call for call in calls if call not in told]
        suspensions = told.count((RESUMED, 2))
        assert suspensions
        suspended = [(SUSPENDED, 2)] * suspends
        assert bridges_in(told) == [
            (STARTED, 1),
            (FINISHED, 1, NoneType),
            (STARTED, 2),
            *[*suspended, (RESUMED, 2)] * suspensions,
            (FINISHED, 2, NoneType),
            (STARTED, 3),
            (FINISHED, 3, LookupError),
        ]
        assert [call for call in told if call not in bridges_in(told)] == [
            OPENED,
            *[STOP] * (suspensions + 1),
            CLOSED,
        ]
        names = [call[0] for call in of_instrument]
        assert names.count(STARTED) == names.count(FINISHED) == 3
        assert (names[0], names[-1]) == (OPENED, CLOSED)
        assert calls.index(OPENED) < calls.index(of_instrument[0])

    def test_passes_a_bridge_over(self, backend: Any, recorder: Recorder) -> None:
        """A primary listener that returns None at a bridge's start hears no more of that bridge."""

        class PassingOver(Listening):
            def start_bridge(self, portal: Portal, awaitable: Any, frame: Any) -> Any:
                return None

        primary: Any = PassingOver([])
        listener.set_primary(primary)
        backend.run(greenback.with_portal_run_sync, lambda: await_(backend.checkpoint()))
        assert bridges_in(primary.calls) == []
        assert primary.calls[-1] == CLOSED
        assert {STARTED, SUSPENDED, RESUMED, FINISHED} <= set(recorder.names())

    def test_replaced_in_a_bridge(self, backend: Any, recorder: Recorder) -> None:
        """The listener that was told of a bridge's start is told of its end."""
        old, new = Listening([]), Listening([])
        of_old: Any = old
        of_new: Any = new

        async def replaces() -> None:
            listener.set_primary(of_new)
            remove_instrument(recorder)
            await backend.checkpoint()

        def sync() -> None:
            await_(replaces())
            await_(immediate())

        listener.set_primary(of_old)
        backend.run(greenback.with_portal_run_sync, sync)
        told = bridges_in(old.calls)
        assert (told[0], told[-1]) == ((STARTED, 1), (FINISHED, 1, NoneType))
        assert set(told[1:-1]) == {(SUSPENDED, 1), (RESUMED, 1)}
        assert bridges_in(new.calls) == [(STARTED, 1), (FINISHED, 1, NoneType)]
        assert FINISHED not in recorder.names()

    def test_refuses(self, backend: Any, recorder: Recorder) -> None:
        """If the primary listener refuses a bridge, await_() raises; no instrument is told."""

        class Refusing(Listening):
            def start_bridge(self, portal: Portal, awaitable: Any, frame: Any) -> int:
                raise LookupError("refused")

        refusing: Any = Refusing([])
        listener.set_primary(refusing)

        def sync() -> None:
            with pytest.raises(LookupError, match="refused"):
                await_(immediate())

        backend.run(greenback.with_portal_run_sync, sync)
        assert STARTED not in recorder.names()
        assert bridges_in(refusing.calls) == []

    @pytest.mark.skipif(not hasattr(signal, "SIGUSR1"), reason="has no signals to spare")
    def test_instrument_that_is_interrupted(
        self, backend: Any, added: Callable[[Any], Any]
    ) -> None:
        """If a signal handler raises in an instrument, the primary listener sees the bridge end."""

        class Interrupted(Instrument):
            def bridge_started(self, bridge: Bridge) -> None:
                signal.raise_signal(signal.SIGUSR1)

        def sync() -> None:
            with pytest.raises(TimeUp):
                await_(immediate())

        primary: Any = Listening([])
        listener.set_primary(primary)
        added(Interrupted())
        before = signal.signal(signal.SIGUSR1, raise_time_up)
        try:
            backend.run(greenback.with_portal_run_sync, sync)
        finally:
            signal.signal(signal.SIGUSR1, before)
        assert bridges_in(primary.calls) == [(STARTED, 1), (FINISHED, 1, TimeUp)]
