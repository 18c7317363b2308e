"""What fails in telemetry is not felt by the program, and one log event tells of it."""

from __future__ import annotations

import errno
import json
import os
import signal
import sys
from pathlib import Path
from typing import Any, Callable, Iterator

import pytest
import structlog

import greenback
import greenback_trace
from greenback_trace import Config

pytest.importorskip("opentelemetry.sdk.trace", reason="these tests need greenback[report]")
pytest.importorskip("opentelemetry.exporter.otlp.proto.common", reason="needs greenback[report]")

from opentelemetry import trace
from opentelemetry.sdk.metrics import AlwaysOnExemplarFilter, MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from opentelemetry.sdk.trace import SpanProcessor, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

BRIDGES = """
import asyncio, logging, os, sys
logging.basicConfig(format="%(levelname)s %(name)s %(message)s")
import greenback, greenback_trace
async def nop(value): return value
def total(count):
    return sum(greenback.await_(nop(number)) for number in range(count))
def page(count):
    result = asyncio.run(greenback.with_portal_run_sync(total, count))
    assert result == sum(range(count)), result
"""
SDK = """
from opentelemetry import metrics, trace
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import (
    InMemoryMetricReader, MetricExporter, MetricExportResult, PeriodicExportingMetricReader)
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter, SpanExportResult
"""
END = """
page(100)
counted = sum(site.ok for site in greenback_trace.snapshot().sites)
assert counted == 100, counted
print("done")
"""


