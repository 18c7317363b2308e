"""Tools that show where a process is, in a running portal and in a parked one."""

from __future__ import annotations

import os
import re
import signal
import sys
from pathlib import Path
from typing import Any, Callable, List

import pytest

from .processes import PY_SPY, PYPY, WORK, Process, needs_py_spy, run, skip_where_refused, write

DOCS = Path(__file__).parents[2] / "docs"

# One task is parked in a bridge. Another one runs sync code in a portal, or there is none but the
# event loop, which waits.
PROGRAM = """
    import asyncio
    import faulthandler
    import signal
    import sys

    import greenback
    from greenback import await_

    sys.path.append(DOCS)


    async def fetch(event):
        await event.wait()


    def inner(event):
        await_(fetch(event))


    def page(event):
        inner(event)


    async def visitor(event):
        await greenback.with_portal_run_sync(page, event)


    def blocks():
        print("blocked", flush=True)
        for line in sys.stdin:
            break


    def blocking_page():
        blocks()


    async def blocking_visitor():
        await greenback.with_portal_run_sync(blocking_page)


    async def watch():
        while True:
            faulthandler.dump_traceback_later(0.1)
            await asyncio.sleep(0.01)


    async def main(blocking):
        event = asyncio.Event()
        task = asyncio.ensure_future(visitor(event))
        await asyncio.sleep(0)
        PREPARE
        if blocking:
            await blocking_visitor()
            event.set()
        else:
            print("idle", flush=True)
        await task


    RUN
"""


@pytest.fixture
def program(tmp_path: Path, start: Callable[..., Process]) -> Callable[..., Process]:
    """Starts the program, and waits until it blocks in a portal or its loop is idle."""

    def begin(blocking: bool, prepare: str = "pass", more: str = "") -> Process:
        source = PROGRAM.replace("DOCS", repr(str(DOCS))).replace("PREPARE", prepare)
        source = source.replace("RUN", more or f"asyncio.run(main({blocking}))")
        process = start(sys.executable, write(tmp_path / "program.py", source).name)
        process.read_until("blocked\n" if blocking else "idle\n")
        return process

    return begin


BLOCKING = ["blocks", "blocking_page", *WORK]
OUTERMOST = f" in {BLOCKING[-1]}"
PARKED = ["visitor", "page", "inner", "fetch"]


class Dump:
    """The functions that a tool has found, innermost first."""

    def __init__(self, text: str) -> None:
        found = re.findall(r"\bin (\w+|<\w+>)\s*$|^    ([\w.]+|<\w+>) \(", text, re.MULTILINE)
        self.functions = [(first or second).rpartition(".")[2] for first, second in found]

    def has(self, wanted: List[str]) -> bool:
        """Whether these are there, one after another."""
        return any(
            self.functions[index : index + len(wanted)] == wanted
            for index in range(len(self.functions))
        )

    def has_any(self, unwanted: List[str]) -> bool:
        return not set(unwanted).isdisjoint(self.functions)


@needs_py_spy
class TestPySpyDump:
    def dump(self, process: Process, cwd: Path) -> Dump:
        answer = run(str(PY_SPY), "dump", "--pid", str(process.pid), cwd=cwd)
        if answer.returncode != 0:
            skip_where_refused(answer.stdout)
        assert answer.returncode == 0, answer.stdout
        return Dump(answer.stdout)

    def test_running(self, program: Callable[..., Process], tmp_path: Path) -> None:
        """Sync code that runs is there, down to greenback's outermost function; not its caller."""
        process = program(blocking=True)
        found = self.dump(process, tmp_path)
        assert found.functions == BLOCKING
        process.send("go on")
        process.rest()

    def test_parked(self, program: Callable[..., Process], tmp_path: Path) -> None:
        """While the event loop waits, its own stack is there, and nothing of a parked task."""
        found = self.dump(program(blocking=False), tmp_path)
        assert found.has(["_run_once", "run_forever", "run_until_complete"])
        assert not found.has_any(PARKED)


@pytest.mark.skipif(sys.platform == "win32", reason="faulthandler takes no signals on Windows")
class TestFaulthandler:
    def test_signal(self, program: Callable[..., Process]) -> None:
        """After `faulthandler.register`, a signal shows the sync code that runs, not its caller."""
        process = program(blocking=True, prepare="faulthandler.register(signal.SIGUSR1)")
        os.kill(process.pid, signal.SIGUSR1)
        found = Dump(process.read_until(OUTERMOST) + OUTERMOST)
        assert found.functions[-3:] == BLOCKING
        assert not found.has_any(PARKED)
        process.send("go on")
        process.rest()

    def test_blocked_loop(self, program: Callable[..., Process]) -> None:
        """A watchdog that the loop has to keep quiet shows the sync code that blocks the loop."""
        process = program(
            blocking=True, prepare="asyncio.ensure_future(watch()); await asyncio.sleep(0)"
        )
        process.read_until("Timeout")
        found = Dump(process.read_until(OUTERMOST) + OUTERMOST)
        assert found.functions[-3:] == BLOCKING
        process.send("go on")
        process.rest()


