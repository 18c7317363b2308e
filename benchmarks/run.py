"""This implementation beside its peers, in one run: see README.md for what is measured and how."""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
from functools import partial
from pathlib import Path
from typing import Dict, List, NamedTuple, Optional, Tuple

import tracing
from peers import (
    IMPLEMENTATIONS,
    Peer,
    Worker,
    WorkerError,
    cpu,
    describe,
    find_python,
    prepare,
)
from rich.console import Console
from tables import Target, judge, new_table, number, ratio, show_targets

LIBRARIES = ("asyncio", "uvloop", "trio")
DEPTHS = (1, 20, 100)
PARKED_TASKS = 5000
AT_DEPTH = "  at sync depth {}"
SHORT = {"c": "C", "python": "Py"}
ASYNCIO_ONLY = ("sqlalchemy", "awaitlet")
HEADINGS = {
    "c": "ours\nC",
    "python": "ours\nPy",
    "c_traced": "traced\nC",
    "python_traced": "traced\nPy",
    "upstream": "up-\nstream",
    "sqlalchemy": "SQL-\nAlch.",
    "awaitlet": "await-\nlet",
}


class Work(NamedTuple):
    name: str
    title: str
    depths: Tuple[int, ...] = (1,)
    #: The same work without a portal, measured in every process.
    plain: Optional[str] = None
    #: Whether the plain work is subtracted: the figure is then what a portal or bridge adds.
    added: bool = False
    portals_only: bool = False


WORKS = (
    Work("bridge", "await_(nop())", DEPTHS, "plain_await"),
    Work("bridged_sleep", "await_(sleep(0)), added", DEPTHS, "plain_sleep", added=True),
    Work("portal_sleep", "sleep(0) in a portal, added", (1,), "plain_sleep", True, True),
    Work("run_sync", "with_portal_run_sync(nop)", (1,), "plain_await"),
    Work("run_async", "with_portal_run(immediate)", (1,), "plain_await", portals_only=True),
    Work("portal_task", "ensure_portal in task, added", (1,), "plain_task", True, True),
    Work("portal_tasks", "  same, 100 tasks at once", (1,), "plain_tasks", True, True),
    Work("parked", "memory of a parked task, kB", DEPTHS, "plain_parked"),
)
BY_NAME = {work.name: work for work in WORKS}
SWITCH_PAIR = "switch_pair"
MEMORY = ("parked", "plain_parked")
PLAIN_TIMES = ("plain_await", "plain_sleep", "plain_task", "plain_tasks")


# They hold for CPython 3.13, uvloop, sync depth 1.
TARGETS = (
    Target("immediate bridge: of a plain await", 1.8, ("bridge", "c"), ("plain_await", "plain")),
    Target(
        "suspending bridge, added: of a raw switch pair",
        2.0,
        ("bridged_sleep", "c"),
        (SWITCH_PAIR, "plain"),
    ),
    Target(
        "  the same: of SQLAlchemy's", 0.75, ("bridged_sleep", "c"), ("bridged_sleep", "sqlalchemy")
    ),
    Target(
        "with_portal_run_sync: times as fast as upstream's",
        11,
        ("run_sync", "upstream"),
        ("run_sync", "c"),
        at_most=False,
    ),
    Target(
        "with_portal_run: times as fast as upstream's",
        15,
        ("run_async", "upstream"),
        ("run_async", "c"),
        at_most=False,
    ),
    Target(
        "ensure_portal in a task: of what upstream adds",
        0.08,
        ("portal_task", "c"),
        ("portal_task", "upstream"),
    ),
    Target(
        "traced, immediate bridge: of a plain await",
        2.8,
        ("bridge", "c_traced"),
        ("plain_await", "plain"),
    ),
    Target(
        "traced, suspending bridge, added: of SQLAlchemy's untraced",
        0.9,
        ("bridged_sleep", "c_traced"),
        ("bridged_sleep", "sqlalchemy"),
    ),
    Target(
        "tracing adds to a suspending bridge: of upstream's immediate one",
        0.1,
        ("bridged_sleep", "c_traced"),
        ("bridge", "upstream"),
        without=("bridged_sleep", "c"),
    ),
    Target(
        "traced, with_portal_run_sync: of upstream's untraced",
        0.16,
        ("run_sync", "c_traced"),
        ("run_sync", "upstream"),
    ),
    Target("memory of a parked task: of upstream's", 0.9, ("parked", "c"), ("parked", "upstream")),
)
TARGETS_IN_PYTHON = (
    Target(
        "await_(nop()): times as fast as upstream",
        4.2,
        ("bridge", "upstream"),
        ("bridge", "python"),
        at_most=False,
    ),
    Target(
        "await_(nop()): times as fast as SQLAlchemy",
        1.7,
        ("bridge", "sqlalchemy"),
        ("bridge", "python"),
        at_most=False,
    ),
    Target("await_(nop()): plain awaits", 6.8, ("bridge", "python"), ("plain_await", "plain")),
    Target(
        "await_(sleep(0)): of what upstream adds",
        0.43,
        ("bridged_sleep", "python"),
        ("bridged_sleep", "upstream"),
    ),
    Target(
        "sleep(0) in a portal: of what upstream adds",
        0.68,
        ("portal_sleep", "python"),
        ("portal_sleep", "upstream"),
    ),
    Target(
        "with_portal_run_sync(nop): times as fast as upstream",
        8.5,
        ("run_sync", "upstream"),
        ("run_sync", "python"),
        at_most=False,
    ),
    Target(
        "with_portal_run(immediate): times as fast as upstream",
        7.5,
        ("run_async", "upstream"),
        ("run_async", "python"),
        at_most=False,
    ),
    Target(
        "ensure_portal in a task: of what upstream adds",
        0.2,
        ("portal_task", "python"),
        ("portal_task", "upstream"),
    ),
    Target(
        "memory of a parked task: of upstream's", 1.0, ("parked", "python"), ("parked", "upstream")
    ),
)


