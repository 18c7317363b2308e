"""Counting in C: the same objects, and the same counts, as in Python."""

from __future__ import annotations

import asyncio
import gc
import importlib
import json
import sys
import threading
import weakref
from bisect import bisect_left
from contextlib import contextmanager
from pathlib import Path
from time import perf_counter_ns
from typing import Any, Callable, Dict, Iterator, List

import pytest
import trio

import greenback
import greenback_trace
from greenback._engine import bridge, choice
from greenback._engine.state import Raised, Worker, current_portal, portal_of
from greenback._listener.listener import is_primary, set_primary
from greenback._tasks.libraries import Asyncio, Trio
from greenback_trace import Config
from greenback_trace.count import counts, layout
from greenback_trace.count.totals import Observer, Totals

in_c = pytest.mark.skipif(layout.compiled is None, reason="counting is not compiled")

#: A value of the type that the attribute has, if it is no object of any type.
VALUES: Dict[str, Any] = {
    **dict.fromkeys(("closed", "ends", "is_unsampled", "is_clear", "runs"), True),
    **dict.fromkeys(("_only_portals", "_only_suspended", "_waits_for_sdk"), True),
    **dict.fromkeys(("_gives_outermost", "_looks_at_start", "_looks_for_locks", "_idle"), True),
    **dict.fromkeys(("cancelled", "errors", "ok", "suspended", "suspended_ns", "time_ns"), 1 << 62),
    **dict.fromkeys(("offset", "outer_offset"), -1),
    **dict.fromkeys(("open", "opened", "skip", "skipped_from", "unmeasured", "running_in_c"), 7),
    **dict.fromkeys(
        ("began", "opened_at", "slow_ns", "_slow_ns", "slow_steps", "started"), 1 << 62
    ),
    "_long_ns": 1 << 62,
    **dict.fromkeys(("step_max_ns", "switch_ns", "switches", "quiet_until"), 1 << 62),
}
#: The struct makes these itself.
MADE = ("running", "spares")


async def nop() -> None:
    pass


def attributes(kind: type) -> List[str]:
    return sorted(name for name in dir(kind) if not name.startswith("__"))


@in_c
class TestObjects:
    @pytest.mark.parametrize("name", layout.IN_PYTHON)
    def test_attributes(self, name: str) -> None:
        """A struct has the attributes that the class in Python has."""
        assert attributes(getattr(layout.compiled, name)) == attributes(layout.IN_PYTHON[name])

    @pytest.mark.parametrize("name", layout.IN_PYTHON)
    def test_reading_and_writing(self, name: str) -> None:
        """An attribute of a struct takes what one in Python takes, and has it afterwards."""
        for kind in (getattr(layout.compiled, name), layout.IN_PYTHON[name]):
            this = kind()
            for attribute in attributes(kind):
                if attribute in MADE:
                    assert not getattr(this, attribute)
                    assert getattr(this, attribute) is getattr(this, attribute)
                    continue
                value = VALUES.get(attribute, this)
                if name == "KindTally" and attribute == "closed":
                    value = 3
                setattr(this, attribute, value)
                assert getattr(this, attribute) == value
            del this

    @pytest.mark.parametrize("name", layout.IN_PYTHON)
    def test_cycles_are_collected(self, name: str) -> None:
        """The garbage collector sees each reference that a struct has."""

        kind = getattr(layout.compiled, name)
        slots = () if "__weakref__" in dir(kind) or name == "Running" else ("__weakref__",)
        Weak: Any = type("Weak", (kind,), {"__slots__": slots})

        for attribute in attributes(Weak):
            if attribute in VALUES or attribute in MADE:
                continue
            this = Weak()
            setattr(this, attribute, this)
            reference = weakref.ref(this)
            del this
            assert reference() is not None
            gc.collect()
            assert reference() is None, attribute

    def test_no_struct_of_another_type(self) -> None:
        """A number does not go where an object in C expects another type."""
        tally = layout.compiled.PortalTally()
        for attribute, value in (("ok", "1"), ("closed", 1), ("opened_at", None)):
            with pytest.raises(TypeError):
                setattr(tally, attribute, value)


@pytest.fixture(params=["list", "struct"])
def histogram(request: pytest.FixtureRequest) -> Any:
    """A histogram, as a list and as a struct."""
    if request.param == "list":
        return [0] * 5
    if layout.compiled is None:
        pytest.skip("counting is not compiled")
    return layout.compiled.Histogram(5)


