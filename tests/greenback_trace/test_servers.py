"""Servers as they are run in production: workers forked after preloading, and SIGTERM."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from collections import Counter
from contextlib import ExitStack, contextmanager
from importlib.util import find_spec
from pathlib import Path
from socket import create_connection
from typing import Any, Callable, Dict, Iterator, Tuple

import pytest

pytest.importorskip("opentelemetry.sdk.trace", reason="these tests need greenback[report]")
pytest.importorskip("opentelemetry.exporter.otlp.proto.common", reason="needs greenback[report]")
from greenback_trace.file import pipeline
from tests.waiting import wait_until

if os.name == "nt":
    pytest.skip("these servers need fork() and signals", allow_module_level=True)

BRIDGES = """
import asyncio, os, sys
import greenback, greenback_trace
async def nop(): pass
def bridge(count):
    for _ in range(count):
        greenback.await_(nop())
"""
# An application for each kind of worker: as many bridges as the path says, then who made them, and
# no end before the request has its own.
WSGI = """
def app(environ, start_response):
    bridges = int(environ['PATH_INFO'][1:])
    asyncio.run(greenback.with_portal_run_sync(bridge, bridges))
    start_response('200 OK', [('Content-Type', 'text/plain')])
    yield b'%d\\n' % os.getpid()
    environ['wsgi.input'].read(1)
"""
ASGI = """
async def app(scope, receive, send):
    if scope['type'] == 'lifespan':
        await receive()
        await send({'type': 'lifespan.startup.complete'})
        await receive()
        shut_down()
        await send({'type': 'lifespan.shutdown.complete'})
        return
    await greenback.with_portal_run_sync(bridge, int(scope['path'][1:]))
    await send({'type': 'http.response.start', 'status': 200, 'headers': []})
    pid = b'%d\\n' % os.getpid()
    await send({'type': 'http.response.body', 'body': pid, 'more_body': True})
    while (await receive()).get('more_body'): pass
    await send({'type': 'http.response.body'})
"""
# uvicorn ends by raising the signal again, in its event loop, which so is never closed.
COMPLETES = "shut_down = greenback_trace.disable\n"
LEAVES = "def shut_down(): pass\n"
# While it is imported, by the master that preloads it.
PRELOADED = "asyncio.run(greenback.with_portal_run_sync(bridge, 3))\n"
# Newer ones would put a socket into the home directory.
CONFIG = """
import gunicorn.config
if hasattr(gunicorn.config, 'ControlSocketDisable'):
    control_socket_disable = True
def post_worker_init(worker):
    worker.log.info('Worker takes signals')
"""
SET_UP_AFTERWARDS = """
def post_fork(server, worker):
    import program
    program.set_up()
