"""Forked children: each counts from zero, and writes its own numbers only."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path
from typing import Any, Dict, List

import pytest

pytest.importorskip("opentelemetry.sdk.trace", reason="these tests need greenback[report]")
pytest.importorskip("opentelemetry.exporter.otlp.proto.common", reason="needs greenback[report]")
if not hasattr(os, "fork"):
    pytest.skip("there is no fork() here", allow_module_level=True)

FORK = """
async def fork():
    await asyncio.sleep(0)
    return os.fork()
"""
BRIDGES = """
import asyncio, os, sys, warnings
import greenback, greenback_trace
warnings.filterwarnings("ignore", message=".*multi-threaded", category=DeprecationWarning)
async def nop(): pass
def bridge(count):
    for _ in range(count):
        greenback.await_(nop())
def page(count):
    asyncio.run(greenback.with_portal_run_sync(bridge, count))
def counted():
    return sum(site.bridges for site in greenback_trace.snapshot().sites)
def wait_for(child):
    _, status = os.waitpid(child, 0)
    assert status == 0, status
"""
SDK = """
from opentelemetry import metrics, trace
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
def set_up():
    global reader, exporter
    reader, exporter = InMemoryMetricReader(), InMemorySpanExporter()
    metrics.set_meter_provider(MeterProvider([reader]))
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    trace.set_tracer_provider(provider)
def exported():
    data = reader.get_metrics_data()
    return [point.value for resource in (data.resource_metrics if data else ())
            for scope in resource.scope_metrics for metric in scope.metrics
            if metric.name == "greenback.bridges" for point in metric.data.data_points]
def spans():
    return [span.name for span in exporter.get_finished_spans()]
