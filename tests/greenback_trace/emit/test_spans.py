"""Spans, with the real SDK."""

from __future__ import annotations

import ctypes
import gc
import sys
import threading
import time
from contextlib import asynccontextmanager
from typing import Any, AsyncIterator, Callable, Dict, Iterator, List, Optional

import pytest

import greenback
import greenback_trace
from greenback_trace import Config

pytest.importorskip("opentelemetry.sdk.trace", reason="these tests need greenback[report]")

from opentelemetry import baggage, context, trace
from opentelemetry.sdk.trace import ReadableSpan, SpanProcessor, TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.sdk.trace.sampling import ALWAYS_OFF, ALWAYS_ON, ParentBased, Sampler


class Tracing:
    """Tracing into memory."""

    def __init__(self, sampler: Sampler = ALWAYS_ON) -> None:
        self.exporter = InMemorySpanExporter()
        self.provider = TracerProvider(sampler=sampler, shutdown_on_exit=False)
        self.provider.add_span_processor(SimpleSpanProcessor(self.exporter))
        self.tracer = self.provider.get_tracer("application")

    def enable(self, **settings: Any) -> None:
        greenback_trace.enable(
            config=Config(**{"span_rate": 0, **settings}), tracer_provider=self.provider
        )

    def spans(self) -> List[ReadableSpan]:
        return list(self.exporter.get_finished_spans())

    def named(self, name: str) -> ReadableSpan:
        (found,) = [span for span in self.spans() if span.name.endswith(name)]
        return found

    def bridges(self) -> List[ReadableSpan]:
        return [span for span in self.spans() if span.name.startswith("await_ ")]


def attributes(span: ReadableSpan) -> Dict[str, Any]:
    return dict(span.attributes or {})


def last_part(name: str) -> str:
    """Before Python 3.11, a function inside of another one has only this part of its name."""
    return name.replace(" ", ".").rpartition(".")[2]


def parent_id(span: ReadableSpan) -> Optional[int]:
    return span.parent.span_id if span.parent is not None else None


def id_of(span: Any) -> int:
    return int(span.get_span_context().span_id)


async def nop() -> None:
    pass


async def fail() -> None:
    raise LookupError("private")


def bridge_to_nop() -> None:
    greenback.await_(nop())


class TestPortalSpan:
    def test_has_its_totals(self, backend: Any) -> None:
        """The span of a portal ends with what was bridged in it."""
        tracing = Tracing()
        tracing.enable()

        def program() -> None:
            bridge_to_nop()
            greenback.await_(backend.sleep(0))
            with pytest.raises(LookupError):
                greenback.await_(fail())

        backend.run(greenback.with_portal_run_sync, program)
        span = tracing.named("portal run_sync")
        found = attributes(span)
        assert found["greenback.portal.kind"] == "run_sync"
        assert found["greenback.async_library"] == backend.name
        assert found["greenback.portal.bridges"] == 3
        assert found["greenback.portal.suspended"] == 1
        assert found["greenback.portal.errors"] == 1
        assert found["greenback.portal.switches"] == 2
        assert found["greenback.portal.bridge_time"] > found["greenback.portal.suspended_time"] > 0
        assert found["greenback.portal.step_time_max"] > 0
        assert isinstance(found["greenback.task.name"], str)
        assert span.kind is trace.SpanKind.INTERNAL
        assert span.instrumentation_scope is not None
        assert span.instrumentation_scope.name == "greenback"
        assert span.instrumentation_scope.version == greenback.__version__

    def test_is_never_current(self, backend: Any) -> None:
        """Code in a portal sees the span that was current outside, which is the portal's parent."""
        tracing = Tracing()
        tracing.enable()
        seen = []

        async def program() -> None:
            with tracing.tracer.start_as_current_span("request") as request:
                await greenback.with_portal_run_sync(lambda: seen.append(trace.get_current_span()))
                assert seen == [request]
                assert parent_id(tracing.named("portal run_sync")) == id_of(request)

        backend.run(program)


