"""``GREENBACK_TRACE_SOCKET``: real programs, and those who connect to them."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import stat
import subprocess
import sys
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any, Callable, Dict, Iterator, List, Optional, Type

import pytest

import greenback
import greenback_trace
from greenback_trace import Config
from greenback_trace.live.socket import Server
from tests.waiting import wait_until

if TYPE_CHECKING:
    from typing_extensions import Self

pytestmark = pytest.mark.skipif(
    not hasattr(socket, "AF_UNIX"), reason="there are no Unix sockets on this system"
)

# Each line that it reads is a command; it says when it has been carried out.
PROGRAM = """
import asyncio, os, sys
import greenback
from greenback import await_

def ask():
    await_(asyncio.sleep(0))

def wait_for(event):
    await_(event.wait())

def hold():
    print("holding", flush=True)
    return sys.stdin.readline()

async def main():
    os.umask(0)
    event = asyncio.Event()
    await greenback.with_portal_run_sync(ask)
    parked = asyncio.create_task(greenback.with_portal_run_sync(wait_for, event), name="waits")
    await asyncio.sleep(0)
    print("ready", flush=True)
    for line in sys.stdin:
        if line == "end\\n":
            break
        if line == "disable\\n":
            import greenback_trace
            greenback_trace.disable()
        else:
            await greenback.with_portal_run_sync({"ask": ask, "hold": hold}[line.strip()])
        print("done", flush=True)
    event.set()
    await parked

asyncio.run(main())
"""

FORKING = """
import asyncio, os, sys
import greenback

def ask():
    greenback.await_(asyncio.sleep(0))

asyncio.run(greenback.with_portal_run_sync(ask))
print("ready", flush=True)
sys.stdin.readline()
child = os.fork()
if child == 0:
    asyncio.run(greenback.with_portal_run_sync(ask))
    print("child", flush=True)
    sys.stdin.readline()
else:
    assert os.waitpid(child, 0)[1] == 0
    print("done", flush=True)
    sys.stdin.readline()
