"""This implementation beside its peers, in one run: see README.md for what is measured and how."""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any, Dict, Iterator, List, NamedTuple, Optional, Tuple

from rich.console import Console
from rich.table import Table

HERE = Path(__file__).resolve().parent
CHECKOUT = HERE.parent
ENVIRONMENTS = HERE / ".envs"

LIBRARIES = ("asyncio", "uvloop", "trio")
DEPTHS = (1, 20, 100)
PARKED_TASKS = 5000
#: Works that make this many tasks at once, so that their number of calls is a multiple of it.
AT_ONCE = ("portal_tasks", "plain_tasks")
TASKS_AT_ONCE = 100

#: What each implementation is installed from; ours is copied from the checkout at every run.
IMPLEMENTATIONS = {
    "ours": ["outcome", "sniffio"],
    "upstream": ["greenback==1.3.0"],
    "sqlalchemy": ["sqlalchemy>=2,<3"],
    "awaitlet": ["awaitlet==0.0.1"],
}
COMMON = ["greenlet", "uvloop; implementation_name == 'cpython'", "trio"]
ASYNCIO_ONLY = ("sqlalchemy", "awaitlet")
HEADINGS = {
    "ours": "\nours",
    "upstream": "up-\nstream",
    "sqlalchemy": "SQL-\nAlchemy",
    "awaitlet": "await-\nlet",
}


class Work(NamedTuple):
    name: str
    title: str
    depths: Tuple[int, ...] = (1,)
    #: What takes the work's place without a portal; measured in every process.
    plain: Optional[str] = None
    #: Whether the plain one is subtracted, so that what remains is what a portal or bridge adds.
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
SWITCH_PAIR = "switch_pair"
MEMORY = ("parked", "plain_parked")
PLAIN_TIMES = ("plain_await", "plain_sleep", "plain_task", "plain_tasks")


class Target(NamedTuple):
    """*peer* / ours must be *wanted* at least; or, if *at_most*, ours / *peer* at most."""

    work: str
    title: str
    peer: str
    wanted: float
    at_most: bool = False


TARGETS = (
    Target("bridge", "await_(nop()): times as fast as upstream", "upstream", 4.2),
    Target("bridge", "await_(nop()): times as fast as SQLAlchemy", "sqlalchemy", 1.7),
    Target("bridge", "await_(nop()): plain awaits", "plain", 6.8, True),
    Target("bridged_sleep", "await_(sleep(0)): of what upstream adds", "upstream", 0.43, True),
    Target("portal_sleep", "sleep(0) in a portal: of what upstream adds", "upstream", 0.68, True),
    Target("run_sync", "with_portal_run_sync(nop): times as fast as upstream", "upstream", 8.5),
    Target("run_async", "with_portal_run(immediate): times as fast as upstream", "upstream", 7.5),
    Target("portal_task", "ensure_portal in a task: of what upstream adds", "upstream", 0.2, True),
    Target("parked", "memory of a parked task: of upstream's", "upstream", 1.0, True),
)


class Settings(NamedTuple):
    #: How often all the processes are started anew: where a process happens to have its memory
    #: is worth some percent.
    rounds: int
    #: How often each work is timed in each process.
    repetitions: int
    #: How long one of these takes, about.
    seconds: float


# Many short repetitions find a quiet moment of a busy machine sooner than few long ones.
FULL = Settings(rounds=3, repetitions=15, seconds=0.002)
QUICK = Settings(rounds=2, repetitions=6, seconds=0.001)


# Environments


def find_python() -> str:
    """CPython 3.13, which the targets are stated for, if there is one."""
    candidates = [shutil.which("python3.13")]
    candidates += [str(path) for path in Path.home().glob(".pyenv/versions/3.13.*/bin/python")]
    for candidate in candidates:
        # One of pyenv's shims may exist and yet refuse to run.
        if candidate is None:
            continue
        probe = subprocess.run([candidate, "-c", ""], capture_output=True, check=False)
        if probe.returncode == 0:
            return candidate
    return sys.executable