"""
# What holds after 5 s also holds after less, which a test need not wait for.
SOON = "from greenback_trace.file import pipeline; pipeline.FLUSH_INTERVAL = 0.05\n"


class Server:
    """A server that runs, and the answers of its workers."""

    port: int

    def __init__(self, process: Any) -> None:
        self.process = process
        #: The bridges that a process made for its answers, by its number.
        self.served: Dict[int, int] = Counter()
        #: What it has written to standard output and error, all of it once it has ended.
        self.said = ""

    def ask(self, bridges: int) -> None:
        with self.asking(bridges):
            pass

    @contextmanager
    def asking(self, bridges: int) -> Iterator[None]:
        """Keep a WSGI worker busy meanwhile: it has answered, and waits for the rest of a body."""
        with create_connection(("127.0.0.1", self.port), timeout=30) as connection:
            head = f"POST /{bridges} HTTP/1.0\r\nHost: here\r\nContent-Length: 1\r\n\r\n"
            connection.sendall(head.encode())
            answer = connection.makefile("rb")
            assert b" 200 " in answer.readline()
            while answer.readline().strip():  # headers
                pass
            self.served[int(answer.readline())] += bridges
            yield
            connection.sendall(b"x")
            assert answer.read() == b""

    def wait_until_said(self, text: str, times: int = 1) -> None:
        while self.said.count(text) < times:
            line = self.process.stdout.readline().decode()
            assert line, self.said
            self.said += line

    def terminate(self) -> int:
        self.process.terminate()
        self.said += self.process.communicate(timeout=30)[0].decode()
        assert "Traceback" not in self.said
        return int(self.process.returncode)


@pytest.fixture
def serve(environment: Callable[..., Dict[str, str]], tmp_path: Path) -> Iterator[Any]:
    """Runs a server until it says at which port it is, in a directory of its own."""
    with ExitStack() as stack:

        def start(*arguments: str, **variables: str) -> Server:
            process = subprocess.Popen(
                [sys.executable, *arguments],
                env=environment(GREENBACK_TRACE="1", **variables),
                cwd=str(tmp_path),
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                bufsize=0,  # what has not been read yet is left for communicate()
            )
            stack.enter_context(process)
            stack.callback(process.kill)
            server = Server(process)
            server.wait_until_said("http://127.0.0.1:")
            server.port = int(server.said.rpartition("http://127.0.0.1:")[2].split()[0])
            return server

        yield start


def written(path: Path) -> Tuple[int, Dict[str, int]]:
    """How many bridges a file says that there were, last, and the numbers of its spans."""
    return parse(path.read_text())


def parse(text: str) -> Tuple[int, Dict[str, int]]:
    count = 0
    spans: Dict[str, int] = Counter()
    for line in text.splitlines():
        request = json.loads(line)
        for resource in request.get("resourceMetrics", []):
            for scope in resource["scopeMetrics"]:
                for metric in scope["metrics"]:
                    if metric["name"] == "greenback.bridges":
                        count = sum(int(point["asInt"]) for point in metric["sum"]["dataPoints"])
        for resource in request.get("resourceSpans", []):
            for scope in resource["scopeSpans"]:
                spans.update(span["name"] for span in scope["spans"])
    return count, spans


@pytest.mark.skipif(find_spec("gunicorn") is None, reason="needs gunicorn")
class TestPreloading:
    """gunicorn --preload: the application is imported once, and its workers are forked."""

    def run(
        self,
        serve: Any,
        tmp_path: Path,
        program: str,
        worker: str = "sync",
        hooks: str = "",
        **variables: str,
    ) -> Any:
        (tmp_path / "program.py").write_text(BRIDGES + program)
        (tmp_path / "gunicorn.conf.py").write_text(CONFIG + hooks)
        arguments = ["--workers=2", "--bind=127.0.0.1:0", "--preload", f"--worker-class={worker}"]
        if worker == "gthread":
            arguments.append("--threads=3")
        server = serve("-m", "gunicorn", *arguments, "program:app", **variables)
        # A worker that has just been forked drops a SIGTERM, and is killed 30 s later.
        server.wait_until_said("Worker takes signals", times=2)
        return server

    def ask(self, server: Server) -> None:
        """Have each of two sync workers serve something, and then whoever it is."""
        with server.asking(2):
            server.ask(5)
        assert len(server.served) == 2
        for _ in range(5):
            server.ask(7)

    @pytest.mark.parametrize("preloaded", [PRELOADED, ""], ids=["bridges", "bridges not"])
    def test_file(self, serve: Any, tmp_path: Path, preloaded: str) -> None:
        """Each worker's file has exactly what it served, the master's what was preloaded."""
        server = self.run(
            serve,
            tmp_path,
            preloaded + WSGI,
            GREENBACK_TRACE_FILE=str(tmp_path / "trace-{pid}.jsonl"),
        )
        self.ask(server)
        assert server.terminate() == 0
        assert "greenback" not in server.said
        expected = dict(server.served)
        expected[server.process.pid] = 3 if preloaded else 0
        assert expected == {
            int(path.stem.partition("-")[2]): written(path)[0]
            for path in tmp_path.glob("trace-*.jsonl")
        }
        for pid, count in expected.items():
            _, spans = written(tmp_path / f"trace-{pid}.jsonl")
            assert spans.get("await_ bridge", 0) == count

    @pytest.mark.parametrize("worker", ["gthread", "uvicorn.workers.UvicornWorker"])
    def test_workers(self, serve: Any, tmp_path: Path, worker: str) -> None:
        """The same from workers that serve in several threads, or in an event loop."""
        if worker != "gthread":
            pytest.importorskip("uvicorn.workers")
        server = self.run(
            serve,
            tmp_path,
            PRELOADED + (WSGI if worker == "gthread" else COMPLETES + ASGI),
            worker,
            GREENBACK_TRACE_FILE=str(tmp_path / "trace-{pid}.jsonl"),
        )
        with server.asking(2), server.asking(4):
            for _ in range(10):
                server.ask(5)
        assert server.terminate() == 0
        for pid, count in {**server.served, server.process.pid: 3}.items():
            found, spans = written(tmp_path / f"trace-{pid}.jsonl")
            assert found == spans["await_ bridge"] == count

    def test_sdk_before_the_fork(self, serve: Any, tmp_path: Path) -> None:
        """A preloaded SDK gets what the master does; each worker warns once, and counts."""
        server = self.run(serve, tmp_path, PROVIDERS + "set_up()\n" + PRELOADED + WSGI)
        self.ask(server)
        assert server.terminate() == 0
        exported = (tmp_path / "exported.txt").read_text().splitlines()
        pid = server.process.pid
        assert sorted(exported) == [
            *[f"{pid} await_ bridge"] * 3,
            f"{pid} greenback.bridges 3",
            f"{pid} portal run_sync",
        ]
        warnings = re.findall(r"process (\d+) was forked after its OpenTelemetry", server.said)
        assert sorted(map(int, warnings)) == sorted(server.served)
        summaries = re.findall(r"greenback\.summary.*? bridges=(\d+)", server.said)
        assert sorted(map(int, summaries)) == sorted(server.served.values())

    def test_sdk_after_the_fork(self, serve: Any, tmp_path: Path) -> None:
        """One that gunicorn's post_fork hook sets up exports exactly what the workers served."""
        pytest.importorskip("opentelemetry.exporter.otlp.proto.grpc")
        from .receiver import Receiver

        with Receiver() as receiver:
            server = self.run(
                serve,
                tmp_path,
                OTLP + PRELOADED + WSGI,
                hooks=SET_UP_AFTERWARDS,
                OTEL_EXPORTER_OTLP_ENDPOINT=f"http://{receiver.endpoint}",
                # The receiver adds up what it gets from both.
                OTEL_EXPORTER_OTLP_METRICS_TEMPORALITY_PREFERENCE="delta",
                GREENBACK_TRACE_SPAN_RATE="0",
                GREENBACK_TRACE_MEASUREMENT_RATE="0",
            )
            self.ask(server)
            assert server.terminate() == 0
        served = sum(server.served.values())
        assert receiver.faults == []
        assert receiver.sums["greenback.bridges"] == {("program.bridge", "ok"): served}
        assert sum(receiver.measured["greenback.bridge.duration"].values()) == served
        assert Counter(span.name for span in receiver.spans) == {
            "await_ bridge": served,
            "portal run_sync": 7,
        }
        # Only the master, which has no SDK, sums up.
        assert "was forked" not in server.said
        assert re.findall(r"greenback\.summary.*? bridges=(\d+)", server.said) == ["3"]


