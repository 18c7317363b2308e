"""The instrumentation of OpenTelemetry, with the real SDK and the real command."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any, Callable, Dict, Iterator, List, Tuple

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
        """Both providers get everything while instrumented, nothing after that, and again later."""
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


def instrumented(python: Any, program: str, *, traces: str, metrics: str, **variables: str) -> Any:
    """Run *program* under opentelemetry-instrument, with these exporters."""
    return python(
        "-c",
        COMMAND,
        sys.executable,
        "-c",
        program,
        OTEL_TRACES_EXPORTER=traces,
        OTEL_METRICS_EXPORTER=metrics,
        OTEL_LOGS_EXPORTER="none",
        **variables,
    )


class TestCommand:
    @pytest.mark.parametrize(
        ("variables", "is_traced"), [({}, True), ({"GREENBACK_TRACE": "0"}, False)]
    )
    def test_opentelemetry_instrument(self, python: Any, variables: Any, is_traced: bool) -> None:
        """Under opentelemetry-instrument, bridges are exported unless GREENBACK_TRACE=0."""
        result = instrumented(python, PROGRAM, traces="console", metrics="console", **variables)
        assert result.returncode == 0, result.stderr
        assert ('"await_ bridge"' in result.stdout) is is_traced

    def test_a_typo_is_one_warning(self, python: Any) -> None:
        """A typo under opentelemetry-instrument, which reads the environment twice, warns once."""
        variables = {"GREENBACK_TRACE": "1", "GREENBACK_TRACE_SITES": "many"}
        result = instrumented(python, PROGRAM, traces="none", metrics="none", **variables)
        assert result.returncode == 0
        assert result.stderr.count("GREENBACK_TRACE_SITES='many' is ignored") == 1

    @pytest.mark.parametrize("flush", [True, False])
    def test_metrics(self, python: Any, flush: bool) -> None:
        """Under opentelemetry-instrument, the counts reach the exporter at exit or before."""
        program = PROGRAM
        if flush:
            program += "from opentelemetry import metrics\n"
            program += "metrics.get_meter_provider().force_flush()\n"
        result = instrumented(python, program, traces="none", metrics="console")
        assert result.returncode == 0, result.stderr
        assert '"greenback.bridges"' in result.stdout

    @pytest.mark.parametrize("switch", [{}, {"GREENBACK_TRACE": "0"}], ids=["unset", "off"])
    def test_to_a_receiver(
        self, environment: Callable[..., Dict[str, str]], tmp_path: Path, switch: Dict[str, str]
    ) -> None:
        """The command sends a program's spans and metrics; none if GREENBACK_TRACE=0."""
        pytest.importorskip("opentelemetry.exporter.otlp.proto.grpc", reason="needs gRPC")
        from .receiver import Receiver

        command = shutil.which("opentelemetry-instrument", path=str(Path(sys.executable).parent))
        if command is None:
            pytest.skip("opentelemetry-instrument is not installed beside the interpreter")
        program = tmp_path / "program.py"
        program.write_text(PROGRAM)
        with Receiver() as receiver:
            variables = environment(
                OTEL_TRACES_EXPORTER="otlp",
                OTEL_METRICS_EXPORTER="otlp",
                OTEL_LOGS_EXPORTER="none",
                OTEL_EXPORTER_OTLP_ENDPOINT=f"http://{receiver.endpoint}",
                OTEL_EXPORTER_OTLP_PROTOCOL="grpc",
                **switch,
            )
            done = subprocess.run(
                [command, sys.executable, str(program)],
                env=variables,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                timeout=60,
                check=False,
            )
        assert (done.returncode, done.stdout) == (0, "")
        spans = [span.name for span in receiver.spans]
        if switch:
            assert (spans, receiver.sums, receiver.measured) == ([], {}, {})
        else:
            assert spans == ["await_ bridge", "portal run_sync"]
            assert receiver.sums["greenback.bridges"] == {("__main__.bridge", "ok"): 1}
            assert receiver.sums["greenback.portals"] == {("run_sync",): 1}
            assert receiver.faults == []
