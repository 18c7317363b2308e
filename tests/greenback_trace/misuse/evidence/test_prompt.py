"""Bridges that the user of a debugger asks for at its prompt."""

from __future__ import annotations

import bdb
import cmd
import contextlib
import cProfile
import gc
import io
import json
import os
import pdb
import signal
import subprocess
import sys
import threading
import warnings
from pathlib import Path
from typing import Any, Callable, List

import pytest

import greenback
import greenback_trace
from greenback import await_
from greenback_trace import Config, MisuseError, MisuseWarning

IS_PYPY = sys.implementation.name == "pypy"
#: The sources of pdb's events, as keyword arguments of `pdb.Pdb`.
SOURCES: List[Any] = [{}]
if sys.version_info >= (3, 14) and not IS_PYPY:
    SOURCES.append({"backend": "monitoring"})

backend_now: Any = None


async def fetch(number: int) -> int:
    await backend_now.sleep(0)
    return number + 1


class Lazy:
    """Loads its value when it is shown."""

    def __repr__(self) -> str:
        return f"<Lazy {await_(fetch(1))}>"


class Finalized:
    def __del__(self) -> None:
        with contextlib.suppress(MisuseError):
            await_(fetch(1))


def add(number: int) -> int:
    return await_(fetch(number))


def holding(lock: Any) -> int:
    with lock:
        return await_(fetch(1))


def taking(lock: Any) -> int:
    lock.acquire()
    number = await_(fetch(1))
    lock.release()
    return number


def traced() -> int:
    number = 1
    number += 1
    return number


@pytest.fixture(params=["warn", "raise"])
def kinds(request: Any, backend: Any, monkeypatch: pytest.MonkeyPatch) -> Callable[[Any], Any]:
    """The kinds of misuse that are found while a portal runs a function."""
    monkeypatch.setitem(globals(), "backend_now", backend)

    def kinds(function: Callable[[], Any]) -> List[str]:
        greenback_trace.enable(config=Config(mode="debug", misuse=request.param))
        gc.disable()  # a debugger stops at the next call, which may be of a finalizer
        try:
            with warnings.catch_warnings(), contextlib.suppress(MisuseError):
                warnings.simplefilter("ignore", MisuseWarning)
                backend.run(greenback.with_portal_run_sync, function)
        finally:
            gc.enable()
            greenback_trace.disable()
        found = greenback_trace.snapshot().misuses
        return [misuse.kind for misuse in found for _ in range(misuse.count)]

    return kinds


class Prompt:
    """The input at the prompt of pdb, and its output."""

    def __init__(self, *commands: str, kind: Any = pdb.Pdb, source: Any) -> None:
        self.output = io.StringIO()
        self.pdb = kind(
            stdin=io.StringIO("\n".join([*commands, "continue", ""])),
            stdout=self.output,
            nosigint=True,
            readrc=False,
            **source,
        )

    def stop(self) -> None:
        """Stop the caller, where it is or at its next line."""
        self.pdb.set_trace(sys._getframe(1))

    def answers(self) -> List[str]:
        """The output of each command, without the place where it stopped."""
        parts = self.output.getvalue().split("(Pdb) ")[1:]
        return [part.rstrip("\n") for part in parts[:-1]]