"""


def resources(path: Path) -> Dict[int, List[Any]]:
    """The scopes in a file, by the number of the process that wrote them."""
    found: Dict[int, List[Any]] = {}
    for line in path.read_text().splitlines():
        for each in (request := json.loads(line)).get("resourceMetrics", []) + request.get(
            "resourceSpans", []
        ):
            (pid,) = [
                int(attribute["value"]["intValue"])
                for attribute in each["resource"]["attributes"]
                if attribute["key"] == "process.pid"
            ]
            found.setdefault(pid, []).extend(each.get("scopeMetrics") or each["scopeSpans"])
    return found


def bridges(scopes: List[Any]) -> int:
    """The last number of bridges in the file."""
    count = 0
    for scope in scopes:
        for metric in scope.get("metrics", []):
            if metric["name"] == "greenback.bridges":
                count = sum(int(point["asInt"]) for point in metric["sum"]["dataPoints"])
    return count


def span_names(scopes: List[Any]) -> List[str]:
    return sorted(span["name"] for scope in scopes for span in scope.get("spans", []))


@pytest.fixture
def asyncio_says(python: Any) -> str:
    """The messages of asyncio itself about a fork in a task: the child has no loop (3.14)."""
    program = "child = asyncio.run(fork())\nif child: wait_for(child)"
    done = python("-c", BRIDGES + FORK + program)
    assert done.returncode == 0, done.stderr
    return without_addresses(done.stderr)


def without_addresses(text: str) -> str:
    return re.sub("0x[0-9a-f]+", "0x", text)


class TestFile:
    """GREENBACK_TRACE_FILE in a program that forks."""

    def run(self, python: Any, path: Path, program: str, says: str = "") -> Any:
        done = python("-c", BRIDGES + program, GREENBACK_TRACE="1", GREENBACK_TRACE_FILE=str(path))
        assert done.returncode == 0, done.stderr
        assert without_addresses(done.stderr) == says
        return done

    def test_own_file(self, python: Any, tmp_path: Path) -> None:
        """With {pid} in the path, each process has a file with its own numbers and spans."""
        done = self.run(
            python,
            tmp_path / "trace-{pid}.jsonl",
            "page(3)\n"
            "child = os.fork()\n"
            "if not child: page(5); sys.exit()\n"
            "wait_for(child)\n"
            "page(2)\n"
            "print(os.getpid(), child)",
        )
        parent, child = map(int, done.stdout.split())
        for pid, count in ((parent, 5), (child, 5)):
            found = resources(tmp_path / f"trace-{pid}.jsonl")
            assert list(found) == [pid]
            assert bridges(found[pid]) == count
            assert span_names(found[pid]).count("await_ bridge") == count

    def test_shared_file(self, python: Any, tmp_path: Path) -> None:
        """Without {pid}, all processes write whole lines, with their numbers, to one file."""
        path = tmp_path / "trace.jsonl"
        done = self.run(
            python,
            path,
            "page(3)\n"
            "children = []\n"
            "for count in (10, 20, 30):\n"
            "    child = os.fork()\n"
            "    if not child: page(count); sys.exit()\n"
            "    children.append(child)\n"
            "for child in children: wait_for(child)\n"
            "print(os.getpid(), *children)",
        )
        found = resources(path)
        pids = [int(pid) for pid in done.stdout.split()]
        assert sorted(found) == sorted(pids)
        assert [bridges(found[pid]) for pid in pids] == [3, 10, 20, 30]

    def test_before_any_portal(self, python: Any, tmp_path: Path) -> None:
        """A preloading server forks without a thread of greenback's; its workers are traced."""
        done = self.run(
            python,
            tmp_path / "trace-{pid}.jsonl",
            "import threading\n"
            "assert threading.active_count() == 1\n"
            "child = os.fork()\n"
            "if not child: page(4); sys.exit()\n"
            "wait_for(child)\n"
            "print(child)",
        )
        child = int(done.stdout)
        assert bridges(resources(tmp_path / f"trace-{child}.jsonl")[child]) == 4

    def test_child_of_a_child(self, python: Any, tmp_path: Path) -> None:
        """A child may fork in turn."""
        done = self.run(
            python,
            tmp_path / "trace-{pid}.jsonl",
            "page(1)\n"
            "child = os.fork()\n"
            "if child: wait_for(child); sys.exit()\n"
            "page(2)\n"
            "child = os.fork()\n"
            "if child: wait_for(child); print(os.getpid(), child); sys.exit()\n"
            "page(3)\n",
        )
        for pid, count in zip(map(int, done.stdout.split()), (2, 3)):
            assert bridges(resources(tmp_path / f"trace-{pid}.jsonl")[pid]) == count

    @pytest.mark.parametrize("method", ["fork", "forkserver", "spawn"])
    def test_multiprocessing(self, python: Any, tmp_path: Path, method: str) -> None:
        """Children of multiprocessing complete their files, although they skip atexit."""
        (tmp_path / "program.py").write_text(
            BRIDGES + "import multiprocessing\n"
            "if __name__ == '__main__':\n"
            f"    context = multiprocessing.get_context({method!r})\n"
            "    page(1)\n"
            "    child = context.Process(target=page, args=(6,))\n"
            "    child.start(); child.join()\n"
            "    assert child.exitcode == 0\n"
            "    print(child.pid)\n"
        )
        done = python(
            "program.py",
            GREENBACK_TRACE="1",
            GREENBACK_TRACE_FILE=str(tmp_path / "trace-{pid}.jsonl"),
        )
        assert (done.returncode, done.stderr) == (0, "")
        child = int(done.stdout)
        found = resources(tmp_path / f"trace-{child}.jsonl")[child]
        assert bridges(found) == 6
        assert span_names(found).count("await_ bridge") == 6

    def test_in_a_bridge(self, python: Any, tmp_path: Path, asyncio_says: str) -> None:
        """A child forked in a bridge goes on with it, and does not count its parent's bridges."""
        done = self.run(
            python,
            tmp_path / "trace-{pid}.jsonl",
            FORK + "import threading\n"
            "def split():\n"
            "    greenback.await_(nop())\n"
            "    child = greenback.await_(fork())\n"
            # asyncio has no running loop any more in the thread of a forked child.
            "    if not child:\n"
            "        thread = threading.Thread(target=page, args=(7,))\n"
            "        thread.start(); thread.join()\n"
            "        assert counted() == 7, counted()\n"
            "    return child\n"
            "child = asyncio.run(greenback.with_portal_run_sync(split))\n"
            "if child: wait_for(child); print(os.getpid(), child)",
            asyncio_says,
        )
        parent, child = map(int, done.stdout.split())
        assert bridges(resources(tmp_path / f"trace-{parent}.jsonl")[parent]) == 2
        found = resources(tmp_path / f"trace-{child}.jsonl")[child]
        assert bridges(found) == 7

    def test_while_it_is_written(self, python: Any, tmp_path: Path) -> None:
        """A fork while another thread collects and writes blocks neither process."""
        done = self.run(
            python,
            tmp_path / "trace-{pid}.jsonl",
            "import threading\n"
            "from greenback_trace import _activate\n"
            "page(1)\n"
            "stop = threading.Event()\n"
            "def write():\n"
            "    while not stop.is_set():\n"
            "        bridges = page(1)\n"  # the end of its loop writes everything
            "        greenback_trace.snapshot()\n"
            "threads = [threading.Thread(target=write) for _ in range(2)]\n"
            "for thread in threads: thread.start()\n"
            "children = []\n"
            "for _ in range(20):\n"
            "    child = os.fork()\n"
            "    if not child:\n"
            "        page(3)\n"
            "        assert counted() == 3\n"
            "        _activate._at_exit()\n"
            "        os._exit(0)\n"
            "    children.append(child)\n"
            "for child in children: wait_for(child)\n"
            "stop.set()\n"
            "for thread in threads: thread.join()\n"
            "print(*children)",
        )
        for child in map(int, done.stdout.split()):
            assert bridges(resources(tmp_path / f"trace-{child}.jsonl")[child]) == 3


