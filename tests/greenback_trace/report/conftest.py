"""Traces of a program that has a bit of everything."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any, Callable, Dict, Iterator, List, Tuple

import pytest

REPOSITORY = Path(__file__).resolve().parents[3]

SHOP = """
import asyncio
import time

import greenback
from greenback import await_


async def fetch(item):
    await asyncio.sleep(0)
    return 3


async def known(item):
    return 3


async def refuse(item):
    raise LookupError(item)


async def compute():
    end = time.perf_counter() + 0.03
    while time.perf_counter() < end:
        pass


class Prices:
    def __getitem__(self, item):
        return await_(fetch(item))

    def known(self, item):
        return await_(known(item))


def line(item, prices):
    return prices[item] + prices.known(item)


def bill(items, prices):
    result = 0
    for item in items:
        result += line(item, prices)
    return result


def stock():
    try:
        await_(refuse("milk"))
    except LookupError:
        return 0


def total():
    await_(compute())


def wait(started):
    started.set()
    await_(asyncio.sleep(3600))


async def order():
    await greenback.ensure_portal()
    bill(["tea", "cake", "tea"], Prices())
    stock()


async def day(orders):
    for number in range(orders):
        await asyncio.create_task(order(), name=f"order {number}")
    await greenback.with_portal_run_sync(total)
    started = asyncio.Event()
    task = asyncio.create_task(greenback.with_portal_run_sync(wait, started), name="waiter")
    await started.wait()
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    await greenback.ensure_portal()
    await_(fetch("sugar"))


# When a loop ends, all is written that there is. Its end does not wait for that for ever.
import os
import pathlib

asyncio.run(day(10))
trace = pathlib.Path(os.environ["GREENBACK_TRACE_FILE"])
while not (trace.exists() and "resourceMetrics" in trace.read_text()):
    time.sleep(0.01)
asyncio.run(day(5))
"""


@pytest.fixture(autouse=True, scope="module")
def current_directory(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Put the tests' programs below the current directory, since a plan reads no other sources."""
    before = os.getcwd()
    os.chdir(str(tmp_path_factory.getbasetemp()))
    yield
    os.chdir(before)


Traced = Callable[..., Path]


@pytest.fixture(scope="session")
def traced(tmp_path_factory: pytest.TempPathFactory) -> Traced:
    """Runs SHOP, traced, with more variables, and returns the path of the trace."""
    directory = tmp_path_factory.mktemp("shop")
    program = directory / "shop.py"
    program.write_text(SHOP)

    def run(name: str, **variables: Any) -> Path:
        file = directory / f"{name}.jsonl"
        _run_traced(program, file, "debug", GREENBACK_TRACE_SLOW="0.02", **variables)
        return file

    return run


def _run_traced(program: Path, trace: Path, mode: str, **variables: Any) -> None:
    environ = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("GREENBACK_TRACE", "OTEL_"))
    }
    environ.update(
        GREENBACK_TRACE=mode, GREENBACK_TRACE_FILE=str(trace), PYTHONPATH=str(REPOSITORY)
    )
    environ.update({name: str(value) for name, value in variables.items()})
    done = subprocess.run(
        [sys.executable, str(program)],
        cwd=str(program.parent),
        env=environ,
        check=False,
        capture_output=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr.decode()


@pytest.fixture
def run_main(tmp_path: Path) -> Callable[..., Path]:
    """Writes the files of a project, runs its main.py traced, and returns the path of the trace."""

    def run(files: Dict[str, str], project: Path = tmp_path) -> Path:
        for name, text in files.items():
            file = project / name
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(textwrap.dedent(text))
        trace = project / "trace.jsonl"
        _run_traced(project / "main.py", trace, "1")
        return trace

    return run


@pytest.fixture(scope="session")
def shop(traced: Traced) -> Path:
    """The trace of SHOP, with a span for each bridge."""
    return traced("shop", OTEL_SERVICE_NAME="shop")


@pytest.fixture(scope="session")
def till(traced: Traced) -> Path:
    """The trace of another process of SHOP, with another service name."""
    return traced("till", OTEL_SERVICE_NAME="till")


@pytest.fixture(scope="session")
def sampled(traced: Traced) -> Path:
    """The trace of a process of SHOP that has left spans out."""
    return traced("sampled", GREENBACK_TRACE_SPAN_RATE=1)


@pytest.fixture(scope="session")
def tutorial(tmp_path_factory: pytest.TempPathFactory) -> Tuple[Path, List[List[int]]]:
    """The migration of docs/migrate.rst: the directory of traces, and step, predicted, counted."""
    pytest.importorskip("tinydb", reason="the tutorial migrates it")
    directory = tmp_path_factory.mktemp("tutorial")
    done = subprocess.run(
        [sys.executable, str(REPOSITORY / "demo" / "migrate" / "run.py"), str(directory)],
        env=dict(os.environ, PYTHONPATH=str(REPOSITORY)),
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return directory, [list(map(int, line.split())) for line in done.stdout.splitlines()[1:]]
