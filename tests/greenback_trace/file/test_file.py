"""The embedded pipeline: a real program, its file, and the report of it."""

from __future__ import annotations

import json
import os
import stat
import subprocess
from pathlib import Path
from typing import Any, Dict, Iterator, List

import pytest

import greenback
import greenback_trace
from greenback_trace import Config

pytest.importorskip("opentelemetry.sdk.trace", reason="these tests need greenback[report]")
pytest.importorskip("opentelemetry.exporter.otlp.proto.common", reason="needs greenback[report]")

from google.protobuf import json_format
from opentelemetry import trace
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import (
    ExportMetricsServiceRequest,
)
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.sdk.trace import TracerProvider

PROGRAM = """
import asyncio, sys
import greenback

class Shop:
    def load(self):
        greenback.await_(sleep(0.001))

def page(shop):
    shop.load()
    async def nothing(): pass
    greenback.await_(nothing())

async def main():
    for _ in range(30):
        await greenback.with_portal_run_sync(page, Shop())

if sys.argv[1] == "trio":
    import trio
    sleep = trio.sleep
    trio.run(main)
else:
    sleep = asyncio.sleep
    asyncio.run(main())
"""


def messages(path: Path, message: Any) -> Iterator[Any]:
    """The lines of one kind, as OTLP's own messages."""
    field = message.DESCRIPTOR.fields[0].json_name
    for line in path.read_text().splitlines():
        request = json.loads(line)
        if field in request:
            ids_to_base64(request)
            yield json_format.ParseDict(request, message())


def ids_to_base64(request: Any) -> None:
    """Turn OTLP/JSON into protobuf's JSON, by the letter of the definition."""
    import base64

    if isinstance(request, list):
        for item in request:
            ids_to_base64(item)
    elif isinstance(request, dict):
        for name, value in request.items():
            if name in ("traceId", "spanId", "parentSpanId"):
                assert len(value) == (32 if name == "traceId" else 16)
                # protobuf reads both alphabets, the other one with a warning on Python 3.15.
                request[name] = base64.urlsafe_b64encode(bytes.fromhex(value)).decode()
            else:
                ids_to_base64(value)


def attributes(holder: Any) -> Dict[str, Any]:
    found: Dict[str, Any] = {}
    for attribute in holder.attributes:
        value = attribute.value
        kind = value.WhichOneof("value")
        found[attribute.key] = (
            [item.string_value for item in value.array_value.values]
            if kind == "array_value"
            else getattr(value, kind)
        )
    return found


def last_part(name: str) -> str:
    """The last part of a name. Before Python 3.11, a nested function has no other part."""
    return name.replace(" ", ".").rpartition(".")[2]


def spans(path: Path) -> List[Any]:
    return [
        span
        for request in messages(path, ExportTraceServiceRequest)
        for resource in request.resource_spans
        for scope in resource.scope_spans
        for span in scope.spans
    ]


def points(path: Path, name: str) -> List[Any]:
    """The points of a metric in the last line that has it."""
    found: List[Any] = []
    for request in messages(path, ExportMetricsServiceRequest):
        for resource in request.resource_metrics:
            for scope in resource.scope_metrics:
                for metric in scope.metrics:
                    if metric.name == name:
                        found = list(metric.sum.data_points)
    return found


def functions(path: Path) -> List[Any]:
    """All points of the gauge with the parts of functions in chains."""
    return [
        point
        for request in messages(path, ExportMetricsServiceRequest)
        for resource in request.resource_metrics
        for scope in resource.scope_metrics
        for metric in scope.metrics
        if metric.name == "greenback.chain.functions"
        for point in metric.gauge.data_points
    ]


@pytest.fixture
def program(tmp_path: Path) -> str:
    path = tmp_path / "program.py"
    path.write_text(PROGRAM)
    return str(path)


