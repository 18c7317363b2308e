"""The stack of a task."""

from __future__ import annotations

import asyncio
import signal
import subprocess
import sys
import threading
from typing import Any, AsyncIterator, Iterator, List

import greenlet
import pytest
import trio
import trio.testing

import greenback
from greenback._frames import outermost_first, outwards
from greenback_trace import format_task

PYPY = sys.implementation.name == "pypy"


# A thread holds its loop, while another one looks at it and makes garbage.
COLLECTING = """
import asyncio, gc, sys, threading
import greenback
from greenback_trace import format_task

tasks = []
inside, go_on = threading.Event(), threading.Event()

def hold():
    inside.set()
    go_on.wait()

async def main():
    tasks.append(asyncio.current_task())
    await greenback.with_portal_run_sync(hold)

def look(depth):
    return look(depth - 1) if depth else format_task(tasks[0])

thread = threading.Thread(target=asyncio.run, args=(main(),), daemon=True)
thread.start()
inside.wait()
if sys.implementation.name == "cpython":
    for threshold in range(1, 40):
        gc.set_threshold(threshold)
        for _ in range(10):
            for _ in range(3):
                mine = threading.local()
                mine.itself = mine
            del mine
            assert "in hold" in look(3)
            assert gc.isenabled()

def refuse(event, arguments):
    if event == "sys._current_frames":
        raise RuntimeError("refused")

gc.disable()
look(0)
assert not gc.isenabled()
gc.enable()
sys.addaudithook(refuse)
try:
    look(0)
except RuntimeError:
    assert gc.isenabled()
else:
    # PyPy tells no hook of it.
    assert sys.implementation.name == "pypy"
go_on.set()
thread.join()
print("ended")
"""


def names(text: str) -> List[str]:
    """The functions of the tests that a stack shows, and its bridges."""
    found = []
    for line in text.splitlines():
        if "--- bridge" in line:
            found.append("BRIDGE")
        elif ", in " in line and __file__ in line:
            found.append(line.rpartition(", in ")[2])
    return found


@pytest.fixture
def alarm() -> Iterator[None]:
    """What would go round for ever fails."""

    def too_long(*_: object) -> None:
        raise AssertionError("it has not ended")

    before = signal.signal(signal.SIGALRM, too_long)
    signal.alarm(60)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


async def leaf(event: Any) -> None:
    await event.wait()


def sync(event: Any) -> None:
    greenback.await_(leaf(event))


async def middle(event: Any) -> None:
    sync(event)


def outer_sync(event: Any) -> None:
    greenback.await_(middle(event))


async def ensured(event: Any) -> None:
    await greenback.ensure_portal()
    sync(event)


async def nested(event: Any) -> None:
    await greenback.ensure_portal()
    outer_sync(event)


async def run(event: Any) -> None:
    await greenback.with_portal_run(middle, event)


async def run_sync(event: Any) -> None:
    await greenback.with_portal_run_sync(sync, event)


async def plain(event: Any) -> None:
    await leaf(event)


async def only_portal(event: Any) -> None:
    await greenback.ensure_portal()
    await leaf(event)


async def items(event: Any) -> AsyncIterator[int]:
    await leaf(event)
    yield 1


async def iterates(event: Any) -> None:
    async for _ in items(event):
        pass


SHAPES = [
    (plain, ["plain", "leaf"]),
    (only_portal, ["only_portal", "leaf"]),
    (ensured, ["ensured", "sync", "BRIDGE", "leaf"]),
    (run, ["run", "middle", "sync", "BRIDGE", "leaf"]),
    (run_sync, ["run_sync", "sync", "BRIDGE", "leaf"]),
    (nested, ["nested", "outer_sync", "BRIDGE", "middle", "sync", "BRIDGE", "leaf"]),
    (iterates, ["iterates", "items", "leaf"]),
]


async def steps(number: int = 5) -> None:
    """Let the other tasks of asyncio get as far as they can."""
    for _ in range(number):
        await asyncio.sleep(0)


