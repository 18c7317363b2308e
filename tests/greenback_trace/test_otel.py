"""The instrumentation of OpenTelemetry, with the real SDK and the real command."""

from __future__ import annotations

import sys
from typing import Any, Iterator, List, Tuple

import pytest

import greenback
import greenback_trace

pytest.importorskip("opentelemetry.sdk.trace", reason="these tests need greenback[report]")
pytest.importorskip("opentelemetry.distro", reason="and opentelemetry-distro")

from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from greenback_trace.otel import GreenbackInstrumentor

PROGRAM = """
import asyncio, greenback
async def nop(): pass
def bridge(): greenback.await_(nop())
asyncio.run(greenback.with_portal_run_sync(bridge))
"""
COMMAND = "from opentelemetry.instrumentation.auto_instrumentation import run; run()"


async def nop() -> None:
    pass


def bridge_to_nop() -> None:
    greenback.await_(nop())


@pytest.fixture(autouse=True)
def _uninstrumented_afterwards(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.delenv("GREENBACK_TRACE", raising=False)
    yield
    if GreenbackInstrumentor().is_instrumented_by_opentelemetry:
        GreenbackInstrumentor().uninstrument()


class TestInstrumentor:
    def test_uses_the_providers_until_uninstrumented(self, backend: Any) -> None:
        """Both providers get everything while instrumented, nothing after, and again later."""
        exporter = InMemorySpanExporter()
        provider = TracerProvider(shutdown_on_exit=False)
        provider.add_span_processor(SimpleSpanProcessor(exporter))
        reader = InMemoryMetricReader()
        meters = MeterProvider([reader], shutdown_on_exit=False)
        instrumentor = GreenbackInstrumentor()

        def reported() -> Tuple[List[str], bool]:
            backend.run(greenback.with_portal_run_sync, bridge_to_nop)
            names = [span.name.split()[0] for span in exporter.get_finished_spans()]
            exporter.clear()
            return names, "greenback.bridges" in str(reader.get_metrics_data())

        for _ in range(2):
            instrumentor.instrument(tracer_provider=provider, meter_provider=meters)
            assert reported() == (["await_", "portal"], True)
            instrumentor.uninstrument()
            assert reported() == ([], False)

    @pytest.mark.parametrize("value", ["0", "off"])
    def test_an_explicit_0_wins(self, value: str, monkeypatch: pytest.MonkeyPatch) -> None:
        """GREENBACK_TRACE=0 leaves the program untraced."""
        monkeypatch.setenv("GREENBACK_TRACE", value)
        GreenbackInstrumentor().instrument()
        assert not greenback_trace.is_enabled()


class TestCommand:
    @pytest.mark.parametrize(
        ("variables", "is_traced"), [({}, True), ({"GREENBACK_TRACE": "0"}, False)]
    )
    def test_opentelemetry_instrument(self, python: Any, variables: Any, is_traced: bool) -> None:
        """Under opentelemetry-instrument, bridges are exported unless GREENBACK_TRACE=0."""
        result = python(
            "-c",
            COMMAND,
            sys.executable,
            "-c",
            PROGRAM,
            OTEL_TRACES_EXPORTER="console",
            OTEL_METRICS_EXPORTER="console",
            OTEL_LOGS_EXPORTER="none",
            **variables,
        )
        assert result.returncode == 0, result.stderr
        assert ('"await_ bridge"' in result.stdout) is is_traced

    @pytest.mark.parametrize("flush", [True, False])
    def test_metrics(self, python: Any, flush: bool) -> None:
        """Under opentelemetry-instrument, the counts reach the exporter, at exit at the latest."""
        program = PROGRAM
        if flush:
            program += "from opentelemetry import metrics\n"
            program += "metrics.get_meter_provider().force_flush()\n"
        result = python(
            "-c",
            COMMAND,
            sys.executable,
            "-c",
            program,
            OTEL_TRACES_EXPORTER="none",
            OTEL_METRICS_EXPORTER="console",
            OTEL_LOGS_EXPORTER="none",
        )
        assert result.returncode == 0, result.stderr
        assert '"greenback.bridges"' in result.stdout