class Settings(NamedTuple):
    #: How often all processes are started anew: where a process has its memory is worth some
    #: percent.
    rounds: int
    #: How often each work is timed in each process.
    repetitions: int
    #: About how long one repetition takes.
    seconds: float


# Many short repetitions find a quiet moment of a busy machine sooner than few long ones.
FULL = Settings(rounds=3, repetitions=15, seconds=0.002)
QUICK = Settings(rounds=2, repetitions=6, seconds=0.001)


# Measuring


class Results:
    """The minimum of every measurement, in microseconds or kB; what failed; and descriptions."""

    def __init__(self) -> None:
        #: By library, implementation (or "plain"), work and depth.
        self.minima: Dict[Tuple[str, str, str, int], float] = {}
        self.failures: Dict[Tuple[str, str, str], str] = {}
        self.versions: Dict[str, str] = {}

    def add(self, library: str, implementation: str, work: str, depth: int, value: float) -> None:
        # Plain works are the same code in all processes, and get one minimum over all of them.
        if work.startswith("plain") or work == SWITCH_PAIR:
            implementation = "plain"
        key = library, implementation, work, depth
        self.minima[key] = min(value, self.minima.get(key, value))

    def cost(self, library: str, implementation: str, work: Work, depth: int) -> Optional[float]:
        """The figure to show: the cost of *work*, or what it adds to the plain work."""
        value = self.minima.get((library, implementation, work.name, depth))
        if value is None or not work.added:
            return value
        plain = self.plain(library, work)
        return None if plain is None else value - plain

    def plain(self, library: str, work: Work) -> Optional[float]:
        if work.plain is None:
            return None
        return self.minima.get((library, "plain", work.plain, 1))

    def of(self, work: str, implementation: str, library: str = "uvloop") -> Optional[float]:
        """The figure at sync depth 1. The targets hold on uvloop."""
        if implementation == "plain":
            return self.minima.get((library, "plain", work, 1))
        return self.cost(library, implementation, BY_NAME[work], 1)

    def ratio(
        self, library: str, work: Work, depth: int, above: str, below: str
    ) -> Optional[float]:
        figures = [self.cost(library, name, work, depth) for name in (above, below)]
        if figures[0] is None or figures[1] is None or figures[1] <= 0:
            return None
        return figures[0] / figures[1]


def default(peers: Dict[str, Peer]) -> str:
    """The engine that a program gets if nobody has chosen one."""
    return "c" if "c" in peers else "python"


def supports(implementation: str, work: Work) -> bool:
    return implementation not in ASYNCIO_ONLY or not work.portals_only


def names_for(peers: Dict[str, Peer], library: str) -> List[str]:
    return [name for name in peers if library != "trio" or name not in ASYNCIO_ONLY]


def start(peers: Dict[str, Peer], library: str, results: Results) -> Dict[str, Worker]:
    workers = {}
    for name in names_for(peers, library):
        try:
            worker = Worker(peers[name], library)
        except WorkerError as failure:
            results.failures[library, name, "start"] = str(failure)
            continue
        workers[name] = worker
        results.versions.update(worker.versions())
    return workers


def measure(
    peers: Dict[str, Peer],
    libraries: List[str],
    settings: Settings,
    quick: bool,
    results: Results,
) -> None:
    progress = Console(stderr=True)
    for library in libraries:
        for turn in range(settings.rounds):
            with progress.status(f"{library}, round {turn + 1} of {settings.rounds}"):
                measure_times(peers, library, settings, results)
        if not quick:
            with progress.status(f"{library}, memory"):
                measure_memory(peers, library, results)


