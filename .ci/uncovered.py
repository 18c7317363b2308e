"""Print how much of the C code was run, and the lines that were not.

    python .ci/uncovered.py FOLDER

FOLDER is a checkout whose extension modules were compiled in place with ``--coverage``, and have
run. gcov, which comes with GCC, reads what they have noted.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections import defaultdict
from itertools import groupby
from pathlib import Path
from typing import DefaultDict, Dict, Iterable, Iterator, Tuple

Counts = Dict[int, int]


def main() -> None:
    root = Path(sys.argv[1])
    files = counts_in(root)
    if not files:
        sys.exit(f"{root} has no notes of gcov")
    total = covered = 0
    for name, counts in sorted(files.items()):
        run = sum(1 for count in counts.values() if count)
        print(f"{name}: {percent(run, len(counts))} of {len(counts)} lines")
        source = (root / name).read_text(encoding="utf-8").splitlines()
        for first, last in spans(counts):
            lines = f"{first}" if first == last else f"{first}-{last}"
            print(f"  {lines:>9}  {source[first - 1].strip()}")
        total += len(counts)
        covered += run
    print(f"in all: {percent(covered, total)} of {total} lines")


def counts_in(root: Path) -> Dict[str, Counts]:
    """For each file of C in the checkout, how often each of its lines was run."""
    files: DefaultDict[str, DefaultDict[int, int]] = defaultdict(lambda: defaultdict(int))
    notes = sorted(str(path.relative_to(root)) for path in root.glob("build/**/*.gcda"))
    for note in notes:
        command = ["gcov", "--json-format", "--stdout", note]
        found = subprocess.run(command, cwd=str(root), stdout=subprocess.PIPE, check=True).stdout
        for document in found.splitlines():
            for each in json.loads(document)["files"]:
                if not Path(each["file"]).is_absolute():  # not a header of Python's
                    for line in each["lines"]:
                        files[each["file"]][line["line_number"]] += line["count"]
    return {name: dict(counts) for name, counts in files.items()}


def spans(counts: Counts) -> Iterator[Tuple[int, int]]:
    """The first and the last line of each part that was not run. Comments do not divide it."""
    for has_run, lines in groupby(sorted(counts), key=lambda line: counts[line] > 0):
        if not has_run:
            part: Iterable[int] = list(lines)
            yield min(part), max(part)


def percent(part: int, whole: int) -> str:
    return f"{100 * part / whole:.1f} %"


if __name__ == "__main__":
    main()
