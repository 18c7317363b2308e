"""Spans of instrumented libraries, in one trace with those of bridges."""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import logging
import sqlite3
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer
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


@contextlib.contextmanager
def http_server() -> Iterator[str]:
    """A server that answers every request, and its URL."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(204)
            self.end_headers()

        def log_message(self, *args: Any) -> None:
            pass

    with HTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}/"
        finally:
            server.shutdown()
            thread.join()


async def get(url: str, provider: TracerProvider) -> None:
    import httpx
    from opentelemetry.instrumentation.httpx import HTTPXClientInstrumentor

    async with httpx.AsyncClient(trust_env=False) as client:
        HTTPXClientInstrumentor.instrument_client(client, tracer_provider=provider)
        assert (await client.get(url)).status_code == 204


def query(provider: TracerProvider) -> None:
    instrumentor = SQLite3Instrumentor()
    connection = instrumentor.instrument_connection(sqlite3.connect(":memory:"), provider)
    connection.cursor().execute("SELECT 1")
    connection.close()


def ancestry(spans: Any, name: str) -> List[str]:
    """The name of the only span of that name, and of its ancestors up to the root."""
    (span,) = [each for each in spans if each.name == name]
    names = [name]
    while span.parent is not None:
        span = parent_of(spans, span)
        names.append(span.name)
    return names


class TestOneTrace:
    """An application's span, a bridge, and in it several libraries at once."""

    def test_all_together(self, backend: Any, provider: Any, exporter: Any) -> None:
        """Every library's span is below the bridge that it was called in, in one trace."""
        pytest.importorskip("opentelemetry.instrumentation.httpx")
        tracer = provider.get_tracer("application")

        async def page(url: str) -> None:
            await get(url, provider)
            query(provider)

        def fetch_page(url: str) -> None:
            greenback.await_(page(url))

        async def request(url: str) -> None:
            with tracer.start_as_current_span("request"):
                await greenback.with_portal_run_sync(fetch_page, url)

        with http_server() as url:
            backend.run(request, url)
        spans = exporter.get_finished_spans()
        assert len({span.context.trace_id for span in spans}) == 1
        bridge = [name for name in (span.name for span in spans) if name.startswith("await_ ")]
        assert ancestry(spans, "GET") == ["GET", *bridge, "request"]
        assert ancestry(spans, "SELECT") == ["SELECT", *bridge, "request"]
        assert ancestry(spans, "portal run_sync") == ["portal run_sync", "request"]

    def test_with_that_of_asyncio(
        self, provider: Any, exporter: Any, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """A task that a bridge's coroutine creates is below the bridge, as is its request."""
        otel = pytest.importorskip("opentelemetry.instrumentation.asyncio")
        pytest.importorskip("opentelemetry.instrumentation.httpx")
        monkeypatch.setenv("OTEL_PYTHON_ASYNCIO_COROUTINE_NAMES_TO_TRACE", "get")
        tracer = provider.get_tracer("application")
        instrumentor = otel.AsyncioInstrumentor()

        async def page(url: str) -> None:
            await asyncio.create_task(get(url, provider))
            query(provider)

        def fetch_page(url: str) -> None:
            greenback.await_(page(url))

        async def request(url: str) -> None:
            await greenback.ensure_portal()
            with tracer.start_as_current_span("request"):
                fetch_page(url)

        instrumentor.instrument(tracer_provider=provider)
        try:
            with http_server() as url:
                asyncio.run(request(url))
        finally:
            instrumentor.uninstrument()
        spans = exporter.get_finished_spans()
        (bridge,) = [name for name in (span.name for span in spans) if name.startswith("await_ ")]
        # asyncio's instrumentation does not make its span the current one.
        for name in ("asyncio coro-get", "GET", "SELECT"):
            assert ancestry(spans, name) == [name, bridge, "request"]


class TestClientLibraries:
    def test_sqlite3(self, backend: Any, provider: Any, exporter: Any) -> None:
        """A query inside a bridge's coroutine is the child of the bridge."""

        async def wait_and_query() -> None:
            await backend.sleep(0)
            query(provider)

        backend.run(greenback.with_portal_run_sync, lambda: greenback.await_(wait_and_query()))
        spans = exporter.get_finished_spans()
        (child,) = [span for span in spans if span.name == "SELECT"]
        assert parent_of(spans, child).name.startswith("await_ ")

    def test_httpx(self, backend: Any, provider: Any, exporter: Any) -> None:
        """A request inside a bridge's coroutine is the child of the bridge."""
        pytest.importorskip("opentelemetry.instrumentation.httpx")
        with http_server() as url:
            request = get(url, provider)
            backend.run(greenback.with_portal_run_sync, lambda: greenback.await_(request))
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
