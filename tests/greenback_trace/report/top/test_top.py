"""The command ``greenback-trace top``: a program's file, its socket, and a terminal."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, Callable, Dict, Iterator, List, Optional

import pytest
from click.testing import CliRunner

from greenback_trace.cli import main
from greenback_trace.report.read.inputs import NothingToReportError
from greenback_trace.report.top.live_file import LiveFile
from greenback_trace.report.top.live_socket import LiveSocket
from tests.waiting import wait_until

from .service import Service

pytest.importorskip("click", reason="the report needs greenback[report]")
pytest.importorskip("rich", reason="the report needs greenback[report]")
pytest.importorskip("opentelemetry.sdk", reason="the report needs greenback[report]")


class Terminal:
    """A command in a terminal."""

    def __init__(self, socket: Path, columns: int, lines: int, command: List[str]) -> None:
        self._tmux = ["tmux", "-S", str(socket), "-f", os.devnull]
        size = ["-x", str(columns), "-y", str(lines)]
        # tmux 3.3 itself forgets the exit status now and then.
        self._status = socket.with_suffix(".status")
        in_shell = ["sh", "-c", '"$@"; echo $? > "$0"', str(self._status), *command]
        self.call("new-session", "-d", *size, *in_shell, ";", "set", "remain-on-exit", "on")

    def call(self, *arguments: str) -> str:
        result = subprocess.run(
            [*self._tmux, *arguments],
            # As if it was started by a program in a terminal of another size.
            env={**os.environ, "COLUMNS": "70", "LINES": "40"},
            check=True,
            timeout=30,
            stdout=subprocess.PIPE,
            text=True,
        )
        return result.stdout

    def screen(self) -> str:
        return self.call("capture-pane", "-p")

    def wait(self, is_right: Callable[[str], bool]) -> str:
        """The screen as soon as it is right."""
        end = time.monotonic() + 60
        while True:
            screen = self.screen()
            if is_right(screen):
                return screen
            assert time.monotonic() < end, screen
            time.sleep(0.05)

    def status(self) -> Optional[str]:
        """The exit status, once there is one."""
        return (self._status.read_text().strip() or None) if self._status.exists() else None


def rows(screen: str) -> Dict[str, List[str]]:
    """By function, from the top: what is in the columns between the rate and the function."""
    words = [line.split() for line in screen.splitlines()]
    return {
        line[-1]: line[1:-1] for line in words if len(line) > 5 and line[-1].startswith("__main__.")
    }


def is_whole(screen: str) -> bool:
    """Whether all parts are there, from the first line to the last."""
    lines = screen.splitlines()
    parts = ("bridges/s", "portals: ", "", "slow steps: ", "function")
    return (
        all(part in line for part, line in zip(parts, lines))
        and any("parked for" in line for line in lines)
        and "q Quit" in lines[-1]
    )


class TestTable:
    def test_painted_at_once(self, service: Service, live: LiveFile) -> None:
        """A function is shown whole, however soon the terminal paints what has changed."""
        pytest.importorskip("textual", reason="the live view needs greenback[report]")
        from textual.events import Resize
        from textual.geometry import Size

        from greenback_trace.report.top.top import Top

        service.answer()
        assert live.read()

        async def main() -> None:
            app = Top(live)
            async with app.run_test(size=(80, 24)) as pilot:
                table = app.query_one("#sites")
                app.on_resize(Resize(Size(200, 50), Size(200, 50)))
                at_once = table.render_line(1).text
                await pilot.pause()
                for text in (at_once, table.render_line(1).text):
                    assert text.rstrip().endswith(("__main__.ask", "__main__.hold"))

        asyncio.run(main())


@pytest.mark.skipif(
    sys.implementation.name == "pypy", reason="one in six comes up too late on a busy PyPy"
)
class TestTop:
    @pytest.fixture
    def terminal(self, tmp_path: Path) -> Iterator[Callable[..., Terminal]]:
        """A terminal that shows what is at a path."""
        if shutil.which("tmux") is None:
            pytest.skip("tmux is not installed")
        pytest.importorskip("textual", reason="the live view needs greenback[report]")
        terminals: List[Terminal] = []

        def show(path: Path, columns: int = 80, lines: int = 24) -> Terminal:
            command = [sys.executable, "-m", "greenback_trace", "top", str(path)]
            terminals.append(Terminal(tmp_path / "tmux", columns, lines, command))
            return terminals[0]

        yield show
        for each in terminals:
            each.call("kill-server")

    def test_file(self, terminal: Callable[..., Terminal], trace: Path, service: Service) -> None:
        """What a program does appears while it runs, and q ends the view."""
        trace.touch()
        shown = terminal(trace, 120, 30)
        service.answer()

        def is_right(screen: str, times: int) -> bool:
            found = rows(screen)
            # Under way, bridges, those that suspended, errors.
            return (
                is_whole(screen)
                and "1 process " in screen
                and f"portals: run_sync 0 open of {times}" in screen
                and f"slow steps: __main__.hold {times}" in screen
                and found.get("__main__.ask", [])[1:4] == [str(5 * times), str(5 * times), "0"]
                and found.get("__main__.hold", [])[1:4] == [str(times)] * 3
            )

        screen = shown.wait(lambda screen: is_right(screen, 1))
        assert "GREENBACK_TRACE_SOCKET tells" in screen
        service.answer()
        shown.wait(lambda screen: is_right(screen, 2))
        shown.call("send-keys", "q")
        shown.wait(lambda _: shown.status() is not None)
        assert shown.status() == "0"

    def test_stays_whole(
        self, terminal: Callable[..., Terminal], path: Path, served: Service
    ) -> None:
        """Nothing vanishes when numbers change, tables get rows, or the terminal is resized."""
        shown = terminal(path)
        shown.wait(lambda screen: is_whole(screen) and "run_sync 0 open of 1" in screen)
        for columns, lines in ((200, 50), (80, 16), (100, 20)):
            shown.call("resize-window", "-x", str(columns), "-y", str(lines))
            served.answer("park")
            # With the columns there is room for.
            shown.wait(
                lambda screen, wide=columns >= 110: (
                    is_whole(screen)
                    and ("susp." in screen) == wide
                    and "__main__.ask" in screen
                    and "waits" in screen
                )
            )
            served.answer()
        shown.wait(lambda screen: is_whole(screen) and "run_sync 0 open of 7" in screen)

    @pytest.mark.usefixtures("others_are_shown")
    def test_tasks(self, terminal: Callable[..., Terminal], path: Path, served: Service) -> None:
        """Who holds the loop is named, and where; Enter shows the stack of one that is parked."""
        shown = terminal(path)
        served.answer("park")
        shown.wait(lambda screen: "holds the loop for " in screen and "read (service.py:" in screen)
        shown.wait(lambda screen: "wait_for (service.py:" in screen)
        shown.wait(lambda screen: "  event loop stalled for " in screen)
        shown.call("send-keys", "p", "Enter")
        screen = shown.wait(lambda screen: "--- bridge: greenback.await_ ---" in screen)
        assert "Stack of asyncio task 'waits', with a portal (run_sync)" in screen
        assert "await_(event.wait())" in screen
        shown.call("send-keys", "Escape")
        shown.wait(is_whole)
        served.answer()
        shown.wait(lambda screen: "right now no portal holds the loop" in screen)

    def test_order(self, terminal: Callable[..., Terminal], path: Path, served: Service) -> None:
        """Keys say what functions are ordered by; when the program has ended, its numbers stay."""
        shown = terminal(path)
        shown.wait(lambda screen: list(rows(screen)) == ["__main__.hold", "__main__.ask"])
        served.answer()
        shown.call("send-keys", "r")
        shown.wait(lambda screen: list(rows(screen)) == ["__main__.ask", "__main__.hold"])
        shown.call("send-keys", "t")
        shown.wait(lambda screen: list(rows(screen)) == ["__main__.hold", "__main__.ask"])
        served.end()
        screen = shown.wait(lambda screen: is_whole(screen) and "the program has ended" in screen)
        assert rows(screen)["__main__.ask"][0] == "10"

    def test_control_characters(self, terminal: Callable[..., Terminal], path: Path) -> None:
        """Those in names are shown as escapes, and do nothing to the terminal."""
        if not hasattr(socket, "AF_UNIX"):
            pytest.skip("there are no Unix sockets on this system")
        task = {
            "task": "task \x1b[31m\n",
            "library": "lib \x1b[31m\n",
            "portal": "portal \x1b[31m\n",
            "seconds": 1.0,
            "stack": 'Stack of\n  File "x", line 1, in where \x1b[31m\x9b\n',
        }
        numbers = dict.fromkeys(("ok", "errors", "cancelled", "suspended", "suspended_time"), 0)
        line = {
            "version": 1,
            "clock": 1.0,
            "program": "program \x1b[31m\n",
            "pid": 1,
            "active": {},
            "portals": {"kind \x1b[31m\n": {"opened": 1, "closed": 0}},
            "holding": [task],
            "parked": [task],
            "parked_count": 1,
            "slow_steps": {"slow \x1b[31m\n": 1},
            "sites": [{"function": "site \x1b[31m\n", "time": 1.0, **numbers}],
            "steps": {},
        }
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
            listener.bind(str(path))
            listener.listen()
            listener.settimeout(60)
            shown = terminal(path, 200)
            connection, _ = listener.accept()
            with connection:
                connection.sendall(json.dumps(line).encode() + b"\n")
                seen = [
                    rf"{name} \x1b[31m\n"
                    for name in ("program", "kind", "slow", "site", "task", "lib", "portal")
                ]
                seen.append(r"where \x1b[31m\x9b (x:1)")
                shown.wait(lambda screen: all(each in screen for each in seen))
                shown.call("send-keys", "p", "Enter")
                shown.wait(lambda screen: r"line 1, in where \x1b[31m\x9b" in screen)


class TestBadInput:
    @pytest.mark.skipif(not hasattr(socket, "AF_UNIX"), reason="there are no Unix sockets here")
    @pytest.mark.parametrize(
        "name", ["clock", "pid", "program", "sites", "holding", "portals", "slow_steps"]
    )
    @pytest.mark.parametrize(
        "value",
        [None, "half of a pair: \ud800", -1, 1e400, [3], {"key": "text"}, {"key": {}}, [{}]],
        ids=[
            "null",
            "text",
            "negative",
            "infinite",
            "list",
            "object",
            "objects",
            "list of objects",
        ],
    )
    def test_line_of_the_socket(self, path: Path, name: str, value: Any) -> None:
        """One that is not what a program sends is refused, whatever it is; nothing is raised."""
        line: Dict[str, Any] = {
            "version": 1,
            **dict.fromkeys(("clock", "pid", "parked_count"), 1.0),
            "program": "program",
            **{each: {} for each in ("active", "portals", "slow_steps", "steps")},
            **{each: [] for each in ("holding", "parked", "sites")},
        }
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
            listener.bind(str(path))
            listener.listen()
            live = LiveSocket(str(path))
            assert not live.read()
            connection, _ = listener.accept()
            with connection:
                connection.sendall(json.dumps(line).encode() + b"\n")
                wait_until(live.read)
                assert live.now().who == "program (1.0)"
                connection.sendall(json.dumps({**line, name: value}).encode() + b"\n")
                with pytest.raises(NothingToReportError, match="no program of this version"):
                    wait_until(live.read)
            live.close()

    def test_missing(self, trace: Path) -> None:
        """Without the file there is no view, but an error that says what to name."""
        result: Any = CliRunner().invoke(main, ["top", str(trace)])
        assert result.exit_code == 2
        assert f"{trace} cannot be read: No such file or directory" in result.output

    @pytest.mark.parametrize(
        "content",
        [b"nonsense\n", b"nonsense", b"{}\n", b'{\n"a": 1\n}\n', b"\x1f\x8b\x08\n", b"\0" * 100],
        ids=["text", "no line", "empty", "other JSON", "compressed", "binary"],
    )
    def test_no_trace(self, trace: Path, content: bytes) -> None:
        """A file that is no trace is not waited for."""
        trace.write_bytes(content)
        result: Any = CliRunner().invoke(main, ["top", str(trace)])
        assert result.exit_code == 2
        (line,) = result.output.splitlines()
        assert line.startswith(f"greenback-trace: {trace}: not a trace")
        assert "GREENBACK_TRACE_SOCKET" in line

    @pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs a file that has no end")
    def test_no_file(self, trace: Path) -> None:
        """Neither is a pipe, whose other end may never come, nor what has no end."""
        os.mkfifo(str(trace))
        for path in (str(trace), "/dev/zero", str(trace.parent)):
            result: Any = CliRunner().invoke(main, ["top", path])
            assert result.exit_code == 2
            assert f"{path}: neither a file nor a socket" in result.output

    @pytest.mark.parametrize("content", ["", '{"resourceSpans": []}\n'])
    def test_no_terminal(self, trace: Path, content: str) -> None:
        """Without a terminal, the error says so, and what to use instead."""
        pytest.importorskip("textual", reason="the live view needs greenback[report]")
        trace.write_text(content)
        done = subprocess.run(
            # Nor is a file left open.
            [
                sys.executable,
                "-W",
                "default::ResourceWarning",
                "-m",
                "greenback_trace",
                "top",
                str(trace),
            ],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert (done.returncode, done.stdout) == (2, "")
        (line,) = done.stderr.splitlines()
        assert line.startswith("greenback-trace: top needs a terminal")
        assert "greenback-trace report" in line

    def test_nobody_answers(self, path: Path) -> None:
        """Nor is there one at the socket of a program that was killed."""
        if not hasattr(socket, "AF_UNIX"):
            pytest.skip("there are no Unix sockets on this system")
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
            listener.bind(str(path))
        result: Any = CliRunner().invoke(main, ["top", str(path)])
        assert result.exit_code == 2
        assert f"nobody answers at {path}: Connection refused" in result.output