"""


class Program:
    """The program, in a process of its own."""

    def __init__(self, environ: Dict[str, str], source: str) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-c", source],
            env=environ,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        self.expect("ready")

    def send(self, command: str) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(f"{command}\n")
        self.process.stdin.flush()

    def expect(self, line: str) -> None:
        assert self.process.stdout is not None
        assert self.process.stdout.readline() == f"{line}\n"

    def do(self, command: str) -> None:
        self.send(command)
        self.expect("done")

    def end(self) -> str:
        """What it has logged besides its summary. It has ended well."""
        if self.process.poll() is None:
            self.send("end")
        output, errors = self.process.communicate(timeout=60)
        assert (self.process.returncode, output) == (0, "")
        return "\n".join(line for line in errors.splitlines() if "greenback.summary" not in line)


class Client:
    """A connection to the socket, as soon as there is one."""

    def __init__(self, path: Path) -> None:
        self.connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.connection.settimeout(60)
        wait_until(lambda: self._connect(path))
        self._file = self.connection.makefile("rb")

    def _connect(self, path: Path) -> bool:
        try:
            self.connection.connect(str(path))
            return True
        except (FileNotFoundError, ConnectionRefusedError):
            return False

    def read(self) -> Any:
        """The next line; None at the end."""
        line = self._file.readline()
        return json.loads(line) if line else None

    def close(self) -> None:
        self._file.close()
        self.connection.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def look(path: Path) -> Any:
    with Client(path) as client:
        return client.read()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "top.sock"


@pytest.fixture
def environ(environment: Callable[..., Dict[str, str]], path: Path) -> Dict[str, str]:
    return environment(
        GREENBACK_TRACE="1",
        GREENBACK_TRACE_SOCKET=str(path),
        # CPython 3.12 and later warn of a fork in a process that has threads.
        PYTHONWARNINGS="ignore::DeprecationWarning",
    )


@pytest.fixture
def start(environ: Dict[str, str]) -> Iterator[Callable[..., Program]]:
    """Starts a program; *socket* is in place of the path."""
    programs: List[Program] = []

    def start(before: str = "", socket: Optional[str] = None, program: str = PROGRAM) -> Program:
        changed = {} if socket is None else {"GREENBACK_TRACE_SOCKET": socket}
        programs.append(Program({**environ, **changed}, before + program))
        return programs[-1]

    yield start
    for program in programs:
        program.process.kill()
        program.process.communicate()


class TestLine:
    def test_totals(self, start: Callable[..., Program], path: Path) -> None:
        """A line says whose it is and what was counted, and the next one what is new."""
        program = start()
        with Client(path) as client:
            first = client.read()
            assert (first["version"], first["pid"]) == (1, program.process.pid)
            (ask,) = (site for site in first["sites"] if site["function"] == "__main__.ask")
            assert (ask["ok"], ask["suspended"], ask["errors"]) == (1, 1, 0)
            portals = first["portals"]["run_sync"]
            assert (portals["opened"], portals["closed"]) == (2, 1)
            assert first["active"] == {"asyncio": 1}
            program.do("ask")
            second = client.read()
            (ask,) = (site for site in second["sites"] if site["function"] == "__main__.ask")
            assert ask["ok"] == 2
            assert second["clock"] > first["clock"]
        assert program.end() == ""

    @pytest.mark.usefixtures("others_are_shown")
    def test_parked(self, start: Callable[..., Program], path: Path) -> None:
        """A task that waits in a bridge is there with its stack and for how long it has waited."""
        program = start()
        line = look(path)
        assert (line["holding"], line["parked_count"]) == ([], 1)
        (parked,) = line["parked"]
        assert (parked["task"], parked["library"]) == ("waits", "asyncio")
        assert 0 < parked["seconds"] < 600
        stack = parked["stack"]
        assert "Stack of asyncio task 'waits', with a portal (run_sync)" in stack
        assert stack.index("in wait_for") < stack.index("bridge") < stack.index("in wait\n")
        assert program.end() == ""

    @pytest.mark.usefixtures("others_are_shown")
    def test_holding(self, start: Callable[..., Program], path: Path) -> None:
        """While sync code keeps the event loop, its task is named, and what it is doing."""
        program = start()
        program.send("hold")
        program.expect("holding")
        line = look(path)
        (holding,) = line["holding"]
        assert (holding["library"], holding["portal"]) == ("asyncio", "run_sync")
        assert 0 < holding["seconds"] < 600
        assert "in hold\n" in holding["stack"]
        assert [each["task"] for each in line["parked"]] == ["waits"]
        program.send("go on")
        program.expect("done")
        assert look(path)["holding"] == []
        assert program.end() == ""

    def test_with_a_file(self, start: Callable[..., Program], path: Path, tmp_path: Path) -> None:
        """A program that writes its trace to a file can be looked at, too."""
        trace = tmp_path / "trace.jsonl"
        before = f"import os; os.environ['GREENBACK_TRACE_FILE'] = {str(trace)!r}\n"
        pytest.importorskip("opentelemetry.exporter.otlp.proto.common", reason="needs [report]")
        program = start(before)
        assert look(path)["portals"]["run_sync"]["opened"] == 2
        assert program.end() == ""
        assert trace.stat().st_size > 0
        assert not path.exists()

    @pytest.mark.usefixtures("others_are_shown")
    def test_trio(self, path: Path) -> None:
        """A task of Trio's is there with its name and its stack."""
        import trio
        import trio.testing

        async def main() -> Any:
            async with trio.open_nursery() as nursery:

                def wait() -> None:
                    greenback.await_(trio.sleep_forever())

                nursery.start_soon(greenback.with_portal_run_sync, wait, name="trio's")
                await trio.testing.wait_all_tasks_blocked()
                line = await trio.to_thread.run_sync(look, path)
                nursery.cancel_scope.cancel()
            return line

        greenback_trace.enable(config=Config(socket=str(path)))
        (parked,) = trio.run(main)["parked"]
        assert (parked["task"], parked["library"]) == ("trio's", "trio")
        assert parked["stack"].count("in sleep_forever") == 1