class TestHistogram:
    def test_is_a_list_of_numbers(self, histogram: Any) -> None:
        """A histogram is read and written like a list."""
        histogram[1] += 3
        histogram[-1] = 1 << 62
        histogram[0] = -5
        assert list(histogram) == [-5, 3, 0, 0, 1 << 62]
        assert histogram == [-5, 3, 0, 0, 1 << 62]
        assert histogram != [0] * 5
        assert histogram == histogram[:]
        assert len(histogram) == 5
        assert histogram[1:] == [3, 0, 0, 1 << 62]
        assert histogram[-1] == histogram[4] == 1 << 62
        assert tuple(histogram[1:3]) == (3, 0)
        assert repr(histogram) == f"[-5, 3, 0, 0, {1 << 62}]"
        assert any(histogram)
        assert histogram[1] in histogram
        assert list(enumerate(histogram))[1] == (1, 3)
        for index in (5, -6):
            with pytest.raises(IndexError):
                histogram[index]
            with pytest.raises(IndexError):
                histogram[index] = 1
        with pytest.raises(TypeError):
            histogram["1"]
        with pytest.raises(TypeError):
            hash(histogram)

    def test_adding(self, histogram: Any) -> None:
        """A histogram of either kind is added to one of either kind."""
        histogram[2] = 4
        for total in [1] * 5, layout.histogram(5):
            counts.add_histogram(total, histogram)
            assert total[2] == 4 + (total[1] == 1)

    @in_c
    def test_what_a_struct_refuses(self) -> None:
        """A struct has numbers of 64 bits, and keeps its length."""
        this = layout.compiled.Histogram(5)
        with pytest.raises(OverflowError):
            this[1] = 1 << 63
        with pytest.raises(TypeError):
            this[1] = "1"
        with pytest.raises(TypeError):
            del this[1]
        for length in (-1, 0, 1, 100):
            with pytest.raises(ValueError, match="buckets"):
                layout.compiled.Histogram(length)


def bridges(times: int) -> None:
    for _ in range(times):
        greenback.await_(nop())


class TestBuckets:
    @pytest.mark.parametrize("microseconds", [0, 3, 30, 300, 3_000, 30_000])
    def test_the_right_one(self, microseconds: int) -> None:
        """A duration is counted in the bucket that it is in."""

        async def busy() -> None:
            end = perf_counter_ns() + microseconds * 1_000
            while perf_counter_ns() < end:
                pass

        greenback_trace.enable(config=Config(spans="none"))
        asyncio.run(_run_sync(greenback.await_, busy()))
        durations = greenback_trace.snapshot().durations
        assert {each.name for each in durations} == {
            f"greenback.{name}.duration" for name in ("bridge", "step", "portal")
        }
        for each in durations:
            assert each.counts[bisect_left(each.bounds, each.sum)] == each.count == 1


async def _run_sync(sync_fn: Callable[..., Any], *args: Any) -> None:
    await greenback.with_portal_run_sync(sync_fn, *args)


PARTS = ["", *choice.PARTS, "await_,work", "begin,drive"]
if choice.compiled is None:
    PARTS = []


class TestSameCounts:
    @pytest.mark.timeout(240)
    @pytest.mark.parametrize("spans", ["none", "all", "debug"])
    def test_of_every_engine(self, python: Any, spans: str) -> None:
        """Whichever parts of the engine are in Python, the counts are the same."""
        program = str(Path(__file__).with_name("everything.py"))
        expected = python(program, spans, GREENBACK_PURE="1")
        assert expected.returncode == 0, expected.stderr
        assert json.loads(expected.stdout)[0]["sites"]
        for parts in PARTS:
            found = python(program, spans, GREENBACK_PURE=parts)
            assert found.returncode == 0, found.stderr
            assert json.loads(found.stdout) == json.loads(expected.stdout), parts

    @pytest.mark.parametrize("first", ["await_", "Python"])
    def test_in_one_portal(self, first: str) -> None:
        """Bridges of both engines add up in one portal, one inside the other, too."""
        awaits: List[Callable[..., Any]] = [greenback.await_, bridge.await_]
        if first == "Python":
            awaits.reverse()
        active: List[int] = []

        async def inside(await_: Callable[..., Any]) -> None:
            active.append(greenback_trace.snapshot().active["asyncio"])
            await_(asyncio.sleep(0))

        def program() -> None:
            for _ in range(3):
                for await_, other in (awaits, awaits[::-1]):
                    await_(nop())
                    await_(inside(other))
                    with pytest.raises(ZeroDivisionError):
                        await_(_raises())

        greenback_trace.enable(config=Config(spans="none"))
        asyncio.run(_run_sync(program))
        assert active == [1] * 6
        found = greenback_trace.snapshot()
        assert found.active == {"asyncio": 0}
        portals = found.portals["run_sync"]
        assert (portals.ok, portals.errors, portals.suspended) == (18, 6, 6)
        assert (portals.opened, portals.closed) == (1, 1)
        assert sum(site.bridges for site in found.sites) == 24
        assert found.switches == {"to_loop": 6, "to_task": 6}