def parked(async_fn: Any, look: Any = format_task) -> Any:
    """What *look* makes of a task of asyncio that runs *async_fn* and waits in it."""

    async def main() -> Any:
        event = asyncio.Event()
        task = asyncio.ensure_future(async_fn(event))
        await steps()
        try:
            return look(task)
        finally:
            event.set()
            await task

    return asyncio.run(main())


def parked_in_trio(async_fn: Any, look: Any = format_task) -> Any:
    """The same of a task of Trio."""

    async def main() -> Any:
        event = trio.Event()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(async_fn, event)
            await trio.testing.wait_all_tasks_blocked()
            (task,) = nursery.child_tasks
            try:
                return look(task)
            finally:
                event.set()

    return trio.run(main)


class TestParked:
    @pytest.mark.parametrize(("async_fn", "expected"), SHAPES)
    @pytest.mark.parametrize("in_library", [parked, parked_in_trio])
    def test_all_frames(self, in_library: Any, async_fn: Any, expected: List[str]) -> None:
        """The functions of a task are shown in order, with its bridges, whatever its portal."""
        assert names(in_library(async_fn)) == expected

    @pytest.mark.parametrize("in_library", [parked, parked_in_trio])
    def test_only_the_program(self, in_library: Any) -> None:
        """None of the lines is about greenback's own functions, or greenlet's."""
        text = in_library(nested)
        for module in (greenback, greenlet):
            assert module.__file__ is not None
            assert module.__file__.replace("__init__.py", "") not in text

    @pytest.mark.usefixtures("others_are_shown")
    @pytest.mark.parametrize("in_library", [parked, parked_in_trio])
    def test_from_a_thread(self, in_library: Any) -> None:
        """Another thread sees the same stack."""

        def look(task: Any) -> str:
            texts: List[str] = []
            thread = threading.Thread(target=lambda: texts.append(format_task(task)))
            thread.start()
            thread.join()
            return texts[0]

        assert names(in_library(ensured, look)) == ["ensured", "sync", "BRIDGE", "leaf"]

    def test_in_a_greenlet(self) -> None:
        """A bridge in a greenlet that the task has started is shown below what started that."""

        def starts_greenlet(event: Any) -> None:
            greenlet.greenlet(sync).switch(event)

        async def task(event: Any) -> None:
            await greenback.ensure_portal()
            starts_greenlet(event)

        assert names(parked(task)) == ["task", "starts_greenlet", "sync", "BRIDGE", "leaf"]

    @pytest.mark.skipif(sys.version_info < (3, 12), reason="eager tasks came with Python 3.12")
    def test_eager(self) -> None:
        """A task that began in an except block is shown where it waits first."""

        async def main() -> List[str]:
            asyncio.get_running_loop().set_task_factory(asyncio.eager_task_factory)
            event = asyncio.Event()
            async with greenback.portals_for_tree():
                try:
                    raise LookupError
                except LookupError:
                    task = asyncio.ensure_future(leaf(event))
                shown = names(format_task(task))
            event.set()
            await task
            return shown

        assert asyncio.run(main()) == ["leaf"]


class TestHeader:
    def test_with_a_portal(self) -> None:
        """The first line names the task, its library and its portal, not what drives it."""

        async def main() -> str:
            event = asyncio.Event()
            task = asyncio.ensure_future(ensured(event))
            task.set_name("checkout")
            await steps()
            text = format_task(task)
            event.set()
            await task
            return text

        header = asyncio.run(main()).splitlines()[0]
        assert header == "Stack of asyncio task 'checkout', with a portal (task), outermost first:"

    def test_without_a_portal(self) -> None:
        """The first line of a task that has no portal says nothing of one."""
        header = parked_in_trio(plain).splitlines()[0]
        assert header == f"Stack of trio task '{__name__}.plain', outermost first:"