class TestProgram:
    """A program without a word on tracing, run with GREENBACK_TRACE=1."""

    def test_file_and_report(self, python: Any, backend: Any, program: str, tmp_path: Path) -> None:
        """The file is OTLP with exact numbers per sync chain, and its report shows the hot spot."""
        path = tmp_path / "trace.jsonl"
        done = python(
            program,
            backend.name,
            GREENBACK_TRACE="1",
            GREENBACK_TRACE_FILE=str(path),
            OTEL_SERVICE_NAME="shop",
        )
        assert (done.returncode, done.stdout, done.stderr) == (0, "", "")

        loads = [span for span in spans(path) if span.name == "await_ Shop.load"]
        assert len(loads) == 30
        portal_ids = {span.span_id for span in spans(path) if span.name == "portal run_sync"}
        assert len(portal_ids) == 30
        assert {span.parent_span_id for span in loads} == portal_ids
        (request, *_) = messages(path, ExportTraceServiceRequest)
        resource = attributes(request.resource_spans[0].resource)
        assert resource["service.name"] == "shop"
        assert isinstance(resource["process.pid"], int)
        assert resource["greenback.trace.version"] == 2
        assert resource["greenback.engine"] == greenback.engine

        counts = {
            attributes(point)["code.function.name"]: (point.as_int, attributes(point))
            for point in points(path, "greenback.chain.bridges")
        }
        count, load = counts["__main__.Shop.load"]
        assert count == 30
        assert load["greenback.outcome"] == "ok"
        assert load["code.file.path"] == program
        assert load["greenback.sync_chain"] == [
            f"__main__.page ({program}:10)",
            f"__main__.Shop.load ({program}:7)",
        ]
        assert counts["__main__.page"][0] == 30
        suspended = {
            attributes(point)["code.function.name"]: point.as_int
            for point in points(path, "greenback.chain.suspensions")
        }
        assert suspended == {"__main__.Shop.load": 30, "__main__.page": 0}
        (opened,) = points(path, "greenback.portals")
        assert opened.as_int == 30
        assert [attributes(point) for point in functions(path)] == [
            {
                "greenback.function.module": "__main__",
                "greenback.function.qualname": name,
                "code.file.path": program,
                "code.line.number": line,
            }
            for name, line in (("page", 10), ("Shop.load", 7), ("page", 12))
        ]

        for columns in ("80", "200"):
            report = python("-m", "greenback_trace", "report", str(path), COLUMNS=columns)
            assert report.returncode == 0, report.stderr
            lines = report.stdout.splitlines()
            assert max(map(len, lines)) <= int(columns)
            assert lines[0].startswith("60 bridges from 2 sites: 30 suspended, ")
            (row,) = [line for line in lines if line.split()[:1] == ["1"] and " ms " in line]
            assert row.split()[1] == "__main__.Shop.load"
            numbers = row.replace("program.py:7", "").split()
            assert "30" in numbers
            text = " ".join(report.stdout.split())
            assert "30 bridges, 30 suspended, " in text
            assert text.index("__main__.page") < text.rindex("__main__.Shop.load")
            assert "program.py:7" in text.replace(" ", "")
            assert "run_sync 30 0" in text

    def test_pid(self, python: Any, program: str, tmp_path: Path) -> None:
        """{pid} in the path becomes the process number: each process has a file of its own."""
        done = python(
            program,
            "asyncio",
            GREENBACK_TRACE="1",
            GREENBACK_TRACE_FILE=str(tmp_path / "trace-{pid}.jsonl"),
        )
        assert (done.returncode, done.stderr) == (0, "")
        (path,) = tmp_path.glob("trace-*.jsonl")
        (request, *_) = messages(path, ExportTraceServiceRequest)
        pid = attributes(request.resource_spans[0].resource)["process.pid"]
        assert path.name == f"trace-{pid}.jsonl"

    def test_unwritable(self, python: Any, program: str, tmp_path: Path) -> None:
        """A program whose trace cannot be written runs as always, with one warning."""
        path = tmp_path / "missing" / "trace.jsonl"
        done = python(program, "asyncio", GREENBACK_TRACE="1", GREENBACK_TRACE_FILE=str(path))
        assert done.returncode == 0
        (warning,) = done.stderr.splitlines()
        assert str(path) in warning
        assert "GREENBACK_TRACE_FILE" in warning

    @pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs pipes with names")
    def test_pipe_that_nobody_reads(self, python: Any, program: str, tmp_path: Path) -> None:
        """For a pipe without a reader, the import does not wait; there is one warning."""
        path = tmp_path / "trace.jsonl"
        os.mkfifo(path)
        done = python(program, "asyncio", GREENBACK_TRACE="1", GREENBACK_TRACE_FILE=str(path))
        assert done.returncode == 0
        (warning,) = done.stderr.splitlines()
        assert f"GREENBACK_TRACE_FILE: {path} cannot be opened" in warning
        assert "it is a pipe that nobody reads" in warning
        assert "Name a file that can be written" in warning

    @pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs pipes with names")
    def test_pipe_that_is_read(self, python: Any, program: str, tmp_path: Path) -> None:
        """A pipe that already has a reader gets the whole trace."""
        path = tmp_path / "trace.jsonl"
        os.mkfifo(path)
        copied = tmp_path / "copied.jsonl"
        # Opened here: the pipe has a reader before the program begins. Only a copy stays open.
        reader = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
        os.set_blocking(reader, True)
        with copied.open("wb") as copy:
            # Reads until no process has the pipe open for writing: until the end of the program.
            keeper = os.open(path, os.O_WRONLY)
            cat = subprocess.Popen(["cat"], stdin=reader, stdout=copy)
            os.close(reader)
            try:
                done = python(
                    program, "asyncio", GREENBACK_TRACE="1", GREENBACK_TRACE_FILE=str(path)
                )
            finally:
                os.close(keeper)
                cat.wait()
        assert (done.returncode, done.stderr) == (0, "")
        assert sum(1 for _ in messages(copied, ExportTraceServiceRequest)) > 0

    def test_directory(self, python: Any, program: str, tmp_path: Path) -> None:
        """If the path is a directory, one warning names it."""
        done = python(program, "asyncio", GREENBACK_TRACE="1", GREENBACK_TRACE_FILE=str(tmp_path))
        assert done.returncode == 0
        (warning,) = done.stderr.splitlines()
        assert f"GREENBACK_TRACE_FILE: {tmp_path} cannot be opened" in warning

    @pytest.mark.skipif(not os.path.exists("/dev/stdout"), reason="needs /dev/stdout")
    def test_standard_output(self, python: Any, program: str, tmp_path: Path) -> None:
        """The trace can go to standard output, also if that is a pipe."""
        done = python(program, "asyncio", GREENBACK_TRACE="1", GREENBACK_TRACE_FILE="/dev/stdout")
        assert (done.returncode, done.stderr) == (0, "")
        path = tmp_path / "copied.jsonl"
        path.write_text(done.stdout)
        assert sum(1 for _ in messages(path, ExportTraceServiceRequest)) > 0

    @pytest.mark.skipif(os.name == "nt", reason="Windows has no such modes")
    def test_mode(self, python: Any, program: str, tmp_path: Path) -> None:
        """Only its owner can read a new file; an existing one keeps its mode, also by a link."""
        new, old, link = (tmp_path / name for name in ("new.jsonl", "old.jsonl", "link.jsonl"))
        old.touch()
        old.chmod(0o640)
        link.symlink_to(old)
        for path, mode in ((new, 0o600), (old, 0o640), (link, 0o640)):
            before = path.stat().st_size if path.exists() else 0
            done = python(program, "asyncio", GREENBACK_TRACE="1", GREENBACK_TRACE_FILE=str(path))
            assert (done.returncode, done.stderr) == (0, "")
            assert path.stat().st_size > before
            assert stat.S_IMODE(path.stat().st_mode) == mode

    @pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs /dev/full")
    def test_full_disk(self, python: Any, program: str) -> None:
        """A full disk is one warning, not an error in the program."""
        done = python(program, "asyncio", GREENBACK_TRACE="1", GREENBACK_TRACE_FILE="/dev/full")
        assert done.returncode == 0
        (warning,) = done.stderr.splitlines()
        assert "No space left" in warning

    def test_limit(self, python: Any, program: str, tmp_path: Path) -> None:
        """A file does not grow beyond its limit, and has whole lines up to there."""
        path = tmp_path / "trace.jsonl"
        done = python(
            program,
            "asyncio",
            GREENBACK_TRACE="1",
            GREENBACK_TRACE_FILE=str(path),
            GREENBACK_TRACE_FILE_LIMIT="10k",
        )
        assert done.returncode == 0
        (warning,) = done.stderr.splitlines()
        assert "limit of 10240 bytes" in warning
        assert path.stat().st_size <= 10240
        for line in path.read_text().splitlines():
            json.loads(line)

    def test_otel_variables_change_nothing(self, python: Any, program: str, tmp_path: Path) -> None:
        """The file does not depend on the sampling and the limits of the application's SDK."""
        path = tmp_path / "trace.jsonl"
        done = python(
            program,
            "asyncio",
            GREENBACK_TRACE="1",
            GREENBACK_TRACE_FILE=str(path),
            OTEL_TRACES_SAMPLER="always_off",
            OTEL_SPAN_ATTRIBUTE_COUNT_LIMIT="1",
            OTEL_BSP_MAX_QUEUE_SIZE="1",
            OTEL_BSP_MAX_EXPORT_BATCH_SIZE="1",
        )
        assert (done.returncode, done.stderr) == (0, "")
        found = spans(path)
        assert len(found) == 90
        assert all(
            "greenback.portal.kind" in attributes(span)
            or "greenback.sync_chain" in attributes(span)
            for span in found
        )

    @pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork()")
    def test_forked_child(self, python: Any, program: str, tmp_path: Path) -> None:
        """A forked child that ends like a program adds nothing of its parent's to the file."""
        path = tmp_path / "trace.jsonl"
        done = python(
            "-c",
            "import os, runpy, sys\n"
            f"sys.argv = [{program!r}, 'asyncio']\n"
            f"runpy.run_path({program!r}, run_name='__main__')\n"
            "child = os.fork()\n"
            "if child: os.waitpid(child, 0)\n"
            "else: sys.exit()\n",
            GREENBACK_TRACE="1",
            GREENBACK_TRACE_FILE=str(path),
        )
        assert done.returncode == 0, done.stderr
        assert len(spans(path)) == 90
        written = [
            line for line in path.read_text().splitlines() if '"greenback.chain.bridges"' in line
        ]
        assert len(written) == 1


