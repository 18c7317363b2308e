"""Log events of portals and slow steps, with the real structlog."""

from __future__ import annotations

import asyncio
import json
import logging
import threading
from pathlib import Path
from typing import Any, Dict, Iterator, List

import pytest
import structlog

import greenback
import greenback_trace
from greenback_trace import Config

pytest.importorskip("opentelemetry.sdk.trace", reason="these tests need greenback[report]")

from opentelemetry.sdk.trace import TracerProvider

#: Above the limit of a busy machine, which takes a tenth of a second now and then.
NOTHING_SLOW = Config(slow=60)
PORTAL_EVENTS = ("greenback.portal.opened", "greenback.portal.closed")


async def nop() -> None:
    pass


def bridge() -> None:
    greenback.await_(nop())


class Configured:
    """The application's configuration of structlog, which keeps the events."""

    def __init__(self) -> None:
        self.events: List[Dict[str, Any]] = []

    def at(self, level: int) -> None:
        structlog.configure(
            processors=[structlog.processors.add_log_level, self.keep],
            wrapper_class=structlog.make_filtering_bound_logger(level),
        )
        greenback_trace.enable(config=NOTHING_SLOW)

    def around_the_standard_library(self, wrapper: Any) -> None:
        structlog.configure(
            processors=[self.keep],
            wrapper_class=wrapper,
            logger_factory=structlog.stdlib.LoggerFactory(),
        )
        greenback_trace.enable(config=NOTHING_SLOW)

    def keep(self, logger: Any, method: str, event: Any) -> Any:
        self.events.append(dict(event))
        raise structlog.DropEvent

    def of_portals(self) -> List[Dict[str, Any]]:
        return [event for event in self.events if event["event"] in PORTAL_EVENTS]

    def of_slow_steps(self) -> List[Dict[str, Any]]:
        """The events of slow steps, without those of steps that are still running."""
        return [event for event in self.events if event["event"] == "greenback.slow_step"]


@pytest.fixture
def configured() -> Iterator[Configured]:
    yield Configured()
    structlog.reset_defaults()


class TestPortals:
    def test_shown(self, backend: Any, configured: Configured) -> None:
        """If debug events are shown, each portal is logged at its opening and its closing."""
        configured.at(logging.DEBUG)
        backend.run(greenback.with_portal_run_sync, bridge)
        opened, closed = configured.of_portals()
        assert [event["event"] for event in (opened, closed)] == list(PORTAL_EVENTS)
        for event in (opened, closed):
            assert (event["level"], event["kind"]) == ("debug", "run_sync")
            assert event["library"] == backend.name
            assert isinstance(event["task"], str)
        assert (closed["bridges"], closed["suspended"], closed["errors"]) == (1, 0, 0)
        assert 0 < closed["bridge_time"] < closed["seconds"]
        assert closed["still_open"] is False

    def test_not_shown(self, backend: Any, configured: Configured) -> None:
        """Without debug events shown, no portal is logged."""
        configured.at(logging.INFO)
        backend.run(greenback.with_portal_run_sync, bridge)
        assert configured.of_portals() == []

    @pytest.mark.parametrize("level", [logging.DEBUG, logging.INFO])
    @pytest.mark.parametrize("wrapper", [structlog.stdlib.BoundLogger, structlog.BoundLogger])
    def test_level_of_the_standard_library(
        self,
        backend: Any,
        configured: Configured,
        caplog: pytest.LogCaptureFixture,
        level: int,
        wrapper: Any,
    ) -> None:
        """A logger of the standard library in a wrapper says which levels are shown.

        Nothing else is logged, although the generic wrapper takes every attribute for a level.
        """
        caplog.set_level(level, "greenback")
        configured.around_the_standard_library(wrapper)
        backend.run(greenback.with_portal_run_sync, bridge)
        expected = list(PORTAL_EVENTS) if level == logging.DEBUG else []
        assert [event["event"] for event in configured.events] == expected

    def test_generic_wrapper_of_another_logger(self, backend: Any, configured: Configured) -> None:
        """If the logger cannot say which levels are shown, all events are logged."""
        structlog.configure(processors=[configured.keep], wrapper_class=structlog.BoundLogger)
        greenback_trace.enable(config=NOTHING_SLOW)
        backend.run(greenback.with_portal_run_sync, bridge)
        assert [event["event"] for event in configured.events] == list(PORTAL_EVENTS)

    @pytest.mark.filterwarnings("ignore::DeprecationWarning")
    def test_wrapper_for_asyncio(
        self, backend: Any, configured: Configured, caplog: pytest.LogCaptureFixture
    ) -> None:
        """If the logger's methods are coroutines of asyncio, no event is lost, on Trio either."""
        caplog.set_level(logging.DEBUG, "greenback")
        configured.around_the_standard_library(structlog.stdlib.AsyncBoundLogger)
        backend.run(greenback.with_portal_run_sync, bridge)
        assert [event["event"] for event in configured.events] == list(PORTAL_EVENTS)

    def test_in_a_span(self, backend: Any, configured: Configured) -> None:
        """If a span is current, the events have its ids."""
        configured.at(logging.DEBUG)
        tracer = TracerProvider(shutdown_on_exit=False).get_tracer("application")

        async def request() -> None:
            with tracer.start_as_current_span("request") as span:
                context = span.get_span_context()
                expected.append((f"{context.trace_id:032x}", f"{context.span_id:016x}"))
                await greenback.with_portal_run_sync(bridge)

        expected: List[Any] = []
        backend.run(request)
        found = [(event["trace_id"], event["span_id"]) for event in configured.of_portals()]
        assert found == expected * 2

    def test_unconfigured(self, python: Any) -> None:
        """Without a configuration of structlog, portals are not logged."""
        done = python(
            "-c",
            "import asyncio, greenback\nasyncio.run(greenback.with_portal_run_sync(int))\n",
            GREENBACK_TRACE="1",
        )
        assert "greenback.summary" in done.stderr
        assert "greenback.portal" not in done.stderr

    def test_open_at_exit(self, python: Any) -> None:
        """A portal that is still open when the program ends is logged then."""
        done = python(
            "-c",
            "import asyncio, logging, structlog, greenback\n"
            "structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(10))\n"
            "async def main():\n"
            "    await greenback.ensure_portal()\n"
            "    await asyncio.sleep(3600)\n"
            "loop = asyncio.new_event_loop()\n"
            "task = loop.create_task(main())\n"
            "loop.run_until_complete(asyncio.wait([task], timeout=0.01))\n",
            GREENBACK_TRACE="1",
        )
        (closed,) = [line for line in done.stdout.splitlines() if "greenback.portal.closed" in line]
        assert "still_open=True" in closed.replace("\x1b[0m", "").replace("\x1b[36m", "").replace(
            "\x1b[35m", ""
        )


