"""Random programs on two engines, which have to do the same."""

from __future__ import annotations

import itertools
import json
import os
import subprocess
import sys
import tempfile
from collections import Counter
from pathlib import Path
from random import Random
from typing import Any, List, Optional, Sequence, Tuple
from typing import Counter as Counted

from .programs import Run, smaller_blocks
from .richer import random_run

_ROOT = Path(__file__).resolve().parents[2]

#: Each engine, and mixes of both, by the value of `GREENBACK_PURE`.
ENGINES = {
    "python": "1",
    "c": "",
    "bridges in Python": "await_",
    "driven in Python": "drive,work",
    "opened in Python": "begin",
}


class Difference(AssertionError):
    """Two engines do not do the same."""


class Engine:
    """A process that runs programs on one engine."""

    def __init__(self, name: str, backend: str, mode: str) -> None:
        self.name = name
        runs = "python" if name == "python" else "c"
        self._command = (sys.executable, "-m", "tests.fuzz.transcripts", runs, backend, mode)
        self._environment = {
            **{name: value for name, value in os.environ.items() if name != "GREENBACK_TRACE"},
            "GREENBACK_PURE": ENGINES[name],
            "PYTHONHASHSEED": "0",
        }
        self._process: Optional[subprocess.Popen[str]] = None
        self._errors: Any = None

    def run(self, run: Run) -> List[Any]:
        """The program's transcript; if the process ended, how it did."""
        if self._process is None:
            self._errors = tempfile.TemporaryFile("w+")  # noqa: SIM115  (`close` closes it)
            self._process = subprocess.Popen(
                self._command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=self._errors,
                env=self._environment,
                cwd=_ROOT,
                text=True,
            )
        process = self._process
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            print(repr(tuple(run)), file=process.stdin, flush=True)
            answer = process.stdout.readline()
        except BrokenPipeError:
            answer = ""
        if answer:
            found: List[Any] = json.loads(answer)
            return found
        code, said = process.wait(), self.close()
        # A program may wait for what never comes, with `await` as well.
        return [["it hangs"]] if said.startswith("Timeout (") else [["it ended", code, said]]

    def close(self) -> str:
        """End the process, and return the end of what it has written to stderr."""
        process, self._process = self._process, None
        if process is None:
            return ""
        try:
            process.communicate()
        except BrokenPipeError:
            pass
        with self._errors as errors:
            errors.seek(0)
            return str(errors.read()[-3000:])


Compared = Tuple[Engine, Engine]


def first_difference(engines: Compared, run: Run) -> Optional[str]:
    """Where the transcripts of a program differ first; None if they do not."""
    one, other = (each.run(run) for each in engines)
    for number, (here, there) in enumerate(itertools.zip_longest(one, other)):
        if here != there:
            lines = [
                f"{engines[0].name}: {json.dumps(here)}",
                f"{engines[1].name}: {json.dumps(there)}",
            ]
            return "\n".join([f"entry {number} of the transcripts:", *lines])
    return None


def fuzz_engines(
    backend: str, mode: str, seed: int, programs: int, engines: Sequence[str] = tuple(ENGINES)
) -> Counted[str]:
    """Run random programs on several engines, and return their number.

    Args:
        backend: The name of the event loop.
        mode: One of `tests.fuzz.transcripts.MODES`.
        engines: Of `ENGINES`. The others are compared with the first.

    Raises:
        Difference: The transcripts of a program differ. The message has the smallest program found
            whose transcripts do, and where they differ first.
    """
    first, *others = [Engine(name, backend, mode) for name in engines]
    try:
        for number in range(programs):
            run = random_run(Random(f"{seed} {number}"))
            for other in others:
                difference = first_difference((first, other), run)
                if difference is not None:
                    run, difference = smallest((first, other), run, difference)
                    where = f"program {number} of seed {seed} on {backend}, {mode}"
                    raise Difference(f"{where}: {difference}\n{run}")
    finally:
        for each in (first, *others):
            each.close()
    return Counter(programs=programs)


def smallest(engines: Compared, run: Run, difference: str) -> Tuple[Run, str]:
    """The program without what the difference does not need."""
    runs = [run._replace(program=program) for program in smaller_blocks(run.program)]
    if run.cancel_at is not None:
        runs.append(run._replace(cancel_at=None))
    for smaller in runs:
        still = first_difference(engines, smaller)
        if still is not None:
            return smallest(engines, smaller, still)
    return run, difference