class TestExporter:
    """Exporters of the application's own SDK."""

    def run(self, python: Any, program: str, **variables: str) -> Any:
        done = python("-c", BRIDGES + SDK + program, GREENBACK_TRACE="1", **variables)
        assert (done.returncode, done.stdout) == (0, "done\n"), done.stderr
        return done

    def messages(self, done: Any, ours: int, theirs: int) -> None:
        """So many messages in the log are greenback's, and so many the SDK's."""
        words = [line.split() for line in done.stderr.splitlines()]
        loggers = [line[1] for line in words if line[0] in ("ERROR", "WARNING")]
        assert loggers.count("greenback") == ours, done.stderr
        assert len(loggers) == ours + theirs, done.stderr

    def test_raises(self, python: Any) -> None:
        """An exporter that raises is logged by the SDK, and the totals are exact all the same."""
        done = self.run(
            python,
            "class Raises(SpanExporter):\n"
            "    def export(self, spans): raise OSError('no exporter today')\n"
            "provider = TracerProvider()\n"
            "provider.add_span_processor(BatchSpanProcessor(Raises()))\n"
            "trace.set_tracer_provider(provider)\n" + END + "provider.shutdown()",
        )
        assert done.stderr.count("OSError: no exporter today") == 1
        self.messages(done, ours=0, theirs=1)

    def test_of_metrics_raises(self, python: Any) -> None:
        """An exporter of metrics that raises is logged by the SDK, too, and felt by nobody."""
        done = self.run(
            python,
            "class Raises(MetricExporter):\n"
            "    def export(self, data, **kwargs): raise OSError('no exporter today')\n"
            "    def force_flush(self, timeout_millis=0): return True\n"
            "    def shutdown(self, timeout_millis=0, **kwargs): pass\n"
            "provider = MeterProvider([PeriodicExportingMetricReader(\n"
            "    Raises(), export_interval_millis=3_600_000)])\n"
            "metrics.set_meter_provider(provider)\n" + END + "provider.shutdown()",
        )
        assert done.stderr.count("OSError: no exporter today") == 1
        self.messages(done, ours=0, theirs=1)

    def test_blocks(self, python: Any) -> None:
        """One that blocks holds up neither bridges nor snapshots; the SDK says what is lost."""
        done = self.run(
            python,
            "import threading\n"
            "arrived, never = threading.Event(), threading.Event()\n"
            "class Blocks(SpanExporter):\n"
            "    def export(self, spans): arrived.set(); never.wait()\n"
            "provider = TracerProvider(shutdown_on_exit=False)\n"
            "provider.add_span_processor(BatchSpanProcessor(\n"
            "    Blocks(), max_queue_size=8, max_export_batch_size=8))\n"
            "trace.set_tracer_provider(provider)\n"
            + END.replace("print", "assert arrived.wait(30)\nprint")
            + "sys.stdout.flush(); os._exit(0)",
        )
        self.messages(done, ours=0, theirs=1)
        assert "ueue" in done.stderr

    def test_unreachable(self, python: Any) -> None:
        """A collector that is not there costs the program nothing; the SDK says once it gave up."""
        pytest.importorskip("opentelemetry.exporter.otlp.proto.http")
        done = self.run(
            python,
            "import socket\n"
            "from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter\n"
            "with socket.socket() as nobody:\n"
            "    nobody.bind(('127.0.0.1', 0))\n"
            "    port = nobody.getsockname()[1]\n"
            "provider = TracerProvider(shutdown_on_exit=False)\n"
            "provider.add_span_processor(BatchSpanProcessor(\n"
            "    OTLPSpanExporter(f'http://127.0.0.1:{port}/v1/traces', timeout=1)))\n"
            "trace.set_tracer_provider(provider)\n" + END + "provider.shutdown()",
        )
        # Before that, it warns at each new attempt.
        assert done.stderr.count("ERROR opentelemetry.") == 1
        assert "greenback" not in done.stderr

    @pytest.mark.parametrize("hook", ["on_start", "on_end"])
    def test_processor_raises(self, python: Any, hook: str) -> None:
        """A span processor that raises ends the spans, as one message says, and no metric."""
        done = self.run(
            python,
            "from opentelemetry.sdk.trace import SpanProcessor\n"
            "class Raises(SpanProcessor):\n"
            f"    def {hook}(self, span, parent_context=None):\n"
            "        raise OSError('no processor today')\n"
            "tracers, reader = TracerProvider(), InMemoryMetricReader()\n"
            "tracers.add_span_processor(Raises())\n"
            "trace.set_tracer_provider(tracers)\n"
            "metrics.set_meter_provider(MeterProvider([reader]))\n"
            "def app(count):\n"
            "    for _ in range(count):\n"
            "        greenback.await_(nop(0))\n"
            "        assert not trace.get_current_span().get_span_context().is_valid\n"
            "asyncio.run(greenback.with_portal_run_sync(app, 3))\n"
            + END.replace("== 100", "== 103")
            + "(resource,) = reader.get_metrics_data().resource_metrics\n"
            "(scope,) = [s for s in resource.scope_metrics if s.scope.name == 'greenback']\n"
            "(bridges,) = [m for m in scope.metrics if m.name == 'greenback.bridges']\n"
            "assert sum(point.value for point in bridges.data.data_points) == 103\n",
        )
        self.messages(done, ours=1, theirs=0)
        assert "no more spans" in done.stderr
        assert done.stderr.count("OSError: no processor today") == 1

    @pytest.mark.parametrize("processor", ["BatchSpanProcessor", "SimpleSpanProcessor"])
    def test_provider_is_shut_down_early(self, python: Any, processor: str) -> None:
        """Providers that were shut down get no more, as one message says; the totals go on."""
        done = self.run(
            python,
            "from opentelemetry.sdk.trace.export import SimpleSpanProcessor\n"
            "from opentelemetry.sdk.trace.export.in_memory_span_exporter import (\n"
            "    InMemorySpanExporter)\n"
            "tracers, meters = TracerProvider(), MeterProvider([InMemoryMetricReader()])\n"
            "exporter = InMemorySpanExporter()\n"
            f"tracers.add_span_processor({processor}(exporter))\n"
            "trace.set_tracer_provider(tracers); metrics.set_meter_provider(meters)\n"
            "page(1)\n"
            "tracers.shutdown(); meters.shutdown()\n"
            "page(0); page(0)\n"
            "assert len(exporter.get_finished_spans()) == 2\n" + END.replace("== 100", "== 101"),
        )
        self.messages(done, ours=1, theirs=0)
        assert "TracerProvider was shut down" in done.stderr

    @pytest.mark.parametrize(
        ("portals", "spans"),
        [
            ("page(1); set_sdk(); page(1); shut_down(); page(0); page(0)", "all"),
            ("page(1); set_sdk(); page(1); shut_down(); page(0); page(0)", "portals"),
            ("page(1); set_sdk(); page(1); shut_down(); suspend(); suspend()", "suspended"),
            ("page(1); within(set_sdk, bridge, shut_down, bridge, bridge)", "all"),
            ("page(1); within(set_sdk, wait, shut_down, wait, wait)", "suspended"),
            (
                "page(1); set_sdk(); page(1)\n"
                "for _ in range(2): greenback_trace.enable(); page(1)\n"
                "shut_down(); page(1); page(1)",
                "all",
            ),
        ],
        ids=["all", "portals", "suspended", "one_portal", "late_spans", "enabled_again"],
    )
    def test_late_provider_is_shut_down_early(self, python: Any, portals: str, spans: str) -> None:
        """One that was set after the first portal is no exception: one message says so."""
        done = self.run(
            python,
            "from opentelemetry.sdk.trace.export import SimpleSpanProcessor\n"
            "from opentelemetry.sdk.trace.export.in_memory_span_exporter import (\n"
            "    InMemorySpanExporter)\n"
            "exporter, tracers = InMemorySpanExporter(), TracerProvider()\n"
            "tracers.add_span_processor(SimpleSpanProcessor(exporter))\n"
            "def set_sdk(): trace.set_tracer_provider(tracers)\n"
            "def shut_down():\n"
            "    assert exporter.get_finished_spans()\n"
            "    tracers.shutdown()\n"
            "def bridge(): greenback.await_(nop(0))\n"
            "def wait(): greenback.await_(asyncio.sleep(0))\n"
            "def suspend(): asyncio.run(greenback.with_portal_run_sync(wait))\n"
            "def within(*functions):\n"
            "    def each():\n"
            "        for function in functions: function()\n"
            "    asyncio.run(greenback.with_portal_run_sync(each))\n"
            f"{portals}\nprint('done')",
            GREENBACK_TRACE_SPANS=spans,
        )
        self.messages(done, ours=1, theirs=0)
        assert "TracerProvider was shut down" in done.stderr

    def test_provider_is_shut_down_at_the_end(self, python: Any) -> None:
        """One that is shut down when the program ends is as it should be."""
        done = self.run(
            python,
            "tracers = TracerProvider(); trace.set_tracer_provider(tracers)\n"
            "greenback_trace.enable(); greenback_trace.enable()\n" + END + "tracers.shutdown()",
        )
        assert done.stderr == ""