class TestMode:
    def test_private(self, start: Callable[..., Program], path: Path) -> None:
        """Nobody else can connect, whatever the umask, and nothing else is left beside it."""
        program = start()
        look(path)
        assert stat.S_IMODE(path.lstat().st_mode) == 0o600
        assert os.listdir(path.parent) == [path.name]
        assert program.end() == ""

    @pytest.mark.skipif(
        sys.implementation.name == "pypy", reason="PyPy tells no audit hook of a renamed file"
    )
    def test_private_from_the_first_moment(self, start: Callable[..., Program], path: Path) -> None:
        """When it appears in its place it has its mode already; before, it is where nobody gets."""
        program = start(
            """if True:
            import os, stat, sys
            def look(event, args):
                if event in ("socket.bind", "os.rename"):
                    made = args[1] if event == "socket.bind" else args[0]
                    mode = os.stat(os.path.dirname(made)).st_mode
                    print(event, oct(stat.S_IMODE(mode)), file=sys.stderr)
                if event == "os.rename":
                    print("file", oct(stat.S_IMODE(os.lstat(made).st_mode)), file=sys.stderr)
            sys.addaudithook(look)
            """
        )
        look(path)
        assert program.end().splitlines() == ["socket.bind 0o700", "os.rename 0o700", "file 0o600"]

    def test_read_only(self, start: Callable[..., Program], path: Path) -> None:
        """What is sent there is nothing to the program."""
        program = start()
        with Client(path) as client:
            client.connection.sendall(b'{"disable": true}\n' * 1000)
            assert client.read()["pid"] == client.read()["pid"] == program.process.pid
        assert program.end() == ""


class TestPath:
    def test_left_behind(self, start: Callable[..., Program], path: Path) -> None:
        """The socket of a process that was killed is replaced."""
        first = start()
        look(path)
        first.process.send_signal(signal.SIGKILL)
        first.process.wait()
        assert path.exists()
        second = start()
        assert look(path)["pid"] == second.process.pid
        assert second.end() == ""
        assert not path.exists()

    def test_in_use(self, start: Callable[..., Program], path: Path) -> None:
        """One that answers is left alone, which is said once; the second process works on."""
        first = start()
        assert look(path)["pid"] == first.process.pid
        second = start()
        second.do("ask")
        log = second.end()
        assert log.count("GREENBACK_TRACE_SOCKET") == 1
        assert f"{path} is another process's socket, which answers" in log
        assert "{pid}" in log
        assert look(path)["pid"] == first.process.pid
        assert first.end() == ""

    def test_pid(self, start: Callable[..., Program], path: Path) -> None:
        """Each process has its own where the path has {pid} in it."""
        programs = [start(socket=str(path.with_name("{pid}.sock"))) for _ in range(2)]
        for program in programs:
            pid = program.process.pid
            assert look(path.with_name(f"{pid}.sock"))["pid"] == pid
            assert program.end() == ""

    @pytest.mark.parametrize(
        ("name", "why"),
        [
            ("x" * 120, "is too long for a socket"),
            ("there-is-no-such-directory/s", "cannot be opened (No such file or directory)"),
            ("file", "is a file, and no socket"),
            ("link", "is a file, and no socket"),
        ],
        ids=["long", "directory", "file", "link"],
    )
    def test_unusable(
        self, start: Callable[..., Program], tmp_path: Path, name: str, why: str
    ) -> None:
        """One event says why there is no socket and what to do; the program works on."""
        (tmp_path / "file").write_text("precious")
        (tmp_path / "link").symlink_to(tmp_path / "nowhere")
        program = start(socket=str(tmp_path / name))
        program.do("ask")
        log = program.end()
        assert log.count("\n") == 0
        assert "GREENBACK_TRACE_SOCKET: " in log
        assert why in log
        assert "Name a" in log
        assert (tmp_path / "file").read_text() == "precious"
        assert sorted(os.listdir(tmp_path)) == ["file", "link"]

    def test_without_tracing(self, start: Callable[..., Program], path: Path) -> None:
        """Without GREENBACK_TRACE there is no socket."""
        program = start("import os; del os.environ['GREENBACK_TRACE']\n")
        program.do("ask")
        assert program.end() == ""
        assert not path.exists()