def measure_times(
    peers: Dict[str, Peer], library: str, settings: Settings, results: Results
) -> None:
    cells: List[Tuple[str, int, Optional[Work]]] = [(name, 1, None) for name in PLAIN_TIMES]
    cells += [(SWITCH_PAIR, depth, None) for depth in DEPTHS]
    cells += [
        (work.name, depth, work)
        for work in WORKS
        if work.name not in MEMORY
        for depth in work.depths
    ]
    workers = start(peers, library, results)
    try:
        for _ in range(settings.repetitions):
            for name, depth, work in cells:
                for implementation, worker in list(workers.items()):
                    if work is not None and not supports(implementation, work):
                        continue
                    if (library, implementation, name) in results.failures:
                        continue
                    try:
                        value = worker.time(name, depth, settings.seconds)
                    except WorkerError as failure:
                        results.failures[library, implementation, name] = str(failure)
                        if worker.process.poll() is not None:
                            worker.close()
                            del workers[implementation]
                        continue
                    results.add(library, implementation, name, depth, value)
    finally:
        for worker in workers.values():
            worker.close()


def measure_memory(peers: Dict[str, Peer], library: str, results: Results) -> None:
    """Measure memory, each time in a new process, since a process seldom gives memory back."""
    for implementation in names_for(peers, library):
        cells = [("parked", depth) for depth in DEPTHS]
        if implementation == "upstream":
            cells.append(("plain_parked", 1))
        for name, depth in cells:
            try:
                worker = Worker(peers[implementation], library)
                try:
                    grown = worker.ask(name, PARKED_TASKS, depth)["bytes"]
                finally:
                    worker.close()
            except WorkerError as failure:
                results.failures[library, implementation, name] = str(failure)
                continue
            results.add(library, implementation, name, depth, grown / 1000)


# Showing


def show_library(console: Console, library: str, peers: Dict[str, Peer], results: Results) -> None:
    table = new_table(f"{library}: microseconds per call")
    table.add_column("\nwork", no_wrap=True)
    for name in peers:
        table.add_column(HEADINGS[name], justify="right", no_wrap=True)
    table.add_column("\nplain", justify="right", no_wrap=True)
    ours = default(peers)
    for heading in ("upstr.", "SQLA."):
        table.add_column(f"{heading}\n/ {SHORT[ours]}", justify="right", style="bold", no_wrap=True)
    for work in WORKS:
        if work.name in MEMORY and results.plain(library, work) is None:
            continue  # not measured
        for depth in work.depths:
            table.add_row(
                work.title if depth == 1 else AT_DEPTH.format(depth),
                *[number(results.cost(library, name, work, depth)) for name in peers],
                number(results.plain(library, work)),
                ratio(results.ratio(library, work, depth, "upstream", ours)),
                ratio(results.ratio(library, work, depth, "sqlalchemy", ours)),
            )
    for depth in DEPTHS:
        pair = results.minima.get((library, "plain", SWITCH_PAIR, depth))
        title = "a raw switch pair" if depth == 1 else AT_DEPTH.format(depth)
        table.add_row(title, *[""] * len(peers), number(pair))
    console.print()
    console.print(table)


def show_tracing(console: Console, title: str, costs: tracing.Costs) -> None:
    table = new_table(title)
    table.add_column("\nsetup", no_wrap=True)
    for heading in tracing.WORKS.values():
        table.add_column(heading, justify="right", no_wrap=True)
        table.add_column("\nadds", justify="right", style="bold", no_wrap=True)
    for setup in tracing.SETUPS:
        cells = []
        for work in tracing.WORKS:
            cells.append(number(costs.of(work, setup.name)))
            cells.append(number(costs.added(work, setup)))
        table.add_row(setup.title, *cells)
    console.print()
    console.print(table)


def show_gains(console: Console, costs: tracing.Costs) -> None:
    """What metrics add to suspending, beyond what they add to any bridge."""
    upstream = costs.of("bridge", "upstream")
    gains = [costs.added(work, tracing.METRICS) for work in ("bridge", "bridged_sleep")]
    if upstream is None or gains[0] is None or gains[1] is None:
        return
    difference = gains[1] - gains[0]
    console.print(
        f"Gained with metrics only: {number(gains[0])} us by a bridge that does not suspend, "
        f"{number(gains[1])} us by one that does: {number(difference)} us more, which is "
        f"{difference / upstream:.3f} of upstream's untraced bridge."
    )


