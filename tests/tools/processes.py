"""Programs in their own processes, and the tools that run on them."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import signal
import subprocess
import sys
import sysconfig
import textwrap
import threading
from pathlib import Path
from typing import Any, Dict, List

import pytest

import greenback
import greenback_trace
from greenback._engine.choice import has_compiled

PYPY = sys.implementation.name == "pypy"
HAS_NO_GIL = bool(sysconfig.get_config_var("Py_GIL_DISABLED"))
PY_SPY = shutil.which("py-spy", path=os.path.dirname(sys.executable)) or shutil.which("py-spy")


#: The outermost frame of a worker, and the frames of a bridge. An engine in C has none of them.
WORK = [] if has_compiled("work") else ["work"]
BRIDGE = [] if has_compiled("await_") else ["await_", "_step"]


def needs_py_spy(tests: Any) -> Any:
    """Skip tests where py-spy is missing, or cannot read the interpreter."""
    if PYPY or HAS_NO_GIL:
        return pytest.mark.skip(reason="py-spy knows CPython with a GIL only")(tests)
    return pytest.mark.skipif(PY_SPY is None, reason="py-spy is not installed")(tests)


#: Seconds after which a process is killed, so that a test that waits for it fails.
PATIENCE = 90


def environment(**variables: str) -> Dict[str, str]:
    """The environment of another interpreter, without variables of ours but those given."""
    environ = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("COVERAGE_", "GREENBACK_", "OTEL_", "PYTEST_", "PYTHON"))
        or name == "GREENBACK_PURE"
    }
    roots = {str(Path(str(module.__file__)).parents[1]) for module in (greenback, greenback_trace)}
    environ["PYTHONPATH"] = os.pathsep.join(sorted(roots))
    environ.update(variables)
    return environ


class Process:
    """A running process. Its output is waited for, but never longer than `PATIENCE`."""

    def __init__(self, *command: str, cwd: Path, **variables: str) -> None:
        self._process = subprocess.Popen(
            command,
            cwd=str(cwd),
            env=environment(PYTHONUNBUFFERED="1", **variables),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        self.pid = self._process.pid
        self._output = self._unread = ""
        self._watchdog = threading.Timer(PATIENCE, self._kill_all)
        self._watchdog.start()

    def read_until(self, text: str) -> str:
        """The output from here up to *text*."""
        while text not in self._unread:
            piece = os.read(self._process.stdout.fileno(), 1 << 16)  # type: ignore[union-attr]
            assert piece, f"it ended without {text!r}:\n{self._output}"
            self._output += piece.decode()
            self._unread += piece.decode()
        before, _, self._unread = self._unread.partition(text)
        return before

    def send(self, text: str) -> None:
        self._process.stdin.write(text.encode() + b"\n")  # type: ignore[union-attr]
        self._process.stdin.flush()  # type: ignore[union-attr]

    def rest(self) -> str:
        """The output from here to the end of the process, which must end by itself."""
        self._process.stdin.close()  # type: ignore[union-attr]
        rest = self._process.stdout.read().decode()  # type: ignore[union-attr]
        self._output += rest
        unread, self._unread = self._unread, ""
        assert self._process.wait() == 0, self._output
        return unread + rest

    def _kill_all(self) -> None:
        """Kill the process and those that it has started."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.pid, signal.SIGKILL)

    def kill(self) -> None:
        self._watchdog.cancel()
        self._kill_all()
        self._process.wait()
        self._process.stdin.close()  # type: ignore[union-attr]
        self._process.stdout.close()  # type: ignore[union-attr]


def run(*command: str, cwd: Path, **variables: str) -> Any:
    """Run a command to its end."""
    return subprocess.run(
        command,
        cwd=str(cwd),
        env=environment(**variables),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=PATIENCE,
        check=False,
    )


def write(path: Path, source: str) -> Path:
    path.write_text(textwrap.dedent(source).lstrip("\n"))
    return path


def line_of(path: Path, text: str) -> int:
    """The number of the line of a program that has *text*."""
    (number,) = [
        number for number, line in enumerate(path.read_text().splitlines(), 1) if text in line
    ]
    return number


def lines_of(path: Path, text: str) -> List[int]:
    """The numbers of the lines of a program that have *text*."""
    return [number for number, line in enumerate(path.read_text().splitlines(), 1) if text in line]


def skip_where_refused(output: str) -> None:
    """Skip the test if the tool may not look into another process here."""
    refused = re.search(
        r".*(Permission ?(denied|Error)|Operation not permitted|ptrace).*", output, re.IGNORECASE
    )
    if refused is not None:
        pytest.skip(f"looking into another process is refused here: {refused.group()}")
