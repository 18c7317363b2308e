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

pytest.importorskip("click", reason="the report needs greenback[report]")
pytest.importorskip("rich", reason="the report needs greenback[report]")
pytest.importorskip("opentelemetry.sdk", reason="the report needs greenback[report]")

from click.testing import CliRunner

from greenback_trace.cli import main
from greenback_trace.report.read.checked import Part, check
from greenback_trace.report.read.inputs import NothingToReportError
from greenback_trace.report.read.otlp import decode
from greenback_trace.report.top import live as _live
from greenback_trace.report.top.live import LiveFile, LiveSocket, Now, SiteNow, follow
from tests.waiting import wait_until

# For each line that it reads, a loop of its own: what is traced is written when one is closed.
# "park" is a loop with a task that waits until the next line comes; until then sync code holds it.
PROGRAM = """
import asyncio
import sys
import time

import greenback
from greenback import await_


def ask():
    await_(asyncio.sleep(0.001))


def hold():
    time.sleep(0.06)
    try:
        await_(asyncio.wait_for(asyncio.sleep(60), 0.1))
    except asyncio.TimeoutError:
        pass


def answer():
    for _ in range(5):
        ask()
    hold()


def wait_for(event):
    await_(event.wait())


def read():
    print("done", flush=True)
    sys.stdin.readline()


async def park():
    event = asyncio.Event()
    waiting = asyncio.create_task(greenback.with_portal_run_sync(wait_for, event), name="waits")
    await asyncio.sleep(0)
    await greenback.with_portal_run_sync(read)
    event.set()
    await waiting


for line in sys.stdin:
    asyncio.run(park() if line == "park\\n" else greenback.with_portal_run_sync(answer))
    print("done", flush=True)
"""


class Service:
    """The program, which does its work once for each call."""

    def __init__(self, directory: Path, **variables: str) -> None:
        program = directory / "service.py"
        program.write_text(PROGRAM)
        environ = {
            name: value for name, value in os.environ.items() if not name.startswith("GREENBACK_")
        }
        self.process = subprocess.Popen(
            [sys.executable, str(program)],
            env={
                **environ,
                "GREENBACK_TRACE": "1",
                "GREENBACK_TRACE_SLOW": "0.05",
                **variables,
            },
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )

    def answer(self, command: str = "") -> None:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(f"{command}\n")
        self.process.stdin.flush()
        assert self.process.stdout.readline() == "done\n"

    def end(self) -> None:
        self.process.communicate(timeout=60)


@pytest.fixture
def trace(tmp_path: Path) -> Path:
    return tmp_path / "trace.jsonl"


@pytest.fixture
def service(tmp_path: Path, trace: Path) -> Iterator[Service]:
    service = Service(tmp_path, GREENBACK_TRACE_FILE=str(trace))
    yield service
    service.end()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "top.sock"


@pytest.fixture
def served(tmp_path: Path, path: Path) -> Iterator[Service]:
    """A program with a socket, which has had its first portal."""
    if not hasattr(socket, "AF_UNIX"):
        pytest.skip("there are no Unix sockets on this system")
    service = Service(tmp_path, GREENBACK_TRACE_SOCKET=str(path))
    service.answer()
    wait_until(path.exists)
    yield service
    service.end()


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def live(trace: Path) -> Iterator[LiveFile]:
    live = LiveFile(str(trace))
    yield live
    live.close()


def site(now: Now, function: str) -> SiteNow:
    (found,) = [site for site in now.sites if site.function == function]
    return found


