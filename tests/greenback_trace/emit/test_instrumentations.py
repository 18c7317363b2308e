"""Spans of instrumented libraries, in one trace with those of bridges."""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import gc
import logging
import sqlite3
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer
from typing import Any, Generator, Iterator, List, Tuple

import greenlet
import pytest

import greenback
import greenback_trace
from greenback_trace import Config

pytest.importorskip("opentelemetry.sdk.trace", reason="these tests need greenback[report]")
pytest.importorskip("opentelemetry.instrumentation.sqlite3")

from opentelemetry import baggage, context, trace
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
    # Not `caplog.records`: these are now the records of the teardown.
    assert [r for r in caplog.get_records("call") if r.name == "opentelemetry.context"] == []


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


def last_part(name: str) -> str:
    return name.replace(" ", ".").rpartition(".")[2]


def tree(spans: Any, above: Any = None) -> Tuple[Any, ...]:
    """The last part of each span's name, with the tree of its children, in order of time."""
    parent_id = None if above is None else above.context.span_id
    children = [s for s in spans if (s.parent.span_id if s.parent else None) == parent_id]
    return tuple(
        (last_part(span.name), tree(spans, span))
        for span in sorted(children, key=lambda span: int(span.start_time))
    )


def ancestry(spans: Any, name: str) -> List[str]:
    """The names of a span and of its ancestors up to the root. No other span has its name."""
    (span,) = [each for each in spans if each.name == name]
    names = [name]
    while span.parent is not None:
        span = parent_of(spans, span)
        names.append(span.name)
    return names


