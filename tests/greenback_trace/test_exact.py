"""Nothing is lost: what a program counts for itself, and what a real OTLP receiver is told."""

from __future__ import annotations

import asyncio
import gc
import itertools
import sys
import threading
import types
from contextlib import ExitStack
from typing import Any, Callable, Dict, List, Optional, Tuple

import pytest
import trio

import greenback
import greenback_trace
from greenback_trace import Config

pytest.importorskip("opentelemetry.sdk", reason="these tests need greenback[report]")
pytest.importorskip("grpc", reason="PyPy has no gRPC")

from opentelemetry.exporter.otlp.proto.grpc.metric_exporter import OTLPMetricExporter
from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader, PeriodicExportingMetricReader
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor

from .receiver import Receiver

Counted = Dict[Tuple[Any, ...], int]


class Count:
    """Counts for the program, from any thread, and from finalizers that interrupt it.

    Args:
        work: What is to be done in each portal.
    """

    def __init__(self, work: Optional[Callable[[Count, Any], None]] = None) -> None:
        self.work = littering if work is None else work
        self._ticks: Dict[Tuple[Any, ...], Any] = {}

    def add(self, *key: Any) -> None:
        # An itertools.count is one that nothing can interrupt; `+= 1` is not, on some.
        tick = self._ticks.get(key)
        if tick is None:
            tick = self._ticks.setdefault(key, itertools.count())
        next(tick)

    def result(self) -> Counted:
        """The end of it: it cannot be added to after that."""
        return {key: next(tick) for key, tick in self._ticks.items()}


@types.coroutine
def counting(count: Count, loop: Any, coroutine: Any, site: Optional[str] = None) -> Any:
    """Await *coroutine*, and count its traps: of a bridge at *site*, or of what is in a portal."""
    error: Optional[BaseException] = None
    answer = None
    traps = 0
    while True:
        try:
            if error is None:
                trap = coroutine.send(answer)
            else:
                thrown, error = error, None
                trap = coroutine.throw(thrown)
        except StopIteration as stop:
            return stop.value
        count.add("step", loop.name)
        if site is not None:
            count.add("switch", "to_loop")
            if not traps:
                count.add("suspended", site)
        traps += 1
        try:
            answer = yield trap
        except BaseException as reason:
            error = reason
        if site is not None:
            count.add("switch", "to_task")


# What a program bridges to, and from where: each function is one that counters are kept for.


async def nop() -> None:
    pass


async def raises() -> None:
    raise LookupError


async def naps(loop: Any, times: int) -> None:
    for _ in range(times):
        await loop.checkpoint()


async def raises_late(loop: Any) -> None:
    await loop.checkpoint()
    raise LookupError


async def nests(count: Count, loop: Any, depth: int) -> None:
    if depth:
        nested(count, loop, depth - 1)
    else:
        waiting(count, loop, 1)


def returning(count: Count) -> None:
    greenback.await_(nop())
    count.add("bridge", "returning", "ok")


def waiting(count: Count, loop: Any, times: int) -> None:
    greenback.await_(counting(count, loop, naps(loop, times), "waiting"))
    count.add("bridge", "waiting", "ok")


def failing(count: Count) -> None:
    try:
        greenback.await_(raises())
    except LookupError:
        count.add("bridge", "failing", "error")


def failing_late(count: Count, loop: Any) -> None:
    try:
        greenback.await_(counting(count, loop, raises_late(loop), "failing_late"))
    except LookupError:
        count.add("bridge", "failing_late", "error")


def nested(count: Count, loop: Any, depth: int) -> None:
    greenback.await_(counting(count, loop, nests(count, loop, depth), "nested"))
    count.add("bridge", "nested", "ok")


def cancelled(count: Count, loop: Any) -> None:
    loop.cancelling(cut_short, count, loop)


def cut_short(count: Count, loop: Any) -> None:
    try:
        greenback.await_(counting(count, loop, naps(loop, 1), "cut_short"))
    except loop.cancellation:
        count.add("bridge", "cut_short", "cancelled")
        raise


