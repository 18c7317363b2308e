"""pdb in the sync code of a portal, driven as from a terminal."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Callable, List

import pytest

from .debugged import write_program
from .processes import BRIDGE, PYPY, WORK, Process, line_of, write

PROMPT = "(Pdb) "


class Prompt:
    """A process that pdb has stopped."""

    def __init__(self, process: Process) -> None:
        self.process = process
        self.stopped = self.process.read_until(PROMPT)

    def ask(self, command: str) -> str:
        """The answer of pdb."""
        self.process.send(command)
        self.stopped = self.process.read_until(PROMPT)
        return self.stopped

    @property
    def place(self) -> str:
        """The function in which it has stopped, and the source line."""
        (function,) = re.findall(r"^> .*\(\d+\)(\w+)\(\)", self.stopped, re.MULTILINE)
        (line,) = re.findall(r"^-> (.*?)\r?$", self.stopped, re.MULTILINE)
        return f"{function}: {line}"

    def functions(self) -> List[str]:
        """The functions on the stack, outermost first."""
        return re.findall(r"^[> ] ?.*\(\d+\)(\w+|<\w+>)\(\)", self.ask("where"), re.MULTILINE)

    def continue_to_the_end(self) -> str:
        self.process.send("continue")
        return self.process.rest()


@pytest.fixture
def stop(tmp_path: Path, start: Callable[..., Process]) -> Callable[..., Prompt]:
    """Runs the program to its breakpoint, and on to the line with the bridge."""

    def stop(*options: str, **how: str) -> Prompt:
        how.setdefault("stop", "breakpoint()")
        prompt = Prompt(start(sys.executable, *options, write_program(tmp_path, **how).name))
        while "for item" not in prompt.place:  # it stops at the call from Python 3.13 on
            prompt.ask("next")
        prompt.ask("next")
        assert prompt.place == "total: amount += await_(fetch(item))"
        return prompt

    return stop


SKIPS = 'import pdb; pdb.Pdb(skip=["asyncio.*", "greenback.*", "greenlet"]).set_trace()'


class TestStepping:
    @pytest.mark.parametrize("visitor", ["visitor", "ensured"])
    def test_next(self, stop: Callable[..., Prompt], visitor: str) -> None:
        """``next`` at a bridge stops at the next line of the function; others run meanwhile."""
        prompt = stop(visitor=visitor)
        assert "stranger" in prompt.ask("next")
        assert prompt.place == "total: for item in items:"
        assert prompt.ask("p amount") == "3\n"
        assert "found [3]" in prompt.continue_to_the_end()

    @pytest.mark.parametrize("command", ["until {}", "tbreak {}\ncontinue"])
    def test_to_a_line(self, stop: Callable[..., Prompt], tmp_path: Path, command: str) -> None:
        """``until`` and ``continue`` to a breakpoint go over bridges, too."""
        prompt = stop()
        for line in command.format(line_of(tmp_path / "program.py", "return amount")).splitlines():
            prompt.ask(line)
        assert prompt.place == "total: return amount"

    def test_return(self, stop: Callable[..., Prompt]) -> None:
        """``return`` stops where the function returns, after its bridge."""
        prompt = stop()
        assert "total()->3" in prompt.ask("return")
        prompt.ask("next")
        assert prompt.place == "page: return answer"

    def test_step(self, stop: Callable[..., Prompt]) -> None:
        """``step`` goes into the coroutine, at once if greenback's own frames are skipped."""
        prompt = stop(stop=SKIPS)
        prompt.ask("step")
        assert prompt.place == "fetch: async def fetch(item):"

    def test_step_through_greenback(self, stop: Callable[..., Prompt]) -> None:
        """If they are not, it goes into `await_` first, unless that is in C."""
        prompt = stop()
        prompt.ask("step")
        assert prompt.place.startswith("await_: " if BRIDGE else "fetch: ")

    def test_next_in_the_coroutine(self, stop: Callable[..., Prompt]) -> None:
        """``next`` in a coroutine that a bridge awaits stays in it while it waits."""
        prompt = stop(stop=SKIPS)
        prompt.ask("step")
        prompt.ask("next")
        assert prompt.place == "fetch: await others()"
        assert "stranger" in prompt.ask("next")
        assert prompt.place == 'fetch: price = {"tea": 3}[item]'

    def test_back_from_the_coroutine(self, stop: Callable[..., Prompt], tmp_path: Path) -> None:
        """``step`` leads from the coroutine's last line back to the sync code."""
        prompt = stop(stop=SKIPS)
        prompt.ask("step")
        prompt.ask(f"until {line_of(tmp_path / 'program.py', 'return price')}")
        assert prompt.place == "fetch: return price"
        assert "fetch()->3" in prompt.ask("step")
        prompt.ask("step")
        assert prompt.place == "total: for item in items:"

    def test_out_of_the_task(self, stop: Callable[..., Prompt]) -> None:
        """In a task that has a portal of its own, stepping out leads to the async function."""
        prompt = stop(visitor="ensured")
        prompt.ask("return")
        prompt.ask("next")
        prompt.ask("return")
        prompt.ask("next")
        assert prompt.place == "ensured: return answer"

    def test_out_of_a_function(self, stop: Callable[..., Prompt], tmp_path: Path) -> None:
        """Out of a portal for a function, a breakpoint in its async caller does."""
        prompt = stop()
        prompt.ask(f"tbreak {line_of(tmp_path / 'program.py', 'await greenback.with') + 1}")
        prompt.ask("continue")
        assert prompt.place == "visitor: return answer"
        assert prompt.ask("p answer") == "3\n"

    @pytest.mark.skipif(
        (sys.version_info < (3, 14) and not PYPY) or not WORK,
        reason="it goes on in the event loop",
    )
    def test_out_of_a_function_by_steps(self, stop: Callable[..., Prompt]) -> None:
        """With the engine in Python, from CPython 3.14 on and on PyPy, stepping out of it does."""
        prompt = stop()
        while not re.search(r"visitor\(\)$", prompt.stopped, re.MULTILINE):
            prompt.ask("next")

    def test_break_in_the_coroutine(self, tmp_path: Path, start: Callable[..., Process]) -> None:
        """A breakpoint set from outside is met in a coroutine that a bridge awaits."""
        path = write_program(tmp_path)
        prompt = Prompt(start(sys.executable, "-m", "pdb", path.name))
        prompt.ask(f"break {line_of(path, 'return price')}")
        prompt.ask("continue")
        assert prompt.place == "fetch: return price"
        assert prompt.ask("p price") == "3\n"


