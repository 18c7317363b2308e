"""Switching tracing on and off."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

import greenback
import greenback_trace
from greenback_trace import Config, ConfigError

PROGRAM = """
import asyncio
import greenback
async def nop(): pass
def page(): greenback.await_(nop())
asyncio.run(greenback.with_portal_run_sync(page))
"""
BRIDGES_FOR_AN_SDK = """
import asyncio
import greenback
from opentelemetry import metrics
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
async def nop(): pass
def page(): greenback.await_(nop())
def bridges(reader):
    (resource,) = reader.get_metrics_data().resource_metrics
    return [point.value for scope in resource.scope_metrics for metric in scope.metrics
            if metric.name == "greenback.bridges" for point in metric.data.data_points]
"""
HIDDEN = """
import sys
class Hide:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {names!r}:
            raise ModuleNotFoundError(name)
sys.meta_path.insert(0, Hide())
"""


class TestEnable:
    def test_and_disable(self, backend: Any) -> None:
        """Tracing is on from enable() to disable(); disabling twice does nothing."""
        greenback_trace.enable()
        assert greenback_trace.is_enabled()
        greenback_trace.disable()
        assert not greenback_trace.is_enabled()
        greenback_trace.disable()

    def test_off(self) -> None:
        """enable() with a Config whose mode is off raises an error that names disable()."""
        with pytest.raises(ConfigError, match=r"disable\(\)"):
            greenback_trace.enable(config=Config(mode="off"))

    def test_again(self, backend: Any) -> None:
        """Enabling again begins with new totals, and each bridge is counted once."""

        async def nop() -> None:
            pass

        for _ in range(2):
            greenback_trace.enable()
            backend.run(greenback.with_portal_run_sync, lambda: greenback.await_(nop()))
            assert [site.ok for site in greenback_trace.snapshot().sites] == [1]

    @pytest.mark.parametrize("mode", ["on", "debug"])
    def test_nothing_is_slow(self, backend: Any, mode: str) -> None:
        """A limit that no step ever reaches works like any other."""
        greenback_trace.enable(config=Config(mode=mode, slow=1e300))
        backend.run(greenback.with_portal_run_sync, greenback.await_, backend.sleep(0))
        assert greenback_trace.snapshot().slow_steps == {}
        assert greenback_trace.snapshot().active == {backend.name: 0}


class TestFromEnvironment:
    def test_unset(self, python: Any) -> None:
        """Without GREENBACK_TRACE, no module of tracing is imported."""
        done = python(
            "-W",
            "error",
            "-c",
            PROGRAM + "import sys; print('greenback_trace' in sys.modules)",
        )
        assert (done.stdout, done.stderr) == ("False\n", "")

    @pytest.mark.parametrize("first", ["greenback", "greenback_trace"])
    def test_on_at_import(self, python: Any, first: str) -> None:
        """With GREENBACK_TRACE=1, tracing is on, whichever package is imported first."""
        done = python(
            "-W",
            "error",
            "-c",
            f"import {first}, greenback_trace; print(greenback_trace.is_enabled())",
            GREENBACK_TRACE="1",
        )
        assert (done.stdout, done.stderr) == ("True\n", "")

    @pytest.mark.parametrize("value", ["0", "off"])
    def test_off(self, python: Any, value: str) -> None:
        """An explicit 0 means off."""
        done = python(
            "-W",
            "error",
            "-c",
            "import greenback, greenback_trace; print(greenback_trace.is_enabled())",
            GREENBACK_TRACE=value,
        )
        assert (done.stdout, done.stderr) == ("False\n", "")

    def test_missing_package(self, python: Any) -> None:
        """Without OpenTelemetry, the program runs untraced, and one warning names the extra."""
        done = python(
            "-W",
            "error",
            "-c",
            HIDDEN.format(names=["opentelemetry"]) + PROGRAM,
            GREENBACK_TRACE="1",
        )
        assert done.returncode == 0, done.stderr
        (warning,) = done.stderr.splitlines()
        assert "pip install 'greenback[trace]'" in warning

    def test_missing_package_for_the_file(self, python: Any, tmp_path: Path) -> None:
        """If a file is asked for without the SDK's packages, one warning names the other extra."""
        done = python(
            "-W",
            "error",
            "-c",
            HIDDEN.format(names=["google"]) + PROGRAM,
            GREENBACK_TRACE="1",
            GREENBACK_TRACE_FILE=str(tmp_path / "trace.jsonl"),
        )
        assert done.returncode == 0, done.stderr
        (warning,) = done.stderr.splitlines()
        assert "pip install 'greenback[report]'" in warning

    def test_missing_package_in_the_api(self, python: Any) -> None:
        """Where a package is missing, enable() raises ImportError."""
        done = python(
            "-W",
            "error",
            "-c",
            HIDDEN.format(names=["structlog"]) + "import greenback_trace; greenback_trace.enable()",
        )
        assert "ImportError: structlog is not installed" in done.stderr
        assert "pip install 'greenback[trace]'" in done.stderr

    def test_sdk_that_is_set_later(self, python: Any) -> None:
        """An SDK that the application sets up after it imports greenback gets everything."""
        pytest.importorskip("opentelemetry.sdk.trace")
        done = python(
            "-W",
            "error",
            "-c",
            BRIDGES_FOR_AN_SDK
            + """
from opentelemetry import trace
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
async def main():
    await greenback.with_portal_run_sync(page)
    reader, exporter = InMemoryMetricReader(), InMemorySpanExporter()
    metrics.set_meter_provider(MeterProvider([reader]))
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    trace.set_tracer_provider(provider)
    await greenback.with_portal_run_sync(page)
    print([span.name for span in exporter.get_finished_spans()])
    print(bridges(reader))
asyncio.run(main())
""",
            GREENBACK_TRACE="1",
        )
        assert done.stdout.splitlines() == ["['await_ page', 'portal run_sync']", "[2]"], (
            done.stderr
        )
        assert "greenback.summary" not in done.stderr

    def test_enabled_again_once_there_is_an_sdk(self, python: Any) -> None:
        """Instruments registered before there was an SDK belong to the SDK once it is set."""
        pytest.importorskip("opentelemetry.sdk.trace")
        done = python(
            "-W",
            "error",
            "-c",
            BRIDGES_FOR_AN_SDK
            + """
import greenback_trace
async def main():
    for again in range(3):
        if again == 1:
            reader = InMemoryMetricReader()
            metrics.set_meter_provider(MeterProvider([reader]))
        greenback_trace.enable(config=greenback_trace.Config())
        await greenback.with_portal_run_sync(page)
        if again:
            print(bridges(reader))
        greenback_trace.disable()
asyncio.run(main())
""",
        )
        assert (done.returncode, done.stdout, done.stderr) == (0, "[2]\n[3]\n", "")


class TestSummary:
    def test_without_an_sdk(self, python: Any) -> None:
        """Without an SDK or a file, one event at exit tells the totals, on standard error."""
        done = python("-W", "error", "-c", PROGRAM, GREENBACK_TRACE="1")
        assert done.returncode == 0
        assert done.stdout == ""
        (line,) = done.stderr.splitlines()
        assert "greenback.summary" in line
        assert "bridges=1" in line
        assert f"engine={greenback.engine!r}" in line
        assert "__main__.page" in line

    def test_nothing_happened(self, python: Any) -> None:
        """A program that opened no portal logs nothing."""
        done = python("-W", "error", "-c", "import greenback", GREENBACK_TRACE="1")
        assert (done.stdout, done.stderr) == ("", "")

    def test_structlog_of_the_application(self, python: Any) -> None:
        """The application's configuration of structlog decides how the summary looks."""
        done = python(
            "-W",
            "error",
            "-c",
            "import structlog\n"
            "structlog.configure(processors=[structlog.processors.JSONRenderer()])" + PROGRAM,
            GREENBACK_TRACE="1",
        )
        assert '"event": "greenback.summary"' in done.stdout
        assert done.stderr == ""
