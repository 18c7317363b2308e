"""Count instructions per call, which do not depend on how busy the machine is.

    .venv/bin/python benchmarks/instructions.py
    .venv/bin/python benchmarks/instructions.py --library asyncio --python /usr/bin/python3.12

Valgrind's cachegrind counts the instructions of two fresh processes: one makes N calls, the other
one 4 N. A call is a third of an Nth of the difference. So neither starting and importing, nor what
happens for the first time, is part of it. Implementations, works and environments are those of
``run.py``. It takes some minutes.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Dict, List, NamedTuple, Optional

from peers import Peer, WorkerError, describe, find_python, prepare
from rich.console import Console
from run import HEADINGS, LIBRARIES, WORKS, Results, names_for, show_failures, supports
from tables import new_table

COUNTED = ("bridge", "bridged_sleep", "portal_sleep", "run_sync", "run_async", "portal_task")
#: They have rows of their own. They are subtracted from those that say "added".
PLAIN = {
    "plain_await": "await nop()",
    "plain_sleep": "await sleep(0) in a task",
    "plain_task": "a task that does await sleep(0)",
}
CACHEGRIND = ("valgrind", "--tool=cachegrind", "--cache-sim=no", "--cachegrind-out-file=/dev/null")


class Cell(NamedTuple):
    implementation: str
    work: str


def count_per_call(peer: Peer, library: str, work: str, calls: int) -> float:
    few, many = (count(peer, library, work, times * calls) for times in (1, 4))
    return (many - few) / (3 * calls)


def count(peer: Peer, library: str, work: str, calls: int) -> int:
    """Count the instructions of a process that makes so many calls.

    Raises:
        WorkerError: The process or valgrind failed.
    """
    environment = {
        **peer.environment(),
        "PYTHONHASHSEED": "0",
        # Under valgrind all steps take long.
        "GREENBACK_TRACE_SLOW": "1e6",
    }
    done = subprocess.run(
        [*CACHEGRIND, *peer.command(library)],
        input=json.dumps({"work": work, "n": calls, "depth": 1}) + "\n",
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    for line in done.stdout.splitlines():
        reply = json.loads(line)
        if "error" in reply:
            raise WorkerError(reply["error"])
    total = re.search(r"^==\d+== I +refs: +([\d,]+)$", done.stderr, re.MULTILINE)
    if done.returncode != 0 or total is None:
        raise WorkerError(f"valgrind has ended with status {done.returncode}:\n{done.stderr}")
    return int(total[1].replace(",", ""))


def count_all(peers: Dict[str, Peer], library: str, calls: int, results: Results) -> None:
    # Plain works are the same code in all processes.
    cells = [Cell("upstream", work) for work in PLAIN]
    cells += [
        Cell(implementation, work.name)
        for implementation in names_for(peers, library)
        for work in WORKS
        if work.name in COUNTED and supports(implementation, work)
    ]
    counting: Dict[Cell, Future[float]] = {}
    with ThreadPoolExecutor(os.cpu_count()) as threads:
        for cell in cells:
            peer = peers[cell.implementation]
            counting[cell] = threads.submit(count_per_call, peer, library, cell.work, calls)
        progress = Console(stderr=True)
        for number, (cell, future) in enumerate(counting.items(), 1):
            with progress.status(f"{library}, {number} of {len(counting)}"):
                try:
                    value = future.result()
                except WorkerError as failure:
                    results.failures[library, cell.implementation, cell.work] = str(failure)
                else:
                    results.add(library, cell.implementation, cell.work, 1, value)


def show(console: Console, peers: Dict[str, Peer], library: str, results: Results) -> None:
    table = new_table(f"{library}: instructions per call, sync depth 1")
    table.add_column("\nwork", no_wrap=True)
    for name in peers:
        table.add_column(HEADINGS[name], justify="right", no_wrap=True)
    table.add_column("\nplain", justify="right", no_wrap=True)
    for work in WORKS:
        if work.name in COUNTED:
            cells = [rounded(results.cost(library, name, work, 1)) for name in peers]
            table.add_row(work.title, *cells, "")
    for name, title in PLAIN.items():
        plain = results.minima.get((library, "plain", name, 1))
        table.add_row(title, *[""] * len(peers), rounded(plain))
    console.print()
    console.print(table)


def rounded(value: Optional[float]) -> str:
    return "-" if value is None else f"{value:,.0f}"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--library", action="append", choices=LIBRARIES, help="default: uvloop (repeatable)"
    )
    parser.add_argument("--calls", type=int, default=500, metavar="N", help="default: 500")
    parser.add_argument("--python", help="interpreter to measure on (default: CPython 3.13)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures there, too")
    arguments = parser.parse_args()
    if shutil.which("valgrind") is None:
        sys.exit("valgrind is not installed; on Debian and Ubuntu: apt-get install valgrind")
    libraries: List[str] = arguments.library or ["uvloop"]
    console = Console(width=None if sys.stdout.isatty() else 104, highlight=False)
    python = arguments.python or find_python()
    results = Results()
    with tempfile.TemporaryDirectory() as directory:
        peers = prepare(python, Path(directory), console)
        for library in libraries:
            count_all(peers, library, arguments.calls, results)
    console.print(describe(python))
    for library in libraries:
        show(console, peers, library, results)
    show_failures(console, results)
    if arguments.json:
        arguments.json.write_text(
            json.dumps(
                [
                    {"library": key[0], "implementation": key[1], "work": key[2], "value": value}
                    for key, value in results.minima.items()
                ],
                indent=1,
            )
        )


if __name__ == "__main__":
    main()