class TestOneTrace:
    """A span of the application, a bridge in it, and several libraries in that."""

    def test_all_together(self, backend: Any, provider: Any, exporter: Any) -> None:
        """The span of each library is below the bridge that called it, in one trace."""
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

    def test_baggage_and_portals_in_tasks(
        self, provider: Any, exporter: Any, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Baggage and parents reach a task with its own portal, and its request."""
        aiohttp = pytest.importorskip("aiohttp")
        client = pytest.importorskip("opentelemetry.instrumentation.aiohttp_client")
        otel = pytest.importorskip("opentelemetry.instrumentation.asyncio")
        monkeypatch.setenv("OTEL_PYTHON_ASYNCIO_COROUTINE_NAMES_TO_TRACE", "work")

        async def fetch(url: str) -> None:
            configs = [client.create_trace_config(tracer_provider=provider)]
            async with aiohttp.ClientSession(trace_configs=configs) as session:
                async with session.get(url) as response:
                    assert response.status == 204

        def in_task(url: str) -> None:
            greenback.await_(fetch(url))
            query(provider)

        async def work(url: str) -> None:
            assert baggage.get_baggage("user") == "7"
            await greenback.with_portal_run_sync(in_task, url)
            context.attach(baggage.set_baggage("user", "of the task"))

        async def start(url: str) -> None:
            context.attach(baggage.set_baggage("user", "7"))
            await asyncio.gather(work(url))
            query(provider)

        def handle(url: str) -> None:
            greenback.await_(start(url))
            greenback.await_(fetch(url))

        async def request(url: str) -> None:
            with provider.get_tracer("application").start_as_current_span("request") as span:
                await greenback.with_portal_run_sync(handle, url)
                assert trace.get_current_span() is span
                assert baggage.get_baggage("user") == "7"

        instrumentor = otel.AsyncioInstrumentor()
        instrumentor.instrument(tracer_provider=provider)
        try:
            with http_server() as url:
                asyncio.run(request(url))
        finally:
            instrumentor.uninstrument()
        started = (
            ("coro-work", ()),
            ("run_sync", ()),
            ("in_task", (("GET", ()),)),
            ("SELECT", ()),
            ("SELECT", ()),
        )
        expected = (
            ("run_sync", ()),
            ("handle", started),
            ("handle", (("GET", ()),)),
        )
        assert tree(exporter.get_finished_spans()) == (("request", expected),)


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


class YieldOnce:
    """An awaitable for coroutines that a test drives by hand."""

    def __await__(self) -> Generator[None, None, None]:
        yield


async def yield_once() -> None:
    await YieldOnce()


def last_parts(exporter: InMemorySpanExporter) -> List[str]:
    return [last_part(span.name) for span in exporter.get_finished_spans()]


class TestContext:
    def test_baggage_survives(self, backend: Any, exporter: Any) -> None:
        """Baggage that a coroutine attaches stays after its bridge; the bridge's span does not."""

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
        """A bridge that ends in another contextvars context ends its span."""

        async def main() -> None:
            async def park() -> None:
                await asyncio.get_running_loop().create_future()

            coroutine = greenback.with_portal_run_sync(lambda: greenback.await_(park()))
            contextvars.copy_context().run(coroutine.send, None)
            contextvars.copy_context().run(coroutine.close)

        asyncio.run(main())
        assert len(exporter.get_finished_spans()) == 2

    def test_ends_in_another_greenlet(self, exporter: Any) -> None:
        """A bridge that ends in another greenlet ends its span."""

        def program() -> None:
            greenback.await_(yield_once())

        async def main() -> None:
            coroutine = greenback.with_portal_run_sync(program)
            greenlet.greenlet(coroutine.send).switch(None)
            with pytest.raises(StopIteration):
                greenlet.greenlet(coroutine.send).switch(None)

        asyncio.run(main())
        assert last_parts(exporter) == ["program", "run_sync"]

    def test_goes_on_in_another_context(self, provider: Any, exporter: Any) -> None:
        """If a task gets another context during a bridge, the bridge leaves that one unchanged."""

        def program() -> None:
            greenback.await_(yield_once())

        async def main() -> None:
            coroutine = greenback.with_portal_run_sync(program)
            contextvars.copy_context().run(coroutine.send, None)
            with provider.get_tracer("application").start_as_current_span("other") as span:
                with pytest.raises(StopIteration):
                    coroutine.send(None)
                assert trace.get_current_span() is span

        asyncio.run(main())
        assert last_parts(exporter) == ["program", "run_sync", "other"]

    def test_inside_context_run(self, backend: Any, provider: Any, exporter: Any) -> None:
        """A bridge inside `Context.run` is below the span there; its baggage stays in there."""

        async def attach() -> None:
            await backend.sleep(0)
            context.attach(baggage.set_baggage("user", "7"))

        def bridge() -> None:
            before = trace.get_current_span()
            greenback.await_(attach())
            assert trace.get_current_span() is before
            assert baggage.get_baggage("user") == "7"

        def program() -> None:
            with provider.get_tracer("application").start_as_current_span("request") as span:
                contextvars.copy_context().run(bridge)
                assert trace.get_current_span() is span
                assert baggage.get_baggage("user") is None

        backend.run(greenback.with_portal_run_sync, program)
        expected = (("run_sync", ()), ("request", (("bridge", ()),)))
        assert tree(exporter.get_finished_spans()) == expected

    def test_collected_with_its_coroutine(self, exporter: Any) -> None:
        """A bridge whose coroutine is collected while it waits ends its span."""

        def program() -> None:
            greenback.await_(yield_once())

        async def main() -> None:
            coroutine = greenback.with_portal_run_sync(program)
            contextvars.copy_context().run(coroutine.send, None)
            del coroutine
            for _ in range(3):
                gc.collect()

        asyncio.run(main())
        assert last_parts(exporter) == ["program", "run_sync"]

    def test_in_a_killed_greenlet(self, provider: Any, exporter: Any) -> None:
        """If the program kills a greenlet of its own, the bridge in it ends its span."""

        async def leave() -> None:
            outer = greenlet.getcurrent().parent
            assert outer is not None
            outer.switch()

        def bridge() -> None:
            greenback.await_(leave())

        def program() -> None:
            with provider.get_tracer("application").start_as_current_span("request") as span:
                parked = greenlet.greenlet(bridge)
                parked.switch()
                assert trace.get_current_span() is span
                parked.throw()
                assert trace.get_current_span() is span

        asyncio.run(greenback.with_portal_run_sync(program))
        assert last_parts(exporter) == ["bridge", "request", "run_sync"]

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
        """If tracing is disabled during a bridge, the context is as before the bridge."""

        async def disable() -> None:
            greenback_trace.disable()
            await backend.sleep(0)

        def program() -> None:
            before = dict(context.get_current())
            greenback.await_(disable())
            assert dict(context.get_current()) == before

        backend.run(greenback.with_portal_run_sync, program)
