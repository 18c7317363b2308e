"""What `make check` runs. ``nox --list`` shows the sessions, ``nox -s tests-3.8`` runs one."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from functools import lru_cache
from pathlib import Path
from typing import Iterator, Optional, Sequence

import nox

nox.needs_version = ">=2025.2.9"

# Environments come from .ci/environment.py.
nox.options.default_venv_backend = "none"

OLDEST, NEWEST = "3.8", "3.15"

# By class or document: the examples of a document build on one another.
PYTEST = ("-m", "pytest", "-n", "auto", "--dist", "loadscope")

RUNTIME = ("tests/greenback",)
DEBUG_MODE = ("tests/greenback_trace/misuse",)
FUZZ = ("tests/fuzz/test_programs.py",)
INTERRUPTS = (
    "tests/greenback/test_interrupts.py",
    "tests/greenback/test_threads.py",
    "tests/greenback_trace/test_interrupts.py",
    "tests/greenback_trace/misuse/listener/test_slow_steps.py",
)
#: They read traces and sources, which the oldest, the newest and another Python suffice for.
READERS = ("tests/greenback_trace/report",)
DASHBOARDS = ("tests/dashboards",)
#: promtool alone runs these, whatever the Python.
RULES = ("tests/dashboards/test_rules.py",)

PROBE = """
import ensurepip, json, sys
print(json.dumps([sys.implementation.name, list(sys.version_info[:2]), sys.executable]))
"""

CHECK_INSTALLED = """
import importlib.metadata
import greenback
import greenback_trace
assert greenback.__version__ == importlib.metadata.version("greenback")
"""


def find_interpreter(command: str, implementation: str, version: str = "") -> Optional[str]:
    """The path of an interpreter that runs and can make virtual environments.

    On the PATH there may only be a shim of pyenv that refuses to run the versions which are not
    active, so pyenv's directory is looked at, too.
    """
    for candidate in candidates(command):
        try:
            answer = subprocess.run(
                [candidate, "-c", PROBE], capture_output=True, text=True, timeout=60, check=True
            ).stdout
        except (OSError, subprocess.SubprocessError):
            continue
        name, numbers, path = json.loads(answer)
        if name == implementation and version in ("", "{}.{}".format(*numbers)):
            return str(path)
    return None


def candidates(command: str) -> Iterator[str]:
    on_path = shutil.which(command)
    if on_path is not None:
        yield on_path
    versions = Path(os.environ.get("PYENV_ROOT", "~/.pyenv")).expanduser() / "versions"
    by_number = sorted(
        versions.glob(f"*/bin/{command}"),
        key=lambda path: [int(part) for part in re.findall(r"\d+", path.parts[-3])],
        reverse=True,
    )
    yield from map(str, by_number)


@lru_cache(maxsize=None)
def sid() -> subprocess.CompletedProcess[str]:
    """Debian sid is made if need be; stdout says which it is, or stderr why there is none."""
    command = [".ci/sid", "cat", "/made"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    except OSError as problem:
        done = subprocess.CompletedProcess(command, 125, "", str(problem))
    print(done.stderr, file=sys.stderr, end="")
    return done


def add_test_session(
    label: str,
    command: str,
    implementation: str,
    version: str,
    *,
    tests: Sequence[str] = (),
    groups: Sequence[str] = ("test",),
    without: Sequence[str] = (),
    left_out: Sequence[str] = (),
    on_sid: bool = False,
    environment: Optional[dict[str, str]] = None,
) -> None:
    """A session `tests-LABEL`: all that `make test` runs but what is left out, or only the named.

    Args:
        groups: The dependency groups that are installed. What needs another one is left out.
        without: Packages of these groups that are not installed.
        left_out: Folders of tests.
    """
    name = f"tests-{label}"
    what = ["--groups", *groups, *(["--without", *without] if without else []), "--compile"]
    if "dashboards" not in groups:
        left_out = [*left_out, *DASHBOARDS]
    arguments = [*tests, *(f"--ignore={folder}" for folder in left_out)]
    if label == os.environ.get("ALREADY_TESTED"):

        @nox.session(name=name, python=False)
        def tested(session: nox.Session) -> None:
            session.skip("`make test` has just run them")

        return
    interpreter = find_interpreter(command, implementation, version)
    if interpreter is not None:

        @nox.session(name=name, python=False)
        def here(session: nox.Session) -> None:
            python = environment_of(session, name, "--python", interpreter, *what)
            test(session, [python], arguments, environment)

        return

    @nox.session(name=name, python=False)
    def elsewhere(session: nox.Session) -> None:
        why_not = f"no interpreter {command} that has venv"
        if on_sid:
            session.log(f"{why_not}; Debian sid has one, and is made first if need be")
            if sid().returncode == 0:
                there = ("--within", ".ci/sid", "--python", command)
                python = environment_of(session, name, *there, *what)
                test(session, [".ci/sid", python], arguments, environment)
                return
            why_not = "; ".join([why_not, *sid().stderr.splitlines()[-1:]])
        print(f"SKIPPED {name}: {why_not}", flush=True)
        session.skip(why_not)


def environment_of(session: nox.Session, name: str, *what: str) -> str:
    """The Python of the environment `.venvs/NAME`, which is made if need be."""
    folder = Path(".venvs", name)
    session.run_install(sys.executable, ".ci/environment.py", str(folder), *what, external=True)
    return str(folder / "bin" / "python")


def test(
    session: nox.Session,
    python: Sequence[str],
    arguments: Sequence[str],
    environment: Optional[dict[str, str]],
) -> None:
    settings = {"TESTS_SMALL": "1", **(environment or {})}
    session.run(*python, *PYTEST, *arguments, *session.posargs, env=settings, external=True)


def run_as_make_test(session: nox.Session, *args: str, **environment: str) -> None:
    """Run Python in the environment of `make test`."""
    session.run_install("make", ".venv", external=True, silent=True)
    session.run(".venv/bin/python", *args, env=environment, external=True)


@nox.session(python=False)
def lint(session: nox.Session) -> None:
    """Ruff, the formatter, mypy and pyright."""
    python = environment_of(session, "lint", "--groups", "lint")
    for command in (
        ("ruff", "check", "."),
        ("ruff", "format", "--check", "."),
        ("mypy",),
        *(
            ("pyright", "--pythonpath", python, "--pythonversion", version)
            for version in (OLDEST, NEWEST)
        ),
    ):
        session.run(python, "-m", *command, external=True)


@nox.session(python=False)
def docs(session: nox.Session) -> None:
    """The documentation, with every warning an error. `make test` runs its examples."""
    options = ("-W", "--keep-going", "-q", "-E", "-b", "html")
    python = environment_of(session, "docs", "--groups", "docs")
    session.run(python, "-m", "sphinx", *options, "docs", "docs/_build/html", external=True)


@nox.session(python=False)
def interrupts(session: nox.Session) -> None:
    """Interruptions at each instruction; `make test` takes every seventh."""
    run_as_make_test(session, *PYTEST, *INTERRUPTS, *session.posargs, TESTS_EVERY="1")


@nox.session(python=False)
@nox.parametrize("tracing", ["debug", "sdk"])
def traced(session: nox.Session, tracing: str) -> None:
    """A program behaves the same traced and untraced: the runtime's tests, while it is traced."""
    if tracing == "sdk":
        environment = {"GREENBACK_TRACE": "1", "TESTS_WITH_SDK": "1"}
    else:
        environment = {"GREENBACK_TRACE": tracing}
    run_as_make_test(session, *PYTEST, "tests/greenback", *session.posargs, **environment)
    if tracing == "sdk":
        run_as_make_test(session, "benchmarks/stress.py")  # a million bridges, none lost