def describe(python: str) -> str:
    """Such as ``CPython 3.13.0``."""
    code = "import platform as p; print(p.python_implementation(), p.python_version())"
    return subprocess.run(
        [python, "-c", code], check=True, capture_output=True, text=True
    ).stdout.strip()


def copy_ours(target: Path) -> Path:
    """Keep what is measured the same to the end of the run, whatever is edited in the meantime."""
    for package in ("greenback", "greenback_trace"):
        shutil.copytree(CHECKOUT / package, target / package)
    return target


def prepare(python: str, source: Path, console: Console) -> Dict[str, Peer]:
    """The implementations, each in an environment that is made where it is not there yet.

    They all have the same versions of everything that they share: those that the first one got.
    """
    tag = describe(python).replace(" ", "-").lower()
    constraints = ENVIRONMENTS / tag / "constraints.txt"
    peers = {}
    for name, requirements in IMPLEMENTATIONS.items():
        home = ENVIRONMENTS / tag / name
        interpreter = str(home / "bin" / "python")
        peers[name] = Peer(name, interpreter, source if name == "ours" else None)
        ready = home / "ready"
        wanted = "\n".join(requirements + COMMON)
        if ready.exists() and ready.read_text() == wanted and constraints.exists():
            continue
        console.print(f"[dim]preparing {home.relative_to(CHECKOUT)}[/]")
        subprocess.run([python, "-m", "venv", "--clear", str(home)], check=True)
        pip = [interpreter, "-m", "pip", "--quiet", "--disable-pip-version-check"]
        pinned = ["--constraint", str(constraints)] if constraints.exists() else []
        subprocess.run([*pip, "--quiet", "install", *pinned, *requirements, *COMMON], check=True)
        if not constraints.exists():
            frozen = subprocess.run(
                [*pip, "freeze"], check=True, capture_output=True, text=True
            ).stdout
            constraints.write_text(frozen)
        ready.write_text(wanted)
    return peers


# Worker processes


class Peer(NamedTuple):
    name: str
    interpreter: str
    #: Where it is imported from, if it is not installed.
    source: Optional[Path]


class WorkerError(Exception):
    """The worker could not do what it was asked; the text is its traceback."""


