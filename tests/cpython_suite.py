"""Run CPython's own tests of threads, locks and asyncio with and without debug mode.

    python tests/cpython_suite.py [test_threading ...]

The tests are in the ``test`` package of the interpreter that runs this program. Exits with 1 if a
test passes in one mode and not in the other. Takes several minutes.
"""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Dict, List

SUITES = ["test_threading", "test_queue", "test_thread", "test_concurrent_futures", "test_asyncio"]
TIMEOUT_SECONDS = 900
#: Runs one suite, and writes the outcome of each test. Debug mode begins before the suite is
#: imported, so that the locks of its modules are made in debug mode, too.
PROGRAM = """
import importlib, json, sys, unittest
from test import support

suite, mode, path = sys.argv[1:]
support.use_resources = []  # no tests that use the network or take minutes
if mode == "debug":
    import greenback_trace
    greenback_trace.enable(config=greenback_trace.Config(mode="debug"))
outcomes = {}

class Result(unittest.TextTestResult):
    def note(self, test, outcome):
        if outcomes.get(test.id()) != "fails":
            outcomes[test.id()] = outcome
    def addSuccess(self, test):
        super().addSuccess(test)
        self.note(test, "passes")
    def addExpectedFailure(self, test, error):
        super().addExpectedFailure(test, error)
        self.note(test, "passes")
    def addSkip(self, test, reason):
        super().addSkip(test, reason)
        self.note(test, "is skipped")
    def addError(self, test, error):
        super().addError(test, error)
        self.note(test, "fails")
    def addFailure(self, test, error):
        super().addFailure(test, error)
        self.note(test, "fails")
    def addUnexpectedSuccess(self, test):
        super().addUnexpectedSuccess(test)
        self.note(test, "fails")
    def addSubTest(self, test, subtest, error):
        super().addSubTest(test, subtest, error)
        if error is not None:
            self.note(test, "fails")

tests = unittest.defaultTestLoader.loadTestsFromName("test." + suite)
if unittest.defaultTestLoader.errors:
    sys.exit(unittest.defaultTestLoader.errors[0])
unittest.TextTestRunner(resultclass=Result, verbosity=2).run(tests)
with open(path, "w") as file:
    json.dump(outcomes, file)
"""


def outcomes_of(suite: str, mode: str) -> Dict[str, str]:
    """Whether each test of a suite passes, fails or is skipped, by the name of the test.

    Args:
        suite: The name of its module in the ``test`` package.
        mode: ``debug`` or ``off``.

    Raises:
        RuntimeError: The suite did not run to its end.
    """
    environ = {
        name: value for name, value in os.environ.items() if not name.startswith("GREENBACK_TRACE")
    }
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory, "outcomes.json")
        try:
            done = subprocess.run(
                [sys.executable, "-c", PROGRAM, suite, mode, str(path)],
                env=environ,
                cwd=directory,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.PIPE,
                text=True,
                errors="replace",
                timeout=TIMEOUT_SECONDS,
                check=False,
            )
        except subprocess.TimeoutExpired as error:
            told = (error.stderr or b"").decode(errors="replace")
            raise RuntimeError(
                f"{suite} ({mode}) takes longer than {TIMEOUT_SECONDS} s:\n{told[-2_000:]}"
            ) from None
        if not path.exists():
            raise RuntimeError(f"{suite} ({mode}) has not run to its end:\n{done.stderr[-2_000:]}")
        found: Dict[str, str] = json.loads(path.read_text())
        return found


def differences(suite: str) -> List[str]:
    """The changes that debug mode makes in a suite, as sentences. Prints how many tests fail."""
    if importlib.util.find_spec(f"test.{suite}") is None:
        print(f"{suite}: this interpreter's 'test' package does not have it")
        return []
    try:
        without, in_debug = outcomes_of(suite, "off"), outcomes_of(suite, "debug")
    except RuntimeError as error:
        return [str(error)]
    failed = [list(found.values()).count("fails") for found in (without, in_debug)]
    print(f"{suite}: {len(without)} tests, {failed[0]} fail without debug mode, {failed[1]} in it")
    return [
        f"{name} {without.get(name, 'is missing')} without debug mode, "
        f"{in_debug.get(name, 'is missing')} in it"
        for name in sorted({*without, *in_debug})
        if without.get(name) != in_debug.get(name)
    ]


def main(suites: List[str]) -> int:
    if importlib.util.find_spec("test.support") is None:
        print(
            f"{sys.executable} has no 'test' package, which CPython's own tests are in. Debian "
            "has it as libpython3-testsuite, Fedora as python3-test; an interpreter that pyenv has "
            "built brings it along.",
            file=sys.stderr,
        )
        return 2
    found: List[str] = []
    for suite in suites:
        found += differences(suite)
        sys.stdout.flush()
    for difference in found:
        print(difference)
    print(f"{len(found)} differences")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:] or SUITES))
