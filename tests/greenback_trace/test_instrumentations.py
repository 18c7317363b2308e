"""Spans of instrumented libraries, in one trace with those of bridges."""

from __future__ import annotations

import asyncio
import contextvars
import logging
import sqlite3
from typing import Any, Iterator, List

import pytest

import greenback
import greenback_trace
from greenback_trace import Config

pytest.importorskip("opentelemetry.sdk.trace", reason="these tests need greenback[report]")
pytest.importorskip("opentelemetry.instrumentation.sqlite3")

from opentelemetry import baggage, context
from opentelemetry.instrumentation.sqlite3 import SQLite3Instrumentor
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter


@pytest.fixture
def provider() -> Iterator[TracerProvider]:
    provider = TracerProvider(shutdown_on_exit=False)
    greenback_trace.enable(config=Config(span_rate=0), tracer_provider=provider)
    yield provider
    greenback_trace.disable()


@pytest.fixture
def exporter(provider: TracerProvider) -> InMemorySpanExporter:
    exporter = InMemorySpanExporter()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    return exporter


@pytest.fixture(autouse=True)
def _nothing_fails_to_detach(caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    caplog.set_level(logging.DEBUG, "opentelemetry.context")
    yield
    assert [r for r in caplog.records if r.name == "opentelemetry.context"] == []


def parent_of(spans: List[Any], child: Any) -> Any:
    return next(s for s in spans if child.parent and s.context.span_id == child.parent.span_id)


class TestClientLibraries:
    def test_sqlite3(self, backend: Any, provider: Any, exporter: Any) -> None:
        """A query inside a bridge's coroutine is the child of the bridge."""

        async def query() -> None:
            await backend.sleep(0)
            connection = instrumentor.instrument_connection(sqlite3.connect(":memory:"), provider)
            connection.cursor().execute("SELECT 1")
            connection.close()

        instrumentor = SQLite3Instrumentor()
        backend.run(greenback.with_portal_run_sync, lambda: greenback.await_(query()))
        spans = exporter.get_finished_spans()
        (child,) = [span for span in spans if span.name == "SELECT"]
        assert parent_of(spans, child).name.startswith("await_ ")

    def test_httpx(self, backend: Any, provider: Any, exporter: Any) -> None:
        """A request inside a bridge's coroutine is the child of the bridge."""
        import threading
        from http.server import BaseHTTPRequestHandler, HTTPServer

        httpx = pytest.importorskip("httpx")
        otel = pytest.importorskip("opentelemetry.instrumentation.httpx")

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                self.send_response(204)
                self.end_headers()

            def log_message(self, *args: Any) -> None:
                pass

        async def request(url: str) -> None:
            async with httpx.AsyncClient(trust_env=False) as client:
                otel.HTTPXClientInstrumentor.instrument_client(client, tracer_provider=provider)
                assert (await client.get(url)).status_code == 204

        with HTTPServer(("127.0.0.1", 0), Handler) as server:
            thread = threading.Thread(target=server.serve_forever)
            thread.start()
            try:
                url = f"http://127.0.0.1:{server.server_port}/"
                backend.run(greenback.with_portal_run_sync, lambda: greenback.await_(request(url)))
            finally:
                server.shutdown()
                thread.join()
        spans = exporter.get_finished_spans()
        (child,) = [span for span in spans if span.name == "GET"]
        assert parent_of(spans, child).name.startswith("await_ ")


class TestContext:
    def test_baggage_survives(self, backend: Any, exporter: Any) -> None:
        """Baggage that a coroutine attaches is there after its bridge, and the span is not."""
        from opentelemetry import trace

        async def attach() -> None:
            context.attach(baggage.set_baggage("user", "7"))
            await backend.sleep(0)

        def program() -> None:
            greenback.await_(attach())
            assert baggage.get_baggage("user") == "7"
            assert not trace.get_current_span().get_span_context().is_valid

        backend.run(greenback.with_portal_run_sync, program)
        assert len(exporter.get_finished_spans()) == 2

    def test_ends_in_another_context(self, exporter: Any) -> None:
        """A bridge closed in another contextvars context than it began in ends its span."""

        async def main() -> None:
            async def park() -> None:
                await asyncio.get_running_loop().create_future()

            coroutine = greenback.with_portal_run_sync(lambda: greenback.await_(park()))
            contextvars.copy_context().run(coroutine.send, None)
            contextvars.copy_context().run(coroutine.close)

        asyncio.run(main())
        assert len(exporter.get_finished_spans()) == 2

    def test_cancelled(self, backend: Any, exporter: Any) -> None:
        """A cancelled bridge ends its span."""

        async def program(cancel: Any) -> None:
            def bridge() -> None:
                cancel()
                greenback.await_(backend.sleep(3600))

            await greenback.with_portal_run_sync(bridge)

        backend.run(backend.cancelled_in, program)
        assert len(exporter.get_finished_spans()) == 2

    def test_disabled_during_a_bridge(self, backend: Any, exporter: Any) -> None:
        """A bridge during which tracing is disabled leaves the context as it was."""

        async def disable() -> None:
            greenback_trace.disable()
            await backend.sleep(0)

        def program() -> None:
            before = dict(context.get_current())
            greenback.await_(disable())
            assert dict(context.get_current()) == before

        backend.run(greenback.with_portal_run_sync, program)
