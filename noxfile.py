"""What `make check` runs. ``nox --list`` shows the sessions, ``nox -s tests-3.8`` runs one."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path
from typing import Iterator, Optional, Sequence

import nox

nox.needs_version = ">=2025.2.9"
nox.options.default_venv_backend = "venv"
nox.options.reuse_existing_virtualenvs = True

PYPROJECT = nox.project.load_toml("pyproject.toml")
OLDEST, NEWEST = "3.8", "3.15"

# By class or document: the examples of a document build on one another.
PYTEST = ("-m", "pytest", "-n", "auto", "--dist", "loadscope")

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


def group(name: str) -> list[str]:
    return list(nox.project.dependency_groups(PYPROJECT, name))


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
    on_sid: bool = False,
    environment: Optional[dict[str, str]] = None,
) -> None:
    """A session `tests-LABEL`: all that `make test` runs, or only the named ones.

    What needs another dependency group than those that are installed is left out, or a package of
    them that is named in *without*.
    """
    name = f"tests-{label}"
    needed = [
        package
        for name_of_group in groups
        for package in group(name_of_group)
        if not package.startswith(tuple(without))
    ]
    left_out = [] if "dashboards" in groups else ["--ignore=tests/dashboards"]
    if label == os.environ.get("ALREADY_TESTED"):

        @nox.session(name=name, python=False)
        def tested(session: nox.Session) -> None:
            session.skip("`make test` has just run them")

        return
    interpreter = find_interpreter(command, implementation, version)
    if interpreter is not None:

        @nox.session(name=name, python=interpreter)
        def here(session: nox.Session) -> None:
            session.env.update(environment or {})
            install_and_test(session, ["python"], needed, [*tests, *left_out])

        return

    @nox.session(name=name, python=False)
    def elsewhere(session: nox.Session) -> None:
        why_not = f"no interpreter {command} that has venv"
        if on_sid:
            session.log(f"{why_not}; Debian sid has one, and is made first if need be")
            if sid().returncode == 0:
                python = python_on_sid(session, name, command)
                install_and_test(session, python, needed, [*tests, *left_out])
                return
            why_not = "; ".join([why_not, *sid().stderr.splitlines()[-1:]])
        print(f"SKIPPED {name}: {why_not}", flush=True)
        session.skip(why_not)


def python_on_sid(session: nox.Session, name: str, command: str) -> list[str]:
    """The command that runs the Python of an environment which nox cannot make, nor look into."""
    folder = Path(".nox", f"{name}-on-sid")
    made = folder / "made"
    if not made.is_file() or made.read_text() != sid().stdout:
        session.run(".ci/sid", command, "-m", "venv", "--clear", str(folder), external=True)
        made.write_text(sid().stdout)
    return [".ci/sid", str(folder / "bin" / "python")]


def install_and_test(
    session: nox.Session, python: Sequence[str], needed: Sequence[str], tests: Sequence[str]
) -> None:
    pip = (*python, "-m", "pip", "install", "--quiet")
    # The one that comes with Python may give up on what depends on equal versions.
    session.run_install(*pip, "--upgrade", "pip", external=True)
    session.run_install(*pip, "--editable", ".[all]", *needed, external=True)
    session.run(*python, *PYTEST, *tests, *session.posargs, external=True)


def run_here(session: nox.Session, *args: str, **environment: str) -> None:
    """Run Python in the environment that `make` has made: another takes longer than a check."""
    if find_spec("trio") is None:
        session.error("this nox is not the project's; run: make check ARGS='-s NAME'")
    session.run(sys.executable, *args, env=environment, external=True)


@nox.session(python=False)
def lint(session: nox.Session) -> None:
    """Ruff, the formatter, mypy and pyright."""
    run_here(session, "-m", "ruff", "check", ".")
    run_here(session, "-m", "ruff", "format", "--check", ".")
    run_here(session, "-m", "mypy")
    for version in (OLDEST, NEWEST):
        run_here(
            session, "-m", "pyright", "--pythonpath", sys.executable, "--pythonversion", version
        )


@nox.session(python=False)
def docs(session: nox.Session) -> None:
    """The documentation, with every warning an error. `make test` runs its examples."""
    options = ("-W", "--keep-going", "-q", "-E", "-b", "html")
    run_here(session, "-m", "sphinx", *options, "docs", "docs/_build/html")


@nox.session(python=False)
@nox.parametrize("tracing", ["debug", "sdk"])
def traced(session: nox.Session, tracing: str) -> None:
    """A program behaves the same traced and untraced: the runtime's tests, while it is traced."""
    if tracing == "sdk":
        environment = {"GREENBACK_TRACE": "1", "TESTS_WITH_SDK": "1"}
    else:
        environment = {"GREENBACK_TRACE": tracing}
    run_here(session, *PYTEST, "tests/greenback", *session.posargs, **environment)
    if tracing == "sdk":
        run_here(session, "benchmarks/stress.py")  # a million bridges, none lost


@nox.session
def package(session: nox.Session) -> None:
    """A wheel, made from the source distribution, imports and runs where the source is not."""
    dist = Path(session.create_tmp()).resolve() / "dist"
    shutil.rmtree(dist, ignore_errors=True)
    session.install("--quiet", "build", "twine")
    session.run("python", "-m", "build", "--outdir", str(dist))
    session.run("twine", "check", "--strict", *map(str, sorted(dist.iterdir())))
    (wheel,) = dist.glob("*.whl")
    # The exporters' newest release must go with the extras.
    session.install(
        "--quiet",
        "--force-reinstall",
        f"greenback[all] @ {wheel.as_uri()}",
        "opentelemetry-exporter-otlp-proto-grpc",
        "opentelemetry-exporter-otlp-proto-http",
    )
    session.run("python", "-m", "pip", "check")
    with session.chdir(dist):
        session.run("python", "-c", CHECK_INSTALLED)
        session.run("greenback-trace", "--help")
        session.run("greenback-trace", "explain", "lock_held")


RUNTIME = ("tests/greenback",)
DEBUG_MODE = ("tests/greenback_trace/misuse",)
FUZZ = ("tests/fuzz/test_programs.py",)

for minor in (OLDEST, "3.11", "3.13"):
    add_test_session(minor, f"python{minor}", "cpython", minor)
# What differs between neighbours is how code is run and compiled, which these look at.
for minor in ("3.10", "3.12"):
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
    environment={"PYTHON_GIL": "0"},
)
add_test_session("pypy", "pypy3", "pypy", "3.11", on_sid=True)
