"""The end of a program, and its trace then."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any, List

import pytest

pytest.importorskip("opentelemetry.sdk.trace", reason="these tests need greenback[report]")
pytest.importorskip("opentelemetry.exporter.otlp.proto.common", reason="needs greenback[report]")

BRIDGES = """
import asyncio, os, sys
import greenback
async def nop(): pass
def bridge(count):
    for _ in range(count):
        greenback.await_(nop())
"""


def bridges(path: Path) -> int:
    """The number of bridges in the last line that has it. Every line is whole."""
    count = 0
    for line in path.read_text().splitlines():
        for resource in json.loads(line).get("resourceMetrics", []):
            for scope in resource["scopeMetrics"]:
                for metric in scope["metrics"]:
                    if metric["name"] == "greenback.bridges":
                        count = sum(int(point["asInt"]) for point in metric["sum"]["dataPoints"])
    return count


def spans(path: Path) -> List[str]:
    return [
        span["name"]
        for line in path.read_text().splitlines()
        for resource in json.loads(line).get("resourceSpans", [])
        for scope in resource["scopeSpans"]
        for span in scope["spans"]
    ]


class TestLoopCloses:
    @pytest.mark.parametrize(
        "run",
        [
            "asyncio.run(greenback.with_portal_run_sync(bridge, 3))",
            "loop = asyncio.new_event_loop()\n"
            "loop.run_until_complete(greenback.with_portal_run_sync(bridge, 3))\n"
            "loop.close()",
            "import trio; trio.run(greenback.with_portal_run_sync, bridge, 3)",
            "import uvloop\n"
            "loop = uvloop.new_event_loop()\n"
            "loop.run_until_complete(greenback.with_portal_run_sync(bridge, 3))\n"
            "loop.close()",
        ],
        ids=["asyncio.run", "loop.close", "trio", "uvloop"],
    )
    def test_file_is_complete(self, python: Any, tmp_path: Path, run: str) -> None:
        """When a loop with portals has closed, the file is complete, whatever comes after."""
        if "uvloop" in run:
            pytest.importorskip("uvloop")
        path = tmp_path / "trace.jsonl"
        done = python(
            "-c",
            f"{BRIDGES}{run}\nos._exit(0)",
            GREENBACK_TRACE="1",
            GREENBACK_TRACE_FILE=str(path),
        )
        assert (done.returncode, done.stderr) == (0, "")
        assert bridges(path) == 3
        assert spans(path).count("await_ bridge") == 3

    def test_loop_is_as_before(self, python: Any, tmp_path: Path) -> None:
        """Like any loop, it refuses to be closed while it runs, and can be closed twice."""
        path = tmp_path / "trace.jsonl"
        done = python(
            "-W",
            "error",
            "-c",
            BRIDGES + "async def main():\n"
            "    await greenback.with_portal_run_sync(bridge, 1)\n"
            "    for _ in range(2):\n"
            "        try: asyncio.get_running_loop().close()\n"
            "        except RuntimeError as error: print(error, flush=True)\n"
            "    await greenback.with_portal_run_sync(bridge, 1)\n"
            "loop = asyncio.new_event_loop()\n"
            "loop.run_until_complete(main())\n"
            "loop.close(); loop.close()\n"
            "assert 'close' not in vars(loop)\n"
            "os._exit(0)",
            GREENBACK_TRACE="1",
            GREENBACK_TRACE_FILE=str(path),
        )
        assert (done.returncode, done.stderr) == (0, "")
        assert done.stdout == "Cannot close a running event loop\n" * 2
        assert bridges(path) == 2

    def test_loop_that_nobody_closes(self, python: Any) -> None:
        """A loop that nobody closes is collected, with Python's usual warning."""
        program = (
            BRIDGES + "import gc\n"
            "loop = asyncio.new_event_loop()\n"
            "loop.run_until_complete(greenback.with_portal_run_sync(bridge, 1))\n"
            "del loop; gc.collect(); gc.collect(); print('goes on')"
        )
        untraced, traced = (
            python("-W", "always", "-c", program, **variables)
            for variables in ({}, {"GREENBACK_TRACE": "1", "GREENBACK_TRACE_FILE": os.devnull})
        )
        assert traced.returncode == 0
        assert traced.stdout == untraced.stdout == "goes on\n"
        for done in (untraced, traced):
            assert done.stderr.count("ResourceWarning: unclosed event loop") == 1