@contextmanager
def listening(totals: Totals) -> Iterator[None]:
    set_primary(totals)
    try:
        yield
    finally:
        set_primary(None)


async def _raises() -> None:
    raise ZeroDivisionError


@in_c
class TestListener:
    def test_offers_its_hooks(self) -> None:
        """Totals and spans offer hooks in C, debug mode and derived classes do not."""

        class Derived(Totals):
            pass

        assert Totals(1).c_hooks is not None
        assert Derived(1).c_hooks is None
        assert Totals(1, gives_outermost=True).c_hooks is None
        for settings, told in (
            ({"spans": "none"}, True),
            ({"spans": "all"}, True),
            ({"mode": "debug"}, False),
        ):
            greenback_trace.enable(config=Config(**settings))  # type: ignore[arg-type]
            asyncio.run(_run_sync(nothing))
            assert choice.compiled.is_told_in_c() == told
            greenback_trace.disable()

    def test_failures_are_told(self) -> None:
        """A failure of Python that C code calls is told to the observer, and the bridge goes on."""
        told: List[Exception] = []

        class Observing(Observer):
            def failed(self, error: Exception) -> None:
                told.append(error)

        class Failing:
            def bridging(self, frame: Any) -> Any:
                raise LookupError("no site")

        totals = Totals(10, observer=Observing())
        totals.sites = Failing()  # type: ignore[assignment]
        with listening(totals):
            asyncio.run(_run_sync(bridges, 2))
        assert [str(each) for each in told] == ["no site"] * 2
        assert totals.by_kind()["run_sync"].bridges == 0

    def test_late(self) -> None:
        """A bridge that goes on after its portal was closed counts when it finishes."""
        active: List[int] = []

        async def closes() -> None:
            portal = current_portal()[2]
            assert portal is not None
            totals.close_portal(portal)
            active.append(totals.active()["asyncio"])
            await asyncio.sleep(0)
            active.append(totals.active()["asyncio"])

        totals = Totals(10)
        with listening(totals):
            asyncio.run(_run_sync(greenback.await_, closes()))
        kind = totals.by_kind()["run_sync"]
        assert (kind.ok, kind.suspended, kind.opened, kind.closed) == (1, 1, 1, 1)
        assert active == [1, 1]
        assert totals.active() == {"asyncio": 0}
        assert not totals.late
        assert not totals.portals

    @pytest.mark.parametrize("await_", [greenback.await_, bridge.await_], ids=["C", "Python"])
    def test_killed(self, await_: Callable[..., Any]) -> None:
        """A bridge that is killed while it waits counts as an error that suspended."""
        totals = Totals(10)
        loop = asyncio.new_event_loop()
        with listening(totals):
            task = loop.create_task(_run_sync(await_, asyncio.sleep(1000)))
            for _ in range(3):
                loop.run_until_complete(asyncio.sleep(0))
            portal = portal_of(task)
            assert portal is not None
            assert totals.active() == {"asyncio": 1}
            portal.worker.throw()
        assert totals.active() == {"asyncio": 0}
        (tally,) = totals.portals.values()
        assert (tally.errors, tally.suspended, tally.switches) == (1, 1, 1)
        assert 0 < tally.suspended_ns < tally.time_ns
        portal.resume = None  # else the task would wait for the dead worker
        task.cancel()
        loop.run_until_complete(asyncio.wait([task]))
        loop.close()

    @pytest.mark.filterwarnings("ignore:coroutine .* was never awaited:RuntimeWarning")
    def test_recursion_limit(self) -> None:
        """Bridges that end at the limit of recursion are counted, and the next one is told of."""
        totals = Totals(10)
        entered = 0

        async def again() -> None:
            nonlocal entered
            entered += 1
            recurse()

        def recurse() -> None:
            greenback.await_(again())

        def program() -> None:
            try:
                recurse()
            except RecursionError:
                pass
            greenback.await_(nop())

        with listening(totals):
            asyncio.run(greenback.with_portal_run_sync(program))
            assert is_primary(totals)
        gc.collect()
        (kind,) = totals._counts().kinds.values()
        assert entered > 50
        # The innermost bridge may have begun without its coroutine, or been refused.
        assert kind.errors - entered in (0, 1)
        assert (kind.ok, kind.cancelled, totals.active()) == (1, 0, {"asyncio": 0})
        (library,) = totals._counts().libraries.values()
        failed = [each for ending, each in library.durations.items() if ending[0] == "error"]
        assert sum(map(counts.count_of, failed)) == kind.errors

    def test_signals(self) -> None:
        """An exception in the end of a bridge, where a signal handler may raise, is not lost."""

        class Interrupting:
            def bridge(self, *args: Any) -> None:
                if not interrupted:
                    interrupted.append(1)
                    raise KeyboardInterrupt

            def step(self, *args: Any) -> None:
                pass

            portal = step

        interrupted: List[int] = []
        caught: List[BaseException] = []

        def program() -> None:
            try:
                bridges(1)
                for _ in range(1000):
                    pass
            except KeyboardInterrupt as error:
                caught.append(error)

        totals = Totals(10)
        totals._counts()
        totals._measurements = Interrupting()  # type: ignore[assignment]
        with listening(totals):
            asyncio.run(_run_sync(program))
        assert len(caught) == 1
        assert totals.by_kind()["run_sync"].bridges == 1