@pytest.mark.parametrize("source", SOURCES, ids=lambda source: source.get("backend", "settrace"))
class TestPdb:
    @pytest.mark.parametrize(
        ("command", "answer"),
        [
            ("await_(fetch(number))", "8"),
            ("p await_(fetch(number))", "8"),
            ("pp await_(fetch(number))", "8"),
            ("whatis await_(fetch(number))", "<class 'int'>"),
            ("[await_(fetch(each)) for each in (1, 2)]", "[2, 3]"),
            ("(lambda: await_(fetch(1)))()", "2"),
            ("add(number)", "8"),
            ("sorted([2, 1], key=add)", "[1, 2]"),
            ("p Lazy()", "<Lazy 2>"),
            ("Lazy()", "<Lazy 2>"),
            ("!print(add(1), file=prompt.output)", "2"),
            ("display add(number)", "display add(number): 8"),
        ],
    )
    def test_typed(self, kinds: Any, source: Any, command: str, answer: str) -> None:
        """A command at the prompt may bridge, and gets its answer."""
        prompt = Prompt(command, "p 'still', number", source=source)

        def work() -> None:
            number = 7
            prompt.stop()
            assert number == 7

        assert kinds(work) == []
        assert prompt.answers() == [answer, "('still', 7)"]

    def test_in_another_frame(self, kinds: Any, source: Any) -> None:
        """A command may bridge in the frame of a caller."""
        prompt = Prompt("up", "p await_(fetch(number))", source=source)

        def inner() -> None:
            prompt.stop()
            assert prompt

        def work() -> None:
            number = 8
            inner()
            assert number

        assert kinds(work) == []
        assert prompt.answers()[-1] == "9"

    def test_at_each_step(self, kinds: Any, source: Any) -> None:
        """A command may bridge after steps, and so may a display at each step."""
        prompt = Prompt("next", "display add(number)", "next", "next", "add(1)", source=source)

        def work() -> None:
            number = 1
            prompt.stop()
            number += 1
            number += 1
            number += 1

        assert kinds(work) == []
        assert prompt.output.getvalue().count("display add(number)") == 3
        assert prompt.answers()[-1] == "2"

    def test_condition(self, kinds: Any, source: Any) -> None:
        """The condition of a breakpoint may bridge."""
        place = f"{__file__}:{traced.__code__.co_firstlineno + 2}"
        condition = f"break {place}, add(number) == 2"
        prompt = Prompt(condition, "continue", "p 'there', number", f"clear {place}", source=source)

        def work() -> None:
            prompt.stop()
            traced()

        assert kinds(work) == []
        assert "('there', 1)" in prompt.answers()

    @pytest.mark.parametrize("kind", ["Lock", "RLock", "Condition"])
    @pytest.mark.parametrize("by", ["with", "acquire"])
    def test_where_a_lock_is_held(self, kinds: Any, source: Any, kind: str, by: str) -> None:
        """A command may bridge where the stopped program holds a lock."""
        prompt = Prompt("add(1)", source=source)

        def work() -> None:
            lock = getattr(threading, kind)()
            if by == "with":
                with lock:
                    prompt.stop()
                    assert lock
            else:
                lock.acquire()
                prompt.stop()
                lock.release()

        assert kinds(work) == []
        assert prompt.answers() == ["2"]

    def test_inside_of_a_misuse(self, kinds: Any, source: Any, tmp_path: Path) -> None:
        """A command may bridge where the stopped program itself must not."""
        prompts = [Prompt("import sys", "sys.add_of_test(1)", source=source) for _ in range(3)]

        class Stops:
            def __del__(self) -> None:
                prompts[0].stop()
                self.end = 1

        def stop(number: Any, frame: Any) -> None:
            prompts[1].stop()
            assert number

        def work() -> None:
            stops = Stops()
            del stops
            signal.raise_signal(signal.SIGTERM)
            import misused_stops  # type: ignore[import-not-found]

            assert misused_stops

        (tmp_path / "misused_stops.py").write_text("import sys\nsys.stop_of_test()\nend = 1\n")
        with pytest.MonkeyPatch.context() as patch:
            patch.syspath_prepend(str(tmp_path))
            patch.setattr(sys, "add_of_test", add, raising=False)
            patch.setattr(sys, "stop_of_test", prompts[2].stop, raising=False)
            before = signal.signal(signal.SIGTERM, stop)
            try:
                assert kinds(work) == []
            finally:
                signal.signal(signal.SIGTERM, before)
                sys.modules.pop("misused_stops", None)
        # On PyPy, the object is freed later.
        assert [prompt.answers()[-1:] for prompt in prompts[IS_PYPY:]] == [["2"]] * (3 - IS_PYPY)

    @pytest.mark.parametrize(
        ("command", "kind"),
        [
            ("holding(threading.Lock())", "lock_held"),
            ("taking(threading.Lock())", "lock_held"),
            pytest.param(
                "Finalized() and None",
                "finalizer",
                marks=pytest.mark.skipif(IS_PYPY, reason="nothing is freed when it is dropped"),
            ),
        ],
    )
    def test_misuse_in_what_it_calls(
        self, kinds: Any, source: Any, command: str, kind: str
    ) -> None:
        """A misuse inside a function that a command calls is found."""
        prompt = Prompt(command, source=source)

        def work() -> None:
            prompt.stop()
            assert prompt

        assert kinds(work) == [kind]

    def test_subclass(self, kinds: Any, source: Any) -> None:
        """A debugger that derives from pdb, and runs commands in its own way, has a prompt."""

        class Own(pdb.Pdb):
            def onecmd(self, line: str) -> bool:
                if line.startswith("add"):
                    self.message(str(add(int(line[3:]))))
                    return False
                return super().onecmd(line)

        prompt = Prompt("add 4", "p add(2)", kind=Own, source=source)

        def work() -> None:
            prompt.stop()
            assert prompt

        assert kinds(work) == []
        assert prompt.answers() == ["5", "3"]

    def test_bridges_by_itself(self, kinds: Any, source: Any) -> None:
        """A debugger that bridges without a command is a trace function, and a misuse."""

        class Own(pdb.Pdb):
            def user_line(self, frame: Any) -> None:
                self.message(str(add(6)))
                super().user_line(frame)

        prompt = Prompt("next", kind=Own, source=source)

        def work() -> None:
            prompt.stop()
            assert prompt

        assert set(kinds(work)) == {"trace_function"}


