"""Spans, with the real SDK."""

from __future__ import annotations

import sys
from contextlib import asynccontextmanager
from typing import Any, AsyncIterator, Callable, Iterator, Optional

import pytest
from opentelemetry import baggage, context, trace
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.sampling import ALWAYS_OFF, ALWAYS_ON, ParentBased, Sampler

import greenback
import greenback_trace

from .tracing import Tracing, attributes, bridge_to_nop, fail

pytest.importorskip("opentelemetry.sdk.trace", reason="these tests need greenback[report]")


def parent_id(span: ReadableSpan) -> Optional[int]:
    return span.parent.span_id if span.parent is not None else None


def id_of(span: Any) -> int:
    return int(span.get_span_context().span_id)


class TestPortalSpan:
    def test_has_its_totals(self, backend: Any) -> None:
        """The span of a portal ends with the totals of its bridges."""
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
        assert span.instrumentation_scope.attributes == {"greenback.engine": greenback.engine}

    def test_is_never_current(self, backend: Any) -> None:
        """In a portal, the span from outside is current. It is the parent of the portal's span."""
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
        """The span of a bridge has its sync chain, its awaitable, and its outcome."""
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
        """The name of an awaitable is found without running its code."""

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
        """The span of a bridge that raises has an error status and the type of the error only."""
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
        """The span of a cancelled bridge has no error status."""
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
        """In a portal that lasts as long as its task, a bridge without another parent is a root."""
        tracing = Tracing()
        tracing.enable()

        async def program() -> None:
            await greenback.ensure_portal()
            bridge_to_nop()

        backend.run(program)
        (span,) = tracing.bridges()
        assert span.parent is None

    def test_is_current_for_its_coroutine(self, backend: Any) -> None:
        """Spans that the coroutine makes are children of the bridge, also after it has waited."""
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
        """The caller keeps what a coroutine attaches to the context, without the bridge's span."""
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
        """To leave a block that a bridge has entered does not make its span current again."""
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
        """To detach a context that a coroutine has attached does not, either."""
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
        """Below a parent that is not sampled, the sampler is not asked, and the context stays."""
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
        """The portal of one call is the root of a trace: the sampler is asked once per trace.

        Below a span that the application makes current in the call, another trace begins.
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