class TimeUp(Exception):
    """What a signal handler raises in these tests."""


class Nop:
    """An awaitable that needs no closing."""

    def __await__(self) -> Iterator[Any]:
        return iter(())


@pytest.mark.skipif(not hasattr(signal, "SIGUSR1"), reason="has no signals to spare")
class TestSignalHandler:
    """What a signal handler raises is the program's, also if tracing is what it interrupts."""

    @pytest.fixture
    def interrupt(self) -> Iterator[Callable[[], None]]:
        """A signal arrives when this is called for the first time."""
        left = [signal.SIGUSR1]

        def arrive() -> None:
            if left:
                signal.raise_signal(left.pop())

        def handler(number: int, frame: Any) -> None:
            raise TimeUp

        before = signal.signal(signal.SIGUSR1, handler)
        yield arrive
        signal.signal(signal.SIGUSR1, before)
        assert not left

    @pytest.mark.parametrize("mode", ["on", "debug"])
    @pytest.mark.parametrize("hook", ["on_start", "on_end"])
    def test_in_a_processor(
        self,
        backend: Any,
        hook: str,
        mode: str,
        interrupt: Callable[[], None],
        caplog: pytest.LogCaptureFixture,
    ) -> None:
        """It leaves the bridge, which is over then, and the next one is traced as ever."""
        ended = []

        class Interrupted(SpanProcessor):
            def on_start(self, span: Any, parent_context: Any = None) -> None:
                if hook == "on_start" and span.name.startswith("await_"):
                    interrupt()

            def on_end(self, span: Any) -> None:
                if span.name.startswith("await_"):
                    if hook == "on_end":
                        interrupt()
                    ended.append(span)

        def program() -> None:
            with pytest.raises(TimeUp):
                greenback.await_(Nop())
            assert trace.get_current_span() is trace.INVALID_SPAN
            greenback.await_(Nop())

        provider = TracerProvider(shutdown_on_exit=False)
        provider.add_span_processor(Interrupted())
        greenback_trace.enable(config=Config(mode=mode), tracer_provider=provider)
        backend.run(greenback.with_portal_run_sync, program)
        # One that has failed gets a span of its own when it has.
        assert len(ended) == (2 if hook == "on_start" else 1)
        assert [record.getMessage() for record in caplog.records] == []
        totals = greenback_trace.snapshot()
        assert totals.portals["run_sync"].bridges == 2
        assert totals.active == {backend.name: 0}

    def test_in_a_histogram(self, backend: Any, interrupt: Callable[[], None]) -> None:
        """It leaves a bridge that was being counted: its span ends all the same."""

        class Interrupts(AlwaysOnExemplarFilter):
            def should_sample(self, *args: Any, **kwds: Any) -> bool:
                interrupt()
                return False

        def program() -> None:
            with pytest.raises(TimeUp):
                greenback.await_(Nop())
            assert trace.get_current_span() is trace.INVALID_SPAN
            greenback.await_(Nop())

        exporter = InMemorySpanExporter()
        tracers = TracerProvider(shutdown_on_exit=False)
        tracers.add_span_processor(SimpleSpanProcessor(exporter))
        meters = MeterProvider(
            [InMemoryMetricReader()], shutdown_on_exit=False, exemplar_filter=Interrupts()
        )
        greenback_trace.enable(
            config=Config(measurement_rate=0), tracer_provider=tracers, meter_provider=meters
        )
        backend.run(greenback.with_portal_run_sync, program)
        names = [span.name.partition(" ")[0] for span in exporter.get_finished_spans()]
        assert names == ["await_", "await_", "portal"]
        assert greenback_trace.snapshot().active == {backend.name: 0}

    def test_in_a_log(
        self,
        backend: Any,
        interrupt: Callable[[], None],
        caplog: pytest.LogCaptureFixture,
    ) -> None:
        """It leaves the bridge whose misuse was being logged."""

        def processor(logger: Any, level: str, event: Any) -> Any:
            if event["event"] == "greenback.misuse":
                interrupt()
            raise structlog.DropEvent

        async def program() -> None:
            await greenback.ensure_portal()
            with pytest.raises(TimeUp):
                greenback.await_(Nop())
            with pytest.warns(greenback_trace.MisuseWarning):
                greenback.await_(Nop())

        structlog.configure(processors=[processor], cache_logger_on_first_use=False)
        greenback_trace.enable(config=Config(mode="debug", misuse="warn,async_caller=warn"))
        try:
            backend.run(program)
        finally:
            structlog.reset_defaults()
        assert [record.getMessage() for record in caplog.records] == []
        assert greenback_trace.snapshot().active == {backend.name: 0}


