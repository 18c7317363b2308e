"""Programs that are run twice: with ``await`` throughout, and with bridges."""

from __future__ import annotations

import asyncio
import os
import sys
import traceback
from typing import Any, Callable, Dict, List, Optional, Tuple

import sniffio
import trio

import greenback

from ..portals import in_run, in_run_sync, in_task
from ..programs import compiled

PYPY = sys.implementation.name == "pypy"


async def in_bestowed(sync_fn: Callable[[], Any]) -> Any:
    is_trio = sniffio.current_async_library() == "trio"
    greenback.bestow_portal(trio.lowlevel.current_task() if is_trio else asyncio.current_task())
    await (trio.lowlevel.checkpoint() if is_trio else asyncio.sleep(0))
    return sync_fn()


#: Each way to call a sync function in a portal, and the frames of greenback in its tracebacks.
PORTALS: Dict[Callable[..., Any], List[str]] = {
    in_run_sync: ["with_portal_run_sync"],
    in_run: ["with_portal_run"],
    in_task: [],
}


class Plain(Exception):
    pass


class Helpers:
    """Async functions for the programs, which await them by AWAIT()."""

    def __init__(self, backend: Any) -> None:
        self.checkpoint = backend.checkpoint

    async def fail(self, error: BaseException) -> None:
        raise error

    async def fail_later(self, error: BaseException) -> None:
        await self.checkpoint()
        raise error

    async def fail_while_handling(self, error: BaseException) -> None:
        try:
            await self.checkpoint()
            raise LookupError("handled in the coroutine")
        except LookupError:
            await self.checkpoint()
            raise error

    async def fail_from(self, error: BaseException, cause: BaseException) -> None:
        await self.checkpoint()
        raise error from cause

    async def in_finally(self, error: BaseException, second: BaseException) -> None:
        try:
            await self.fail_later(error)
        finally:
            await self.fail_later(second)


def chain(error: Optional[BaseException], seen: Tuple[int, ...] = ()) -> Any:
    """A comparable description of an exception and its chain of causes and contexts."""
    if error is None:
        return None
    if id(error) in seen:
        return "again", seen.index(id(error))
    seen = (*seen, id(error))
    return (
        type(error).__name__,
        repr(error.args),
        error.__suppress_context__,
        chain(error.__cause__, seen),
        chain(error.__context__, seen),
    )


HERE = os.path.join(os.path.dirname(os.path.abspath(greenback.__file__)), "")


def without_own_frames(error: BaseException) -> List[Tuple[str, Any]]:
    """The part of a traceback from the program's own outermost frame to the end."""
    found = [
        (frame.name, frame.lineno if frame.filename == "<program>" else None)
        for frame in traceback.extract_tb(error.__traceback__)
        if not os.path.abspath(frame.filename).startswith(HERE)
    ]
    first = next((i for i, frame in enumerate(found) if frame[0] == "program"), len(found))
    return found[first:]


def run_both(backend: Any, portal: Any, source: str, **names: Any) -> List[Any]:
    """The outcomes of a program, awaited and bridged: its exception, value, and log."""
    results = []
    for bridged in (False, True):
        log: List[Any] = []
        program = compiled(
            source,
            bridged,
            {
                **globals(),
                **names,
                "await_": greenback.await_,
                "h": Helpers(backend),
                "log": log,
                "backend": backend,
            },
        )
        caught: List[BaseException] = []
        values: List[Any] = []

        async def main() -> None:
            try:
                if bridged:
                    values.append(await portal(program))
                else:
                    values.append(await program())
            except BaseException as error:
                caught.append(error)

        backend.run(main)
        results.append((caught[0] if caught else None, values, log))
    return results


def assert_same(backend: Any, portal: Any, source: str, **names: Any) -> Tuple[Any, Any, Any]:
    """Assert that the program does the same both ways, chains and tracebacks included."""
    (error, values, log), (its_error, its_values, its_log) = run_both(
        backend, portal, source, **names
    )
    assert its_values == values
    assert its_log == log
    assert chain(its_error) == chain(error)
    if error is not None:
        assert without_own_frames(its_error) == without_own_frames(error)
    return its_error, its_values, its_log