class TestSDK:
    """The application's own SDK in a program that forks."""

    def run(self, python: Any, program: str) -> Any:
        done = python("-c", BRIDGES + SDK + program, GREENBACK_TRACE="1")
        assert done.returncode == 0, done.stderr
        return done

    @pytest.mark.parametrize(
        "before",
        [
            "",
            "page(3)",
            "page(3); greenback_trace.enable(); page(1)",
            "page(3); greenback_trace.disable()",
        ],
        ids=["at_once", "traced", "enabled_again", "disabled"],
    )
    def test_set_up_afterwards(self, python: Any, before: str) -> None:
        """A child that sets up its own SDK exports its own numbers and spans."""
        done = self.run(
            python,
            f"{before}\n"
            "child = os.fork()\n"
            "if not child:\n"
            "    if not greenback_trace.is_enabled(): greenback_trace.enable()\n"
            "    set_up(); page(2)\n"
            "    print(exported(), spans())\n"
            "    sys.exit()\n"
            "wait_for(child)",
        )
        assert done.stdout == ("[2] ['await_ bridge', 'await_ bridge', 'portal run_sync']\n"), (
            done.stderr
        )
        assert "fork" not in done.stderr

    @pytest.mark.parametrize("before", ["", "page(3)"])
    def test_inherited(self, python: Any, before: str) -> None:
        """An SDK from before the fork gets nothing in the child: one warning and a summary."""
        done = self.run(
            python,
            f"set_up(); {before}\n"
            "child = os.fork()\n"
            "if not child:\n"
            "    exporter.clear(); page(2); page(1)\n"
            "    assert counted() == 3, counted()\n"
            "    assert (spans(), exported()) == ([], [])\n"
            "    sys.exit()\n"
            "wait_for(child)\n"
            "page(1)\n"
            "print(exported())",
        )
        assert done.stdout == ("[4]\n" if before else "[1]\n")
        warning, summary = done.stderr.splitlines()
        assert "was forked after its OpenTelemetry SDK was set up" in warning
        assert "greenback.summary" in summary
        assert "bridges=3" in summary

    def test_inherited_in_a_bridge(self, python: Any, asyncio_says: str) -> None:
        """A child forked in the middle of a bridge goes on with it, and is warned once."""
        done = self.run(
            python,
            FORK + "import threading\n"
            "set_up()\n"
            "def split():\n"
            "    greenback.await_(nop())\n"
            "    child = greenback.await_(fork())\n"
            # asyncio has no running loop any more in the thread of a forked child.
            "    if not child:\n"
            "        for _ in range(2):\n"
            "            thread = threading.Thread(target=page, args=(7,))\n"
            "            thread.start(); thread.join()\n"
            "        assert counted() == 14, counted()\n"
            "        assert exported() == []\n"
            "    return child\n"
            "child = asyncio.run(greenback.with_portal_run_sync(split))\n"
            "if child: wait_for(child); print(exported(), sorted(spans()))",
        )
        # The fork came in the middle of the second bridge.
        assert done.stdout == "[2] ['await_ split', 'await_ split', 'portal run_sync']\n", (
            done.stderr
        )
        said = without_addresses(done.stderr)
        assert asyncio_says in said
        warning, summary = said.replace(asyncio_says, "").splitlines()
        assert "was forked after its OpenTelemetry SDK was set up" in warning
        assert "bridges=14" in summary

    def test_inherited_and_unused(self, python: Any) -> None:
        """A child that opens no portal is not warned."""
        done = self.run(
            python, "set_up(); page(1)\nchild = os.fork()\nif child: wait_for(child); exported()"
        )
        assert done.stderr == ""

    def test_in_the_middle_of_a_collection(self, python: Any) -> None:
        """A fork inside of a callback, with the SDK's locks held, blocks neither process."""
        done = self.run(
            python,
            "set_up()\n"
            "page(1)\n"
            "def fork(options):\n"
            "    global child\n"
            "    child = os.fork()\n"
            "    if not child:\n"
            "        page(2)\n"
            "        assert counted() == 2\n"
            "        os._exit(0)\n"
            "    wait_for(child)\n"
            "    return []\n"
            "metrics.get_meter('other').create_observable_counter('other', [fork])\n"
            "print(exported())",
        )
        assert done.stdout == "[1]\n", done.stderr
        assert "was forked after" in done.stderr


