"""A running program whose numbers grow."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import List

# Each line that it reads gets an event loop of its own, since closing a loop writes the trace.
# "park" is a loop with a task that waits until the next line comes; until then sync code holds it.
PROGRAM = """
import asyncio
import sys
import time

import greenback
from greenback import await_


def ask():
    await_(asyncio.sleep(0.001))


def hold():
    time.sleep(0.06)
    try:
        await_(asyncio.wait_for(asyncio.sleep(60), 0.1))
    except asyncio.TimeoutError:
        pass


def answer():
    for _ in range(5):
        ask()
    hold()


def wait_for(event):
    await_(event.wait())


def read():
    print("done", flush=True)
    sys.stdin.readline()


async def park():
    event = asyncio.Event()
    waiting = asyncio.create_task(greenback.with_portal_run_sync(wait_for, event), name="waits")
    await asyncio.sleep(0)
    await greenback.with_portal_run_sync(read)
    event.set()
    await waiting


for line in sys.stdin:
    asyncio.run(park() if line == "park\\n" else greenback.with_portal_run_sync(answer))
    print("done", flush=True)
"""


class Service:
    """The program, which does its work once per call of `answer`."""

    def __init__(self, directory: Path, **variables: str) -> None:
        program = directory / "service.py"
        program.write_text(PROGRAM)
        environ = {
            name: value
            for name, value in os.environ.items()
            if not name.startswith("GREENBACK_TRACE")
        }
        self.process = subprocess.Popen(
            [sys.executable, str(program)],
            env={
                **environ,
                "GREENBACK_TRACE": "1",
                "GREENBACK_TRACE_SLOW": "0.05",
                **variables,
            },
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )

    def answer(self, command: str = "") -> None:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(f"{command}\n")
        self.process.stdin.flush()
        assert self.process.stdout.readline() == "done\n"

    def end(self) -> None:
        self.process.communicate(timeout=60)


def times(trace: Path) -> List[float]:
    """When the metrics in a file were written, in seconds; a float is exact to 0.2 us."""
    found = []
    for line in trace.read_text().splitlines():
        request = json.loads(line)
        if "resourceMetrics" in request:
            metrics = request["resourceMetrics"][0]["scopeMetrics"][0]["metrics"]
            (bridges,) = (each for each in metrics if each["name"] == "greenback.bridges")
            found.append(int(bridges["sum"]["dataPoints"][0]["timeUnixNano"]) / 1e9)
    return found
