"""Exceptions that signal handlers raise, at each place in greenback's own code."""

from __future__ import annotations

import asyncio
import gc
import os
import warnings
from typing import Any, List

import pytest
import trio

import greenback
from greenback import await_
from greenback._engine import state
from greenback._engine.choice import has_compiled
from tests import sampling
from tests.interrupting import Interrupt, Interruption

pytestmark = [
    pytest.mark.skipif(
        "GREENBACK_TRACE" in os.environ, reason="tests/greenback_trace/test_interrupts.py is traced"
    ),
    pytest.mark.usefixtures("few_objects"),
    pytest.mark.timeout(600),
]

#: In these functions a plain `await` would wait, where it cannot be interrupted either. The write
#: of the layout has its own test (tasks/test_self_test.py). An exception in a finalizer reaches
#: no code.
SPARED = ("_step", "_first_answer", "_yield_none", "replace", "__del__")


class Program:
    """A task that waits in plain awaits and in bridges, and notes the blocks that it enters."""

    def __init__(self, backend: Any) -> None:
        self.backend = backend
        self.entered: List[str] = []
        self.left: List[str] = []

    def enter(self, name: str) -> _Entered:
        return _Entered(self, name)

    async def leaf(self) -> None:
        with self.enter("leaf"):
            await self.backend.checkpoint()
            await self.backend.checkpoint()

    async def immediate(self) -> None:
        pass

    def sync(self) -> None:
        with self.enter("sync"):
            await_(self.leaf())
            await_(self.immediate())
            await_(self.backend.checkpoint())

    async def work(self) -> None:
        with self.enter("work"):
            await self.backend.checkpoint()
            self.sync()
            await self.backend.checkpoint()

    async def run_sync(self) -> None:
        await greenback.with_portal_run_sync(self.sync)

    async def run(self) -> None:
        await greenback.with_portal_run(self.work)

    async def ensure(self) -> None:
        await greenback.ensure_portal()
        await self.work()

    async def handling(self) -> None:
        """As `run`, in an `except` block: greenback takes other paths there."""
        try:
            raise LookupError
        except LookupError:
            await greenback.with_portal_run(self.work)

    async def given_while_it_waits(self) -> None:
        """Another task opens the portal, unless the opening is interrupted."""
        if greenback.has_portal():
            await self.work()

    given_before_it_begins = given_while_it_waits


class _Entered:
    def __init__(self, program: Program, name: str) -> None:
        self.program, self.name = program, name

    def __enter__(self) -> None:
        self.program.entered.append(self.name)

    def __exit__(self, *exc_info: object) -> None:
        self.program.left.append(self.name)


GIVEN = ["given_while_it_waits", "given_before_it_begins"]
WAYS = ["run_sync", "run", "ensure", "handling", *GIVEN]


async def interrupted_at(number: int, backend: Any, way: str) -> Any:
    """Run a program, raise at the instruction with that number, and check what is left behind."""
    program = Program(backend)
    errors: List[Any] = []
    tasks: List[Any] = []

    async def task() -> None:
        tasks.append(backend.current_task())
        with program.enter("task"):
            interrupt.begin()
            try:
                await getattr(program, way)()
            finally:
                interrupt.end()

    gate = backend.event()
    if way != "given_while_it_waits":
        gate.set()

    async def given() -> None:
        if not gate.is_set():
            await gate.wait()
        await task()

    async def give(to: Any) -> None:
        if not gate.is_set():
            while not gate.statistics().tasks_waiting if backend.is_trio else not gate._waiters:
                await backend.checkpoint()
        interrupt.begin()
        try:
            greenback.bestow_portal(to)
        except Interruption as error:
            errors.append(error)
        finally:
            interrupt.end()
        gate.set()

    async def start() -> None:
        if way not in GIVEN:
            await backend.together(task)
        elif backend.is_trio:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(given)
                (to,) = nursery.child_tasks
                await give(to)
        else:
            to = asyncio.ensure_future(given())
            await give(to)
            await to

    async def answer() -> int:
        await backend.checkpoint()
        return 5

    with Interrupt(number, greenback, spared=SPARED) as interrupt:
        try:
            await start()
        except BaseException as error:
            while getattr(error, "exceptions", None):  # Trio's nursery raises a group
                error = error.exceptions[0]
            errors.append(error)
    try:
        assert sorted(program.left) == sorted(program.entered)
        if interrupt.where is not None:
            assert [type(error) for error in errors] == [Interruption]
        else:
            assert errors == []
            assert "work" in program.left or way == "run_sync"
        assert not greenback.has_portal(tasks[0])
        home = state.this_home()
        assert home.first_step is None
        assert not home.portals
        assert not home.resting
        idle = [worker for pool in home.pools for worker in pool]
        assert len(idle) == len(set(map(id, idle)))
        assert all(worker.portal.task is None for worker in idle)
        # Portals work as before.
        assert await greenback.with_portal_run_sync(await_, answer()) == 5
    except AssertionError as error:
        raise AssertionError(f"{way}, at {number}, {interrupt.where}: {error}") from error
    return interrupt.where


@pytest.mark.parametrize("way", WAYS)
def test_at_each_instruction(backend: Any, way: str) -> None:
    """All `finally` blocks run, and the program goes on as if a plain `await` was interrupted."""

    async def main() -> None:
        await interrupted_at(10**9, backend, way)  # the first run makes all that is made once
        for number in sampling.instructions():
            if await interrupted_at(number, backend, way) is None:
                break
        assert number > (2 if has_compiled("await_") else 100)  # code in C has few such places

    with warnings.catch_warnings():
        # If `await_` is interrupted at its very start, it cannot close the coroutine.
        warnings.filterwarnings("ignore", message=".* was never awaited")
        backend.run(main)
        gc.collect()