class TestBridgeSpan:
    def test_attributes(self, backend: Any) -> None:
        """The span of a bridge says where it came from, what it awaited, and how that went."""
        tracing = Tracing()
        tracing.enable()

        def site() -> None:
            greenback.await_(backend.sleep(0))

        def program() -> None:
            site()

        backend.run(greenback.with_portal_run_sync, program)
        (span,) = tracing.bridges()
        found = attributes(span)
        qualname = site.__qualname__ if sys.version_info >= (3, 11) else "site"
        assert span.name == f"await_ {qualname}"
        assert found["code.function.name"] == f"{__name__}.{qualname}"
        assert found["code.file.path"] == site.__code__.co_filename
        assert found["code.line.number"] == site.__code__.co_firstlineno + 1
        assert found["greenback.awaitable"] == "sleep"
        assert found["greenback.suspended"] is True
        assert found["greenback.switches"] == 2
        assert found["greenback.suspended_time"] > 0
        assert found["greenback.sync_depth"] == 2
        assert [
            caller.split(" ")[0].rpartition(".")[2] for caller in found["greenback.sync_chain"]
        ] == ["program", "site"]
        assert span.status.status_code is trace.StatusCode.UNSET

    def test_awaitable_of_any_kind(self, backend: Any) -> None:
        """An awaitable is named without asking it anything."""

        class Request:
            def __await__(self) -> Iterator[Any]:
                return iter(())

            def __getattr__(self, name: str) -> Any:
                raise ValueError(name)

        tracing = Tracing()
        tracing.enable()
        backend.run(greenback.with_portal_run_sync, greenback.await_, Request())
        (span,) = tracing.bridges()
        name = attributes(span)["greenback.awaitable"]
        assert name == f"{__name__}.{Request.__qualname__}"

    def test_error(self, backend: Any) -> None:
        """A bridge that raises has the status and the type of the error, and nothing else of it."""
        tracing = Tracing()
        tracing.enable()

        def program() -> None:
            with pytest.raises(LookupError):
                greenback.await_(fail())

        backend.run(greenback.with_portal_run_sync, program)
        (span,) = tracing.bridges()
        assert span.status.status_code is trace.StatusCode.ERROR
        assert attributes(span)["error.type"] == "LookupError"
        assert not span.events
        assert "private" not in span.to_json()

    def test_cancellation_is_no_error(self, backend: Any) -> None:
        """A bridge that is cancelled has no error status."""
        tracing = Tracing()
        tracing.enable()

        async def wait_forever(cancel: Callable[[], None]) -> None:
            async def until_cancelled() -> None:
                cancel()
                await backend.sleep(1000)

            await greenback.with_portal_run_sync(lambda: greenback.await_(until_cancelled()))

        backend.run(backend.cancelled_in, wait_forever)
        (span,) = tracing.bridges()
        assert span.status.status_code is trace.StatusCode.UNSET
        assert "error.type" not in attributes(span)

    def test_parent_is_the_current_span(self, backend: Any) -> None:
        """A bridge is a child of the task's current span, and linked to its portal's span."""
        tracing = Tracing()
        tracing.enable()

        def program() -> None:
            with tracing.tracer.start_as_current_span("request"):
                bridge_to_nop()

        backend.run(greenback.with_portal_run_sync, program)
        (span,) = tracing.bridges()
        assert parent_id(span) == id_of(tracing.named("request"))
        assert [link.context.span_id for link in span.links] == [
            id_of(tracing.named("portal run_sync"))
        ]

    def test_parent_is_the_portal_of_one_call(self, backend: Any) -> None:
        """Without a current span, the portal of a single call is the parent."""
        tracing = Tracing()
        tracing.enable()
        backend.run(greenback.with_portal_run_sync, bridge_to_nop)
        (span,) = tracing.bridges()
        assert parent_id(span) == id_of(tracing.named("portal run_sync"))

    def test_a_long_lived_portal_is_no_parent(self, backend: Any) -> None:
        """In a portal that lasts as long as its task, a bridge without a parent is a root."""
        tracing = Tracing()
        tracing.enable()

        async def program() -> None:
            await greenback.ensure_portal()
            bridge_to_nop()

        backend.run(program)
        (span,) = tracing.bridges()
        assert span.parent is None

    def test_is_current_for_its_coroutine(self, backend: Any) -> None:
        """Spans that the coroutine makes, also after it has waited, are children of the bridge."""
        tracing = Tracing()
        tracing.enable()

        async def client() -> None:
            with tracing.tracer.start_as_current_span("before"):
                pass
            await backend.sleep(0)
            with tracing.tracer.start_as_current_span("after"):
                pass

        def program() -> None:
            before = context.get_current()
            greenback.await_(client())
            assert context.get_current() == before

        backend.run(greenback.with_portal_run_sync, program)
        (span,) = tracing.bridges()
        assert parent_id(tracing.named("before")) == id_of(span)
        assert parent_id(tracing.named("after")) == id_of(span)

    def test_what_the_coroutine_attached_stays(self, backend: Any) -> None:
        """A coroutine can attach something for its caller; only the bridge's span is taken out."""
        tracing = Tracing()
        tracing.enable()

        async def log_in() -> None:
            context.attach(baggage.set_baggage("user", "me"))

        def program() -> None:
            with tracing.tracer.start_as_current_span("request") as request:
                greenback.await_(log_in())
                assert baggage.get_baggage("user") == "me"
                assert trace.get_current_span() is request

        backend.run(greenback.with_portal_run_sync, program)
        assert len(tracing.bridges()) == 1

    def test_a_span_that_the_coroutine_attached_stays(self, backend: Any) -> None:
        """A span that a coroutine makes current for its caller stays current."""
        tracing = Tracing()
        tracing.enable()

        async def begin() -> None:
            context.attach(trace.set_span_in_context(session))

        def program() -> None:
            greenback.await_(begin())
            assert trace.get_current_span() is session

        session = tracing.tracer.start_span("session")
        backend.run(greenback.with_portal_run_sync, program)

    def test_is_over_when_what_it_entered_is_left(self, backend: Any) -> None:
        """Leaving a block that a bridge has entered does not make that bridge current again."""
        tracing = Tracing()
        tracing.enable()

        @asynccontextmanager
        async def session() -> AsyncIterator[None]:
            with tracing.tracer.start_as_current_span("session"):
                yield

        def program() -> None:
            before = trace.get_current_span()
            with greenback.async_context(session()):
                assert trace.get_current_span() is not before
            assert trace.get_current_span() is before

        async def request() -> None:
            with tracing.tracer.start_as_current_span("request") as span:
                await greenback.with_portal_run_sync(program)
                assert trace.get_current_span() is span

        backend.run(request)
        entered, left = tracing.bridges()
        assert parent_id(entered) == id_of(tracing.named("request"))
        assert parent_id(tracing.named("session")) == id_of(entered)
        assert parent_id(left) == id_of(tracing.named("session"))
        backend.run(greenback.with_portal_run_sync, program)

    def test_is_over_when_what_it_attached_is_detached(self, backend: Any) -> None:
        """The same of what a coroutine has attached besides."""
        tracing = Tracing()
        tracing.enable()

        async def log_in() -> Any:
            return context.attach(baggage.set_baggage("user", "me"))

        def program() -> None:
            before = context.get_current()
            token = greenback.await_(log_in())
            assert baggage.get_baggage("user") == "me"
            assert trace.get_current_span() is trace.INVALID_SPAN
            context.detach(token)
            assert trace.get_current_span() is trace.INVALID_SPAN
            context.attach(before)

        backend.run(greenback.with_portal_run_sync, program)
        assert len(tracing.bridges()) == 1

    def test_nothing_under_an_unsampled_parent(self, backend: Any) -> None:
        """Where the parent is not sampled, the sampler is not asked again, and context stays."""
        asked = []

        class Asked(Sampler):
            def should_sample(self, *args: Any, **kwds: Any) -> Any:
                asked.append(args)
                return ALWAYS_OFF.should_sample(*args, **kwds)

            def get_description(self) -> str:
                return "asked"

        tracing = Tracing(ParentBased(Asked()))
        tracing.enable()
        seen = []

        async def program() -> None:
            with tracing.tracer.start_as_current_span("request") as request:
                await greenback.with_portal_run_sync(greenback.await_, current())
                assert seen == [request]

        async def current() -> None:
            seen.append(trace.get_current_span())

        backend.run(program)
        assert len(asked) == 1
        assert tracing.spans() == []
        assert sum(site.ok for site in greenback_trace.snapshot().sites) == 1

    @pytest.mark.parametrize("which", ["all", "suspended"])
    def test_nothing_in_an_unsampled_portal(self, backend: Any, which: str) -> None:
        """The portal of one call is the root of a trace: the sampler is asked once for all of it.

        Where the call has made a span of the application's current, that is another trace.
        """
        asked = []

        class Asked(Sampler):
            def should_sample(
                self, parent_context: Any, trace_id: int, name: str, *args: Any, **kwds: Any
            ) -> Any:
                asked.append(name)
                sampler = ALWAYS_ON if name == "request" else ALWAYS_OFF
                return sampler.should_sample(parent_context, trace_id, name, *args, **kwds)

            def get_description(self) -> str:
                return "asked"

        def program() -> None:
            greenback.await_(backend.sleep(0))
            with tracing.tracer.start_as_current_span("request"):
                greenback.await_(backend.sleep(0))
            with pytest.raises(LookupError):
                greenback.await_(fail())

        tracing = Tracing(ParentBased(Asked()))
        tracing.enable(spans=which, span_rate=100)
        backend.run(greenback.with_portal_run_sync, program)
        assert asked == ["portal run_sync", "request"]
        (bridge,) = tracing.bridges()
        assert parent_id(bridge) == id_of(tracing.named("request"))
        assert bridge.links == ()
        assert "span" not in greenback_trace.snapshot().dropped