class TestOthers:
    def test_bdb_that_bridges_by_itself(self, kinds: Any) -> None:
        """A debugger that derives from nothing and bridges by itself is a misuse."""

        class Own(bdb.Bdb):
            def user_line(self, frame: Any) -> None:
                if frame.f_code is traced.__code__:
                    self.set_continue()
                    add(1)

        assert kinds(lambda: Own().runcall(traced)) == ["trace_function"]

    def test_evaluates_what_is_typed(self, kinds: Any) -> None:
        """A debugger that derives from nothing may bridge to evaluate an expression."""
        answers = []

        def trace(frame: Any, event: str, argument: Any) -> Any:
            if frame.f_code is traced.__code__ and event == "return":
                expression = compile("add(number)", "<typed>", "eval")
                answers.append(eval(expression, frame.f_globals, frame.f_locals))
            return trace

        def work() -> None:
            before = sys.gettrace()
            sys.settrace(trace)
            try:
                traced()
            finally:
                sys.settrace(before)

        assert kinds(work) == []
        assert answers == [3]


class TestNoDebugger:
    def test_text(self, kinds: Any) -> None:
        """A text that runs outside a trace function is no prompt."""

        def work() -> None:
            lock = threading.Lock()
            with contextlib.suppress(MisuseError), lock:
                exec("add(1)", globals())
            with lock:
                cProfile.Profile().runctx("add(1)", globals(), {})

        assert kinds(work) == ["lock_held"] * 2

    def test_command_line(self, kinds: Any) -> None:
        """The program's own command prompt is no prompt of a debugger."""

        class Shell(cmd.Cmd):
            def do_add(self, argument: str) -> None:
                add(int(argument))

        def work() -> None:
            with threading.Lock():
                Shell().onecmd("add 1")

        assert kinds(work) == ["lock_held"]


PROGRAM = """
import json
import sys

import greenback
import greenback_trace
from greenback import await_

if sys.argv[1] == "asyncio":
    from asyncio import run, sleep
else:
    from trio import run, sleep

answers = []


async def fetch(number):
    await sleep(0)
    return number + 1


class Lazy:
    def __repr__(self):
        return f"<Lazy {await_(fetch(1))}>"


def work():
    number = 7
    lazy = Lazy()
    STOP
    number += 1
    return lazy


async def main():
    await greenback.with_portal_run_sync(work)


if sys.argv[1] == "asyncio":
    run(main())
else:
    run(main)
kinds = [misuse.kind for misuse in greenback_trace.snapshot().misuses]
with open("found.json", "w") as file:
    json.dump([answers, kinds], file)
"""

actions = pytest.mark.parametrize("action", ["warn", "raise"])


@pytest.fixture
def program(tmp_path: Path) -> Callable[[str], List[str]]:
    """Writes a program, and returns the command that runs it."""

    def program(stop: str, library: str) -> List[str]:
        (tmp_path / "program.py").write_text(PROGRAM.replace("STOP", stop))
        return [sys.executable, "program.py", library]

    return program


def found(tmp_path: Path) -> Any:
    """The answers that the program got from its bridges, and the kinds of misuse in it."""
    return json.loads((tmp_path / "found.json").read_text())


