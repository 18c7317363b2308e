"""debugpy in the sync code of a portal, driven as by an editor."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any, Callable, Dict, Iterator, List

import pytest

from .dap import Client
from .debugged import write_program
from .processes import PYPY, Process, line_of, write

pytest.importorskip("debugpy")

LISTENS = """
    import runpy
    import sys

    import debugpy

    print("port", debugpy.listen(("127.0.0.1", 0))[1], flush=True)
    debugpy.wait_for_client()
    runpy.run_path(sys.argv[1], run_name="__main__")
"""

# An editor does this to libraries by itself ("justMyCode"); here, greenback is installed from a
# clone, and so not in the place where libraries are.
SKIPS = [{"path": "**/greenback/**", "include": False}]


class Session:
    """A program under debugpy."""

    def __init__(self, program: Path, process: Process) -> None:
        self.program = program
        self.process = process
        process.read_until("port ")
        self.client = Client(int(process.read_until("\n")))

    def begin(self, *lines: str) -> None:
        """Attach, with breakpoints at these lines, and stop at the first."""
        client = self.client
        client.ask("initialize", adapterID="test")
        attached = client.send("attach", justMyCode=True, rules=SKIPS)
        client.event("initialized")
        self.break_at(*lines)
        client.ask("configurationDone")
        client.answer(attached)
        self.wait()

    def break_at(self, *lines: str) -> None:
        """Have breakpoints at these lines and no others."""
        places = [{"line": line_of(self.program, line)} for line in lines]
        path = str(self.program)
        answer = self.client.ask("setBreakpoints", source={"path": path}, breakpoints=places)
        assert all(place["verified"] for place in answer["breakpoints"])

    def wait(self) -> None:
        """Wait until it stops."""
        self.thread = self.client.event("stopped")["threadId"]
        frames = self.client.ask("stackTrace", threadId=self.thread)["stackFrames"]
        self.frames = [frame for frame in frames if frame["source"]["path"] == str(self.program)]

    def go(self, how: str) -> None:
        """Step, or continue to a breakpoint."""
        self.client.ask(how, threadId=self.thread)
        self.wait()

    def end(self) -> str:
        """Let it run to its end."""
        self.break_at()
        self.client.ask("continue", threadId=self.thread)
        self.client.event("terminated")
        self.client.ask("disconnect")
        return self.process.rest()

    @property
    def place(self) -> str:
        """The function in which it has stopped, and the source line."""
        line = self.program.read_text().splitlines()[self.frames[0]["line"] - 1]
        return f"{self.frames[0]['name']}: {line.strip()}"

    def functions(self) -> List[str]:
        """The program's functions on the stack, outermost first."""
        return [frame["name"] for frame in reversed(self.frames)]

    def variables(self, index: int = 0) -> Dict[str, str]:
        """The local variables of the innermost frame of the program, or of one further out."""
        (scope,) = [
            scope
            for scope in self.client.ask("scopes", frameId=self.frames[index]["id"])["scopes"]
            if scope["name"] == "Locals"
        ]
        reference = scope["variablesReference"]
        found = self.client.ask("variables", variablesReference=reference)["variables"]
        return {variable["name"]: variable["value"] for variable in found}

    def evaluate(self, expression: str, index: int = 0) -> str:
        frame = self.frames[index]["id"]
        answer = self.client.ask("evaluate", expression=expression, frameId=frame, context="repl")
        return str(answer["result"])


@pytest.fixture
def debug(tmp_path: Path, start: Callable[..., Process]) -> Iterator[Callable[..., Session]]:
    """Runs the program under debugpy, to the first of some breakpoints."""
    sessions: List[Session] = []

    def debug(*lines: str, visitor: str = "visitor") -> Session:
        program = write_program(tmp_path, visitor=visitor)
        script = write(tmp_path / "listens.py", LISTENS)
        frozen: Any = ["-Xfrozen_modules=off"] * (sys.version_info >= (3, 11) and not PYPY)
        process = start(sys.executable, *frozen, script.name, str(program))
        session = Session(program, process)
        sessions.append(session)
        session.begin(*lines)
        return session

    yield debug
    for session in sessions:
        session.client.close()


BRIDGE = "amount += await_"


class TestBreakpoints:
    @pytest.mark.parametrize("visitor", ["visitor", "ensured"])
    def test_both_sides(self, debug: Callable[..., Session], visitor: str) -> None:
        """Breakpoints are met in the sync code of a portal and in an awaited coroutine."""
        session = debug(BRIDGE, "return price", visitor=visitor)
        assert session.place == "total: amount += await_(fetch(item))"
        session.go("continue")
        assert session.place == "fetch: return price"
        assert session.variables() == {"item": "'tea'", "price": "3"}
        assert "found [3]" in session.end()

    def test_stack(self, debug: Callable[..., Session]) -> None:
        """Below the coroutine that a bridge awaits is the sync code, with its variables."""
        session = debug("return price")
        functions = ["page", "total", "fetch"]
        assert session.functions()[-3:] == functions
        assert session.variables(1)["amount"] == "0"
        if not PYPY:
            assert session.functions() == functions

    def test_stack_of_a_task(self, debug: Callable[..., Session]) -> None:
        """In a task that has a portal of its own, the task's async function is there, too."""
        session = debug("return price", visitor="ensured")
        assert session.functions()[-4:] == ["ensured", "page", "total", "fetch"]


class TestStepping:
    @pytest.mark.parametrize("visitor", ["visitor", "ensured"])
    def test_over(self, debug: Callable[..., Session], visitor: str) -> None:
        """A step over a bridge stops at the next line of the function; others run meanwhile."""
        session = debug(BRIDGE, visitor=visitor)
        before = int(session.evaluate("turns"))
        session.go("next")
        assert session.place == "total: for item in items:"
        assert session.variables()["amount"] == "3"
        assert int(session.evaluate("turns")) >= before + 2
        session.go("next")
        assert session.place == "total: return amount"
        assert "found [3]" in session.end()

    def test_into_and_out(self, debug: Callable[..., Session]) -> None:
        """A step into a bridge leads to the coroutine, and a step out back to the function."""
        session = debug(BRIDGE)
        session.go("stepIn")
        assert session.functions()[-2:] == ["total", "fetch"]
        session.go("stepOut")
        assert session.functions()[-1] == "total"
        session.go("next")
        assert session.functions()[-1] == "total"
        assert "found [3]" in session.end()

    def test_in_the_coroutine(self, debug: Callable[..., Session]) -> None:
        """A step over an ``await`` in an awaited coroutine stays there while it waits."""
        session = debug("await others()")
        session.go("next")
        assert session.place == 'fetch: price = {"tea": 3}[item]'
        session.go("next")
        assert session.place == "fetch: return price"

    def test_out_of_the_task(self, debug: Callable[..., Session]) -> None:
        """In a task that has a portal of its own, stepping out leads to the async function."""
        session = debug("return amount", visitor="ensured")
        while session.functions()[-1] != "ensured":
            session.go("stepOut")
        assert session.variables()["items"] == "['tea']"


class TestEvaluate:
    def test_await_(self, debug: Callable[..., Session]) -> None:
        """`await_` in the debug console works as in the function."""
        session = debug(BRIDGE)
        before = int(session.evaluate("turns"))
        assert session.evaluate("await_(fetch('tea'))") == "3"
        assert int(session.evaluate("turns")) >= before + 2
        assert session.evaluate("await_(asyncio.sleep(0, items))", 1) == "['tea']"
        assert "found [3]" in session.end()