class TestWhich:
    def run(self, backend: Any, which: str) -> List[str]:
        tracing = Tracing()
        tracing.enable(spans=which)

        def waits() -> None:
            greenback.await_(backend.sleep(0))

        def fails() -> None:
            with pytest.raises(LookupError):
                greenback.await_(fail())

        def program() -> None:
            bridge_to_nop()
            waits()
            fails()

        backend.run(greenback.with_portal_run_sync, program)
        return [last_part(span.name) for span in tracing.spans()]

    @pytest.mark.parametrize(
        ("which", "names"),
        [
            ("all", ["bridge_to_nop", "waits", "fails", "run_sync"]),
            ("suspended", ["waits", "fails", "run_sync"]),
            ("portals", ["run_sync"]),
            ("none", []),
        ],
    )
    def test_choice(self, backend: Any, which: str, names: List[str]) -> None:
        """GREENBACK_TRACE_SPANS says which spans there are; failed bridges are among them."""
        assert self.run(backend, which) == names

    def test_a_span_made_afterwards_has_its_true_length(self, backend: Any) -> None:
        """The span of a bridge that suspended begins when the bridge did."""
        tracing = Tracing()
        tracing.enable(spans="suspended")
        backend.run(greenback.with_portal_run_sync, lambda: greenback.await_(backend.sleep(0.02)))
        (span,) = tracing.bridges()
        (site,) = greenback_trace.snapshot().sites
        assert span.start_time is not None
        assert span.end_time is not None
        assert (span.end_time - span.start_time) / 1e9 >= site.time >= 0.015