class TestSIGTERM:
    """A server that is terminated while its loop runs."""

    def wait_until_written(self, path: Path, count: int) -> None:
        """The server goes on meanwhile, and the last line may not be whole yet."""
        wait_until(lambda: parse(path.read_text().rpartition("\n")[0])[0] == count)

    def uvicorn(self, serve: Any, tmp_path: Path, program: str) -> Any:
        pytest.importorskip("uvicorn")
        (tmp_path / "program.py").write_text(BRIDGES + program + ASGI)
        return serve(
            *("-m", "uvicorn", "--port=0", "program:app"), GREENBACK_TRACE_FILE="trace.jsonl"
        )

    def test_interval(self) -> None:
        """No more than 5 s are lost, which the next two tests do not wait for."""
        assert pipeline.FLUSH_INTERVAL == 5.0

    def test_asyncio(self, serve: Any, tmp_path: Path) -> None:
        """What was bridged more than a flush interval ago is in the file, in whole lines."""
        (tmp_path / "program.py").write_text(
            BRIDGES + SOON + "async def serve(reader, writer):\n"
            "    request = await reader.readline()\n"
            "    await greenback.with_portal_run_sync(bridge, int(request.split()[1][1:]))\n"
            "    writer.write(b'HTTP/1.0 200 OK\\r\\n\\r\\n%d\\n' % os.getpid())\n"
            "    await writer.drain()\n"
            "    while await reader.readline() != b'\\r\\n': pass\n"
            "    await reader.readexactly(1)\n"
            "    writer.close()\n"
            "async def main():\n"
            "    server = await asyncio.start_server(serve, '127.0.0.1', 0)\n"
            "    host, port = server.sockets[0].getsockname()\n"
            "    print(f'http://{host}:{port}', flush=True)\n"
            "    await asyncio.Event().wait()\n"
            "asyncio.run(main())"
        )
        server = serve("program.py", GREENBACK_TRACE_FILE="trace.jsonl")
        path = tmp_path / "trace.jsonl"
        server.ask(4)
        self.wait_until_written(path, 4)
        server.ask(3)
        self.wait_until_written(path, 7)
        assert server.terminate() == -signal.SIGTERM
        assert written(path)[0] == 7
        assert len(server.said.splitlines()) == 1  # where it listens

    def test_uvicorn(self, serve: Any, tmp_path: Path) -> None:
        """The same in an application that uvicorn serves."""
        server = self.uvicorn(serve, tmp_path, SOON + LEAVES)
        path = tmp_path / "trace.jsonl"
        server.ask(5)
        self.wait_until_written(path, 5)
        server.ask(2)
        self.wait_until_written(path, 7)
        server.terminate()
        assert written(path)[0] == 7

    def test_uvicorn_lifespan(self, serve: Any, tmp_path: Path) -> None:
        """An application that disables tracing when it is shut down loses nothing at all."""
        server = self.uvicorn(serve, tmp_path, COMPLETES)
        path = tmp_path / "trace.jsonl"
        for _ in range(3):
            server.ask(5)
        server.terminate()
        count, spans = written(path)
        assert count == spans["await_ bridge"] == 15


