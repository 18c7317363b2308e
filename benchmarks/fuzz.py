"""Run the fuzzers of the suite for as long as you like, with a new seed in each round.

Run it as ``.venv/bin/python benchmarks/fuzz.py --seconds 600``. A round does what the tests in
tests/fuzz do with one seed: random programs against plain ``await`` on each event loop, untraced,
traced and in debug mode; random programs on both engines and on mixes of both; and mutated traces
through each command of ``greenback-trace``. At the end it prints the number of each, the seeds that
failed, and how to repeat them.
"""

from __future__ import annotations

import argparse
import importlib
import logging
import os
import platform
import shutil
import sys
import tempfile
from collections import Counter
from importlib.util import find_spec
from pathlib import Path
from random import SystemRandom
from time import monotonic
from typing import Any, Callable, Dict, List, Tuple
from typing import Counter as Counted

_ROOT = Path(__file__).resolve().parents[1]
#: Seconds between lines that show the progress.
_TELL_EVERY = 30

#: A name, the part of pytest's -k that selects the test, and the function that runs it with a seed.
_Part = Tuple[str, str, Callable[[int], Counted[str]]]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--seconds", type=float, default=600)
    parser.add_argument("--seed", type=int, help="of the first round; a random one by default")
    options = parser.parse_args()
    sys.path.insert(0, str(_ROOT))
    logging.getLogger("greenback").setLevel(logging.ERROR)
    folder = tempfile.mkdtemp(prefix="greenback-fuzz-")
    os.chdir(folder)  # so that a plan reads only the sources of the traced program
    failures = _run(_parts(Path(folder)), options.seconds, options.seed)
    os.chdir(_ROOT)
    if failures:
        sys.exit(1)  # without deleting the traces that failed
    shutil.rmtree(folder)


def _parts(folder: Path) -> List[_Part]:
    programs = importlib.import_module("tests.fuzz.programs")
    traces = importlib.import_module("tests.fuzz.traces")
    loops = importlib.import_module("tests.conftest")
    clean = traces.make_trace(folder)
    classes = {"untraced": "Untraced", "traced": "TestTraced", "debug": "Debug"}
    found: List[_Part] = [
        (
            f"programs on {name}, {mode}",
            f"{classes[mode]} and {name} and random",
            lambda seed, name=name, mode=mode: programs.fuzz_programs(
                loops.Backend(name), mode, seed
            ),
        )
        for name in loops.BACKENDS
        for mode in programs.MODES
    ]
    if find_spec("greenback._engine._compiled") is not None:
        engines = importlib.import_module("tests.fuzz.engines")
        modes = importlib.import_module("tests.fuzz.transcripts").MODES
        found += [
            (
                f"engines on {name}, {mode}",
                f"TestEngines and {name} and {mode if mode != 'untraced' else 'mixed'}",
                lambda seed, name=name, mode=mode: engines.fuzz_engines(name, mode, seed, 200),
            )
            for name in loops.BACKENDS
            for mode in modes
        ]
    found += [
        (
            f"traces through {command}",
            f"Test{command.capitalize()} and random",
            lambda seed, command=command: traces.fuzz_traces(command, clean, seed),
        )
        for command in traces.COMMANDS
    ]
    return found


def _run(parts: List[_Part], seconds: float, seed: Any) -> int:
    """Repeat rounds until the time is over. Returns the number of failures."""
    begun = told = monotonic()
    done: Dict[str, Counted[str]] = {name: Counter() for name, _, _ in parts}
    failures: List[str] = []
    rounds = 0
    while monotonic() - begun < seconds:
        if seed is None or rounds:
            seed = SystemRandom().getrandbits(32)
        rounds += 1
        for name, selected, fuzz in parts:
            try:
                done[name].update(fuzz(seed))
            except Exception as failure:
                failures.append(
                    f"{name}: {failure}\n"
                    f"  GREENBACK_FUZZ_SEED={seed} make test ARGS='tests/fuzz -k \"{selected}\"'"
                )
                print(failures[-1], flush=True)
            if monotonic() - told >= _TELL_EVERY:
                told = monotonic()
                print(f"{told - begun:.0f} s, round {rounds}, {len(failures)} failures", flush=True)
    python = f"{platform.python_implementation()} {platform.python_version()}"
    print(f"\n{rounds} seeds in {monotonic() - begun:.0f} s, {python}\n")
    for name, _, _ in parts:
        counts = ", ".join(f"{count:,} {what}" for what, count in done[name].items())
        print(f"{name:32}{counts}")
    print(f"\n{len(failures)} failures", *failures, sep="\n")
    return len(failures)


if __name__ == "__main__":
    main()
