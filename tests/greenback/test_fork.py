"""Tasks that fork in the middle of a bridge: the child can bridge where it could await."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import greenback

if not hasattr(os, "fork"):
    pytest.skip("there is no fork() here", allow_module_level=True)

#: `AWAIT(...)` is `await` or `await_`; `sync_or_async def` a function of the one or other kind.
PROGRAM = """
import asyncio, os, sys, warnings
import greenback, trio
from greenback import await_

warnings.filterwarnings("ignore", message=".*multi-threaded", category=DeprecationWarning)
_, loop, opener, where = sys.argv
checkpoint = trio.lowlevel.checkpoint if loop == "trio" else lambda: asyncio.sleep(0)

async def value():
    await checkpoint()
    return 5

async def fails():
    await checkpoint()
    raise LookupError("here")

async def forks():
    await checkpoint()
    pid = os.fork()
    await checkpoint()
    return pid

DEF program():
    log = [AWAIT(value())]
    pid = AWAIT(forks()) if where == "coroutine" else os.fork()
    grandchild = None if pid else os.fork()
    log.append(AWAIT(value()))
    try:
        AWAIT(fails())
    except LookupError as error:
        log.append(repr(error))
        log.append(error.__context__)
    for _ in range(100):
        AWAIT(value())
    return pid or grandchild, log, len(log)

async def calls():
    return CALL(program())

async def ensures():
    await greenback.ensure_portal()
    return await calls()

async def main():
    pid, *found = await {
        "plain": calls,
        "with_portal_run_sync": lambda: greenback.with_portal_run_sync(program),
        "with_portal_run": lambda: greenback.with_portal_run(calls),
        "ensure_portal": ensures,
    }[opener]()
    if pid:
        _, status = os.waitpid(pid, 0)
        assert status == 0, status
    await checkpoint()
    print(found, flush=True)
    if where_it_began != os.getpid():
        os._exit(0)

where_it_began = os.getpid()
if loop == "trio":
    trio.run(main)
else:
    running = __import__(loop).new_event_loop()
    running.run_until_complete(main())
    running.close()
"""
PLAIN = (("AWAIT(", "await ("), ("CALL(", "await ("), ("DEF ", "async def "))
BRIDGED = (("AWAIT(", "await_("), ("CALL(", "("), ("DEF ", "def "))


def run(loop: str, opener: str, where: str, folder: Path, **variables: str) -> str:
    """The output of the processes."""
    program = PROGRAM
    for word, meaning in PLAIN if opener == "plain" else BRIDGED:
        program = program.replace(word, meaning)
    environ = {
        name: each for name, each in os.environ.items() if not name.startswith("GREENBACK_TRACE")
    }
    root = str(Path(str(greenback.__file__)).parents[1])
    environ["GREENBACK_TRACE_SLOW"] = "60"  # waiting for a child is a slow step
    environ.update(variables, PYTHONPATH=os.pathsep.join([root, environ.get("PYTHONPATH", "")]))
    done = subprocess.run(
        [sys.executable, "-c", program, loop, opener, where],
        env=environ,
        cwd=str(folder),
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + re.sub("0x[0-9a-f]+", "0x", done.stderr)


@pytest.fixture(autouse=True)
def steps_in_a_child(backend: Any) -> None:
    """Skips a loop in which a forked child cannot wait by a plain `await` either."""
    if sys.version_info >= (3, 14) and repr(backend) != "trio":
        pytest.skip("from 3.14 on, asyncio steps no task in a forked child")


OPENERS = ["with_portal_run_sync", "with_portal_run", "ensure_portal"]
LINE = "[[5, 5, \"LookupError('here')\", None], 4]\n"


@pytest.mark.parametrize("where", ["sync", "coroutine"])
@pytest.mark.parametrize("opener", OPENERS)
def test_child(backend: Any, opener: str, where: str, tmp_path: Path) -> None:
    """The parent, the child and a grandchild get values and exceptions, as by plain `await`."""
    plain = run(repr(backend), "plain", where, tmp_path)
    assert plain == LINE * 3
    assert run(repr(backend), opener, where, tmp_path) == plain


@pytest.mark.parametrize("trace", ["1", "debug"])
def test_traced_child(backend: Any, trace: str, tmp_path: Path) -> None:
    """Traced processes get the same values and exceptions, and write nothing else."""
    variables = {"GREENBACK_TRACE": trace, "GREENBACK_TRACE_FILE": str(tmp_path / "{pid}.jsonl")}
    for opener in OPENERS:
        assert run(repr(backend), opener, "sync", tmp_path, **variables) == LINE * 3
