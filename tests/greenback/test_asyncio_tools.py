"""What asyncio's tools of Python 3.14 show of a task with a portal, from inside and from outside.

The tests run the tools themselves. Comments in the programs mark the lines that are expected.
"""

from __future__ import annotations

import asyncio
import gc
import io
import os
import subprocess
import sys
import threading
import weakref
from typing import Any, Dict, List, Tuple

import pytest

import greenback

pytestmark = pytest.mark.skipif(
    sys.version_info < (3, 14) or sys.implementation.name != "cpython",
    reason="asyncio has these tools since Python 3.14",
)

PROGRAM = """
import asyncio, sys
import greenback

async def leaf(gate):
    await gate.wait()

def sync(gate):
    greenback.await_(leaf(gate))

async def inner(gate):
    await gate.wait()

async def plain(gate):
    await inner(gate)                                   # plain

async def bridges(gate):
    await greenback.ensure_portal()
    sync(gate)                                          # bridges

async def moves(gate):
    await greenback.ensure_portal()
    await asyncio.sleep(0.001)
    for _ in range(3):
        greenback.await_(asyncio.sleep(0.001))
    if gate:
        try:
            await asyncio.sleep(0.001)
        finally:
            sync(gate)                                  # moves

async def awaits(gate):
    await greenback.ensure_portal()
    await inner(gate)                                   # awaits

async def bestowed(gate):
    await inner(gate)                                   # bestowed

async def bestowed_anew(gate):
    sync(gate)                                          # bestowed_anew

async def run(gate):
    await greenback.with_portal_run(bridges, gate)      # run

class Service:
    async def handler(self, gate):
        await asyncio.sleep(0); sync(gate)              # handler

async def main():
    gate = asyncio.Event()
    tasks = [
        asyncio.create_task(async_fn(gate), name=async_fn.__name__)
        for async_fn in (plain, bridges, moves, awaits, run, bestowed)
    ]
    async with greenback.portals_for_tree():
        tasks.append(asyncio.create_task(Service().handler(gate), name="handler"))
    tasks.append(asyncio.create_task(bestowed_anew(gate), name="bestowed_anew"))
    greenback.bestow_portal(tasks[-1])
    while gate._waiters is None or len(gate._waiters) < len(tasks):
        await asyncio.sleep(0.001)
    greenback.bestow_portal(tasks[5])
    print("ready", flush=True)
    await asyncio.get_running_loop().run_in_executor(None, sys.stdin.readline)
    gate.set()
    await asyncio.gather(*tasks)
    print("done", flush=True)

loop = sys.argv[1]
if loop == "uvloop":
    import uvloop
    uvloop.run(main())
else:
    asyncio.run(main())
"""

NAMES = ["plain", "bridges", "moves", "awaits", "run", "bestowed", "handler", "bestowed_anew"]


def marked(name: str) -> int:
    """The number of the program's line that ends in the comment *name*."""
    (number,) = (
        number for number, line in enumerate(PROGRAM.splitlines(), 1) if line.endswith(f" # {name}")
    )
    return number