# Exporters that say in a file whose process they are in.
PROVIDERS = """
from opentelemetry import metrics, trace
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import (
    MetricExporter, MetricExportResult, PeriodicExportingMetricReader)
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor, SpanExporter, SpanExportResult
def say(*words):
    with open('exported.txt', 'a') as file:
        print(os.getpid(), *words, file=file)
class Spans(SpanExporter):
    def export(self, spans):
        for span in spans: say(span.name)
        return SpanExportResult.SUCCESS
class Metrics(MetricExporter):
    def export(self, metrics_data, timeout_millis=0, **kwargs):
        for resource in metrics_data.resource_metrics:
            for scope in resource.scope_metrics:
                for metric in scope.metrics:
                    if metric.name == 'greenback.bridges':
                        say(metric.name, *(point.value for point in metric.data.data_points))
        return MetricExportResult.SUCCESS
    def force_flush(self, timeout_millis=0): return True
    def shutdown(self, timeout_millis=0, **kwargs): pass
def set_up():
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(Spans()))
    trace.set_tracer_provider(provider)
    metrics.set_meter_provider(MeterProvider([PeriodicExportingMetricReader(Metrics())]))
"""
OTLP = """
def set_up():
    from opentelemetry import metrics, trace
    from opentelemetry.exporter.otlp.proto.grpc.metric_exporter import OTLPMetricExporter
    from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter
    from opentelemetry.sdk.metrics import MeterProvider
    from opentelemetry.sdk.metrics.export import PeriodicExportingMetricReader
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import BatchSpanProcessor
    provider = TracerProvider()
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter(insecure=True)))
    trace.set_tracer_provider(provider)
    metrics.set_meter_provider(MeterProvider(
        [PeriodicExportingMetricReader(OTLPMetricExporter(insecure=True))]))
"""
