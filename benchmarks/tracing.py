"""What tracing costs: see README.md for what is measured and how."""

from __future__ import annotations

from contextlib import closing
from typing import Dict, Iterator, List, NamedTuple, Optional, Tuple

from peers import Peer, Worker, WorkerError
from rich.console import Console
from tables import Target

SITES = 200
BURST = 2000  # calls at all sites, as often as tracing_worker.py makes them in turn


class Setup(NamedTuple):
    name: str
    title: str
    implementation: str = "ours"
    #: The least number of seconds of a repetition, for setups with costs in other threads or now
    #: and then (exporting, limits per second). None if every call costs the same.
    sustained: Optional[float] = None
    sites: int = 1
    #: The name of the setup in tracing_worker.py, if it is another one.
    kind: Optional[str] = None
    #: Sync frames between the portal and the bridge.
    depth: int = 1
    #: Long repetitions in a row. Other programs on the machine disturb most of them.
    in_a_row: int = 1

    def work(self, name: str) -> str:
        return f"{name}_sites" if self.sites > 1 and name != "portal_sleep" else name


SETUPS = (
    Setup("upstream", "upstream, untraced", "upstream", kind="never"),
    Setup("never", "no instrument was ever added"),
    Setup("imported", "off: imported, never enabled"),
    Setup("off", "off: enabled, then disabled"),
    Setup("metrics", "metrics only, no SDK"),
    Setup("unsampled", "spans, parent not sampled, no metrics SDK"),
    Setup(
        "metrics_sites", f"metrics only, {SITES} sites", "ours", 1.2, SITES, "metrics", in_a_row=4
    ),
    Setup("metrics_sdk", f"metrics into an SDK, {SITES} sites", "ours", 1.2, SITES, in_a_row=4),
    Setup("spans_limited", "spans, 100 a second", "ours", 1.2),
    Setup("spans_all", "spans, every one", "ours", 0.2),
    Setup("naive_ours", "naive: span, counter, histogram", "ours", 0.2, kind="naive"),
    Setup("naive_upstream", "  the same, around upstream's", "upstream", 0.2, kind="naive"),
    Setup("never_20", "no instrument, sync depth 20", kind="never", depth=20),
    Setup("metrics_20", "metrics only, sync depth 20", kind="metrics", depth=20),
    Setup("debug_20", "debug mode, sync depth 20", kind="debug", depth=20),
    Setup("never_100", "no instrument, sync depth 100", kind="never", depth=100),
    Setup("debug_100", "debug mode, sync depth 100", kind="debug", depth=100),
)
METRICS = next(setup for setup in SETUPS if setup.name == "metrics")
WORKS = {
    "bridge": "await_\n(nop())",
    "bridged_sleep": "await_\n(sleep(0))",
    "portal_sleep": "sleep(0)\nin portal",
}


TARGETS = (
    Target(
        "off, never enabled: of no instrument ever added",
        1.03,
        ("bridge", "imported"),
        ("bridge", "never"),
    ),
    Target(
        "off again: of no instrument ever added",
        1.03,
        ("bridge", "off"),
        ("bridge", "never"),
    ),
    Target(
        "  the same, a suspending bridge",
        1.03,
        ("bridged_sleep", "off"),
        ("bridged_sleep", "never"),
    ),
    Target(
        "metrics only: of upstream's untraced bridge",
        0.75,
        ("bridge", "metrics"),
        ("bridge", "upstream"),
    ),
    Target(
        "metrics only, gained by suspending: of the same",
        0.1,
        ("bridged_sleep", "metrics"),
        ("bridge", "upstream"),
        without=("bridged_sleep", "never"),
    ),
    Target(
        "metrics in an SDK, 200 sites: of metrics only",
        1.1,
        ("bridge", "metrics_sdk"),
        ("bridge", "metrics_sites"),
    ),
    Target(
        "  the same, a suspending bridge",
        1.1,
        ("bridged_sleep", "metrics_sdk"),
        ("bridged_sleep", "metrics_sites"),
    ),
    Target(
        "parent not sampled: of upstream's untraced bridge",
        1.05,
        ("bridge", "unsampled"),
        ("bridge", "upstream"),
    ),
    Target(
        "  the same, a suspending bridge",
        1.3,
        ("bridged_sleep", "unsampled"),
        ("bridged_sleep", "upstream"),
    ),
    Target(
        "naive instrumentation: times metrics only",
        15,
        ("bridge", "naive_ours"),
        ("bridge", "metrics"),
        at_most=False,
    ),
)


DEBUG_TARGET = Target(
    "debug mode, depth 20, suspending bridge: of untraced",
    4,
    ("bridged_sleep", "debug_20"),
    ("bridged_sleep", "never_20"),
)