class Program:
    """The program, while all its tasks wait."""

    def __init__(self, folder: Any, loop: str) -> None:
        self.path = folder / "program.py"
        self.path.write_text(PROGRAM)
        self.process = subprocess.Popen(
            [sys.executable, str(self.path), loop],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert self.process.stdout is not None
        assert self.process.stdout.readline() == "ready\n"

    def looked_at_by(self, command: str) -> str:
        done = subprocess.run(
            [sys.executable, "-m", "asyncio", command, str(self.process.pid)],
            capture_output=True,
            text=True,
            timeout=60,
        )
        if done.returncode and "ermission" in done.stderr + done.stdout:
            pytest.skip("reading the memory of another process is not allowed here")
        assert done.returncode == 0, done.stderr
        return done.stdout

    def end(self) -> str:
        """Let the tasks go on: the tools must not have disturbed them."""
        return self.process.communicate("\n", timeout=60)[0]


@pytest.fixture(params=["asyncio", "uvloop"])
def program(request: Any, tmp_path: Any) -> Any:
    if request.param == "uvloop":
        pytest.importorskip("uvloop")
    program = Program(tmp_path, request.param)
    try:
        yield program
        assert program.end() == "done\n"
    finally:
        program.process.kill()
        program.process.wait()
        for stream in (program.process.stdin, program.process.stdout):
            assert stream is not None
            stream.close()


class TestFromOutside:
    def test_pstree(self, program: Any) -> None:
        """``python -m asyncio pstree`` shows each task's own coroutine, at its current line."""
        shown: Dict[str, List[str]] = {}
        for line in program.looked_at_by("pstree").splitlines():
            text = line.lstrip(" │├└─")
            if text.startswith("(T) "):
                stack = shown.setdefault(text[4:], [])
            else:
                stack.append(text)
        qualified = {"handler": "Service.handler"}
        for name in NAMES:
            first = shown[name][0]
            assert first == f"{qualified.get(name, name)} {program.path}:{marked(name)}"
            if name != "run":  # this task awaits `with_portal_run`, an ordinary coroutine
                assert not any(os.path.dirname(greenback.__file__) in line for line in shown[name])

    def test_ps(self, program: Any) -> None:
        """``python -m asyncio ps`` has a row for each task, with its own coroutine."""
        lines = program.looked_at_by("ps").splitlines()
        for name in NAMES:
            (stack,) = (
                stack.strip()
                for _, _, task_name, stack in (line.split(maxsplit=3) for line in lines[2:])
                if task_name == name
            )
            functions = stack.partition("  ")[0].split(" -> ")
            assert functions[-1] == {"handler": "Service.handler"}.get(name, name)


async def leaf(gate: Any) -> None:
    await gate.wait()


def sync(gate: Any) -> None:
    greenback.await_(leaf(gate))


async def waits(gate: Any) -> None:
    await gate.wait()


async def bridges(gate: Any) -> None:
    await greenback.ensure_portal()
    sync(gate)


async def awaits(gate: Any) -> None:
    await greenback.ensure_portal()
    await leaf(gate)


async def only_own(gate: Any) -> None:
    await greenback.ensure_portal()
    await gate.wait()


async def runs(gate: Any) -> None:
    await greenback.with_portal_run(leaf, gate)


async def runs_sync(gate: Any) -> None:
    await greenback.with_portal_run_sync(sync, gate)


async def parked(async_fn: Any, look: Any) -> Any:
    """The result of *look* for a task that waits in *async_fn*."""
    gate = asyncio.Event()
    task = asyncio.ensure_future(async_fn(gate))
    while not gate._waiters:
        await asyncio.sleep(0)
    try:
        return look(task)
    finally:
        gate.set()
        await task


class TestFromInside:
    @pytest.mark.parametrize(
        ("async_fn", "functions"),
        [
            (waits, ["waits", "wait"]),
            (only_own, ["only_own", "wait"]),
            (awaits, ["awaits", "leaf", "wait"]),
            (bridges, ["bridges", "sync", "leaf", "wait"]),
        ],
    )
    def test_call_graph(self, asyncio_backend: Any, async_fn: Any, functions: List[str]) -> None:
        """The call graph of a waiting task goes through its portal, without greenback's frames."""

        def look(task: Any) -> Tuple[Any, str]:
            graph = asyncio.capture_call_graph(task)
            assert graph is not None
            text = io.StringIO()
            asyncio.print_call_graph(task, file=text)
            return [(entry.frame.f_code.co_name) for entry in graph.call_stack], text.getvalue()

        async def main() -> Tuple[Any, str]:
            return await parked(async_fn, look)

        names, text = asyncio_backend.run(main)
        assert names[::-1] == functions
        assert os.path.dirname(greenback.__file__) not in text
        line = async_fn.__code__.co_firstlineno + (1 if async_fn is waits else 2)
        assert f"line {line}, in async {async_fn.__name__}()" in text

    @pytest.mark.parametrize(
        ("async_fn", "functions"),
        [
            (runs, ["runs", "with_portal_run"]),
            (runs_sync, ["runs_sync", "with_portal_run_sync"]),
        ],
    )
    def test_call_graph_of_a_function(
        self, asyncio_backend: Any, async_fn: Any, functions: List[str]
    ) -> None:
        """If only a function has a portal, the call graph ends at the await of the task itself."""

        def look(task: Any) -> Any:
            graph = asyncio.capture_call_graph(task)
            assert graph is not None
            return [entry.frame.f_code.co_name for entry in graph.call_stack]

        async def main() -> Any:
            return await parked(async_fn, look)

        assert asyncio_backend.run(main)[::-1] == functions

    def test_call_graph_from_sync_code(self, asyncio_backend: Any) -> None:
        """Sync code in a portal sees its own call graph, down to the task's own coroutine."""

        def look() -> List[str]:
            graph = asyncio.capture_call_graph()
            assert graph is not None
            return [entry.frame.f_code.co_name for entry in graph.call_stack]

        async def own() -> List[str]:
            await greenback.ensure_portal()
            return look()

        async def main() -> List[str]:
            return await asyncio.ensure_future(own())

        assert asyncio_backend.run(main) == ["look", "own"]

    def test_repr(self, asyncio_backend: Any) -> None:
        """A task's repr() has the line at which it waits, also after it has moved on."""
        lines = []

        async def own(gates: List[Any]) -> None:
            await greenback.ensure_portal()
            await gates[0].wait()
            greenback.await_(gates[1].wait())
            for gate in gates[2:]:
                await gate.wait()

        async def main() -> None:
            gates = [asyncio.Event() for _ in range(5)]
            task = asyncio.ensure_future(own(gates))
            for gate in gates:
                while not gate._waiters:
                    await asyncio.sleep(0)
                lines.append(int(repr(task).partition(f"{__file__}:")[2].partition(">")[0]))
                gate.set()
            await task

        asyncio_backend.run(main)
        first = own.__code__.co_firstlineno
        assert lines == [first + 2, first + 3, first + 5, first + 5, first + 5]

    def test_before_its_first_step(self, asyncio_backend: Any) -> None:
        """A task that has not begun is shown at its first line."""

        async def main() -> str:
            gate = asyncio.Event()
            gate.set()
            task = asyncio.ensure_future(waits(gate))
            greenback.bestow_portal(task)
            try:
                return repr(task)
            finally:
                await task

        text = asyncio_backend.run(main)
        assert f"coro=<waits() running at {__file__}:{waits.__code__.co_firstlineno}>" in text


class TestLookalikes:
    def test_lines_are_no_events(self, asyncio_backend: Any) -> None:
        """A trace function sees each line of the program once for each time that it runs."""
        seen: List[Tuple[str, int]] = []

        async def own(gate: Any) -> None:
            await greenback.ensure_portal()
            for _ in range(2):
                await asyncio.sleep(0.001)
                greenback.await_(asyncio.sleep(0.001))

        def trace(frame: Any, event: str, argument: Any) -> Any:
            if frame.f_code.co_filename != __file__ or frame.f_code.co_name != "own":
                return None
            if event == "line":
                seen.append((frame.f_code.co_name, frame.f_lineno - own.__code__.co_firstlineno))
            return trace

        async def main() -> None:
            previous = sys.gettrace()
            sys.settrace(trace)
            try:
                await asyncio.ensure_future(own(None))
            finally:
                sys.settrace(previous)

        asyncio_backend.run(main)
        assert [line for _, line in seen if line] == [1, 2, 3, 4, 2, 3, 4, 2]

    def test_many_lines(self, asyncio_backend: Any) -> None:
        """A coroutine that waits at one of many lines is shown at that line."""
        count = 70
        body = "".join(f"    await gates[{number}].wait()\n" for number in range(count))
        namespace: Dict[str, Any] = {}
        exec(compile(f"async def own(gates):\n{body}", "many.py", "exec"), namespace)

        async def main() -> List[str]:
            gates = [asyncio.Event() for _ in range(count)]
            task = asyncio.ensure_future(namespace["own"](gates))
            greenback.bestow_portal(task)
            shown = []
            for gate in gates:
                while not gate._waiters:
                    await asyncio.sleep(0)
                shown.append(repr(task).partition("many.py:")[2].partition(">")[0])
                gate.set()
            await task
            return shown

        assert asyncio_backend.run(main) == [str(number + 2) for number in range(count)]

    def test_results(self, asyncio_backend: Any) -> None:
        """Results, exceptions and cancellations arrive also when the shown line changes."""

        async def own(end: str, gate: Any) -> str:
            await greenback.ensure_portal()
            greenback.await_(asyncio.sleep(0.001))
            try:
                await asyncio.sleep(0.001)
                if end == "cancel":
                    gate.set()
                    await asyncio.Event().wait()
                if end == "raise":
                    raise LookupError(end)
            except asyncio.CancelledError:
                await asyncio.sleep(0.001)
                greenback.await_(asyncio.sleep(0.001))
                return "cancelled"
            return end

        async def main() -> List[Any]:
            found: List[Any] = []
            for end in ("return", "raise", "cancel"):
                gate = asyncio.Event()
                task = asyncio.ensure_future(own(end, gate))
                if end == "cancel":
                    await gate.wait()
                    task.cancel()
                (result,) = await asyncio.gather(task, return_exceptions=True)
                found.append(result)
                if end == "raise":
                    traceback = result.__traceback__
                    names = []
                    while traceback is not None:
                        names.append(traceback.tb_frame.f_code.co_name)
                        traceback = traceback.tb_next
                    assert names == ["own"]
            return found

        returned, raised, cancelled = asyncio_backend.run(main)
        assert (returned, cancelled) == ("return", "cancelled")
        assert type(raised) is LookupError

    def test_interrupted(self, asyncio_backend: Any) -> None:
        """An exception that a signal handler raises in a lookalike reaches the task's own code."""

        class Interrupt(Exception):
            pass

        async def own(log: List[str]) -> None:
            try:
                await greenback.ensure_portal()
                await asyncio.sleep(0.001)
                greenback.await_(asyncio.sleep(0.001))
                await asyncio.sleep(0.001)
            finally:
                log.append("cleaned up")

        def interrupt_at(count: int) -> Any:
            """A trace function that raises at an event of the lookalike, like a signal handler."""

            def trace(frame: Any, event: str, argument: Any) -> Any:
                nonlocal count
                of_lookalike = frame.f_globals.get("__name__") == "greenback._shims.lookalike"
                if not of_lookalike or frame.f_code.co_filename != __file__:
                    return None
                if event == "line":
                    count -= 1
                    if count == 0:
                        raise Interrupt
                return trace

            return trace

        async def main() -> int:
            moments = 0
            previous = sys.gettrace()
            while True:
                log: List[str] = []
                task = asyncio.ensure_future(own(log))
                # Its first step; the second one begins in the lookalike.
                await asyncio.sleep(0)
                sys.settrace(interrupt_at(moments + 1))
                try:
                    await asyncio.wait([task])
                finally:
                    sys.settrace(previous)
                assert not greenback.has_portal(task)
                gc.collect()
                assert log == ["cleaned up"]
                if task.exception() is None:
                    return moments
                assert type(task.exception()) is Interrupt
                moments += 1

        assert asyncio_backend.run(main) >= 3

    def test_closed_while_it_waits(self, asyncio_backend: Any) -> None:
        """A task whose coroutine is closed in a plain await, or in a bridge, cleans up."""
        log = []

        async def own(gate: Any, is_bridge: bool) -> None:
            await greenback.ensure_portal()
            await asyncio.sleep(0.001)
            try:
                if is_bridge:
                    greenback.await_(gate.wait())
                else:
                    await gate.wait()
            finally:
                log.append(is_bridge)

        async def main() -> None:
            for is_bridge in (True, False):
                gate = asyncio.Event()
                task = asyncio.ensure_future(own(gate, is_bridge))
                while not gate._waiters:
                    await asyncio.sleep(0)
                task.get_coro().close()
                task.cancel()
                await asyncio.wait([task])
                assert log.pop() is is_bridge

        asyncio_backend.run(main)
        assert log == []

    def test_freed(self, asyncio_backend: Any) -> None:
        """A task with a portal is freed with all its objects when it is over."""
        references: List[Any] = []

        class Thing:
            pass

        async def own(thing: Any) -> None:
            await greenback.ensure_portal()
            await asyncio.sleep(0.001)
            greenback.await_(asyncio.sleep(0.001))

        async def one() -> None:
            thing = Thing()
            task = asyncio.ensure_future(own(thing))
            references.extend([weakref.ref(thing), weakref.ref(task), weakref.ref(task.get_coro())])
            await task

        async def main() -> int:
            gc.disable()
            try:
                for _ in range(5):
                    await one()
                await asyncio.sleep(0)
                return sum(reference() is not None for reference in references)
            finally:
                gc.enable()

        assert asyncio_backend.run(main) <= 1  # the loop may still hold the last task

    def test_made_by_several_threads(self) -> None:
        """Threads that need a function's lookalike at the same time all get a working one."""
        namespace: Dict[str, Any] = {"greenback": greenback, "asyncio": asyncio}
        program = """
async def own():
    await greenback.ensure_portal()
    await asyncio.sleep(0.001)
    return greenback.await_(asyncio.sleep(0.001, 5))
"""
        exec(program, namespace)
        barrier = threading.Barrier(6)
        results = []

        async def main() -> None:
            barrier.wait(30)
            results.append(await asyncio.ensure_future(namespace["own"]()))

        threads = [threading.Thread(target=lambda: asyncio.run(main())) for _ in range(6)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert results == [5] * 6