class TestRate:
    def test_limit(self, backend: Any) -> None:
        """Above the limit there are no spans, but failed bridges have a budget of their own."""
        tracing = Tracing()
        tracing.enable(span_rate=3)

        def fails() -> None:
            with pytest.raises(LookupError):
                greenback.await_(fail())

        def program() -> None:
            for _ in range(10):
                bridge_to_nop()
            fails()

        backend.run(greenback.with_portal_run_sync, program)
        names = [last_part(span.name) for span in tracing.spans()]
        assert names == ["bridge_to_nop", "bridge_to_nop", "fails", "run_sync"]
        assert sum(site.bridges for site in greenback_trace.snapshot().sites) == 11

    def test_count_of_left_out_only_grows(self, backend: Any) -> None:
        """A bridge over the limit that gets its span in the end was never counted as dropped."""
        dropped = []

        def note() -> None:
            dropped.append(greenback_trace.snapshot().dropped.get("span", {}).get("rate_limit", 0))

        async def notes_and_fails() -> None:
            note()
            raise LookupError("private")

        def program() -> None:
            bridge_to_nop()
            for _ in range(3):
                with pytest.raises(LookupError):
                    greenback.await_(notes_and_fails())
                note()

        tracing = Tracing()
        tracing.enable(span_rate=2)
        backend.run(greenback.with_portal_run_sync, program)
        assert len(tracing.spans()) == 4  # of five, and failed ones have a budget of their own
        assert dropped == [0, 0, 0, 0, 0, 1]