class TestSlowStep:
    def test_has_the_ids_of_the_current_span(self, backend: Any, configured: Configured) -> None:
        """The event of a slow step inside a span of the application has the ids of that span."""
        configured.at(logging.INFO)
        greenback_trace.enable(config=Config(slow=0.000_001, spans="none"))
        tracer = TracerProvider(shutdown_on_exit=False).get_tracer("application")

        def program() -> None:
            with tracer.start_as_current_span("request") as span:
                context = span.get_span_context()
                expected.append((f"{context.trace_id:032x}", f"{context.span_id:016x}"))
                greenback.await_(backend.sleep(0))

        expected: List[Any] = []
        backend.run(greenback.with_portal_run_sync, program)
        slow = configured.of_slow_steps()
        assert [(event.get("trace_id"), event.get("span_id")) for event in slow][:1] == expected

    @pytest.mark.parametrize("mode", ["on", "debug"])
    def test_has_the_ids_of_the_bridge(
        self, backend: Any, configured: Configured, tmp_path: Path, mode: str
    ) -> None:
        """If a bridge ends a slow step by waiting, the event has the ids of its span."""

        def program() -> None:
            greenback.await_(backend.sleep(0))

        configured.at(logging.INFO)
        file = tmp_path / "trace.jsonl"
        greenback_trace.enable(config=Config(mode=mode, slow=0.000_001, file=str(file)))
        backend.run(greenback.with_portal_run_sync, program)
        greenback_trace.disable()
        spans = [
            (span["traceId"], span["spanId"])
            for line in file.read_text().splitlines()
            for resource in json.loads(line).get("resourceSpans", ())
            for scope in resource["scopeSpans"]
            for span in scope["spans"]
            if span["name"].startswith("await_ ")
        ]
        slow = configured.of_slow_steps()
        assert [(event.get("trace_id"), event.get("span_id")) for event in slow][:1] == spans


class TestThreads:
    def test_at_the_same_time(self, configured: Configured, switching_often: None) -> None:
        """If two threads log at once, no event is lost."""
        configured.at(logging.WARNING)
        greenback_trace.enable(config=Config(slow=1e-9))  # every step is slow
        functions: Dict[str, Any] = {"bridge": greenback.await_, "sleep": asyncio.sleep}
        names = [f"site_{index}" for index in range(400)]
        exec("\n".join(f"def {name}(): bridge(sleep(0))" for name in names), functions)

        def in_portal(names: List[str]) -> None:
            for name in names:
                functions[name]()

        def work(names: List[str]) -> None:
            asyncio.run(greenback.with_portal_run_sync(in_portal, names))

        threads = [threading.Thread(target=work, args=(names[n::4],)) for n in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        functions_told = [event["code.function.name"] for event in configured.of_slow_steps()]
        told = {function.rpartition(".")[2] for function in functions_told}
        assert told == set(names)