class TestTrio:
    """A Trio program that forks: the child cannot use the loop, and ends by itself."""

    PROGRAM = """
import trio
async def fork(how):
    if how == 'suspended': await trio.sleep(0)
    return os.fork()
def split(how):
    greenback.await_(nop())
    child = greenback.await_(fork(how))
    if not child:
        greenback.await_(nop())
        print('the child', greenback.await_(number(3)), flush=True)
        os._exit(7)
    return child
async def number(value): return value
for how in ('at once', 'suspended'):
    child = trio.run(greenback.with_portal_run_sync, split, how)
    _, status = os.waitpid(child, 0)
    assert os.WIFEXITED(status), status
    print('has ended with', os.WEXITSTATUS(status), flush=True)
"""

    @pytest.mark.parametrize("to", ["file", "sdk", "nowhere"])
    def test_in_a_bridge(self, python: Any, tmp_path: Path, to: str) -> None:
        """Traced or not, a child forked in a bridge can bridge and end; its parent is exact."""
        untraced = python("-c", BRIDGES + self.PROGRAM)
        path = tmp_path / "trace.jsonl"
        variables = {"GREENBACK_TRACE": "1"}
        if to == "file":
            variables["GREENBACK_TRACE_FILE"] = str(path)
        setting_up = SDK + "set_up()\n" if to == "sdk" else ""
        traced = python(
            "-c",
            BRIDGES + setting_up + self.PROGRAM + "assert counted() == 4, counted()",
            **variables,
        )
        assert untraced.stdout == "the child 3\nhas ended with 7\n" * 2
        assert (untraced.returncode, untraced.stderr) == (0, "")
        assert (traced.returncode, traced.stdout) == (0, untraced.stdout), traced.stderr
        said = traced.stderr.splitlines()
        if to == "file":
            assert said == []
            assert set(map(bridges, resources(path).values())) == {4}
        elif to == "sdk":
            assert len(said) == 2
            assert all("was forked after its OpenTelemetry SDK" in line for line in said)
        else:
            (summary,) = said  # the parent's
            assert "bridges=4" in summary
