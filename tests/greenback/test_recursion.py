"""Bridges that recurse without end are a RecursionError, and never a crash."""

from __future__ import annotations

import gc
import os
import subprocess
import sys
from collections import Counter
from typing import Any, Callable, Dict
from typing import Counter as Counted

import pytest

import greenback
from greenback import await_
from greenback._engine.choice import has_compiled

#: Ways to recurse: each is a sync function that bridges to a call of itself.
RECURSION = """
from greenback import await_, with_portal_run_sync

def immediate(checkpoint):
    async def again():
        immediate(checkpoint)

    await_(again())

def waiting(checkpoint):
    async def again():
        await checkpoint()
        waiting(checkpoint)

    await_(again())

def awaitable(checkpoint):
    class Again:
        def __await__(self):
            awaitable(checkpoint)
            return iter(())

    await_(Again())

def mapped(checkpoint):
    async def again():
        mapped(checkpoint)

    list(map(await_, [again()]))

def in_portals(checkpoint):
    await_(with_portal_run_sync(in_portals, checkpoint))
"""
WAYS: Dict[str, Callable[..., None]] = {}
exec(compile(RECURSION, "<recursion>", "exec"), WAYS)
NAMES = ["awaitable", "immediate", "in_portals", "mapped", "waiting"]

# Neither the interpreter's limit nor the usual size of a stack ends this.
DEEP = """
import asyncio, sys, threading
import greenback
RECURSION
async def main(name):
    try:
        await greenback.with_portal_run_sync(globals()[name], lambda: asyncio.sleep(0))
    except RecursionError:
        print("RecursionError")

    def more():
        for _ in range(3):
            await_(asyncio.sleep(0))
        print("works")

    await greenback.with_portal_run_sync(more)

def run():
    for name in NAMES:
        asyncio.run(main(name))

sys.setrecursionlimit(LIMIT or sys.getrecursionlimit())
if STACK:
    threading.stack_size(STACK)
    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
else:
    run()
"""


# At the limit itself, `await_` may not be called any more, and cannot close the last coroutine.
@pytest.mark.filterwarnings("ignore:coroutine .* was never awaited:RuntimeWarning")
@pytest.mark.skipif(
    sys.version_info < (3, 10) or sys.implementation.name == "pypy",
    reason="at its limit this interpreter ends, or loses the context of the exception",
)
class TestRecursion:
    @pytest.mark.parametrize("way", NAMES)
    def test_limit(self, backend: Any, way: str) -> None:
        """At the interpreter's limit a RecursionError leaves all bridges, and others work then."""

        def program() -> int:
            try:
                WAYS[way](backend.checkpoint)
            except RecursionError:
                pass
            else:
                pytest.fail("it has ended")
            for _ in range(3):
                await_(backend.checkpoint())
            return 5

        async def main() -> int:
            return await greenback.with_portal_run_sync(program)

        assert backend.run(main) == 5
        gc.collect()  # the warning of that coroutine belongs here

    def test_traceback(self, backend: Any) -> None:
        """The traceback has one frame for each of the bridges."""

        def program() -> None:
            WAYS["immediate"](backend.checkpoint)

        async def main() -> None:
            names: Counted[str] = Counter()
            try:
                await greenback.with_portal_run_sync(program)
            except RecursionError as error:
                traceback = error.__traceback__
                while traceback is not None:
                    names[traceback.tb_frame.f_code.co_name] += 1
                    traceback = traceback.tb_next
            assert names["immediate"] > 50
            assert names["again"] in (names["immediate"], names["immediate"] - 1)
            assert names["await_"] in (names["again"], names["again"] + 1)

        backend.run(main)
        gc.collect()

    @pytest.mark.skipif(
        not (has_compiled("await_") and sys.version_info < (3, 14)),
        reason="the interpreter overflows the stack here, as it does in coroutines",
    )
    @pytest.mark.parametrize(
        ("limit", "stack"),
        [(10**6, 0), (10**6, 256 * 1024), (0, 128 * 1024)],
        ids=["no limit", "no limit in a thread", "small stack"],
    )
    def test_end_of_stack(self, limit: int, stack: int) -> None:
        """The engine in C ends before the C stack does, where the interpreter's limit does not."""
        program = DEEP.replace("RECURSION", RECURSION).replace("NAMES", repr(NAMES))
        program = program.replace("LIMIT", str(limit)).replace("STACK", str(stack))
        done = subprocess.run(
            [sys.executable, "-W", "ignore", "-c", program],
            # Traced in debug mode, bridges are the engine in Python's.
            env={name: each for name, each in os.environ.items() if name != "GREENBACK_TRACE"},
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
        assert (done.returncode, done.stderr) == (0, "")
        assert done.stdout == "RecursionError\nworks\n" * len(NAMES)