def nothing() -> None:
    pass


@in_c
class TestMethods:
    """What listeners in Python call to count."""

    def test_arguments(self) -> None:
        """An object of another type is refused."""
        totals = Totals(10)
        portal: Any = greenback.instruments.Portal("task", Asyncio(None))
        running = counts.Running(totals._new_portal(portal))
        methods: Any = layout.compiled.methods["Totals"]
        for name, arguments in (
            ("start_bridge", (None, None, sys._getframe())),
            ("start_bridge", (portal, None)),
            ("resume_bridge", (None, portal, 0)),
            ("resume_bridge", (running, None, 0)),
            ("resume_bridge", (running, portal, "0")),
            ("resume_bridge", (running,)),
            ("finish_bridge", (None, None, 0)),
            ("finish_bridge", (running, None, "0")),
            ("finish_bridge", ()),
            *((f"{verb}_portal", (None,)) for verb in ("open", "enter", "close")),
            ("finish_step", (None,)),
        ):
            with pytest.raises(TypeError):
                methods[name](totals, *arguments)

    def test_finished_twice(self) -> None:
        """A second end of a bridge, after a signal handler has interrupted, counts nothing."""
        totals = Totals(10)
        portal: Any = greenback.instruments.Portal("task", Asyncio(None))
        bridge: Any = totals.start_bridge(portal, None, sys._getframe())
        assert totals.finish_bridge(bridge, None, 0) > 0
        assert totals.finish_bridge(bridge, None, 0) == 0
        assert portal.note.ok == 1