# The stacks of the parked and of the running task, outermost first, as `format_task` has them.
SHOWN = ["visitor", "page", "inner", "fetch"]
SHOWN_BLOCKING = ["blocking_visitor", "blocking_page", "blocks"]


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no such signals")
class TestShowTasks:
    """``docs/show_tasks.py``"""

    # With any handler of its own, the loop is woken by every signal, even just before it waits.
    PREPARE = (
        "from show_tasks import show_tasks; signal.signal(signal.SIGUSR1, show_tasks); "
        "asyncio.get_running_loop().add_signal_handler(signal.SIGUSR2, print)"
    )

    def test_idle_loop(self, program: Callable[..., Process]) -> None:
        """A signal shows the whole stack of a task that is parked in a bridge."""
        process = program(blocking=False, prepare=self.PREPARE)
        os.kill(process.pid, signal.SIGUSR1)
        assert Dump(process.read_until(" in fetch") + " in fetch").has(SHOWN)

    def test_blocked_loop(self, program: Callable[..., Process]) -> None:
        """While sync code blocks the loop, it shows that code's task as well."""
        process = program(blocking=True, prepare=self.PREPARE)
        os.kill(process.pid, signal.SIGUSR1)
        process.send("go on")
        found = Dump(process.rest())
        assert found.has(SHOWN)
        assert found.has(["main", *SHOWN_BLOCKING])

    def test_uvloop(self, program: Callable[..., Process]) -> None:
        """It does on uvloop, too."""
        pytest.importorskip("uvloop")
        more = "import uvloop; uvloop.new_event_loop().run_until_complete(main(False))"
        process = program(blocking=False, prepare=self.PREPARE, more=more)
        os.kill(process.pid, signal.SIGUSR1)
        assert Dump(process.read_until(" in fetch") + " in fetch").has(SHOWN)

    def test_trio(self, tmp_path: Path, start: Callable[..., Process]) -> None:
        """And on Trio."""
        program = write(
            tmp_path / "program.py",
            """
            import signal
            import sys

            import trio
            import trio.testing
            from greenback import await_, with_portal_run_sync

            sys.path.append(DOCS)
            from show_tasks import show_tasks

            signal.signal(signal.SIGUSR1, show_tasks)


            def page():
                await_(trio.sleep_forever())


            async def visitor():
                await with_portal_run_sync(page)


            async def main():
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(visitor)
                    await trio.testing.wait_all_tasks_blocked()
                    print("idle", flush=True)


            trio.run(main)
            """.replace("DOCS", repr(str(DOCS))),
        )
        process = start(sys.executable, program.name)
        process.read_until("idle\n")
        os.kill(process.pid, signal.SIGUSR1)
        found = Dump(process.read_until(" in sleep_forever") + " in sleep_forever")
        # Trio before 0.28 (on Python 3.8, any Trio) calls the page through a wrapper.
        wanted = ["visitor", "page", "sleep_forever"]
        assert [name for name in found.functions if name in wanted] == wanted


def execute(process: Process, path: Path) -> None:
    """`sys.remote_exec`, and wake up the event loop: a script waits for the next instruction."""
    try:
        sys.remote_exec(process.pid, str(path))  # type: ignore[attr-defined, unused-ignore]
    except PermissionError as error:
        pytest.skip(f"looking into another process is refused here: {error}")
    os.kill(process.pid, signal.SIGSTOP)
    os.waitpid(process.pid, os.WUNTRACED)
    os.kill(process.pid, signal.SIGCONT)


@pytest.mark.skipif(sys.version_info < (3, 14) or PYPY, reason="it is new in CPython 3.14")
class TestRemoteExec:
    """`sys.remote_exec` with ``docs/show_tasks.py``"""

    def test_idle_loop(self, program: Callable[..., Process]) -> None:
        """It shows the whole stack of a task that is parked in a bridge."""
        process = program(blocking=False)
        execute(process, DOCS / "show_tasks.py")
        assert Dump(process.read_until(" in fetch") + " in fetch").has(SHOWN)

    def test_portal(self, program: Callable[..., Process]) -> None:
        """The page also runs inside a portal, if that is what runs."""
        process = program(blocking=True)
        execute(process, DOCS / "show_tasks.py")
        process.send("go on")
        found = Dump(process.rest())
        assert found.has(SHOWN)
        assert found.has(["main", *SHOWN_BLOCKING])


@pytest.mark.skipif(sys.version_info < (3, 15) or PYPY, reason="it is new in CPython 3.15")
class TestSamplingDump:
    """``python -m profiling.sampling dump``"""

    def dump(self, process: Process, cwd: Path, *options: str) -> Any:
        command = (sys.executable, "-m", "profiling.sampling", "dump")
        answer = run(*command, *options, str(process.pid), cwd=cwd)
        if answer.returncode != 0:
            skip_where_refused(answer.stdout)
        return answer

    def test_by_thread(self, program: Callable[..., Process], tmp_path: Path) -> None:
        """It refuses a portal's stack, since that does not begin where the thread's does."""
        answer = self.dump(program(blocking=True), tmp_path)
        assert answer.returncode != 0
        assert "did not reach base frame" in answer.stdout

    def test_by_task(self, program: Callable[..., Process], tmp_path: Path) -> None:
        """For the task that runs, it shows the sync code in its portal."""
        options = ("--async-aware", "--async-mode", "running")
        answer = self.dump(program(blocking=True), tmp_path, *options)
        assert answer.returncode == 0, answer.stdout
        assert Dump(answer.stdout).has(BLOCKING[::-1])