def show_failures(console: Console, results: Results) -> None:
    """Show one traceback for all works that failed with the same message."""
    alike: Dict[str, List[Tuple[str, str, str]]] = {}
    for where, text in results.failures.items():
        alike.setdefault(text.strip().rpartition("\n")[2], []).append(where)
    for places in alike.values():
        console.print()
        for place in places:
            console.print("[red]FAILED[/]", ", ".join(place))
        console.print(results.failures[places[0]], markup=False)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--library", action="append", choices=LIBRARIES, help="only this one (repeatable)"
    )
    parser.add_argument("--quick", action="store_true", help="fewer repetitions, no memory")
    parser.add_argument(
        "--only", choices=("peers", "tracing"), help="only the other libraries, or only tracing"
    )
    parser.add_argument("--python", help="interpreter to measure on (default: CPython 3.13)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures there, too")
    arguments = parser.parse_args()
    libraries: List[str] = arguments.library or list(LIBRARIES)
    settings = QUICK if arguments.quick else FULL
    # A pipe or a log has no width: use one that is wide enough for the tables.
    console = Console(width=None if sys.stdout.isatty() else 112, highlight=False)

    python = arguments.python or find_python()
    name = describe(python)
    if not name.startswith("CPython") and "uvloop" in libraries:
        libraries.remove("uvloop")
        console.print("[yellow]uvloop is skipped: it exists for CPython only[/]")
    # The costs of tracing hardly depend on the loop. Their targets are stated for uvloop.
    traced = "uvloop" if "uvloop" in libraries else libraries[0]
    if arguments.only == "tracing":
        libraries = []
    results = Results()
    costs = tracing.Costs()
    with tempfile.TemporaryDirectory() as directory:
        peers = prepare(python, Path(directory), console)
        ours = default(peers)
        measure(peers, libraries, settings, arguments.quick, results)
        if arguments.only != "peers":
            tracing_settings = tracing.QUICK if arguments.quick else tracing.FULL
            both = {"ours": peers[ours], "upstream": peers["upstream"]}
            costs = tracing.measure(both, traced, tracing_settings)
            results.versions.update(costs.versions)

    versions = (f"{package} {version}" for package, version in sorted(results.versions.items()))
    console.print(f"{name} on {cpu()} ({os.cpu_count()} CPUs)")
    console.print(", ".join(versions))
    if libraries:
        console.print(
            f"Times are minima of {settings.rounds * settings.repetitions} repetitions, "
            f"interleaved over the implementations, in {settings.rounds} processes each."
        )
    for library in libraries:
        show_library(console, library, peers, results)
    if arguments.only != "peers":
        title = (
            f"{traced}, {IMPLEMENTATIONS[ours].title}: microseconds per call, and what tracing adds"
        )
        show_tracing(console, title, costs)
        show_gains(console, costs)
    in_c = judge(TARGETS, results.of)
    if ours == "c":
        in_c[-1:-1] = judge([tracing.DEBUG_TARGET], costs.of)
    in_python = judge(TARGETS_IN_PYTHON, results.of)
    in_tracing = judge(tracing.TARGETS, costs.of)
    stated = "(for CPython 3.13, uvloop, depth 1)"
    others = {
        library: judge(TARGETS, partial(results.of, library=library))
        for library in libraries
        if library != "uvloop"
    }
    show_targets(console, f"Targets of the engine in C {stated}", in_c, others)
    show_targets(console, f"Targets of the engine in Python {stated}", in_python)
    show_targets(console, f"Targets of tracing {stated}, on {traced}", in_tracing)
    for setup, text in costs.failures.items():
        results.failures["tracing", setup, traced] = text
    show_failures(console, results)
    if arguments.json:
        arguments.json.write_text(
            json.dumps(
                {
                    "python": name,
                    "cpu": cpu(),
                    "versions": results.versions,
                    "engine": IMPLEMENTATIONS[ours].engine,  # of what tracing costs
                    "settings": settings._asdict(),
                    "minima": [
                        {
                            "library": key[0],
                            "implementation": key[1],
                            "work": key[2],
                            "depth": key[3],
                            "unit": "kB" if key[2] in MEMORY else "us",
                            "value": value,
                        }
                        for key, value in results.minima.items()
                    ],
                    "tracing": [
                        {"work": work, "setup": setup, "unit": "us", "value": costs.of(work, setup)}
                        for work, setup in costs.all
                    ],
                    "targets": [
                        {"of": group, **verdict._asdict(), "met": verdict.met}
                        for group, verdicts in (
                            ("c", in_c),
                            ("python", in_python),
                            ("tracing", in_tracing),
                        )
                        for verdict in verdicts
                    ],
                },
                indent=1,
            )
        )


if __name__ == "__main__":
    main()