class TestWhere:
    def test_function(self, stop: Callable[..., Prompt]) -> None:
        """The stack goes from greenback's outermost function in the portal to the sync code."""
        functions = stop().functions()
        if PYPY:
            assert functions[-3:] == [*WORK, "page", "total"]
            assert "visitor" in functions
        else:
            assert functions == [*WORK, "page", "total"]

    def test_task(self, stop: Callable[..., Prompt]) -> None:
        """In a task that has a portal of its own, the task's async function is there, too."""
        functions = stop(visitor="ensured").functions()
        assert functions[-3:] == ["ensured", "page", "total"]

    def test_coroutine(self, stop: Callable[..., Prompt]) -> None:
        """In a coroutine that a bridge awaits, the sync code is there, and the bridge between."""
        prompt = stop(stop=SKIPS)
        prompt.ask("step")
        assert prompt.functions()[-3 - len(BRIDGE) :] == ["page", "total", *BRIDGE, "fetch"]

    def test_the_whole_task(self, stop: Callable[..., Prompt]) -> None:
        """`greenback_trace.format_task` at the prompt has the async caller as well."""
        prompt = stop()
        prompt.ask("import greenback_trace")
        answer = prompt.ask("print(greenback_trace.format_task(asyncio.current_task()))")
        functions = re.findall(r"program.py.*, in (\w+)", answer)
        assert functions == ["main", "visitor", "page", "total"]


