"""The implementations to compare, each in an environment and in processes of its own."""

from __future__ import annotations

import json
import os
import platform
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any, Dict, NamedTuple, Optional, Tuple

from rich.console import Console

HERE = Path(__file__).resolve().parent
CHECKOUT = HERE.parent
ENVIRONMENTS = HERE / ".envs"

#: What to install for each implementation. Ours is copied from the checkout at every run.
IMPLEMENTATIONS = {
    "ours": [
        "outcome",
        "sniffio",
        "structlog",
        "opentelemetry-sdk",
        "executing",
        "pure_eval",
    ],
    "upstream": ["greenback==1.3.0", "opentelemetry-sdk"],
    "sqlalchemy": ["sqlalchemy>=2,<3"],
    "awaitlet": ["awaitlet==0.0.1"],
}
COMMON = ["greenlet", "uvloop; implementation_name == 'cpython'", "trio"]
#: Works that make this many tasks at once. Their number of calls is a multiple of it.
AT_ONCE = ("portal_tasks", "plain_tasks")
TASKS_AT_ONCE = 100


# Environments


def find_python() -> str:
    """CPython 3.13 if it is installed, since the targets are stated for it."""
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
    """The interpreter's name and version, such as ``CPython 3.13.0``."""
    code = "import platform as p; print(p.python_implementation(), p.python_version())"
    return subprocess.run(
        [python, "-c", code], check=True, capture_output=True, text=True
    ).stdout.strip()


def copy_ours(target: Path) -> Path:
    """Copy the checkout, so that edits during the run do not change what is measured."""
    for package in ("greenback", "greenback_trace"):
        shutil.copytree(CHECKOUT / package, target / package)
    return target


def prepare(python: str, source: Path, console: Console) -> Dict[str, Peer]:
    """The implementations, each in its environment, which is made if missing.

    All environments have the same versions of shared packages: those of the first environment.
    """
    tag = describe(python).replace(" ", "-").lower()
    constraints = ENVIRONMENTS / tag / "constraints.txt"
    peers = {}
    for name, requirements in IMPLEMENTATIONS.items():
        home = ENVIRONMENTS / tag / name
        interpreter = str(home / "bin" / "python")
        peers[name] = Peer(name, interpreter, source if name == "ours" else None)
        ready = home / "ready"
        is_first = len(peers) == 1
        pins = "" if is_first else constraints.read_text()
        wanted = "\n".join([*requirements, *COMMON, pins])
        if ready.exists() and ready.read_text() == wanted and constraints.exists():
            continue
        console.print(f"[dim]preparing {home.relative_to(CHECKOUT)}[/]")
        subprocess.run([python, "-m", "venv", "--clear", str(home)], check=True)
        pip = [interpreter, "-m", "pip", "--quiet", "--disable-pip-version-check"]
        pinned = [] if is_first else ["--constraint", str(constraints)]
        subprocess.run([*pip, "--quiet", "install", *pinned, *requirements, *COMMON], check=True)
        if is_first:
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
    #: The directory to import it from, if it is not installed.
    source: Optional[Path]


class WorkerError(Exception):
    """The worker failed. The text is its traceback."""


class Worker:
    """A process that measures one implementation under one event loop.

    Args:
        peer: The implementation.
        library: The event loop.
        setup: How it is traced: one of the setups in tracing_worker.py.
    """

    def __init__(self, peer: Peer, library: str, setup: Optional[str] = None) -> None:
        environment = {
            name: value
            for name, value in os.environ.items()
            if not name.startswith(("PYTHON", "GREENBACK_", "OTEL_"))
        }
        environment["PYTHONDONTWRITEBYTECODE"] = "1"
        if peer.source is not None:
            environment["PYTHONPATH"] = str(peer.source)
        script = "worker.py" if setup is None else "tracing_worker.py"
        command = [peer.interpreter, str(HERE / script), peer.name, library]
        if setup is not None:
            command.append(setup)
        self.process = subprocess.Popen(
            command,
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

    def versions(self) -> Dict[str, str]:
        """The versions of the packages in its environment, which does not include ours."""
        versions: Dict[str, str] = self.description["versions"]
        return {
            "upstream" if package == "greenback" else package: version
            for package, version in versions.items()
        }

    def ask(self, work: str, n: int, depth: int) -> Dict[str, Any]:
        assert self.process.stdin is not None
        try:
            print(json.dumps({"work": work, "n": n, "depth": depth}), file=self.process.stdin)
            self.process.stdin.flush()
        except BrokenPipeError:
            pass  # _receive says how it ended
        return self._receive()

    def time(self, work: str, depth: int, seconds: float) -> float:
        """Microseconds per call, over as many calls as take about *seconds*."""
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


def cpu() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()
