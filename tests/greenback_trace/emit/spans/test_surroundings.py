"""Spans of bridges beside other spans, instruments and SDKs."""

from __future__ import annotations

import ctypes
import gc
import sys
import threading
import time
from typing import Any

import pytest
from opentelemetry import trace
from opentelemetry.sdk.trace import SpanProcessor, TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

import greenback
import greenback_trace

from .tracing import Tracing, attributes, bridge_to_nop, last_part, nop

pytest.importorskip("opentelemetry.sdk.trace", reason="these tests need greenback[report]")


class TestSurroundings:
    def test_disabled_during_a_bridge(self, backend: Any) -> None:
        """If tracing ends during a bridge, the bridge's span does not stay current."""

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
        """An instrument that is added and removed during a bridge changes no span."""
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
        """If tracing with an instrument beside it ends during a bridge, no span stays current."""
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
        """An exporter that bridges is counted, but gets no span: it would go on for ever."""

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
        """An export in another thread gets no spans: the SDK asks for that."""
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
        # force_flush() exports in its caller's thread, shutdown() in the thread of the processor.
        processor.shutdown()
        assert exported.acquire(timeout=30)
        assert len(exporter.get_finished_spans()) == len(tracing.spans()) == 2
        assert sum(site.bridges for site in greenback_trace.snapshot().sites) == 2

    def test_inside_the_sdk(self, backend: Any) -> None:
        """Bridges inside of a call of the SDK get no span: its locks are not reentrant."""

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
        """A finalizer that can run in the middle of ContextVar.set() gets no span.

        To set a variable there frees an object that CPython before 3.12 is working on: it crashes.
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
        """A collection in another thread leaves out no span in this one."""
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
        """A collection that begins or ends in another thread at any moment leaves out no span."""
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
        """An exception that a signal handler raises during a collection is not lost."""
        interrupt: Any = ctypes.pythonapi.PyErr_SetInterrupt
        interrupt.argtypes = [ctypes.py_object, ctypes.py_object]
        interrupt.restype = None
        before = list(gc.callbacks)
        Tracing().enable()
        gc.collect()  # so that no finalizer of another test is interrupted
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
        """Debug mode goes on watching the collector when there are no more spans."""
        before = list(gc.callbacks)
        tracing = Tracing()
        tracing.enable(mode="debug")
        watched = list(gc.callbacks)
        tracing.provider.shutdown()
        assert gc.callbacks == watched
        greenback_trace.disable()
        assert gc.callbacks == before

    def test_slow_step(self, backend: Any) -> None:
        """The span of a bridge that held the event loop for too long has that time."""

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