class TestEnd:
    def test_exit(self, start: Callable[..., Program], path: Path) -> None:
        """When the program ends, the connection does, and the file is removed."""
        program = start()
        with Client(path) as client:
            assert client.read() is not None
            program.end()
            assert client.read() is None or client.read() is None
        assert not path.exists()

    def test_disable(self, start: Callable[..., Program], path: Path) -> None:
        """`disable` has removed it when it returns, and the program goes on."""
        program = start()
        look(path)
        program.do("disable")
        assert not path.exists()
        program.do("ask")
        assert not path.exists()
        program.end()

    def test_another_one_in_its_place(self, start: Callable[..., Program], path: Path) -> None:
        """What somebody has put in its place meanwhile is not removed."""
        program = start()
        look(path)
        path.unlink()
        path.write_text("somebody else's")
        assert program.end() == ""
        assert path.read_text() == "somebody else's"

    def test_again(self, path: Path) -> None:
        """Tracing can be enabled once more with the same path."""
        for _ in range(2):
            greenback_trace.enable(config=Config(socket=str(path)))
            asyncio.run(greenback.with_portal_run_sync(greenback.await_, asyncio.sleep(0)))
            assert look(path)["pid"] == os.getpid()
            greenback_trace.disable()
            assert not path.exists()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork on this system")
class TestFork:
    def test_same_path(self, start: Callable[..., Program], path: Path) -> None:
        """A forked child that bridges leaves its parent's socket alone, and says so."""
        program = start(program=FORKING)
        assert look(path)["pid"] == program.process.pid
        program.send("fork")
        program.expect("child")
        assert look(path)["pid"] == program.process.pid
        program.send("child, end")
        program.expect("done")
        assert look(path)["pid"] == program.process.pid
        log = program.end()
        assert log.count("which answers") == 1
        assert not path.exists()

    def test_own_path(self, start: Callable[..., Program], path: Path) -> None:
        """With {pid} in the path a forked child has its own, with its own numbers."""
        program = start(socket=str(path.with_name("{pid}.sock")), program=FORKING)
        mine = path.with_name(f"{program.process.pid}.sock")
        look(mine)
        program.send("fork")
        program.expect("child")
        others: List[Path] = []

        def is_there() -> bool:
            others[:] = [each for each in path.parent.glob("*.sock") if each != mine]
            return bool(others)

        wait_until(is_there)
        line = look(others[0])
        assert f"{line['pid']}.sock" == others[0].name
        (site,) = line["sites"]
        assert (site["function"], site["ok"]) == ("__main__.ask", 1)
        program.send("child, end")
        program.expect("done")
        assert not others[0].exists()
        assert look(mine)["pid"] == program.process.pid
        assert program.end() == ""


