"""The implementations to compare, each in an environment and in processes of its own."""

from __future__ import annotations

import ast
import json
import os
import platform
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any, Dict, List, NamedTuple, Optional, Tuple

from rich.console import Console

HERE = Path(__file__).resolve().parent
CHECKOUT = HERE.parent
ENVIRONMENTS = HERE / ".envs"

#: What to install into each environment. Ours gets a copy of the checkout, too, at every run.
REQUIREMENTS = {
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


class Implementation(NamedTuple):
    title: str
    environment: str
    #: What ``greenback.engine`` must be.
    engine: str = ""
    is_traced: bool = False

    def variables(self) -> Dict[str, str]:
        """The environment variables by which a user would choose it."""
        variables = {}
        if self.engine == "python":
            variables["GREENBACK_PURE"] = "1"
        if self.is_traced:
            variables["GREENBACK_TRACE"] = "1"
        return variables


IMPLEMENTATIONS = {
    "c": Implementation("ours, engine in C", "ours", "c"),
    "python": Implementation("ours, engine in Python", "ours", "python"),
    "c_traced": Implementation("ours, engine in C, traced", "ours", "c", True),
    "python_traced": Implementation("ours, engine in Python, traced", "ours", "python", True),
    "upstream": Implementation("upstream", "upstream"),
    "sqlalchemy": Implementation("SQLAlchemy", "sqlalchemy"),
    "awaitlet": Implementation("awaitlet", "awaitlet"),
}
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


def prepare(python: str, scratch: Path, console: Console) -> Dict[str, Peer]:
    """The implementations that there are, each in its environment, which is made if missing.

    All environments have the same versions of shared packages: those of the first environment.

    Args:
        python: The interpreter.
        scratch: An empty folder. This implementation is built and installed there.
        console: Where to say what is made, and what is left out and why.
    """
    home = ENVIRONMENTS / describe(python).replace(" ", "-").lower()
    for name in REQUIREMENTS:
        make_environment(python, home, name, console)
    site = scratch / "site"
    why_without_c = install_ours(str(home / "ours" / "bin" / "python"), site, scratch / "copy")
    peers = {}
    for name, implementation in IMPLEMENTATIONS.items():
        is_ours = implementation.environment == "ours"
        peer = Peer(
            implementation.environment,
            str(home / implementation.environment / "bin" / "python"),
            site if is_ours else None,
            implementation.variables(),
        )
        if is_ours:
            try:
                found = engine_of(peer)
            except WorkerError:
                found = implementation.engine  # measuring it will show the traceback
            if found != implementation.engine:
                why = why_without_c or f"greenback.engine is {found!r}"
                console.print(f"Left out: {implementation.title}: {why}", markup=False)
                continue
        peers[name] = peer
    return peers


def make_environment(python: str, home: Path, name: str, console: Console) -> None:
    constraints = home / "constraints.txt"
    folder = home / name
    interpreter = str(folder / "bin" / "python")
    ready = folder / "ready"
    is_first = name == next(iter(REQUIREMENTS))
    requirements = [*REQUIREMENTS[name], *COMMON]
    if name == "ours":
        requirements += build_requirements()
    pins = "" if is_first else constraints.read_text()
    wanted = "\n".join([*requirements, pins])
    if ready.exists() and ready.read_text() == wanted and constraints.exists():
        return
    console.print(f"[dim]preparing {folder.relative_to(CHECKOUT)}[/]")
    subprocess.run([python, "-m", "venv", "--clear", str(folder)], check=True)
    pinned = [] if is_first else ["--constraint", str(constraints)]
    subprocess.run([*pip(interpreter), "install", *pinned, *requirements], check=True)
    if is_first:
        frozen = subprocess.run(
            [*pip(interpreter), "freeze"], check=True, capture_output=True, text=True
        ).stdout
        constraints.write_text(frozen)
    ready.write_text(wanted)


def build_requirements() -> List[str]:
    """What builds this implementation: ``build-system.requires`` of its pyproject.toml."""
    # The standard library reads TOML since Python 3.11 only. A list of strings is Python, too.
    text = (CHECKOUT / "pyproject.toml").read_text(encoding="utf-8")
    match = re.search(r"^requires = (\[[^\n]*\]$|\[$.*?^\])", text, re.MULTILINE | re.DOTALL)
    assert match is not None
    requirements: List[str] = ast.literal_eval(match[1])
    return requirements


def install_ours(interpreter: str, site: Path, copy: Path) -> str:
    """Build a copy of the checkout, so that edits during the run do not change what is measured.

    Args:
        interpreter: The one to build for. Its environment has what that takes.
        site: The folder to install into.
        copy: The folder to copy into.

    Returns:
        Why the engine in C could not be built, or nothing.
    """
    # What has been built in the checkout may be of another version, or of another interpreter.
    built = shutil.ignore_patterns("__pycache__", "*.so", "*.pyd", "*.o")
    copy.mkdir()
    for path in CHECKOUT.iterdir():
        if path.is_file():
            shutil.copy(path, copy)
    for folder in ("greenback", "greenback_trace", "docs"):
        shutil.copytree(CHECKOUT / folder, copy / folder, ignore=built)
    options = ("--no-deps", "--no-build-isolation", "--target", str(site))
    command = [*pip(interpreter), "install", *options, str(copy)]
    environment = {
        name: value for name, value in os.environ.items() if not name.startswith("GREENBACK_")
    }
    done = subprocess.run(
        command,
        env={**environment, "GREENBACK_REQUIRE_COMPILED": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    if done.returncode == 0:
        return ""
    subprocess.run(command, env=environment, check=True)
    # pip's own first line only says that a command has failed.
    errors = re.findall(r"^.*\berror: (?!subprocess-exited).*$", done.stdout, re.MULTILINE)
    return f"it cannot be built: {errors[0].strip() if errors else done.stdout[-200:].strip()}"


def pip(interpreter: str) -> List[str]:
    return [interpreter, "-m", "pip", "--quiet", "--quiet", "--disable-pip-version-check"]


def engine_of(peer: Peer) -> Optional[str]:
    """What ``greenback.engine`` is in its processes."""
    worker = Worker(peer, "asyncio")
    worker.close()
    engine: Optional[str] = worker.description["engine"]
    return engine


# Worker processes


class Peer(NamedTuple):
    #: Its key in worker.py.
    name: str
    interpreter: str
    #: The folder to import it from, if it is not in the interpreter's environment.
    site: Optional[Path]
    variables: Dict[str, str]

    def command(self, library: str, setup: Optional[str] = None) -> List[str]:
        script = HERE / ("worker.py" if setup is None else "tracing_worker.py")
        command = [self.interpreter, str(script), self.name, library]
        return command if setup is None else [*command, setup]

    def environment(self) -> Dict[str, str]:
        """The variables of its processes."""
        environment = {
            name: value
            for name, value in os.environ.items()
            if not name.startswith(("PYTHON", "GREENBACK_", "OTEL_"))
        }
        environment["PYTHONDONTWRITEBYTECODE"] = "1"
        if self.site is not None:
            environment["PYTHONPATH"] = str(self.site)
        return {**environment, **self.variables}


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
        self.peer = peer
        self.process = subprocess.Popen(
            peer.command(library, setup),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=peer.environment(),
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
        """The versions of the packages in its environment, without ours."""
        versions: Dict[str, str] = self.description["versions"]
        if "greenback" in versions:
            version = versions.pop("greenback")
            if self.peer.name == "upstream":
                versions["upstream"] = version
        return versions

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