def through_a_chain(count: Count) -> None:
    returning(count)


def finalizing(count: Count) -> None:
    try:
        greenback.await_(nop())
    except RuntimeError:  # no portal where the collector came by
        count.add("refused")
    else:
        count.add("bridge", "finalizing", "ok")


class Litter:
    """Bridges when it is collected, or tries to."""

    def __init__(self, count: Count) -> None:
        self._count = count
        count.add("litter")

    def __del__(self) -> None:
        finalizing(self._count)


class Asyncio:
    name = "asyncio"
    cancellation = asyncio.CancelledError

    async def checkpoint(self) -> None:
        await asyncio.sleep(0)

    def run(self, async_fn: Callable[..., Any], *args: Any) -> None:
        asyncio.run(async_fn(*args))

    def cancelling(self, sync_fn: Callable[..., None], *args: Any) -> None:
        """Call something that is to be cancelled."""
        task = asyncio.current_task()
        assert task is not None
        task.cancel()
        try:
            sync_fn(*args)
        except asyncio.CancelledError:
            if sys.version_info >= (3, 11):
                task.uncancel()
        else:
            raise AssertionError("not cancelled")

    async def in_child(
        self, prepare: Callable[[Any], None], async_fn: Callable[..., Any], *args: Any
    ) -> None:
        task = asyncio.ensure_future(async_fn(*args))
        prepare(task)
        await task


class Trio:
    name = "trio"
    cancellation = trio.Cancelled
    checkpoint = staticmethod(trio.lowlevel.checkpoint)

    def run(self, async_fn: Callable[..., Any], *args: Any) -> None:
        trio.run(async_fn, *args)

    def cancelling(self, sync_fn: Callable[..., None], *args: Any) -> None:
        """Call something that is to be cancelled."""
        with trio.CancelScope() as scope:
            scope.cancel()
            sync_fn(*args)
        assert scope.cancelled_caught

    async def in_child(
        self, prepare: Callable[[Any], None], async_fn: Callable[..., Any], *args: Any
    ) -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(async_fn, *args)
            (task,) = nursery.child_tasks
            prepare(task)


def everything(count: Count, loop: Any) -> None:
    """The bridges of one portal."""
    for _ in range(10):
        returning(count)
        through_a_chain(count)
    waiting(count, loop, 1)
    waiting(count, loop, 3)
    failing(count)
    failing_late(count, loop)
    cancelled(count, loop)
    nested(count, loop, 2)


def littering(count: Count, loop: Any) -> None:
    everything(count, loop)
    Litter(count)  # which is collected here
    litter: List[Any] = [Litter(count)]
    litter.append(litter)  # and one that is collected who knows where


async def portal(count: Count, loop: Any, kind: str) -> None:
    count.add("portal", kind)
    count.add("step", loop.name)
    await counting(count, loop, in_portal(count, loop))


async def in_portal(count: Count, loop: Any) -> None:
    await loop.checkpoint()
    count.work(count, loop)
    await loop.checkpoint()


async def ensured(count: Count, loop: Any) -> None:
    await greenback.ensure_portal()
    await portal(count, loop, "task")


async def with_children(count: Count, loop: Any) -> None:
    count.add("portal", "run")
    count.add("step", loop.name)
    child = loop.in_child(nothing, portal, count, loop, "inherited")
    await counting(count, loop, child)


def nothing(task: Any) -> None:
    pass


async def every_kind(count: Count, loop: Any) -> None:
    """Portals of each kind, one after the other."""
    await greenback.with_portal_run(portal, count, loop, "run")
    count.add("portal", "run_sync")
    count.add("step", loop.name)
    await greenback.with_portal_run_sync(count.work, count, loop)
    await loop.in_child(nothing, ensured, count, loop)
    await loop.in_child(greenback.bestow_portal, portal, count, loop, "bestowed")
    await greenback.with_portal_run_tree(with_children, count, loop)


async def laps(count: Count, loop: Any, number: int) -> None:
    for _ in range(number):
        await every_kind(count, loop)