class TestSurroundings:
    def test_disabled_during_a_bridge(self, backend: Any) -> None:
        """A bridge that is under way when tracing ends leaves no span behind as the current one."""

        async def disables() -> None:
            greenback_trace.disable()
            await backend.sleep(0)

        def program() -> None:
            before = trace.get_current_span()
            greenback.await_(disables())
            assert trace.get_current_span() is before

        tracing = Tracing()
        tracing.enable()
        backend.run(greenback.with_portal_run_sync, program)
        assert [last_part(span.name) for span in tracing.bridges()] == ["program"]

    def test_with_an_instrument(self, backend: Any) -> None:
        """An instrument that comes and goes while a bridge is under way changes no span."""
        from greenback.instruments import Instrument, add_instrument, remove_instrument

        class Listens(Instrument):
            def bridge_started(self, bridge: Any) -> None:
                pass

        async def adds() -> None:
            add_instrument(instrument)
            await backend.sleep(0)

        async def removes() -> None:
            remove_instrument(instrument)
            await backend.sleep(0)

        def program() -> None:
            before = trace.get_current_span()
            greenback.await_(adds())
            greenback.await_(nop())
            greenback.await_(removes())
            greenback.await_(nop())
            assert trace.get_current_span() is before

        instrument = Listens()
        tracing = Tracing()
        tracing.enable()
        backend.run(greenback.with_portal_run_sync, program)
        assert len(tracing.bridges()) == 4
        assert sum(site.ok for site in greenback_trace.snapshot().sites) == 4
        assert greenback_trace.snapshot().active == {backend.name: 0}

    def test_disabled_with_an_instrument(self, backend: Any) -> None:
        """The same holds where tracing is one listener among others."""
        from greenback.instruments import Instrument, add_instrument, remove_instrument

        class Listens(Instrument):
            def bridge_started(self, bridge: Any) -> None:
                pass

        async def disables() -> None:
            greenback_trace.disable()
            await backend.sleep(0)

        def program() -> None:
            before = trace.get_current_span()
            greenback.await_(disables())
            assert trace.get_current_span() is before

        instrument = Listens()
        add_instrument(instrument)
        try:
            tracing = Tracing()
            tracing.enable()
            backend.run(greenback.with_portal_run_sync, program)
        finally:
            remove_instrument(instrument)
        assert len(tracing.bridges()) == 1

    def test_an_exporter_that_bridges(self, backend: Any) -> None:
        """Telemetry that itself bridges is counted, but gets no span: it would never end."""

        class Bridges(InMemorySpanExporter):
            def export(self, spans: Any) -> Any:
                if greenback.has_portal():
                    greenback.await_(nop())
                return super().export(spans)

        tracing = Tracing()
        tracing.exporter = Bridges()
        tracing.provider.add_span_processor(SimpleSpanProcessor(tracing.exporter))
        tracing.enable()
        backend.run(greenback.with_portal_run_sync, bridge_to_nop)
        assert [last_part(span.name) for span in tracing.bridges()] == ["bridge_to_nop"]
        assert sum(site.bridges for site in greenback_trace.snapshot().sites) == 2

    def test_an_exporter_with_a_portal_of_its_own(self, backend: Any) -> None:
        """What an SDK does while it exports in another thread, it asks not to be traced."""
        exported = threading.Semaphore(0)

        class Bridges(InMemorySpanExporter):
            def export(self, spans: Any) -> Any:
                backend.run(greenback.with_portal_run_sync, bridge_to_nop)
                result = super().export(spans)
                exported.release()
                return result

        tracing = Tracing()
        exporter = Bridges()
        processor = BatchSpanProcessor(exporter, schedule_delay_millis=3_600_000)
        tracing.provider.add_span_processor(processor)
        tracing.enable()
        backend.run(greenback.with_portal_run_sync, bridge_to_nop)
        # A flush exports in the thread that asks for it, the end of the processor in its own one.
        processor.shutdown()
        assert exported.acquire(timeout=30)
        assert len(exporter.get_finished_spans()) == len(tracing.spans()) == 2
        assert sum(site.bridges for site in greenback_trace.snapshot().sites) == 2

    def test_inside_the_sdk(self, backend: Any) -> None:
        """The application may be inside the SDK, which is not to be entered again from there."""

        class Bridges(SpanProcessor):
            def on_end(self, span: Any) -> None:
                greenback.await_(nop())

        def program() -> None:
            elsewhere = TracerProvider(shutdown_on_exit=False)
            elsewhere.add_span_processor(Bridges())
            elsewhere.get_tracer("application").start_span("of the application").end()

        tracing = Tracing()
        tracing.enable()
        backend.run(greenback.with_portal_run_sync, program)
        assert tracing.bridges() == []
        assert sum(site.bridges for site in greenback_trace.snapshot().sites) == 1
        assert greenback_trace.snapshot().dropped["span"] == {"inside_sdk": 1}

    @pytest.mark.skipif(
        sys.implementation.name == "pypy" or sys.version_info >= (3, 12),
        reason="garbage is collected between two instructions",
    )
    def test_in_a_collection(self, backend: Any) -> None:
        """A finalizer gets no span where it may run in the middle of ContextVar.set().

        Setting a variable there frees what CPython before 3.12 is working on, and it crashes.
        """

        class Litter:
            def __init__(self) -> None:
                self.itself = self

            def __del__(self) -> None:
                greenback.await_(nop())

        def program() -> None:
            Litter()
            gc.collect()
            greenback.await_(nop())

        tracing = Tracing()
        tracing.enable()
        backend.run(greenback.with_portal_run_sync, program)
        assert [last_part(span.name) for span in tracing.bridges()] == ["program"]
        assert sum(site.bridges for site in greenback_trace.snapshot().sites) == 2

    @pytest.mark.skipif(sys.implementation.name == "pypy", reason="finalizers run in any thread")
    def test_in_a_collection_by_another_thread(self, backend: Any) -> None:
        """Garbage collected elsewhere, however long that takes, costs no span here."""
        collects = threading.Event()
        bridged = threading.Event()

        class Litter:
            def __init__(self) -> None:
                self.itself = self

            def __del__(self) -> None:
                collects.set()
                bridged.wait(30)

        def collect() -> None:
            Litter()
            gc.collect()

        def program() -> None:
            thread = threading.Thread(target=collect)
            thread.start()
            assert collects.wait(30)
            greenback.await_(nop())
            bridged.set()
            thread.join()

        tracing = Tracing()
        tracing.enable()
        backend.run(greenback.with_portal_run_sync, program)
        assert [last_part(span.name) for span in tracing.bridges()] == ["program"]
        assert "span" not in greenback_trace.snapshot().dropped

    @pytest.mark.skipif(sys.implementation.name == "pypy", reason="each collection is a long one")
    def test_while_another_thread_collects(self, backend: Any) -> None:
        """Whenever a collection begins or ends elsewhere, each bridge here has its span."""
        done = threading.Event()

        def collect() -> None:
            while not done.is_set():
                gc.collect(0)

        def program() -> None:
            for _ in range(1_000):
                greenback.await_(nop())

        tracing = Tracing()
        tracing.enable()
        collector = threading.Thread(target=collect)
        interval = sys.getswitchinterval()
        sys.setswitchinterval(1e-6)
        collector.start()
        try:
            backend.run(greenback.with_portal_run_sync, program)
        finally:
            done.set()
            collector.join()
            sys.setswitchinterval(interval)
        assert len(tracing.bridges()) == 1_000
        assert "span" not in greenback_trace.snapshot().dropped

    @pytest.mark.skipif(sys.implementation.name == "pypy", reason="has no gc.callbacks")
    def test_interrupt_in_a_collection(self) -> None:
        """What a signal handler raises while garbage is collected is not lost."""
        interrupt: Any = ctypes.pythonapi.PyErr_SetInterrupt
        interrupt.argtypes = [ctypes.py_object, ctypes.py_object]
        interrupt.restype = None
        before = list(gc.callbacks)
        Tracing().enable()
        gc.collect()  # lest a finalizer of another test is interrupted
        gc.disable()
        gc.callbacks.insert(0, interrupt)
        try:
            with pytest.raises(KeyboardInterrupt):
                gc.collect()
        finally:
            gc.callbacks.remove(interrupt)
            gc.enable()
        greenback_trace.disable()
        assert gc.callbacks == before

    @pytest.mark.skipif(sys.implementation.name == "pypy", reason="has no gc.callbacks")
    def test_debug_mode_without_spans(self) -> None:
        """Debug mode goes on watching the collector where there are no more spans."""
        before = list(gc.callbacks)
        tracing = Tracing()
        tracing.enable(mode="debug")
        watched = list(gc.callbacks)
        tracing.provider.shutdown()
        assert gc.callbacks == watched
        greenback_trace.disable()
        assert gc.callbacks == before

    def test_slow_step(self, backend: Any) -> None:
        """A bridge that held the event loop for too long says so."""

        async def holds() -> None:
            until = time.perf_counter() + 0.01
            while time.perf_counter() < until:
                pass

        def program() -> None:
            greenback.await_(holds())

        tracing = Tracing()
        tracing.enable(slow=0.005)
        backend.run(greenback.with_portal_run_sync, program)
        assert attributes(tracing.named("program"))["greenback.slow_step_time"] >= 0.01
        assert attributes(tracing.named("portal run_sync"))["greenback.portal.slow_steps"] == 1
