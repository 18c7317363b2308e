"""Other tools that show a task with a portal: asyncio, Trio, stackscope."""

from __future__ import annotations

import os
import sys
from typing import Any, List

import pytest

from .tasks import PYPY, ensured, nested, only_portal, parked, parked_in_trio, plain, run, run_sync

#: Files of the tests and of their tasks.
HERE = os.path.dirname(__file__)


class TestOthers:
    """asyncio and Trio themselves."""

    @pytest.mark.skipif(PYPY, reason="on PyPy, asyncio would never end following the frames")
    def test_print_stack(self) -> None:
        """asyncio shows the stack of a task in a bridge down to the call of the bridge."""

        def look(task: Any) -> List[str]:
            frames = task.get_stack()
            return [
                frame.f_code.co_name
                for frame in frames
                if frame.f_code.co_filename.startswith(HERE)
            ]

        def where(task: Any) -> List[Any]:
            return [(frame.f_code.co_name, frame.f_lineno) for frame in task.get_stack()]

        assert parked(plain, look) == ["plain"]
        assert parked(only_portal, look) == ["only_portal"]
        assert parked(run, look) == ["run"]
        assert parked(run_sync, look) == ["run_sync"]
        if sys.version_info >= (3, 14):
            # One frame, as for any task that waits: here, a task runs a coroutine object.
            for async_fn in (ensured, nested):
                ((name, line),) = parked(async_fn, where)
                assert name == async_fn.__name__
                assert line == async_fn.__code__.co_firstlineno + 2
        else:
            assert parked(ensured, look) == ["ensured", "sync"]
            assert parked(nested, look) == ["nested", "outer_sync", "middle", "sync"]

    def test_repr(self) -> None:
        """asyncio's repr() of a task names a place in the program, not in greenback."""
        for async_fn in (only_portal, ensured):
            text = parked(async_fn, repr)
            assert f"coro=<{async_fn.__name__}() running at " in text
            assert "_portals.py" not in text or PYPY

    def test_iter_await_frames(self) -> None:
        """Trio shows the frames through a portal that the task has opened for itself."""

        def look(task: Any) -> List[str]:
            return [frame.f_code.co_name for frame, _ in task.iter_await_frames()]

        assert parked_in_trio(plain, look)[:2] == ["plain", "leaf"]
        assert parked_in_trio(only_portal, look)[:2] == ["only_portal", "leaf"]
        assert parked_in_trio(ensured, look)[:3] == ["ensured", "sync", "leaf"]
        assert parked_in_trio(nested, look)[:5] == [
            *["nested", "outer_sync", "middle", "sync", "leaf"],
        ]
        assert parked_in_trio(run, look) == ["run", "with_portal_run", "drive"]


STACKSCOPE = """
import sys

if sys.argv[1] == "first":
    import stackscope

    stackscope.extract(sys._getframe())

import asyncio
import trio
import trio.testing
import greenback
import stackscope


def look(item):
    stack = stackscope.extract(item)
    assert stack.error is None, stack.error
    shown = [frame.pyframe.f_code for frame in stack.frames if not frame.hide]
    assert not any(code.co_filename.startswith(greenback.__path__[0]) for code in shown)
    return " ".join(code.co_name for code in shown if code.co_filename == __file__)


async def leaf(event):
    await event.wait()


def sync(event):
    greenback.await_(leaf(event))


async def middle(event):
    sync(event)


async def ensured(event):
    await greenback.ensure_portal()
    greenback.await_(middle(event))


async def run(event):
    await greenback.with_portal_run(middle, event)


async def run_sync(event):
    await greenback.with_portal_run_sync(sync, event)


async def look_at(item):
    return look(item)


def calls(item):
    return greenback.await_(look_at(item))


async def of_itself(item):
    await greenback.ensure_portal()
    return calls(item)


async def in_asyncio():
    event = asyncio.Event()
    tasks = [asyncio.ensure_future(each(event)) for each in (ensured, run, run_sync, leaf, leaf)]
    greenback.bestow_portal(tasks[3])
    print(look(tasks[3].get_coro()))
    for _ in range(5):
        await asyncio.sleep(0)
    greenback.bestow_portal(tasks[4])
    for task in tasks:
        print(look(task.get_coro()))
    print(await of_itself(asyncio.current_task().get_coro()))
    event.set()
    await asyncio.gather(*tasks)


async def in_trio():
    event = trio.Event()
    for each in (ensured, run, run_sync, leaf):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(each, event)
            await trio.testing.wait_all_tasks_blocked()
            (task,) = nursery.child_tasks
            greenback.bestow_portal(task)
            print(look(task))
            event.set()
        event = trio.Event()
    print(await of_itself(trio.lowlevel.current_task()))


asyncio.run(in_asyncio())
trio.run(in_trio)
"""


class TestStackscope:
    @pytest.mark.parametrize("imported", ["first", "last"])
    def test_both_libraries(self, python: Any, tmp_path: Any, imported: str) -> None:
        """stackscope shows the program's functions of parked, bestowed and running tasks."""
        pytest.importorskip("stackscope", reason="stackscope is not installed")
        if PYPY and sys.version_info >= (3, 11):
            pytest.skip("stackscope looks for the instructions of CPython 3.11 there")
        script = tmp_path / "program.py"
        script.write_text(STACKSCOPE, encoding="utf-8")
        done = python("-W", "error::RuntimeWarning:greenback", str(script), imported)
        assert done.returncode == 0, done.stderr
        parked = ["ensured middle sync leaf", "run middle sync leaf", "run_sync sync leaf", "leaf"]
        assert done.stdout.splitlines() == [
            *["leaf", *parked, "leaf", "in_asyncio of_itself calls look_at look"],
            *[*parked, "in_trio of_itself calls look_at look"],
        ]