class TestStates:
    def test_not_begun(self) -> None:
        """A task before its first step is shown at the beginning of its function."""

        async def main() -> None:
            event = asyncio.Event()
            task = asyncio.ensure_future(plain(event))
            assert names(format_task(task)) == ["plain"]
            greenback.bestow_portal(task)
            text = format_task(task)
            assert names(text) == ["plain"]
            assert "with a portal (bestowed)" in text
            event.set()
            await task

        asyncio.run(main())

    def test_finished(self) -> None:
        """A task that has finished is said to have no stack, with or without a portal."""

        async def main() -> None:
            task = asyncio.ensure_future(greenback.ensure_portal())
            task.set_name("over")
            await task
            assert format_task(task) == "asyncio task 'over' has finished: it has no stack.\n"

        asyncio.run(main())

    def test_running(self, backend: Any) -> None:
        """A task can show its own stack, through its portal."""

        async def look() -> str:
            return format_task(current_task(backend))

        def calls() -> str:
            return greenback.await_(look())

        async def main() -> str:
            await greenback.ensure_portal()
            return calls()

        async def main_of_sync() -> str:
            return await greenback.with_portal_run_sync(calls)

        assert names(backend.run(main)) == ["main", "calls", "BRIDGE", "look"]
        expected = ["main_of_sync", "calls", "BRIDGE", "look"]
        assert names(backend.run(main_of_sync)) == expected

    def test_running_without_a_portal(self, backend: Any) -> None:
        """A task without a portal can do that, too."""

        async def main() -> str:
            return format_task(current_task(backend))

        assert names(backend.run(main)) == ["main"]

    def test_bestowed_on_itself(self, backend: Any) -> None:
        """A task that has just bestowed a portal on itself is shown down to what it runs."""

        async def inner() -> str:
            task = current_task(backend)
            greenback.bestow_portal(task)
            text = format_task(task)
            await backend.sleep(0)
            return text

        async def main() -> str:
            return await inner()

        assert names(backend.run(main)) == ["main", "inner"]

    def test_not_a_task(self) -> None:
        """What is no task is refused, with what to pass instead."""
        coroutine = plain(None)
        for value in (5, None, coroutine):
            with pytest.raises(
                TypeError, match=r" is not a task.*; pass .*current_task\(\)"
            ) as info:
                format_task(value)
            assert str(info.value).startswith(repr(value))
        coroutine.close()


def current_task(backend: Any) -> Any:
    return asyncio.current_task() if backend.name == "asyncio" else trio.lowlevel.current_task()