#: Bridges of `every_kind`, but for those of finalizers that are collected elsewhere.
BRIDGES_PER_LAP = 5 * (2 * 10 + 5 + 4 + 1)
THREADS = 8


def in_threads(count: Count, bridges: int) -> None:
    """At least so many bridges, over 8 threads, while another one collects garbage."""
    number = -(-bridges // (BRIDGES_PER_LAP * THREADS))
    errors: List[BaseException] = []

    def work(loop: Any) -> None:
        try:
            loop.run(laps, count, loop, number)
        except BaseException as error:
            errors.append(error)

    done = threading.Event()

    def collect() -> None:
        while not done.wait(0.02):
            gc.collect()

    threads = [
        threading.Thread(target=work, args=(Trio() if index % 2 else Asyncio(),))
        for index in range(THREADS)
    ]
    collector = threading.Thread(target=collect)
    gc.freeze()  # what is of no interest would take half of the time
    for thread in (collector, *threads):
        thread.start()
    for thread in threads:
        thread.join()
    done.set()
    collector.join()
    gc.unfreeze()
    gc.collect()
    assert not errors, errors


def name(function: str) -> str:
    return f"{__name__}.{function}"


def assert_counted(counted: Counted) -> None:
    """The totals are those that the program counted."""
    totals = greenback_trace.snapshot()
    of_sites = {
        (site.function, outcome): count
        for site in totals.sites
        for outcome, count in (
            ("ok", site.ok),
            ("error", site.errors),
            ("cancelled", site.cancelled),
        )
        if count
    }
    assert of_sites == {
        (name(key[1]), key[2]): count for key, count in counted.items() if key[0] == "bridge"
    }
    assert {site.function: site.suspended for site in totals.sites if site.suspended} == {
        name(key[1]): count for key, count in counted.items() if key[0] == "suspended"
    }
    assert totals.switches == _part(counted, "switch")
    assert {kind: each.opened for kind, each in totals.portals.items()} == _part(counted, "portal")
    assert {kind: each.active for kind, each in totals.portals.items()} == dict.fromkeys(
        totals.portals, 0
    )
    assert {name: each.steps for name, each in totals.steps.items()} == _part(counted, "step")
    assert totals.active == {"asyncio": 0, "trio": 0}
    for attribute in ("ok", "errors", "cancelled", "suspended"):
        assert sum(getattr(each, attribute) for each in totals.portals.values()) == sum(
            getattr(each, attribute) for each in totals.sites
        )
        assert sum(getattr(each, attribute) for each in totals.chains) == sum(
            getattr(each, attribute) for each in totals.sites
        )
    durations = {
        metric: sum(each.count for each in totals.durations if each.name == metric)
        for metric in {each.name for each in totals.durations}
    }
    assert durations == {
        "greenback.bridge.duration": sum(of_sites.values()),
        "greenback.switch.duration": sum(totals.switches.values()),
        "greenback.step.duration": sum(each.steps for each in totals.steps.values()),
        "greenback.portal.duration": sum(each.closed for each in totals.portals.values()),
    }


def _part(counted: Counted, what: str) -> Dict[str, int]:
    return {key[1]: count for key, count in counted.items() if key[0] == what}


def assert_received(receiver: Receiver) -> None:
    """What arrived at the receiver are the totals."""
    totals = greenback_trace.snapshot()
    assert not receiver.faults
    sums = receiver.sums
    bridges: Dict[Tuple[str, ...], int] = {}
    suspensions: Dict[Tuple[str, ...], int] = {}
    times: Dict[Tuple[str, ...], float] = {}
    waits: Dict[Tuple[str, ...], float] = {}
    for site in totals.sites:
        of_function = (site.function,)
        for outcome, count in (
            ("ok", site.ok),
            ("error", site.errors),
            ("cancelled", site.cancelled),
        ):
            if count:
                key = (site.function, outcome)
                bridges[key] = bridges.get(key, 0) + count
        suspensions[of_function] = suspensions.get(of_function, 0) + site.suspended
        times[of_function] = times.get(of_function, 0) + site.time
        waits[of_function] = waits.get(of_function, 0) + site.suspended_time
    assert sums["greenback.bridges"] == bridges
    assert sums["greenback.bridge.suspensions"] == suspensions
    assert sums["greenback.bridge.time"] == pytest.approx(times)
    assert sums["greenback.bridge.suspended_time"] == pytest.approx(waits)
    assert sums["greenback.switches"] == _keyed(totals.switches)
    assert sums["greenback.bridge.active"] == _keyed(totals.active)
    assert set(totals.active.values()) == {0}
    kinds = totals.portals.items()
    assert sums["greenback.portals"] == {(kind,): each.opened for kind, each in kinds}
    assert sums["greenback.portal.active"] == {(kind,): 0 for kind, _ in kinds}
    steps = totals.steps.items()
    assert sums["greenback.steps"] == {(library,): each.steps for library, each in steps}
    assert sums["greenback.step.time"] == pytest.approx(
        {(library,): each.time for library, each in steps}
    )
    assert sums.get("greenback.slow_steps", {}) == _keyed(totals.slow_steps)
    assert sums.get("greenback.trace.item.dropped", {}) == {
        (reason, item): count
        for item, reasons in totals.dropped.items()
        for reason, count in reasons.items()
    }


def _keyed(values: Dict[str, Any]) -> Dict[Tuple[str, ...], Any]:
    return {(key,): value for key, value in values.items()}


class Exporting:
    """An SDK whose readers export to receivers of their own, a few times a second."""

    def __init__(self, stack: ExitStack, *preferences: str) -> None:
        self.receivers = [stack.enter_context(Receiver()) for _ in preferences]
        readers = []
        with pytest.MonkeyPatch.context() as environ:
            for receiver, preference in zip(self.receivers, preferences):
                environ.setenv("OTEL_EXPORTER_OTLP_METRICS_TEMPORALITY_PREFERENCE", preference)
                exporter = OTLPMetricExporter(receiver.endpoint, insecure=True)
                readers.append(PeriodicExportingMetricReader(exporter, 200))
        self.meter_provider = MeterProvider(readers, shutdown_on_exit=False)
        stack.callback(self.meter_provider.shutdown)
        self.tracer_provider = TracerProvider(shutdown_on_exit=False)
        spans = OTLPSpanExporter(self.receivers[0].endpoint, insecure=True)
        self.tracer_provider.add_span_processor(
            BatchSpanProcessor(spans, max_queue_size=1_000_000, schedule_delay_millis=200)
        )
        stack.callback(self.tracer_provider.shutdown)

    def enable(self, **settings: Any) -> None:
        greenback_trace.enable(
            config=Config(**settings),
            meter_provider=self.meter_provider,
            tracer_provider=self.tracer_provider,
        )

    def flush(self) -> None:
        assert self.meter_provider.force_flush()
        assert self.tracer_provider.force_flush()


def stress(bridges: int, *preferences: str) -> None:
    """Run the program; its own count, the totals and what receivers are told have to be equal."""
    with ExitStack() as stack:
        exporting = Exporting(stack, *preferences)
        exporting.enable()
        count = Count()
        for _ in range(2):  # however quick the machine is, what comes later meets exported figures
            in_threads(count, bridges // 2)
            exporting.flush()
        counted = count.result()
        assert sum(each for key, each in counted.items() if key[0] == "bridge") >= bridges
        assert (
            counted["bridge", "finalizing", "ok"] + counted.get(("refused",), 0)
            == (counted["litter",])
        )
        assert_counted(counted)
        for receiver, preference in zip(exporting.receivers, preferences):
            assert receiver.exports > 1
            assert receiver.temporalities["greenback.bridges"] == preference
            assert receiver.temporalities["greenback.bridge.duration"] == preference
            assert receiver.temporalities["greenback.bridge.active"] == "cumulative"
            assert_received(receiver)


class TestStress:
    @pytest.mark.parametrize(
        ("bridges", "preferences"),
        [
            (40_000, ["cumulative", "delta"]),
            (4_000, ["cumulative"]),
            (4_000, ["delta"]),
        ],
        ids=["both", "cumulative", "delta"],
    )
    def test_nothing_is_lost(self, bridges: int, preferences: List[str]) -> None:
        """Each reader of an SDK, of whichever temporality, is told exactly what happened."""
        stress(bridges, *preferences)


def some_sites(number: int) -> List[Callable[[Count], None]]:
    """So many functions that bridge, each at a site of its own."""
    functions: Dict[str, Any] = {"__name__": __name__, "await_": greenback.await_, "nop": nop}
    source = "".join(
        f"def site_{index}(count):\n    await_(nop())\n    count.add('bridge', 'site_{index}')\n"
        for index in range(number)
    )
    exec(source, functions)
    return [functions[f"site_{index}"] for index in range(number)]


def run_sync(sync_fn: Callable[..., Any], *args: Any) -> None:
    async def main() -> None:
        await greenback.with_portal_run_sync(sync_fn, *args)

    asyncio.run(main())


@pytest.mark.usefixtures("switching_often")
class TestSites:
    def test_more_than_are_kept(self) -> None:
        """Bridges of sites over the limit count as _OTHER's, and one is told how many sites."""
        count = Count()
        sites = some_sites(50)

        def program() -> None:
            for _ in range(3):
                for site in sites:
                    site(count)

        with ExitStack() as stack:
            exporting = Exporting(stack, "cumulative", "delta")
            exporting.enable(sites=20, spans="none")
            threads = [threading.Thread(target=run_sync, args=(program,)) for _ in range(4)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
            exporting.flush()
            counted = count.result()
            for receiver in exporting.receivers:
                bridges = receiver.sums["greenback.bridges"]
                assert len(bridges) == 21
                other = bridges.pop(("_OTHER", "ok"))
                assert all(
                    each == counted["bridge", function.rpartition(".")[2]]
                    for (function, _), each in bridges.items()
                )
                assert other + sum(bridges.values()) == sum(counted.values()) == 4 * 3 * 50
                assert receiver.sums["greenback.trace.item.dropped"]["limit", "site"] == 30


class TestMeasurements:
    @pytest.mark.parametrize("rate", [0, 20, 500])
    def test_over_the_rate(self, rate: int) -> None:
        """What an SDK's histograms are not told of is counted as dropped, to the last one."""
        with ExitStack() as stack:
            exporting = Exporting(stack, "cumulative", "delta")
            exporting.enable(measurement_rate=rate, spans="none")
            in_threads(Count(), 5_000)
            exporting.flush()
            totals = greenback_trace.snapshot()
            happened = (
                sum(site.bridges for site in totals.sites)
                + sum(totals.switches.values())
                + sum(each.steps for each in totals.steps.values())
                + sum(each.closed for each in totals.portals.values())
            )
            for receiver in exporting.receivers:
                assert set(receiver.measured) <= {each.name for each in totals.durations}
                measured = sum(sum(each.values()) for each in receiver.measured.values())
                dropped = receiver.sums.get("greenback.trace.item.dropped", {})
                assert measured > 0
                assert measured + dropped.get(("rate_limit", "measurement"), 0) == happened


class TestSpans:
    @pytest.mark.parametrize("rate", [0, 20])
    def test_over_the_rate(self, rate: int) -> None:
        """Each bridge and each portal has a span that arrives, or is counted as one left out."""
        count = Count()

        def program() -> None:
            for _ in range(10):
                everything(count, Asyncio())

        with ExitStack() as stack:
            exporting = Exporting(stack, "cumulative", "delta")
            exporting.enable(span_rate=rate)
            for _ in range(3):
                run_sync(program)
            exporting.flush()
            totals = greenback_trace.snapshot()
            happened = (
                sum(site.bridges for site in totals.sites) + totals.portals["run_sync"].opened
            )
            spans = exporting.receivers[0].spans
            assert len({span.span_id for span in spans}) == len(spans)
            assert (len(spans) == happened) == (rate == 0)
            for receiver in exporting.receivers:
                dropped = receiver.sums.get("greenback.trace.item.dropped", {})
                assert len(spans) + dropped.get(("rate_limit", "span"), 0) == happened

    @pytest.mark.usefixtures("switching_often")
    def test_over_the_rate_in_threads(self) -> None:
        """The same if several threads are over the limit at once."""
        with ExitStack() as stack:
            exporting = Exporting(stack, "cumulative")
            exporting.enable(span_rate=50)
            in_threads(Count(everything), 5_000)
            exporting.flush()
            totals = greenback_trace.snapshot()
            happened = sum(site.bridges for site in totals.sites) + sum(
                each.opened for each in totals.portals.values()
            )
            (receiver,) = exporting.receivers
            dropped = receiver.sums["greenback.trace.item.dropped"]["rate_limit", "span"]
            assert len(receiver.spans) + dropped == happened


def growing() -> Dict[Tuple[Any, ...], float]:
    """All that a snapshot has which can only grow."""
    totals = greenback_trace.snapshot()
    values: Dict[Tuple[Any, ...], float] = {}
    of_bridges = ("ok", "errors", "cancelled", "suspended", "time", "suspended_time")
    for site in totals.sites:
        for attribute in of_bridges:
            values["site", site.function, site.line, attribute] = getattr(site, attribute)
    for kind, portals in totals.portals.items():
        for attribute in (*of_bridges, "opened", "closed"):
            values["portal", kind, attribute] = getattr(portals, attribute)
    for library, steps in totals.steps.items():
        values["step", library] = steps.steps
        values["step time", library] = steps.time
    for direction, switches in totals.switches.items():
        values["switch", direction] = switches
    for each in totals.durations:
        values["duration", each.name, tuple(sorted(each.attributes.items()))] = each.count
    return values


def exported(reader: InMemoryMetricReader) -> Dict[Tuple[Any, ...], float]:
    """All counters that a reader has collected."""
    data = reader.get_metrics_data()
    assert data is not None
    return {
        (metric.name, *sorted((point.attributes or {}).items())): getattr(point, "value", 0)
        for resource in data.resource_metrics
        for scope in resource.scope_metrics
        for metric in scope.metrics
        if getattr(metric.data, "is_monotonic", False)
        for point in metric.data.data_points
    }


class TestReaders:
    def test_snapshots_never_go_backwards(self) -> None:
        """In snapshots that are taken while threads count, come and go, no number shrinks."""
        assert_grows(growing)

    def test_collections_never_go_backwards(self) -> None:
        """The same for a reader of metrics."""
        reader = InMemoryMetricReader()
        provider = MeterProvider([reader], shutdown_on_exit=False)
        assert_grows(lambda: exported(reader), provider)


def assert_grows(
    read: Callable[[], Dict[Tuple[Any, ...], float]], provider: Optional[MeterProvider] = None
) -> None:
    config = Config(spans="none")
    greenback_trace.enable(config=config, meter_provider=provider)
    count = Count()
    loops: List[Any] = [Asyncio(), Trio()]
    for loop in loops:
        loop.run(laps, count, loop, 1)  # so that there is something to read
    backwards: List[Any] = []
    errors: List[BaseException] = []
    done = threading.Event()

    def keep_reading() -> None:
        try:
            before = read()
            while not done.is_set():
                now = read()
                backwards.extend(
                    (key, value, now.get(key, 0))
                    for key, value in before.items()
                    if now.get(key, 0) < value
                )
                before = now
        except BaseException as error:
            errors.append(error)

    readers = [threading.Thread(target=keep_reading) for _ in range(2)]
    for reader in readers:
        reader.start()
    for _ in range(15):  # short-lived threads, whose counts others take over
        threads = [threading.Thread(target=loop.run, args=(laps, count, loop, 2)) for loop in loops]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    done.set()
    for reader in readers:
        reader.join()
    assert not errors, errors
    assert not backwards, backwards[:5]
    gc.collect()
    assert_counted(count.result())