class TestClients:
    @pytest.fixture
    def serve(self, path: Path) -> Iterator[Callable[..., None]]:
        servers: List[Server] = []

        def serve(describe: Callable[[], Dict[str, Any]]) -> None:
            servers.append(Server(str(path), describe))
            servers[0].start()

        yield serve
        for server in servers:
            server.close()
        assert not path.exists()
        assert all(thread.name != "greenback_trace socket" for thread in threading.enumerate())

    def test_one_that_does_not_read(
        self, serve: Callable[..., None], path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """It is dropped when it has had its time."""
        monkeypatch.setattr("greenback_trace.live.socket.INTERVAL", 0.02)
        monkeypatch.setattr("greenback_trace.live.socket._PATIENCE", 0.1)
        serve(lambda: {"much": "x" * 5_000_000})
        with Client(path) as lazy:

            def is_dropped() -> bool:
                try:  # to be told without reading anything
                    lazy.connection.send(b"x")
                    return False
                except (BrokenPipeError, ConnectionResetError):
                    return True

            wait_until(is_dropped)

    def test_beside_one_that_does_not_read(
        self, serve: Callable[..., None], path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Others get their lines meanwhile, which are whole however large they are."""
        monkeypatch.setattr("greenback_trace.live.socket.INTERVAL", 0.02)
        serve(lambda: {"much": "x" * 5_000_000})
        with Client(path), Client(path) as good:
            for _ in range(3):
                assert len(good.read()["much"]) == 5_000_000

    def test_too_many(self, serve: Callable[..., None], path: Path) -> None:
        """Who has connected and does nothing more does not keep a ninth one out."""
        serve(lambda: {"fine": True})
        clients = [Client(path) for _ in range(8)]
        assert all(client.read() for client in clients)
        with Client(path) as ninth:
            assert ninth.read() == {"fine": True}
            while clients[0].read() is not None:
                pass  # it may have got a line before it was closed
            assert ninth.read() == {"fine": True}
        for client in clients:
            client.close()

    @pytest.mark.skipif(sys.platform != "linux", reason="not every system tells who has read")
    def test_idle_for_longest(self, serve: Callable[..., None], path: Path) -> None:
        """The one that has not read for the longest time gives way, not one that reads."""
        serve(lambda: {"fine": True})
        readers = [Client(path)]
        idle = Client(path)
        readers += [Client(path) for _ in range(6)]
        # When the second line is made, the others have read the first one.
        for _ in range(2):
            for reader in readers:
                assert reader.read() == {"fine": True}
        with Client(path) as ninth:
            assert ninth.read() == {"fine": True}
            while idle.read() is not None:
                pass
            for reader in readers:
                assert reader.read() == {"fine": True}
        for client in (*readers, idle):
            client.close()

    @pytest.mark.parametrize("error", [RuntimeError, KeyError])
    def test_a_line_that_fails(
        self,
        serve: Callable[..., None],
        path: Path,
        error: Type[Exception],
        caplog: pytest.LogCaptureFixture,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        """A line that cannot be made is left out, and said once; those that can are sent."""
        monkeypatch.setattr("greenback_trace.live.socket.INTERVAL", 0.01)
        failures = [error("changed"), error("changed")]

        def describe() -> Dict[str, Any]:
            if failures:
                raise failures.pop()
            return {"fine": True}

        serve(describe)
        with Client(path) as client:
            assert client.read() == {"fine": True}
        assert caplog.text.count("is left out") == 1


class TestBusy:
    def test_task_that_ends_meanwhile(self, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """A task whose end comes while it is looked at is left out, instead of having no stack."""
        begun: List[Any] = []

        async def main() -> None:
            loop = asyncio.get_running_loop()
            begun.extend([loop, loop.create_future()])
            await greenback.with_portal_run_sync(greenback.await_, begun[1])

        def let_it_end_first(task: Any) -> str:
            loop, future = begun
            loop.call_soon_threadsafe(future.set_result, None)
            thread.join()
            return greenback_trace.format_task(task)

        greenback_trace.enable(config=Config(socket=str(path), spans="none"))
        thread = threading.Thread(target=asyncio.run, args=(main(),))
        thread.start()
        wait_until(lambda: path.exists() and bool(look(path)["parked"]))
        monkeypatch.setattr("greenback_trace.live.describe.format_task", let_it_end_first)
        assert look(path)["parked"] == []
        assert not thread.is_alive()

    def test_while_portals_come_and_go(self, path: Path) -> None:
        """Lines are right while other threads open portals, bridge and close them, in thousands."""
        done = threading.Event()

        def ask(seconds: float) -> None:
            greenback.await_(asyncio.sleep(0))
            # While the loops are idle, somebody is parked, and the socket's thread has its turn.
            greenback.await_(asyncio.sleep(seconds))

        async def portals() -> None:
            while not done.is_set():
                await asyncio.gather(
                    *(greenback.with_portal_run_sync(ask, each / 10_000) for each in range(20))
                )

        greenback_trace.enable(config=Config(socket=str(path), spans="none"))
        threads = [threading.Thread(target=asyncio.run, args=(portals(),)) for _ in range(2)]
        for thread in threads:
            thread.start()
        try:
            lines = [look(path) for _ in range(30)]
        finally:
            done.set()
            for thread in threads:
                thread.join()
        counts = [sum(site["ok"] for site in line["sites"]) for line in lines]
        assert counts == sorted(counts)
        assert counts[0] < counts[-1]
        shown = [task for line in lines for task in (*line["parked"], *line["holding"])]
        assert shown
        assert all(task["stack"].startswith("Stack of asyncio task") for task in shown)
        snapshot = greenback_trace.snapshot()
        assert counts[-1] <= sum(site.ok for site in snapshot.sites)
