"""Show what a pair of greenlet switches costs, by the depth of the side that switches away.

    .venv/bin/python benchmarks/switches.py            # nanoseconds
    .venv/bin/python benchmarks/switches.py --count    # instructions, by valgrind

Nothing of this project runs: it is the floor of every library that is built on greenlets.
``docs/greenlet.rst`` says what the cost consists of.
"""

from __future__ import annotations

import argparse
import gc
import importlib.util
import os
import platform
import re
import shutil
import subprocess
import sys
import sysconfig
import tempfile
import time
from pathlib import Path
from typing import Any, Callable, Dict, List, Optional

import greenlet

DEPTHS = (1, 20, 100)
CALLS_IN_C = (0, 4, 16)
CACHEGRIND = ("valgrind", "--tool=cachegrind", "--cache-sim=no", "--cachegrind-out-file=/dev/null")

Work = Callable[[int], None]


def at_depth(depth: int, function: Callable[[], object]) -> object:
    """Call the function with so many Python frames below it, of which it has the last."""
    return function() if depth <= 1 else at_depth(depth - 1, function)


def through_c(calls: int, function: Callable[[], object]) -> object:
    """Call the function through so many calls in C, which take space on the C stack."""
    if calls == 0:
        return function()
    return max((None,), key=lambda _: (through_c(calls - 1, function), 0)[1])


def new_partner(calls_in_c: int = 0) -> greenlet.greenlet:
    """Return a greenlet that answers every switch with one back."""
    caller = greenlet.getcurrent()

    def answer() -> None:
        switch = caller.switch
        while True:
            switch()

    # Without calls in C, the partner has one frame.
    run = answer if calls_in_c == 0 else lambda: through_c(calls_in_c, answer)
    partner = greenlet.greenlet(run)
    partner.switch()
    return partner


def from_python(depth: int, calls_in_c: int = 0) -> Work:
    partner = new_partner(calls_in_c)

    def work(pairs: int) -> None:
        def repeat() -> None:
            switch = partner.switch
            for _ in range(pairs):
                switch()

        at_depth(depth, repeat)

    return work


def from_c(depth: int, extension: Any) -> Work:
    partner = extension.start()
    return lambda pairs: at_depth(depth, lambda: extension.repeat(partner, pairs)) and None


def from_new_frames(depth: int) -> Work:
    switch = new_partner().switch

    def work(pairs: int) -> None:
        for _ in range(pairs):
            at_depth(depth, switch)

    return work


def only_frames(depth: int) -> Work:
    def work(pairs: int) -> None:
        for _ in range(pairs):
            at_depth(depth, bool)

    return work


def all_works(extension: Any) -> Dict[str, Work]:
    works: Dict[str, Work] = {}
    for depth in DEPTHS:
        works[f"from Python, depth {depth}"] = from_python(depth)
        if extension is not None:
            works[f"from C, depth {depth}"] = from_c(depth, extension)
        works[f"below {depth} new frames"] = from_new_frames(depth)
        works[f"  the {depth} calls alone"] = only_frames(depth)
    for calls in CALLS_IN_C:
        works[f"the partner is {calls} calls in C deep"] = from_python(1, calls)
    return works


def build(directory: Path) -> Any:
    """Compile and import ``switches.c``, or say why not and return None."""
    compiler = (os.environ.get("CC") or sysconfig.get_config_var("CC") or "cc").split()
    target = directory / f"switches_c{sysconfig.get_config_var('EXT_SUFFIX')}"
    if not target.exists():
        includes = [sysconfig.get_path("include"), str(Path(greenlet.__file__).parent.parent)]
        command = [*compiler, "-O2", "-fPIC", "-shared", *(f"-I{path}" for path in includes)]
        source = str(Path(__file__).with_suffix(".c"))
        try:
            done = subprocess.run(
                [*command, source, "-o", str(target)], capture_output=True, text=True, check=False
            )
        except OSError as error:
            print(f"The rows from C are left out: {error}", file=sys.stderr)
            return None
        if done.returncode != 0:
            print(f"The rows from C are left out:\n{done.stderr}", file=sys.stderr)
            return None
    spec = importlib.util.spec_from_file_location("switches_c", target)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def time_all(works: Dict[str, Work], rounds: int, pairs: int = 200) -> Dict[str, float]:
    """Return the minimum in nanoseconds per pair. The works take turns."""
    best: Dict[str, float] = dict.fromkeys(works, float("inf"))
    gc.disable()
    for _ in range(rounds):
        for name, work in works.items():
            start = time.perf_counter_ns()
            work(pairs)
            best[name] = min(best[name], (time.perf_counter_ns() - start) / pairs)
    return best


def count(name: str, directory: Path, pairs: int) -> float:
    """Return the instructions per pair, from two fresh processes."""
    few, many = (count_process(name, directory, times * pairs) for times in (1, 4))
    return (many - few) / (3 * pairs)


def count_process(name: str, directory: Path, pairs: int) -> int:
    done = subprocess.run(
        [*CACHEGRIND, sys.executable, __file__, "--one", name, str(pairs), str(directory)],
        env={**os.environ, "PYTHONHASHSEED": "0"},
        capture_output=True,
        text=True,
        check=False,
    )
    total = re.search(r"^==\d+== I +refs: +([\d,]+)$", done.stderr, re.MULTILINE)
    if done.returncode != 0 or total is None:
        sys.exit(f"valgrind has ended with status {done.returncode}:\n{done.stderr}")
    return int(total[1].replace(",", ""))


def main(arguments: Optional[List[str]] = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--count", action="store_true", help="count instructions by valgrind")
    parser.add_argument("--rounds", type=int, default=300, help="default: 300")
    # For --count: run one work in this process.
    parser.add_argument("--one", nargs=3, help=argparse.SUPPRESS)
    chosen = parser.parse_args(arguments)
    if chosen.one:
        name, pairs, directory = chosen.one
        all_works(build(Path(directory)))[name](int(pairs))
        return
    if chosen.count and shutil.which("valgrind") is None:
        sys.exit("valgrind is not installed; on Debian and Ubuntu: apt-get install valgrind")
    version = f"CPython {platform.python_version()}, greenlet {greenlet.__version__}"
    with tempfile.TemporaryDirectory() as temporary:
        directory = Path(temporary)
        works = all_works(build(directory))
        unit = "instructions" if chosen.count else "nanoseconds"
        print(f"{version}: {unit} per pair of switches", flush=True)
        timed = {} if chosen.count else time_all(works, chosen.rounds)
        for name in works:
            value = count(name, directory, 500) if chosen.count else timed[name]
            print(f"{name:36} {value:8,.0f}", flush=True)


if __name__ == "__main__":
    main()
