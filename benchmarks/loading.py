"""Show how fast a report reads traces, and in how much memory.

Run it as ``.venv/bin/python benchmarks/loading.py``; it takes two minutes. It traces a program, and
writes its lines again and again, as many processes would, until the file is large enough. A process
of its own loads each file with msgspec. The smallest file is also loaded without msgspec, by the
parser of the standard library. Seconds are CPU time.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
import uuid
from pathlib import Path
from typing import Any, Dict, List, Tuple

from rich.console import Console
from tables import new_table

PROGRAM = """
import asyncio
import greenback
from greenback import await_


async def fetch(seconds):
    await asyncio.sleep(seconds)


async def fail():
    raise KeyError("as some bridges do")


def make(number):
    def site():
        await_(fetch(0.0001 * (number % 3)))
        try:
            await_(fail())
        except KeyError:
            pass

    def middle():
        site()

    def outer():
        middle()

    site.__qualname__ = f"Client.request_{number}"
    site.__code__ = site.__code__.replace(
        co_name=f"request_{number}", co_firstlineno=1000 * (number + 1)
    )
    return outer


SITES = [make(number) for number in range(50)]


async def request():
    await greenback.ensure_portal()
    for site in SITES:
        site()


async def main():
    for _ in range(10):
        await asyncio.gather(*(asyncio.create_task(request()) for _ in range(10)))


asyncio.run(main())
"""

LOADER = """
import json, resource, sys, time

if sys.argv[2] == "json":
    sys.modules["msgspec"] = None
from greenback_trace.report.read.load import load

began = time.process_time()
trace = load([sys.argv[1]])
taken = time.process_time() - began
peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
print(json.dumps([taken, peak * (1 if sys.platform == "darwin" else 1024), trace.total.bridges]))
"""


def traced(directory: Path) -> List[str]:
    """The lines of the trace that the program writes."""
    (directory / "program.py").write_text(PROGRAM)
    file = directory / "one.jsonl"
    environ = {**os.environ, "GREENBACK_TRACE": "1", "GREENBACK_TRACE_FILE": str(file)}
    subprocess.run(
        [sys.executable, str(directory / "program.py")],
        env=environ,
        check=True,
        stderr=subprocess.DEVNULL,
    )
    return file.read_text().splitlines(keepends=True)


def multiply(lines: List[str], path: Path, size: int, processes: int) -> Tuple[int, int]:
    """Write *lines* as *processes* processes would.

    Each process in turn writes some of the spans and then all of its counts.

    Returns:
        The size of the file in bytes, and the number of processes written.
    """
    match = re.search(r'"service.instance.id","value":{"stringValue":"([^"]*)"', lines[0])
    assert match is not None
    spans = [line for line in lines if "resourceSpans" in line]
    metrics = [line for line in lines if "resourceMetrics" in line][-1]
    names = [str(uuid.uuid4()) for _ in range(processes)]
    written = turns = 0
    with path.open("w") as file:
        while written < size:
            for line in (spans[turns % len(spans)], metrics):
                written += file.write(line.replace(match[1], names[turns % processes]))
            turns += 1
    return written, min(turns, processes)


def loaded(path: Path, parser: str) -> Dict[str, Any]:
    done = subprocess.run(
        [sys.executable, "-c", LOADER, str(path), parser],
        check=True,
        stdout=subprocess.PIPE,
    )
    taken, peak, bridges = json.loads(done.stdout)
    return {"taken": taken, "peak": peak, "bridges": bridges}


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument(
        "--megabytes", type=int, nargs="+", default=[64, 1024], help="how large the files are"
    )
    arguments.add_argument(
        "--processes", type=int, nargs="+", default=[20, 1000], help="how many have written them"
    )
    options = arguments.parse_args()
    sizes = sorted(options.megabytes)
    console = Console()
    table = new_table("Loading a trace")
    for name in ("MB", "processes", "parser", "seconds", "MB/s", "peak MB"):
        table.add_column(name, justify="right")
    with tempfile.TemporaryDirectory() as directory:
        lines = traced(Path(directory))
        one = loaded(Path(directory, "one.jsonl"), "msgspec")
        path = Path(directory, "many.jsonl")
        for processes in options.processes:
            for megabytes in sizes:
                size, written = multiply(lines, path, megabytes * 1_000_000, processes)
                for parser in ("msgspec", "json") if megabytes == sizes[0] else ("msgspec",):
                    found = loaded(path, parser)
                    # Counters are cumulative: writing one again must not add to the total.
                    assert found["bridges"] == one["bridges"] * written, found
                    table.add_row(
                        f"{size / 1e6:.0f}",
                        str(written),
                        parser,
                        f"{found['taken']:.1f}",
                        f"{size / 1e6 / found['taken']:.0f}",
                        f"{found['peak'] / 1e6:.0f}",
                    )
    console.print(table)


if __name__ == "__main__":
    main()