@nox.session(python=False)
def package(session: nox.Session) -> None:
    """A wheel, made from the source distribution, imports and runs where the source is not."""
    dist = Path(session.create_tmp()).resolve() / "dist"
    shutil.rmtree(dist, ignore_errors=True)
    python = environment_of(session, "package", "--no-project", "--groups", "package")
    session.run(python, "-m", "build", "--outdir", str(dist), external=True)
    if not dist.is_dir():
        return  # with --install-only, nothing is run
    session.run(
        python, "-m", "twine", "check", "--strict", *map(str, sorted(dist.iterdir())), external=True
    )
    (wheel,) = dist.glob("*.whl")
    shutil.rmtree(Path(".venvs", "wheel"), ignore_errors=True)  # it may be of an older wheel
    packages = (
        "pip",
        f"greenback[all] @ {wheel.as_uri()}",
        # The exporters' newest release must go with the extras.
        "opentelemetry-exporter-otlp-proto-grpc",
        "opentelemetry-exporter-otlp-proto-http",
    )
    python = environment_of(session, "wheel", "--no-project", "--packages", *packages)
    python = str(Path(python).absolute())
    session.run(python, "-m", "pip", "check", external=True)
    with session.chdir(dist):
        session.run(python, "-c", CHECK_INSTALLED, external=True)
        command = str(Path(python).with_name("greenback-trace"))
        session.run(command, "--help", external=True, silent=True)
        session.run(command, "explain", "lock_held", external=True, silent=True)


add_test_session(OLDEST, f"python{OLDEST}", "cpython", OLDEST)
add_test_session("3.11", "python3.11", "cpython", "3.11")
# What differs between neighbours is how code is run and compiled, which these look at.
for minor in ("3.10", "3.12", "3.13"):
    add_test_session(
        minor, f"python{minor}", "cpython", minor, tests=(*RUNTIME, *DEBUG_MODE, *FUZZ)
    )
add_test_session(
    "3.14", "python3.14", "cpython", "3.14", tests=(*RUNTIME, *DEBUG_MODE, *FUZZ), on_sid=True
)
add_test_session(
    NEWEST,
    f"python{NEWEST}",
    "cpython",
    NEWEST,
    groups=("test", "demo", "dashboards", "browser"),
    left_out=RULES,
    on_sid=True,
)
# No distribution has it. Packages that have not declared that they run without the GIL would switch
# it on again, with a warning. There are no wheels of gRPC and yappi, which take long to build.
add_test_session(
    "3.14t",
    "python3.14t",
    "cpython",
    "3.14",
    without=("opentelemetry-exporter-otlp-proto-grpc", "yappi"),
    left_out=READERS,
    environment={"PYTHON_GIL": "0"},
)
add_test_session("pypy", "pypy3", "pypy", "3.11", on_sid=True)
