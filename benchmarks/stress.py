"""Count a million bridges, three times over: the program, the totals, and two OTLP receivers.

Run it as ``.venv/bin/python benchmarks/stress.py``. It is a larger run of the suite's stress test:
8 threads, asyncio and Trio, portals of every kind, errors, cancellations, finalizers that bridge,
and a thread that collects garbage all the time. It fails if a single bridge is lost.
"""

from __future__ import annotations

import argparse
import importlib
import sys
from pathlib import Path
from time import perf_counter

_ROOT = str(Path(__file__).resolve().parents[1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--bridges", type=int, default=1_000_000)
    bridges = parser.parse_args().bridges
    sys.path.insert(0, _ROOT)
    test = importlib.import_module("tests.greenback_trace.count.test_exact")
    started = perf_counter()
    test.stress(bridges, "cumulative", "delta")
    print(f"{bridges:,} bridges in {perf_counter() - started:.1f} s, none lost")


if __name__ == "__main__":
    main()