class TestBreakpoint:
    """``breakpoint()``, in a process of its own."""

    TYPED = (
        "answers.append(await_(fetch(number)))",
        "answers.append([await_(fetch(each)) for each in (1, 2)])",
        "answers.append(repr(lazy))",
        "next",
        "answers.append(await_(fetch(0)))",
        "continue",
    )
    FOUND = ([8, [2, 3], "<Lazy 2>", 1], [])

    @actions
    def test_typed(
        self, backend: Any, environment: Any, tmp_path: Path, program: Any, action: str
    ) -> None:
        """A command at its prompt may bridge, and is not reported."""
        done = subprocess.run(
            program("breakpoint()", backend.name),
            env=environment(GREENBACK_TRACE="debug", GREENBACK_TRACE_MISUSE=action),
            cwd=str(tmp_path),
            input="\n".join([*self.TYPED, ""]),
            capture_output=True,
            text=True,
            timeout=60,
            check=True,
        )
        assert "isuse" not in done.stdout + done.stderr
        assert found(tmp_path) == [*self.FOUND]

    def test_at_a_terminal(
        self, backend: Any, environment: Any, tmp_path: Path, program: Any
    ) -> None:
        """A command at a terminal, where newer versions read lines differently, may bridge."""
        pty = pytest.importorskip("pty", reason="a terminal is needed")
        controller, terminal = pty.openpty()
        variables = {"TERM": "xterm", "NO_COLOR": "1", "GREENBACK_TRACE_MISUSE": "raise"}
        process = subprocess.Popen(
            program("breakpoint()", backend.name),
            env=environment(GREENBACK_TRACE="debug", **variables),
            cwd=str(tmp_path),
            stdin=terminal,
            stdout=terminal,
            stderr=terminal,
        )
        os.close(terminal)
        try:
            shown = ""
            for line in self.TYPED:
                while "(Pdb)" not in shown:
                    shown += os.read(controller, 1 << 16).decode()
                shown = shown.partition("(Pdb)")[2]
                os.write(controller, line.encode() + b"\r")
            with contextlib.suppress(OSError):  # which is how a terminal ends
                while os.read(controller, 1 << 16):
                    pass
            assert process.wait(60) == 0
        finally:
            process.kill()
            process.wait()
            os.close(controller)
        assert found(tmp_path) == [*self.FOUND]


ATTACHES = """__import__("debugpy").breakpoint()"""

LISTENS = """
import runpy

import debugpy

print(debugpy.listen(("127.0.0.1", 0))[1], flush=True)
debugpy.wait_for_client()
runpy.run_path("program.py", run_name="__main__")
"""


class TestDebugpy:
    @actions
    def test_evaluated(
        self, backend: Any, environment: Any, tmp_path: Path, program: Any, action: str
    ) -> None:
        """An expression that an editor has debugpy evaluate may bridge, and is not reported."""
        pytest.importorskip("debugpy")
        from ....tools.dap import Client

        _, _, library = program(ATTACHES, backend.name)
        (tmp_path / "listens.py").write_text(LISTENS)
        process = subprocess.Popen(
            [sys.executable, "listens.py", library],
            env=environment(
                GREENBACK_TRACE="debug",
                GREENBACK_TRACE_MISUSE=action,
                PYDEVD_DISABLE_FILE_VALIDATION="1",
            ),
            cwd=str(tmp_path),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        try:
            assert process.stdout is not None
            client = Client(int(process.stdout.readline()))
            client.ask("initialize", adapterID="test")
            attached = client.send("attach", justMyCode=False)
            client.event("initialized")
            client.ask("configurationDone")
            client.answer(attached)
            thread = client.event("stopped")["threadId"]
            frame = client.ask("stackTrace", threadId=thread)["stackFrames"][0]["id"]
            (scope, *_) = client.ask("scopes", frameId=frame)["scopes"]
            reference = scope["variablesReference"]
            variables = client.ask("variables", variablesReference=reference)["variables"]
            assert {"lazy": "<Lazy 2>", "number": "7"}.items() <= {
                variable["name"]: variable["value"] for variable in variables
            }.items()
            for expression, value in (
                ("await_(fetch(number))", "8"),
                ("[await_(fetch(each)) for each in (1, 2)]", "[2, 3]"),
                ("answers.append(await_(fetch(number)))", ""),
            ):
                answer = client.ask(
                    "evaluate", expression=expression, frameId=frame, context="repl"
                )
                assert answer["result"] == value
            client.ask("continue", threadId=thread)
            client.event("terminated")
            client.ask("disconnect")
            client.close()
            output = process.stdout.read()
            assert process.wait(60) == 0, output
        finally:
            process.kill()
            process.wait()
            process.stdout.close()
        assert "isuse" not in output
        assert found(tmp_path) == [[8], []]