class Settings(NamedTuple):
    #: How often all processes are started anew.
    rounds: int
    #: How often each work is timed in each process. Sustained setups have `in_a_row` for this.
    repetitions: int
    seconds: float
    #: Rounds in which the sustained setups take part.
    sustained_rounds: int


# A repetition is long enough to make cold caches negligible. Caches are cold after the turns of the
# other processes and a garbage collection, the more so the more code a setup runs.
FULL = Settings(rounds=9, repetitions=9, seconds=0.01, sustained_rounds=6)
QUICK = Settings(rounds=4, repetitions=5, seconds=0.005, sustained_rounds=1)


class Costs:
    """Microseconds per call, by work and setup, of every repetition."""

    def __init__(self) -> None:
        self.all: Dict[Tuple[str, str], List[float]] = {}
        self.failures: Dict[str, str] = {}
        self.versions: Dict[str, str] = {}

    def add(self, work: str, setup: Setup, value: float) -> None:
        self.all.setdefault((work, setup.name), []).append(value)

    def of(self, work: str, name: str) -> Optional[float]:
        """The minimum of all repetitions: other programs on the machine only ever add time."""
        values = self.all.get((work, name))
        return min(values) if values else None

    def added(self, work: str, setup: Setup) -> Optional[float]:
        """What a call costs more than without an instrument in the same implementation."""
        base = "upstream" if setup.implementation == "upstream" else "never"
        if setup.depth > 1:
            base = f"{base}_{setup.depth}"
        value, without = self.of(work, setup.name), self.of(work, base)
        if value is None or without is None or setup.name == base:
            return None
        return value - without


def measure(peers: Dict[str, Peer], library: str, settings: Settings) -> Costs:
    """Measure every setup. *peers* are "ours" and "upstream"."""
    costs = Costs()
    progress = Console(stderr=True)
    for turn in range(settings.rounds):
        is_sustained_too = turn < settings.sustained_rounds
        with progress.status(f"tracing on {library}, round {turn + 1} of {settings.rounds}"):
            _measure_round(peers, library, settings, is_sustained_too, costs)
    return costs


def _measure_round(
    peers: Dict[str, Peer],
    library: str,
    settings: Settings,
    is_sustained_too: bool,
    costs: Costs,
) -> None:
    with closing(_Workers()) as workers:
        for setup in SETUPS:
            if setup.sustained is None:
                workers.start(setup, peers, library, costs)
        for _ in range(settings.repetitions):
            for work in WORKS:
                for setup in list(workers.running):
                    workers.time(setup, work, settings.seconds, costs)
    if not is_sustained_too:
        return
    # Sustained setups come last, since their processes also work when it is not their turn.
    with closing(_Workers()) as workers:
        for setup in SETUPS:
            if setup.sustained is not None:
                workers.start(setup, peers, library, costs)
        for work in WORKS:
            for setup in list(workers.running):
                assert setup.sustained is not None
                workers.time(setup, work, setup.sustained, costs)


class _Workers:
    """Processes, one for each setup that has not failed."""

    def __init__(self) -> None:
        self.running: Dict[Setup, Worker] = {}
        self._calls: Dict[Tuple[Setup, str], int] = {}

    def close(self) -> None:
        for worker in self.running.values():
            worker.close()

    def start(self, setup: Setup, peers: Dict[str, Peer], library: str, costs: Costs) -> None:
        try:
            self.running[setup] = Worker(
                peers[setup.implementation], library, setup.kind or setup.name
            )
        except WorkerError as failure:
            costs.failures[setup.name] = str(failure)
        else:
            costs.versions.update(self.running[setup].versions())

    def time(self, setup: Setup, name: str, seconds: float, costs: Costs) -> None:
        try:
            for value in self._time(setup, name, seconds):
                costs.add(name, setup, 1e6 * value)
        except WorkerError as failure:
            costs.failures[setup.name] = str(failure)
            self.running.pop(setup).close()

    def _time(self, setup: Setup, name: str, seconds: float) -> Iterator[float]:
        worker, work = self.running[setup], setup.work(name)
        step = BURST if work != name else 10
        n = self._calls.get((setup, name))
        if n is None:
            n = max(step, 100)
            for at_most in (0.001, seconds):  # the first calls are slower
                worker.ask(work, n, setup.depth)
                estimate = worker.ask(work, n, setup.depth)["seconds"]
                n = int(at_most / estimate) // step * step + step
            self._calls[setup, name] = n
        if setup.sustained is None:
            yield float(worker.ask(work, n, setup.depth)["seconds"])
            return
        # Run until the limits that adapt each second have done so, and savings for a burst are
        # used up.
        spent = 0.0
        while spent < min(seconds, 1.1):
            spent += n * worker.ask(work, n, setup.depth)["seconds"]
        for _ in range(setup.in_a_row if seconds >= 1 else 1):
            yield float(worker.ask(work, n, setup.depth)["cpu"])