class TestLiveFile:
    def test_totals(self, service: Service, live: LiveFile) -> None:
        """The numbers are those of all the program has done, and grow with it."""
        for number in (1, 2, 3):
            service.answer()
            assert live.read()
            now = live.now()
            assert (site(now, "__main__.ask").bridges, site(now, "__main__.ask").suspended) == (
                5 * number,
                5 * number,
            )
            assert site(now, "__main__.hold").errors == number
            assert now.portals == {"run_sync": (0, number)}
            assert now.slow_steps["__main__.hold"][0] == number
            assert (now.processes, now.under_way) == (1, 0)

    def test_nothing_new(self, service: Service, live: LiveFile) -> None:
        """As long as the file does not grow, there is nothing to read."""
        service.answer()
        service.end()
        assert live.read()
        assert not live.read()
        assert site(live.now(), "__main__.ask").bridges == 5

    def test_rates(self, trace: Path, service: Service) -> None:
        """Rates are of the last two times that the program has written."""
        clock = Clock()
        live = LiveFile(str(trace), clock)
        service.answer()
        service.answer()
        service.end()
        live.read()
        now = live.now()
        assert now.bridges_rate == pytest.approx(
            sum(site.bridges_rate for site in now.sites), rel=1e-9
        )
        # Six bridges in less than a second or so, but never in none; slow steps of 60 ms.
        assert (
            0
            < site(now, "__main__.ask").bridges_rate
            == pytest.approx(5 * site(now, "__main__.hold").bridges_rate)
        )
        assert 0 < now.held <= 1
        assert now.slow_steps["__main__.hold"][1] > 0
        clock.now += 3600
        now = live.now()
        assert now.is_idle
        assert (now.bridges_rate, now.held, now.slow_steps["__main__.hold"]) == (0, 0, (2, 0))
        assert site(now, "__main__.ask").bridges == 10
        live.close()

    def test_stalled(self, service: Service, live: LiveFile) -> None:
        """So does a step that still runs when the file is written."""
        service.answer("park")
        wait_until(lambda: live.read() and live.now().stalled)
        assert live.now().stalled > 0.05
        assert live.now().held > 0
        service.answer()
        wait_until(lambda: live.read() and not live.now().stalled)

    def test_a_line_in_parts(self, trace: Path, tmp_path: Path, service: Service) -> None:
        """A line counts when it is complete."""
        service.answer()
        service.end()
        content = trace.read_bytes()
        copy = tmp_path / "copy.jsonl"
        copy.write_bytes(content[:-10])
        live = LiveFile(str(copy))
        live.read()
        before = live.now().sites
        with copy.open("ab") as file:
            file.write(content[-10:])
        live.read()
        assert before == []
        assert site(live.now(), "__main__.ask").bridges == 5
        live.close()

    @pytest.mark.parametrize("how", ["truncated", "replaced"])
    def test_another_file(self, trace: Path, service: Service, live: LiveFile, how: str) -> None:
        """A file that is emptied or replaced is read from its beginning, and only that counts."""
        service.answer()
        service.answer()
        service.end()
        live.read()
        assert site(live.now(), "__main__.ask").bridges == 10
        lines = trace.read_bytes().splitlines(keepends=True)
        first = next(
            number for number, line in enumerate(lines) if line.startswith(b'{"resourceMetrics"')
        )
        if how == "replaced":
            trace.rename(trace.with_name("old.jsonl"))
        trace.write_bytes(b"".join(lines[: first + 1]))
        assert live.read()
        assert site(live.now(), "__main__.ask").bridges == 5

    def test_emptied_while_it_grows(self, trace: Path, service: Service, live: LiveFile) -> None:
        """A file that is rotated by copying it: the program goes on in it, and so do the rates."""
        service.answer()
        live.read()
        before = times(trace)[-1]
        os.truncate(trace, 0)
        assert live.read() is False
        service.answer()
        assert live.read()
        ask = site(live.now(), "__main__.ask")
        assert ask.bridges == 10
        assert ask.bridges_rate == pytest.approx(5 / (times(trace)[0] - before), rel=1e-4)

    def test_rotated(self, trace: Path, service: Service, live: LiveFile) -> None:
        """What was added to a file just before it was renamed is taken in."""
        service.answer()
        live.read()
        service.answer()
        assert live.read()
        service.answer()
        service.end()
        trace.rename(trace.with_name("old.jsonl"))
        with pytest.raises(NothingToReportError):
            live.read()
        assert site(live.now(), "__main__.ask").bridges == 15

    def test_large(self, trace: Path, service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
        """Of a large file that is there already, the end is read, from its first whole line on."""
        service.answer()
        service.answer()
        service.end()
        lines = trace.read_bytes().splitlines(keepends=True)
        last = next(line for line in reversed(lines) if b'"resourceMetrics"' in line)
        trace.write_bytes(b"".join(lines) + last)
        monkeypatch.setattr(_live, "_TAIL", len(last) + 10)
        monkeypatch.setattr(_live, "_PART", 100)
        live = LiveFile(str(trace))
        taken: List[List[Part]] = []
        monkeypatch.setattr(live, "_take", taken.append)
        assert live.read()
        request = decode(last)
        assert request is not None
        assert taken == [check(request, _live._WANTED)]
        assert taken[0][0].points
        live.close()

    def test_no_tasks(self, service: Service, live: LiveFile) -> None:
        """A file has nothing of who holds the loop, nor of parked tasks."""
        service.answer()
        live.read()
        now = live.now()
        assert now.holding is now.parked is None

    def test_broken_lines(self, trace: Path, service: Service, live: LiveFile) -> None:
        """Lines that are no OTLP JSON are left out."""
        trace.write_text('nonsense\n{"resourceMetrics": [3]}\n')
        service.answer()
        live.read()
        assert site(live.now(), "__main__.ask").bridges == 5

    def test_newer(self, trace: Path, service: Service, live: LiveFile) -> None:
        """A file that a newer greenback writes is an error that says which, and what to do."""
        service.answer()
        service.end()
        version = '"greenback.trace.version","value":{"intValue":"'
        trace.write_text(trace.read_text().replace(f'{version}2"', f'{version}3"'))
        for _ in range(2):
            with pytest.raises(NothingToReportError, match="of version 3.* pip install --upgrade"):
                live.read()

    def test_missing(self, live: LiveFile) -> None:
        """A file that is not there is an error that says what to name instead."""
        with pytest.raises(NothingToReportError, match="GREENBACK_TRACE_FILE"):
            live.read()


def times(trace: Path) -> List[float]:
    """When the metrics in a file were written, in seconds, as good as a float can be: to 0.2 us."""
    found = []
    for line in trace.read_text().splitlines():
        request = json.loads(line)
        if "resourceMetrics" in request:
            metrics = request["resourceMetrics"][0]["scopeMetrics"][0]["metrics"]
            (bridges,) = (each for each in metrics if each["name"] == "greenback.bridges")
            found.append(int(bridges["sum"]["dataPoints"][0]["timeUnixNano"]) / 1e9)
    return found


class TestLiveSocket:
    @pytest.fixture
    def live(self, served: Service, path: Path) -> Iterator[LiveSocket]:
        live = follow(str(path))
        assert isinstance(live, LiveSocket)
        yield live
        live.close()

    def test_totals(self, served: Service, live: LiveSocket) -> None:
        """The numbers are those of all the program has done, and it is named."""
        wait_until(live.read)
        now = live.now()
        assert (site(now, "__main__.ask").bridges, site(now, "__main__.ask").suspended) == (5, 5)
        assert site(now, "__main__.hold").errors == 1
        assert now.portals == {"run_sync": (0, 1)}
        assert now.slow_steps["__main__.hold"] == (1, 0)
        assert (now.processes, now.under_way, now.is_idle) == (1, 0, False)
        assert now.who == f"service.py ({served.process.pid})"
        assert now.bridges_rate == now.held == 0  # nothing is known of before

    def test_rates(self, served: Service, live: LiveSocket) -> None:
        """Rates are of the time between the last two lines."""
        wait_until(live.read)
        served.answer()
        wait_until(lambda: live.read() and live.now().bridges_rate)
        now = live.now()
        ask = site(now, "__main__.ask")
        # A second, or more on a busy machine; the answer may be spread over two.
        assert 0 < ask.bridges_rate <= 10
        assert 0 < now.held <= 1
        assert now.bridges_rate == pytest.approx(sum(each.bridges_rate for each in now.sites))

    @pytest.mark.usefixtures("others_are_shown")
    def test_tasks(self, served: Service, live: LiveSocket) -> None:
        """Who holds the loop is known with what it does there, and so is who waits."""
        served.answer("park")
        line = PROGRAM.splitlines().index("    sys.stdin.readline()") + 1
        where = f"read (service.py:{line})"

        def is_held() -> bool:
            live.read()
            return [holding.where for holding in live.now().holding or ()] == [where]

        wait_until(is_held)
        now = live.now()
        assert now.holding is not None
        assert now.holding[0].seconds is not None
        assert now.parked is not None
        (parked,) = now.parked
        line = PROGRAM.splitlines().index("    await_(event.wait())") + 1
        assert (parked.name, parked.where) == ("waits", f"wait_for (service.py:{line})")
        assert (now.parked_count, now.under_way) == (1, 1)
        assert "--- bridge" in parked.stack
        served.answer()

    @pytest.mark.usefixtures("others_are_shown")
    def test_stalled(self, served: Service, live: LiveSocket) -> None:
        """A step counts as holding the loop while it does, and once only."""
        served.answer("park")
        wait_until(lambda: live.read() and live.now().held > 0.9)
        assert live.now().stalled > 0.05
        served.answer()
        wait_until(lambda: live.read() and not live.now().stalled)
        wait_until(lambda: live.read() and live.now().held == 0)

    def test_ends(self, served: Service, live: LiveSocket, tmp_path: Path, path: Path) -> None:
        """When the program ends its numbers stay, and one started after it is found again."""
        wait_until(live.read)
        served.end()
        wait_until(lambda: live.read() and live.now().is_idle)
        now = live.now()
        assert (now.holding, now.parked, now.bridges_rate) == ([], [], 0)
        assert site(now, "__main__.ask").bridges == 5
        with pytest.raises(NothingToReportError, match="nobody answers"):
            live.read()
        another = Service(tmp_path, GREENBACK_TRACE_SOCKET=str(path))
        another.answer()
        another.answer()
        wait_until(path.exists)
        wait_until(live.read)
        now = live.now()
        assert not now.is_idle
        assert now.who == f"service.py ({another.process.pid})"
        assert site(now, "__main__.ask").bridges == 10
        another.end()

    def test_somebody_else(self, path: Path) -> None:
        """What answers something else is an error that says so."""
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
            listener.bind(str(path))
            live = follow(str(path))
            with pytest.raises(NothingToReportError, match="GREENBACK_TRACE_SOCKET"):
                live.read()  # it does not listen yet, as after a program that was killed
            listener.listen(1)
            assert not live.read()
            connection, _ = listener.accept()
            with connection:
                connection.sendall(b"220 mail.example.org\n")
                with pytest.raises(NothingToReportError, match="is no program"):
                    wait_until(live.read)


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