class TestFile:
    """The file of the embedded pipeline."""

    def run(
        self, python: Any, path: str, program: str = "", counted: int = 100, **variables: str
    ) -> Any:
        done = python(
            "-c",
            BRIDGES
            + program
            + END.replace("== 100", f"== {counted}")
            + "greenback_trace.disable()\n"
            "print(greenback_trace.snapshot().dropped)",
            GREENBACK_TRACE="1",
            GREENBACK_TRACE_FILE=path,
            **variables,
        )
        assert done.returncode == 0, done.stderr
        said, dropped = done.stdout.splitlines()
        assert said == "done"
        (warning,) = done.stderr.splitlines()
        assert warning.startswith("WARNING greenback GREENBACK_TRACE_FILE: ")
        return warning, dropped

    @pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs /dev/full")
    def test_full_disk(self, python: Any) -> None:
        """With a full disk, lines are lost, and counted."""
        warning, dropped = self.run(python, "/dev/full")
        assert os.strerror(errno.ENOSPC) in warning
        assert dropped == "{'line': {'write_error': 2}}"

    def test_disk_gets_full(self, python: Any, tmp_path: Path) -> None:
        """A line that finds room for a part of itself only is taken back."""
        pytest.importorskip("resource")
        path = tmp_path / "trace.jsonl"
        _, dropped = self.run(
            python,
            str(path),
            "import resource\n"
            "page(0)\n"  # this much is written
            "size = os.stat(os.environ['GREENBACK_TRACE_FILE']).st_size\n"
            "assert size\n"
            "hard = resource.getrlimit(resource.RLIMIT_FSIZE)[1]\n"
            "resource.setrlimit(resource.RLIMIT_FSIZE, (size + 100, hard))\n",
        )
        assert dropped == "{'line': {'write_error': 2}}"
        lines = path.read_text().splitlines()
        assert lines
        for line in lines:
            json.loads(line)

    @pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs pipes with names")
    def test_disk_that_blocks(self, python: Any, tmp_path: Path) -> None:
        """A write that does not come back holds up neither bridges nor, for long, the end."""
        path = tmp_path / "trace.jsonl"
        os.mkfifo(path)
        reader = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
        try:
            warning, dropped = self.run(
                python,
                str(path),
                "from greenback_trace.file import pipeline\n"
                "from greenback_trace import _session\n"
                "pipeline._PATIENCE = _session._FLUSH_PATIENCE = 0.1\n"
                "page(1_000)\n",  # more than a pipe holds
                counted=1_100,
            )
        finally:
            os.close(reader)
        assert "could not be completed" in warning
        assert dropped == "{}"

    def test_limit(self, python: Any, tmp_path: Path) -> None:
        """Lines beyond GREENBACK_TRACE_FILE_LIMIT are counted."""
        warning, dropped = self.run(
            python, str(tmp_path / "trace.jsonl"), GREENBACK_TRACE_FILE_LIMIT="100"
        )
        assert "limit of 100 bytes" in warning
        assert dropped == "{'line': {'limit': 2}}"

    def test_cannot_be_opened(self, python: Any, tmp_path: Path) -> None:
        """A directory that does not exist is one warning."""
        warning, dropped = self.run(python, str(tmp_path / "missing" / "trace.jsonl"))
        assert "cannot be opened" in warning
        assert dropped == "{'line': {'write_error': 2}}"

    def test_too_many_spans_at_once(
        self, backend: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Spans that are made faster than they can be written are counted, or written."""

        async def nop() -> None:
            pass

        def many() -> None:
            for _ in range(2_000):
                greenback.await_(nop())

        def dropped() -> int:
            return greenback_trace.snapshot().dropped.get("span", {}).get("queue_full", 0)

        path = tmp_path / "trace.jsonl"
        monkeypatch.setattr("greenback_trace.file.pipeline._QUEUE", 1_000)
        greenback_trace.enable(config=Config(file=str(path)))
        interval = sys.getswitchinterval()
        sys.setswitchinterval(60)  # the thread that writes has to wait
        runs = 0
        try:
            while not dropped() and runs < 20:  # seldom more than one: if it did not wait
                backend.run(greenback.with_portal_run_sync, many)
                runs += 1
        finally:
            sys.setswitchinterval(interval)
        greenback_trace.disable()
        found = sum(
            len(scope["spans"])
            for line in path.read_text().splitlines()
            for resource in json.loads(line).get("resourceSpans", [])
            for scope in resource["scopeSpans"]
        )
        assert dropped() > 0
        assert found + dropped() == 2_001 * runs

    def test_sdk_is_disabled(self, python: Any, tmp_path: Path) -> None:
        """OTEL_SDK_DISABLED is about the application's SDK, not about the file."""
        path = tmp_path / "trace.jsonl"
        done = python(
            "-c",
            BRIDGES + END,
            GREENBACK_TRACE="1",
            GREENBACK_TRACE_FILE=str(path),
            OTEL_SDK_DISABLED="true",
            OTEL_METRICS_EXEMPLAR_FILTER="nonsense",
            OTEL_PYTHON_SDK_INTERNAL_METRICS_ENABLED="true",
            OTEL_PYTHON_METER_PROVIDER="nonsense",
        )
        assert (done.returncode, done.stdout, done.stderr) == (0, "done\n", "")
        text = path.read_text()
        assert text.count('"name":"await_ ') == 100
        assert '"greenback.bridges"' in text

    def test_histograms(self, backend: Any, tmp_path: Path) -> None:
        """The file's histograms are those of snapshot(): every bridge, step and switch."""

        def wait() -> None:
            greenback.await_(backend.sleep(0))

        path = tmp_path / "trace.jsonl"
        greenback_trace.enable(config=Config(file=str(path)))
        backend.run(greenback.with_portal_run_sync, wait)
        greenback_trace.disable()
        written = {}
        for line in path.read_text().splitlines():
            for resource in json.loads(line).get("resourceMetrics", []):
                for metric in resource["scopeMetrics"][0]["metrics"]:
                    for point in metric.get("histogram", {}).get("dataPoints", []):
                        names = sorted(
                            str(next(iter(attribute["value"].values())))
                            for attribute in point["attributes"]
                        )
                        written[metric["name"], tuple(names)] = (
                            tuple(map(int, point["bucketCounts"])),
                            tuple(point["explicitBounds"]),
                            point["sum"],
                            int(point["count"]),
                        )
        assert written == {
            (each.name, tuple(sorted(map(str, each.attributes.values())))): (
                each.counts,
                each.bounds,
                each.sum,
                each.count,
            )
            for each in greenback_trace.snapshot().durations
        }
        assert {name for name, _ in written} == {
            f"greenback.{what}.duration" for what in ("bridge", "step", "switch", "portal")
        }


class TestInstrument:
    def test_of_the_user_raises(self, python: Any) -> None:
        """An instrument of the user that raises is removed with one message; tracing goes on."""
        done = python(
            "-c",
            BRIDGES + "class Broken(greenback.instruments.Instrument):\n"
            "    def bridge_finished(self, bridge, error): raise OSError('no instrument today')\n"
            "greenback.instruments.add_instrument(Broken())\n" + END,
            GREENBACK_TRACE="1",
            GREENBACK_TRACE_SPANS="none",
        )
        assert (done.returncode, done.stdout) == (0, "done\n"), done.stderr
        assert done.stderr.count("ERROR greenback ") == 1
        assert "was removed" in done.stderr