class TestExit:
    """Bridges while the interpreter ends."""

    def run(self, python: Any, path: Path, program: str) -> Any:
        done = python(
            "-W",
            "error",
            "-c",
            BRIDGES + program,
            GREENBACK_TRACE="1",
            GREENBACK_TRACE_FILE=str(path),
        )
        assert (done.returncode, done.stderr) == (0, "")
        return done

    def test_atexit(self, python: Any, tmp_path: Path) -> None:
        """A bridge in an atexit callback registered after greenback's is in the file."""
        path = tmp_path / "trace.jsonl"
        self.run(
            python,
            path,
            "import atexit\n"
            "atexit.register(lambda: asyncio.run(greenback.with_portal_run_sync(bridge, 2)))",
        )
        assert bridges(path) == 2
        assert spans(path).count("await_ bridge") == 2

    def test_atexit_before(self, python: Any, tmp_path: Path) -> None:
        """A bridge in a later callback than greenback's works untraced, as one message says."""
        path = tmp_path / "trace.jsonl"
        done = python(
            "-W",
            "error",
            "-c",
            "import atexit, logging\n"
            "logging.basicConfig(level=logging.INFO, format='%(name)s %(message)s')\n"
            "logging.getLogger('asyncio').propagate = False\n"
            "def late():\n"
            "    for _ in range(2): asyncio.run(greenback.with_portal_run_sync(bridge, 2))\n"
            "    print('done')\n"
            f"atexit.register(late)\n{BRIDGES}",
            GREENBACK_TRACE="1",
            GREENBACK_TRACE_FILE=str(path),
        )
        assert (done.returncode, done.stdout) == (0, "done\n")
        (message,) = done.stderr.splitlines()
        assert message.startswith("greenback ")
        assert "still bridges while it ends" in message
        assert bridges(path) == 0

    @pytest.mark.skipif(
        sys.implementation.name == "pypy", reason="PyPy runs no finalizers when it ends"
    )
    def test_finalizer(self, python: Any, tmp_path: Path) -> None:
        """A bridge in a __del__ that runs when modules are torn down ends as without tracing."""
        program = (
            BRIDGES + "class Late:\n"
            "    loop = asyncio.new_event_loop()\n"
            "    def __del__(self, loop=loop, greenback=greenback, bridge=bridge, nop=nop):\n"
            "        coroutine = greenback.with_portal_run_sync(bridge, 2)\n"
            "        try: loop.run_until_complete(coroutine)\n"
            "        except RuntimeError as error: print(error)\n"  # from greenlet, after its end
            "        loop.close()\n"
            "        print('done')\n"
            "late = Late()"
        )
        path = tmp_path / "trace.jsonl"
        untraced = python("-c", program)
        traced = python("-c", program, GREENBACK_TRACE="1", GREENBACK_TRACE_FILE=str(path))
        assert traced.stdout.endswith("done\n")
        assert (traced.returncode, traced.stdout) == (untraced.returncode, untraced.stdout)
        assert traced.stderr.count("\n") == untraced.stderr.count("\n")

    def test_daemon_thread(self, python: Any, tmp_path: Path) -> None:
        """A program with a daemon thread that bridges all the time can end."""
        path = tmp_path / "trace.jsonl"
        self.run(
            python,
            path,
            "import threading\n"
            "begun = threading.Event()\n"
            "def forever():\n"
            "    while True:\n"
            "        greenback.await_(nop()); begun.set()\n"
            "def work(): asyncio.run(greenback.with_portal_run_sync(forever))\n"
            "threading.Thread(target=work, daemon=True).start()\n"
            "begun.wait()",
        )
        assert bridges(path) > 0