class TestPostMortem:
    def test_through_a_bridge(self, tmp_path: Path, start: Callable[..., Process]) -> None:
        """After an exception that crossed a bridge, both sides are there with their variables."""
        path = write_program(tmp_path, wanted="cake")
        prompt = Prompt(start(sys.executable, "-m", "pdb", "-c", "continue", path.name))
        assert "KeyError: 'cake'" in prompt.stopped
        functions = prompt.functions()
        assert functions[functions.index("visitor") :] == [
            *("visitor", "with_portal_run_sync", "page", "total", "await_", "fetch")
        ]
        assert prompt.ask("p item") == "'cake'\n"
        prompt.ask("up 2")
        assert prompt.ask("p items, amount") == "(['cake'], 0)\n"


class TestAwaitAtThePrompt:
    def test_await_(self, stop: Callable[..., Prompt]) -> None:
        """`await_` at the prompt works as in the function, and other tasks run meanwhile."""
        prompt = stop()
        answer = prompt.ask("p await_(fetch('tea'))")
        assert answer.endswith("3\n")
        assert "stranger" in answer
        prompt.ask("next")
        assert prompt.place == "total: for item in items:"
        assert "found [3]" in prompt.continue_to_the_end()

    def test_in_another_frame(self, stop: Callable[..., Prompt]) -> None:
        """It does after ``up``, too."""
        prompt = stop()
        prompt.ask("up")
        assert prompt.ask("p items, await_(asyncio.sleep(0, 7))").endswith("(['tea'], 7)\n")

    def test_breakpoints_of_others(self, stop: Callable[..., Prompt]) -> None:
        """While it waits, other tasks run through their breakpoints; afterwards they stop again."""
        prompt = stop(more="breakpoint()")
        answer = prompt.ask("p await_(fetch('tea'))")
        assert "stranger" in answer
        assert answer.endswith("3\n")
        prompt.ask("continue")
        assert prompt.place.startswith("strange: ")

    @pytest.mark.skipif(sys.version_info < (3, 14), reason="it is new in Python 3.14")
    def test_await(self, tmp_path: Path, start: Callable[..., Process]) -> None:
        """After `pdb.set_trace_async` in a coroutine that a bridge awaits, ``await`` works."""
        program = write(
            tmp_path / "program.py",
            """
            import asyncio
            import pdb

            from greenback import await_, with_portal_run_sync


            async def fetch():
                await pdb.set_trace_async()
                return 3


            def page():
                return await_(fetch())


            asyncio.run(with_portal_run_sync(page))
            """,
        )
        prompt = Prompt(start(sys.executable, program.name))
        prompt.ask("slept = await asyncio.sleep(0, 'slept')")
        assert prompt.ask("p slept") == "'slept'\n"
        assert prompt.ask("p await_(asyncio.sleep(0, 'bridged'))") == "'bridged'\n"
        prompt.continue_to_the_end()


@pytest.mark.skipif(sys.version_info < (3, 14) or PYPY, reason="it is new in CPython 3.14")
class TestAttaching:
    """``python -m pdb -p``"""

    def test_break(self, tmp_path: Path, start: Callable[..., Process]) -> None:
        """It stops a running program; breakpoints that are set there are met in portals."""
        program = write(
            tmp_path / "program.py",
            """
            import asyncio

            from greenback import await_, with_portal_run_sync

            done = []


            def page():
                answer = await_(asyncio.sleep(0.001, 3))
                return answer


            async def main():
                print("ready", flush=True)
                while not done:
                    await with_portal_run_sync(page)
                print("done", done)


            asyncio.run(main())
            """,
        )
        target = start(sys.executable, program.name)
        target.read_until("ready")
        pdb = start(sys.executable, "-m", "pdb", "-p", str(target.pid))
        prompt = Prompt(pdb)
        prompt.ask(f"break program.py:{line_of(program, 'return answer')}")
        prompt.ask("continue")
        assert prompt.place == "page: return answer"
        assert prompt.functions() == [*WORK, "page"]
        assert prompt.ask("p answer, await_(asyncio.sleep(0, 7))") == "(3, 7)\n"
        prompt.ask("clear 1")
        prompt.ask("done.append(answer)")
        pdb.send("quit")
        pdb.rest()
        assert target.rest() == "\ndone [3]\n"