@in_c
class TestReplacedListener:
    """Tracing is disabled by code that runs while the engine is about to tell of something."""

    @pytest.fixture
    def disabled_in(self, monkeypatch: pytest.MonkeyPatch) -> Callable[[Any, str], List[bool]]:
        """Has a function of the engine disable tracing before it runs, once it is armed."""

        def arrange(owner: Any, name: str) -> List[bool]:
            armed = [False]
            original = getattr(owner, name)

            def disabling(*arguments: Any) -> Any:
                if armed[0]:
                    armed[0] = False
                    greenback_trace.disable()
                return original(*arguments)

            monkeypatch.setattr(owner, name, disabling)
            return armed

        greenback_trace.enable(config=Config(spans="none"))
        return arrange

    def test_bridge(self, disabled_in: Any) -> None:
        armed = disabled_in(Trio, "current_task")

        async def main() -> None:
            await greenback.ensure_portal()
            for armed[0] in (False, True):
                assert greenback.await_(trio.sleep(0)) is None

        trio.run(main)
        assert armed == [False]

    def test_end_of_a_portal(self, disabled_in: Any) -> None:
        armed = disabled_in(Raised, "__init__")

        async def main() -> None:
            for armed[0] in (False, True):
                with pytest.raises(ZeroDivisionError):
                    await greenback.with_portal_run_sync(divmod, 1, 0)

        asyncio.run(main())
        assert armed == [False]

    def test_beginning_of_a_portal(self, disabled_in: Any) -> None:
        armed = disabled_in(Worker, "__init__")

        async def main() -> None:
            waiting = asyncio.ensure_future(_run_sync(greenback.await_, asyncio.sleep(0.01)))
            await asyncio.sleep(0)
            armed[0] = True
            await _run_sync(nothing)
            await waiting

        # A new thread has no worker that is idle.
        thread = threading.Thread(target=asyncio.run, args=(main(),))
        thread.start()
        thread.join()
        assert armed == [False]


@in_c
class TestCalls:
    @pytest.mark.parametrize("mode", ["on", "debug"])
    def test_known_bridges(self, mode: str) -> None:
        """Bridges of known chains, and their steps, call no Python code of tracing."""
        called: List[str] = []

        def note(frame: Any, event: str, argument: object) -> None:
            if event == "call" and frame.f_globals["__name__"].startswith("greenback_trace."):
                called.append(frame.f_code.co_name)

        def program() -> None:
            for is_known in (False, False, True):
                sys.setprofile(note if is_known else None)
                for _ in range(5):
                    greenback.await_(asyncio.sleep(0))
                    bridges(1)
            sys.setprofile(None)

        greenback_trace.enable(config=Config(spans="none", mode=mode, slow=3600))
        asyncio.run(_run_sync(program))
        # A step that finds the watchdog asleep wakes it.
        assert [name for name in called if name not in ("_rouse", "_release")] == []


@in_c
class TestMemory:
    @pytest.mark.parametrize("mode", ["on", "debug"])
    @pytest.mark.parametrize(
        "program",
        ["bridges", "waits", "errors", "portals", "ensured", "late"],
    )
    def test_does_not_grow(self, program: str, mode: str) -> None:
        """10,000 bridges or portals leave no object and no reference behind."""

        def errors(times: int) -> None:
            for _ in range(times):
                try:
                    greenback.await_(_raises())
                except ZeroDivisionError:
                    pass

        def waits(times: int) -> None:
            for _ in range(times):
                greenback.await_(asyncio.sleep(0))

        async def ensured() -> None:
            await greenback.ensure_portal()
            greenback.await_(nop())

        async def main(times: int) -> None:
            if program == "portals":
                for _ in range(times):
                    await greenback.with_portal_run_sync(bridges, 1)
            elif program == "ensured":
                for _ in range(times):
                    await asyncio.create_task(ensured())
            elif program == "late":
                for _ in range(times):
                    await greenback.with_portal_run_sync(greenback.await_, nop())
            else:
                functions = {"bridges": bridges, "waits": waits, "errors": errors}
                await greenback.with_portal_run_sync(functions[program], times)

        greenback_trace.enable(config=Config(spans="none", mode=mode))
        session: Any = importlib.import_module("greenback_trace._activate")._current
        totals = session.totals

        def figures() -> List[int]:
            gc.collect()
            thread = totals._counts()
            watched = [totals, thread, counts.NO_NODE, *thread.nodes, counts.PortalTally, None]
            watched += [*thread.kinds.values(), *thread.libraries.values(), *thread.kinds]
            return [sys.getrefcount(each) for each in watched]

        async def run() -> None:
            await main(10_000)  # the first slow step makes what is made once
            references, blocks = figures(), sys.getallocatedblocks()
            await main(10_000)
            now, blocks_now = figures(), sys.getallocatedblocks()
            assert len(now) == len(references)
            # What leaks at each repetition leaks twice as much. Other threads hold references, too.
            assert max(abs(a - b) for a, b in zip(now, references)) < 5_000
            assert blocks_now - blocks < 5_000

        asyncio.run(run())