class Worker:
    """A process that measures one implementation under one event loop."""

    def __init__(self, peer: Peer, library: str) -> None:
        environment = {
            name: value
            for name, value in os.environ.items()
            if not name.startswith(("PYTHON", "GREENBACK_"))
        }
        environment["PYTHONDONTWRITEBYTECODE"] = "1"
        if peer.source is not None:
            environment["PYTHONPATH"] = str(peer.source)
        self.process = subprocess.Popen(
            [peer.interpreter, str(HERE / "worker.py"), peer.name, library],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=environment,
        )
        self.calls: Dict[Tuple[str, int], int] = {}
        try:
            self.description = self._receive()
        except WorkerError:
            self.close()
            raise

    def _receive(self) -> Dict[str, Any]:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            raise WorkerError(f"the process has ended with status {self.process.wait()}")
        reply: Dict[str, Any] = json.loads(line)
        if "error" in reply:
            raise WorkerError(reply["error"])
        return reply

    def ask(self, work: str, n: int, depth: int) -> Dict[str, Any]:
        assert self.process.stdin is not None
        try:
            print(json.dumps({"work": work, "n": n, "depth": depth}), file=self.process.stdin)
            self.process.stdin.flush()
        except BrokenPipeError:
            pass  # _receive says how it ended
        return self._receive()

    def time(self, work: str, depth: int, seconds: float) -> float:
        """Microseconds per call, of as many calls as take about *seconds*."""
        n = self.calls.get((work, depth))
        if n is None:
            self.ask(work, 100, depth)  # warms up
            estimate: float = self.ask(work, 100, depth)["seconds"]
            step = TASKS_AT_ONCE if work in AT_ONCE else 10
            n = self.calls[work, depth] = max(step, int(seconds / estimate) // step * step)
        return 1e6 * float(self.ask(work, n, depth)["seconds"])

    def close(self) -> None:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        try:
            self.process.stdin.close()
        except BrokenPipeError:
            pass
        self.process.stdout.close()
        self.process.wait()


# Measuring


class Results:
    """The minimum of every measurement, in microseconds or kB; what failed; and descriptions."""

    def __init__(self) -> None:
        #: By library, implementation (or "plain"), work and depth.
        self.minima: Dict[Tuple[str, str, str, int], float] = {}
        self.failures: Dict[Tuple[str, str, str], str] = {}
        self.versions: Dict[str, str] = {}

    def add(self, library: str, implementation: str, work: str, depth: int, value: float) -> None:
        # What needs no implementation is the same code in all the processes, and gets one minimum.
        if work.startswith("plain") or work == SWITCH_PAIR:
            implementation = "plain"
        key = library, implementation, work, depth
        self.minima[key] = min(value, self.minima.get(key, value))

    def cost(self, library: str, implementation: str, work: Work, depth: int) -> Optional[float]:
        """The figure to show: what *work* takes, or what it adds."""
        value = self.minima.get((library, implementation, work.name, depth))
        if value is None or not work.added:
            return value
        plain = self.plain(library, work)
        return None if plain is None else value - plain

    def plain(self, library: str, work: Work) -> Optional[float]:
        if work.plain is None:
            return None
        return self.minima.get((library, "plain", work.plain, 1))

    def ratio(self, library: str, work: Work, depth: int, peer: str) -> Optional[float]:
        """*peer* / ours."""
        ours = self.cost(library, "ours", work, depth)
        other = (
            self.plain(library, work) if peer == "plain" else self.cost(library, peer, work, depth)
        )
        if ours is None or other is None or ours <= 0 or other <= 0:
            return None
        return other / ours


def supports(implementation: str, work: Work) -> bool:
    return implementation not in ASYNCIO_ONLY or not work.portals_only


def names_for(library: str) -> List[str]:
    return [name for name in IMPLEMENTATIONS if library != "trio" or name not in ASYNCIO_ONLY]


def start(peers: Dict[str, Peer], library: str, results: Results) -> Dict[str, Worker]:
    workers = {}
    for name in names_for(library):
        try:
            worker = Worker(peers[name], library)
        except WorkerError as failure:
            results.failures[library, name, "start"] = str(failure)
            continue
        workers[name] = worker
        for package, version in worker.description["versions"].items():
            results.versions["upstream" if package == "greenback" else package] = version
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
    """Each in a process of its own, since a process seldom gives memory back."""
    for implementation in names_for(library):
        cells = [("parked", depth) for depth in DEPTHS]
        if implementation == "ours":
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


def number(value: Optional[float]) -> str:
    if value is None:
        return "-"
    return f"{value:.{3 if abs(value) < 1 else 2 if abs(value) < 10 else 1}f}"


def ratio(value: Optional[float]) -> str:
    return "-" if value is None else f"{value:.{2 if value < 100 else 0}f}"


def new_table(title: str) -> Table:
    return Table(
        title=title,
        title_justify="left",
        title_style="bold",
        box=None,
        padding=(0, 1),
        pad_edge=False,
    )


def show_library(console: Console, library: str, results: Results) -> None:
    table = new_table(f"{library}: microseconds per call")
    table.add_column("\nwork", no_wrap=True)
    table.add_column("sync\ndepth", justify="right", no_wrap=True)
    for name in IMPLEMENTATIONS:
        table.add_column(HEADINGS[name], justify="right", no_wrap=True)
    table.add_column("\nplain", justify="right", no_wrap=True)
    for heading in ("upstr.\n/ ours", "SQLA.\n/ ours", "ours /\nplain"):
        table.add_column(heading, justify="right", style="bold", no_wrap=True)
    for work in WORKS:
        if work.name in MEMORY and results.plain(library, work) is None:
            continue  # not measured
        for depth in work.depths:
            against_plain = None if work.added else results.ratio(library, work, depth, "plain")
            table.add_row(
                work.title if depth == work.depths[0] else "",
                str(depth) if len(work.depths) > 1 else "",
                *[number(results.cost(library, name, work, depth)) for name in IMPLEMENTATIONS],
                number(results.plain(library, work)),
                ratio(results.ratio(library, work, depth, "upstream")),
                ratio(results.ratio(library, work, depth, "sqlalchemy")),
                ratio(None if against_plain is None else 1 / against_plain),
            )
    for depth in DEPTHS:
        pair = results.minima.get((library, "plain", SWITCH_PAIR, depth))
        table.add_row(
            "a raw switch pair" if depth == 1 else "", str(depth), "", "", "", "", number(pair)
        )
    console.print()
    console.print(table)


class Verdict(NamedTuple):
    target: Target
    measured: Optional[float]
    met: Optional[bool]


def judge(results: Results) -> Iterator[Verdict]:
    works = {work.name: work for work in WORKS}
    for target in TARGETS:
        measured = results.ratio("uvloop", works[target.work], 1, target.peer)
        if measured is not None and target.at_most:
            measured = 1 / measured
        met = None
        if measured is not None:
            met = measured <= target.wanted if target.at_most else measured >= target.wanted
        yield Verdict(target, measured, met)


def show_targets(console: Console, verdicts: List[Verdict], python: str) -> None:
    table = new_table(f"Targets, stated for CPython 3.13: uvloop, sync depth 1, on {python}")
    table.add_column("target", no_wrap=True)
    table.add_column("wanted", justify="right")
    table.add_column("measured", justify="right", style="bold")
    table.add_column("met")
    for target, measured, met in verdicts:
        table.add_row(
            target.title,
            f"{'<=' if target.at_most else '>='} {target.wanted:g}",
            "-" if measured is None else f"{measured:.3f}",
            "-" if met is None else "[green]yes[/]" if met else "[red]no[/]",
        )
    console.print()
    console.print(table)


def show_failures(console: Console, results: Results) -> None:
    """One traceback for all the works that failed with the same message."""
    alike: Dict[str, List[Tuple[str, str, str]]] = {}
    for where, text in results.failures.items():
        alike.setdefault(text.strip().rpartition("\n")[2], []).append(where)
    for places in alike.values():
        console.print()
        for place in places:
            console.print("[red]FAILED[/]", ", ".join(place))
        console.print(results.failures[places[0]], markup=False)


def cpu() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--library", action="append", choices=LIBRARIES, help="only this one (repeatable)"
    )
    parser.add_argument("--quick", action="store_true", help="fewer repetitions, no memory")
    parser.add_argument("--python", help="interpreter to measure on (default: CPython 3.13)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures there, too")
    arguments = parser.parse_args()
    libraries: List[str] = arguments.library or list(LIBRARIES)
    settings = QUICK if arguments.quick else FULL
    # Wide enough for the tables where nobody says how wide: a pipe or a log.
    console = Console(width=None if sys.stdout.isatty() else 100, highlight=False)

    python = arguments.python or find_python()
    name = describe(python)
    if not name.startswith("CPython") and "uvloop" in libraries:
        libraries.remove("uvloop")
        console.print("[yellow]uvloop is skipped: it exists for CPython only[/]")
    results = Results()
    with tempfile.TemporaryDirectory() as directory:
        peers = prepare(python, copy_ours(Path(directory)), console)
        measure(peers, libraries, settings, arguments.quick, results)

    versions = (f"{package} {version}" for package, version in sorted(results.versions.items()))
    console.print(f"{name} on {cpu()} ({os.cpu_count()} CPUs)")
    console.print(", ".join(versions))
    console.print(
        f"Times are minima of {settings.rounds * settings.repetitions} repetitions, interleaved "
        f"over the implementations, in {settings.rounds} processes each."
    )
    for library in libraries:
        show_library(console, library, results)
    verdicts = list(judge(results))
    if "uvloop" in libraries:
        show_targets(console, verdicts, name)
    show_failures(console, results)
    if arguments.json:
        arguments.json.write_text(
            json.dumps(
                {
                    "python": name,
                    "cpu": cpu(),
                    "versions": results.versions,
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
                    "targets": [
                        {
                            **verdict.target._asdict(),
                            "measured": verdict.measured,
                            "met": verdict.met,
                        }
                        for verdict in verdicts
                    ],
                },
                indent=1,
            )
        )


if __name__ == "__main__":
    main()