class TestPipeline:
    def enable(self, path: Path) -> None:
        greenback_trace.enable(config=Config(file=str(path)))

    def test_leaves_the_application_alone(self, backend: Any, tmp_path: Path) -> None:
        """Spans of the application are neither parents nor children of spans in the file."""
        tracer = TracerProvider(shutdown_on_exit=False).get_tracer("application")
        self.enable(tmp_path / "trace.jsonl")
        seen = []

        async def look() -> None:
            seen.append(trace.get_current_span())

        async def program() -> None:
            with tracer.start_as_current_span("request") as request:
                await greenback.with_portal_run_sync(lambda: greenback.await_(look()))
                assert seen == [request]

        backend.run(program)
        greenback_trace.disable()
        portal, bridge = sorted(
            spans(tmp_path / "trace.jsonl"),
            key=lambda span: -len(span.name) if span.name.startswith("await_") else -1000,
        )
        assert portal.name == "portal run_sync"
        assert portal.parent_span_id == b""
        assert bridge.parent_span_id == portal.span_id

    def test_never_global(self, tmp_path: Path) -> None:
        """The global providers of the application do not change."""
        before = trace.get_tracer_provider()
        self.enable(tmp_path / "trace.jsonl")
        assert trace.get_tracer_provider() is before

    def test_bridge_in_a_bridge(self, backend: Any, tmp_path: Path) -> None:
        """A bridge in the coroutine of another bridge is its child."""

        def inner() -> None:
            greenback.await_(backend.sleep(0))

        async def between() -> None:
            inner()

        def outer() -> None:
            greenback.await_(between())

        self.enable(tmp_path / "trace.jsonl")
        backend.run(greenback.with_portal_run_sync, outer)
        greenback_trace.disable()
        by_name = {last_part(span.name): span for span in spans(tmp_path / "trace.jsonl")}
        assert by_name["inner"].parent_span_id == by_name["outer"].span_id

    def test_disable_completes_the_file(self, backend: Any, tmp_path: Path) -> None:
        """After disable(), the file has everything, and nothing is added."""
        path = tmp_path / "trace.jsonl"

        async def nop() -> None:
            pass

        self.enable(path)
        backend.run(greenback.with_portal_run_sync, lambda: greenback.await_(nop()))
        greenback_trace.disable()
        size = path.stat().st_size
        assert [point.as_int for point in points(path, "greenback.bridges")] == [1]
        backend.run(greenback.with_portal_run_sync, lambda: greenback.await_(nop()))
        assert path.stat().st_size == size

    def test_nothing_happened(self, tmp_path: Path) -> None:
        """If no portal was opened, the file stays empty."""
        self.enable(tmp_path / "trace.jsonl")
        greenback_trace.disable()
        assert (tmp_path / "trace.jsonl").read_bytes() == b""