class TestFromElsewhere:
    def test_bestowed(self) -> None:
        """A portal that somebody else has opened is seen before and after the task's next step."""

        async def main() -> None:
            event, again = asyncio.Event(), asyncio.Event()

            async def waits() -> None:
                await leaf(event)
                sync(again)

            task = asyncio.ensure_future(waits())
            await asyncio.sleep(0)
            greenback.bestow_portal(task)
            assert names(format_task(task)) == ["waits", "leaf"]
            event.set()
            await steps()
            assert names(format_task(task)) == ["waits", "sync", "BRIDGE", "leaf"]
            again.set()
            await task

        asyncio.run(main())

    def test_inherited(self) -> None:
        """An inherited portal is seen before the first step, in the scope, and after it."""

        async def child(event: Any) -> None:
            sync(event)

        async def main() -> None:
            event = asyncio.Event()
            with greenback.portals_for_children():
                task = asyncio.ensure_future(child(event))
                text = format_task(task)
                assert names(text) == ["child"]
                assert "with a portal (inherited)" in text
                await steps()
                assert names(format_task(task)) == ["child", "sync", "BRIDGE", "leaf"]
            assert names(format_task(task)) == ["child", "sync", "BRIDGE", "leaf"]
            event.set()
            await task

        asyncio.run(main())

    @pytest.mark.parametrize("in_library", [parked, parked_in_trio])
    def test_closed_portal(self, in_library: Any) -> None:
        """A task whose portal was closed on leaving a scope is shown through what is left of it."""

        async def was_in_scope(event: Any) -> None:
            async with greenback.portals_for_tree():
                pass
            await leaf(event)

        text = in_library(was_in_scope)
        assert names(text) == ["was_in_scope", "leaf"]
        assert "with a portal" not in text

    @pytest.mark.usefixtures("others_are_shown")
    def test_running_in_another_thread(self) -> None:
        """A task that another thread is running is shown through its portal."""
        inside, go_on = threading.Event(), threading.Event()
        tasks: List[Any] = []

        async def block() -> None:
            inside.set()
            go_on.wait()

        def calls() -> None:
            greenback.await_(block())

        async def main() -> None:
            await greenback.ensure_portal()
            tasks.append(asyncio.current_task())
            calls()

        thread = threading.Thread(target=lambda: asyncio.run(main()))
        thread.start()
        try:
            inside.wait()
            assert names(format_task(tasks[0])) == ["main", "calls", "BRIDGE", "block"]
        finally:
            go_on.set()
            thread.join()

    @pytest.mark.usefixtures("others_are_shown", "alarm")
    def test_thread_that_leaves_a_greenlet_meanwhile(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """The frames that a thread was in, and has parked since, have an end: on PyPy, a ring."""
        inside, go_on = threading.Event(), threading.Event()
        running: List[Any] = []
        parked: List[Any] = []

        def block() -> None:
            inside.set()
            go_on.wait()

        def wait(event: asyncio.Event) -> None:
            parked.append(greenlet.getcurrent())
            greenback.await_(event.wait())

        async def main() -> None:
            event = asyncio.Event()
            waits = asyncio.create_task(greenback.with_portal_run_sync(wait, event))
            await asyncio.sleep(0)
            await greenback.ensure_portal()
            running.append(asyncio.current_task())
            block()
            event.set()
            await waits

        thread = threading.Thread(target=lambda: asyncio.run(main()))
        thread.start()
        try:
            inside.wait()
            now = sys._current_frames()
            before = {**now, thread.ident: parked[0].gr_frame}
            looks = [before, *[now] * 5]
            monkeypatch.setattr(sys, "_current_frames", lambda: looks.pop(0))
            assert names(format_task(running[0])) == ["main", "block"]
            # It is as well in and out of greenlets all the time.
            looks[:] = [before, now] * 20
            assert "running where this thread cannot see it" in format_task(running[0])
        finally:
            go_on.set()
            thread.join()

    @pytest.mark.usefixtures("others_are_shown")
    def test_collection_meanwhile(self) -> None:
        """A collection that frees a `threading.local` does not hang a CPython 3.11 that looks."""
        done = subprocess.run(
            [sys.executable, "-c", COLLECTING],
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
        assert (done.returncode, done.stdout, done.stderr) == (0, "ended\n", "")

    @pytest.mark.usefixtures("others_are_shown")
    @pytest.mark.skipif(PYPY, reason="PyPy shows other threads the innermost and the main greenlet")
    def test_portals_in_another_thread(self) -> None:
        """In another thread, a portal inside another one's work is seen through, too."""
        inside, go_on = threading.Event(), threading.Event()
        tasks: List[Any] = []

        def block() -> None:
            inside.set()
            go_on.wait()

        async def inner() -> None:
            await greenback.with_portal_run_sync(block)

        async def outer() -> None:
            await greenback.ensure_portal()
            tasks.append(asyncio.current_task())
            trio.run(inner)

        thread = threading.Thread(target=lambda: asyncio.run(outer()))
        thread.start()
        try:
            inside.wait()
            assert names(format_task(tasks[0])) == ["outer", "inner", "block"]
        finally:
            go_on.set()
            thread.join()

    def test_running_in_a_greenlet(self) -> None:
        """A greenlet that the task has started is part of the task's stack."""

        async def main() -> str:
            await greenback.ensure_portal()

            def inner() -> str:
                return format_task(asyncio.current_task())

            return greenlet.greenlet(inner).switch()  # type: ignore[no-any-return]

        assert names(asyncio.run(main())) == ["main", "inner"]


class TestFrames:
    def test_left_meanwhile(self) -> None:
        """A frame that its thread leaves while it is read is the last one, as PyPy tells it."""

        class Left:
            f_code = sys._getframe().f_code

            @property
            def f_back(self) -> Any:
                raise SystemError("unexpected internal exception")

        frame: Any = Left()
        assert list(outwards(frame)) == outermost_first(frame) == [frame]


class TestTwoLoops:
    def test_trio_inside_asyncio(self) -> None:
        """Of two loops, one inside the other, each task is shown from its own beginning."""
        texts: List[str] = []

        async def inner(outer_task: Any) -> None:
            def calls() -> None:
                texts.extend(map(format_task, (outer_task, trio.lowlevel.current_task())))

            await greenback.with_portal_run_sync(calls)

        async def outer() -> None:
            await greenback.ensure_portal()
            trio.run(inner, asyncio.current_task())

        asyncio.run(outer())
        assert [names(text) for text in texts] == [["outer", "inner", "calls"], ["inner", "calls"]]

    def test_asyncio_inside_trio(self) -> None:
        """The same, the other way round, and of a task that waits in the inner loop."""
        texts: List[str] = []

        async def inner(outer_task: Any) -> None:
            event = asyncio.Event()
            task = asyncio.ensure_future(ensured(event))
            await steps()

            def calls() -> None:
                texts.extend(map(format_task, (outer_task, asyncio.current_task(), task)))

            await greenback.with_portal_run_sync(calls)
            event.set()
            await task

        async def outer() -> None:
            await greenback.ensure_portal()
            asyncio.run(inner(trio.lowlevel.current_task()))

        trio.run(outer)
        assert [names(text) for text in texts] == [
            ["outer", "inner", "calls"],
            ["inner", "calls"],
            ["ensured", "sync", "BRIDGE", "leaf"],
        ]

    def test_guest_mode(self) -> None:
        """Two loops that take turns in one thread see each other's tasks parked."""
        texts: List[str] = []

        async def guest(host_task: Any, tasks: List[Any], go_on: Any) -> None:
            texts.append(format_task(host_task))
            await greenback.ensure_portal()
            event = trio.Event()
            tasks += [trio.lowlevel.current_task(), event]
            go_on.set()
            sync(event)

        async def host() -> None:
            go_on, over = asyncio.Event(), asyncio.Event()
            tasks: List[Any] = []
            trio.lowlevel.start_guest_run(
                guest,
                asyncio.current_task(),
                tasks,
                go_on,
                run_sync_soon_threadsafe=asyncio.get_running_loop().call_soon_threadsafe,
                done_callback=lambda outcome: over.set(),
            )
            await greenback.with_portal_run_sync(sync, go_on)
            guest_task, event = tasks
            texts.append(format_task(guest_task))
            event.set()
            await over.wait()

        asyncio.run(host())
        assert [names(text) for text in texts] == [
            ["host", "sync", "BRIDGE", "leaf"],
            ["guest", "sync", "BRIDGE", "leaf"],
        ]


class TestOthers:
    """What the tools of others show of a task with a portal."""

    @pytest.mark.skipif(PYPY, reason="on PyPy, asyncio would never end following the frames")
    def test_print_stack(self) -> None:
        """asyncio shows the stack of a task that waits in a bridge down to where that is called."""

        def look(task: Any) -> List[str]:
            frames = task.get_stack()
            return [
                frame.f_code.co_name for frame in frames if frame.f_code.co_filename == __file__
            ]

        def where(task: Any) -> List[Any]:
            return [(frame.f_code.co_name, frame.f_lineno) for frame in task.get_stack()]

        assert parked(plain, look) == ["plain"]
        assert parked(only_portal, look) == ["only_portal"]
        assert parked(run, look) == ["run"]
        assert parked(run_sync, look) == ["run_sync"]
        if sys.version_info >= (3, 14):
            # One frame, as of any task that waits: what a task runs is a coroutine object there.
            for async_fn in (ensured, nested):
                ((name, line),) = parked(async_fn, where)
                assert name == async_fn.__name__
                assert line == async_fn.__code__.co_firstlineno + 2
        else:
            assert parked(ensured, look) == ["ensured", "sync"]
            assert parked(nested, look) == ["nested", "outer_sync", "middle", "sync"]

    def test_repr(self) -> None:
        """asyncio's repr() of a task says where in the program it is, not in greenback."""
        for async_fn in (only_portal, ensured):
            text = parked(async_fn, repr)
            assert f"coro=<{async_fn.__name__}() running at " in text
            assert "_portals.py" not in text or PYPY

    def test_iter_await_frames(self) -> None:
        """Trio shows the frames through the portal that a task has opened for itself."""

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
