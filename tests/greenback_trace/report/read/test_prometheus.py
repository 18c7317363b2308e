"""``greenback-trace report --prometheus``, on a Prometheus that scrapes two processes."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import threading
from contextlib import ExitStack, contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import IO, Any, Dict, Iterator, List
from urllib.request import urlopen

import pytest

pytest.importorskip("click", reason="the report needs greenback[report]")
pytest.importorskip("rich", reason="the report needs greenback[report]")
pytest.importorskip("opentelemetry.exporter.prometheus", reason="what the processes export with")

from click.testing import CliRunner, Result

from greenback_trace.cli import main
from greenback_trace.report.read.inputs import NothingToReportError
from greenback_trace.report.read.prometheus import ask_prometheus
from tests.waiting import wait_until

PROMETHEUS = shutil.which("prometheus")
REPOSITORY = Path(__file__).resolve().parents[4]
DEADLINE = 30

needs_prometheus = pytest.mark.skipif(
    PROMETHEUS is None, reason="needs the program prometheus: apt-get install prometheus"
)

# The password is "secret".
AUTHENTICATION = """
basic_auth_users:
  operator: $2b$04$AUl.z6iyhCbFAHPysj/G8.4Zc6lTFbOhitj8HsEQ77TQvA7TiExRW
"""
PROGRAM = """
import asyncio
import sys

from opentelemetry.exporter.prometheus import PrometheusMetricReader
from opentelemetry.metrics import set_meter_provider
from opentelemetry.sdk.metrics import MeterProvider
from prometheus_client import start_http_server

import greenback
from greenback import await_

set_meter_provider(MeterProvider([PrometheusMetricReader()]))
server, _ = start_http_server(0, "127.0.0.1")


async def nothing():
    pass


def waits():
    await_(asyncio.sleep(0.001))


def finds():
    await_(nothing())


def half(number):
    await_(asyncio.sleep(0) if number % 2 else nothing())


def fails():
    await_(asyncio.wait_for(asyncio.sleep(60), timeout=0))


def is_cancelled():
    future = asyncio.get_running_loop().create_future()
    future.cancel()
    await_(future)


def beats():
    await_(asyncio.sleep(0.01))


async def main(count):
    await greenback.ensure_portal()
    for number in range(count):
        waits()
        finds()
        half(number)
    try:
        fails()
    except asyncio.TimeoutError:
        pass
    try:
        is_cancelled()
    except asyncio.CancelledError:
        pass
    finds()
    print(server.server_port, flush=True)
    # Until the test has seen enough: standard input is closed.
    ended = asyncio.get_running_loop().run_in_executor(None, sys.stdin.read)
    while not ended.done():
        beats()


asyncio.run(main(int(sys.argv[1])))
"""


@contextmanager
def running(program: Path, count: int) -> Iterator[str]:
    """A process that bridges, and the address of its metrics."""
    environ = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("GREENBACK_TRACE", "OTEL_"))
    }
    environ.update(GREENBACK_TRACE="1", PYTHONPATH=str(REPOSITORY))
    with subprocess.Popen(
        [sys.executable, str(program), str(count)],
        env=environ,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            yield f"127.0.0.1:{int(process.stdout.readline())}"
        finally:
            process.stdin.close()


@contextmanager
def serving(pages: Dict[str, str]) -> Iterator[str]:
    """An HTTP server of *pages* by path, and its address."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            page = pages.get(self.path.partition("?")[0])
            self.send_response(404 if page is None else 200)
            # Prometheus 3 scrapes nothing without this header.
            self.send_header("Content-Type", "text/plain; version=0.0.4")
            self.end_headers()
            self.wfile.write((page or "<html>not here").encode())

        def log_message(self, *_: Any) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.05,))
        thread.start()
        try:
            yield f"127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()
            thread.join()


@contextmanager
def scraping(directory: Path, jobs: Dict[str, List[str]], *options: str) -> Iterator[str]:
    """A Prometheus that scrapes jobs, and its URL."""
    directory.mkdir()
    configuration = {
        "global": {"scrape_interval": "500ms", "scrape_timeout": "500ms"},
        "scrape_configs": [
            {"job_name": name, "static_configs": [{"targets": targets}]}
            for name, targets in jobs.items()
        ],
    }
    (directory / "prometheus.yml").write_text(json.dumps(configuration))
    assert PROMETHEUS is not None
    with subprocess.Popen(
        [
            PROMETHEUS,
            f"--config.file={directory / 'prometheus.yml'}",
            f"--storage.tsdb.path={directory / 'data'}",
            "--web.listen-address=127.0.0.1:0",
            "--log.format=json",
            *options,
        ],
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stderr is not None
        try:
            yield f"http://{listening(process.stderr)}"
        finally:
            process.terminate()


def listening(log: IO[str]) -> str:
    """The address in the log of a Prometheus, once it is also ready; the order may differ."""
    address, is_ready = "", False
    for line in log:
        event = json.loads(line)
        assert "err" not in event, line
        if event.get("msg") == "Listening on":
            address = event["address"]
        if event.get("msg") == "Server is ready to receive web requests.":
            is_ready = True
        if address and is_ready:
            return address
    raise AssertionError("it has ended")


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The URL of a Prometheus that has scraped two processes, and a Collector's page of two."""
    directory = tmp_path_factory.mktemp("prometheus")
    program = directory / "program.py"
    program.write_text(PROGRAM)
    with ExitStack() as stack:
        targets = [stack.enter_context(running(program, count)) for count in (10, 20)]
        page = stack.enter_context(serving({"/metrics": collected(targets[0])}))
        jobs = {"shop": targets, "collector": [page]}
        address = stack.enter_context(scraping(directory / "shop", jobs))
        yield address


def collected(target: str) -> str:
    """The metrics page of a Collector that adds no suffixes, for two processes."""
    with urlopen(f"http://{target}/metrics") as response:
        page = response.read().decode().replace("__main__.", "collected.")
    lines = [line for line in page.splitlines() if 'code_function_name="collected.waits"' in line]
    assert lines
    return "".join(
        re.sub(r"^(\w+?)(_seconds)?_total\{", rf'\1{{job="shop",instance="{instance}",', line)
        + "\n"
        for instance in ("one", "two")
        for line in lines
    )


def wait_for_instances(url: str) -> None:
    """Wait until all targets are up. On a busy machine, a target may miss a scrape."""
    wait_until(lambda: is_complete(url), DEADLINE)


def is_complete(url: str) -> bool:
    try:
        fleet = ask_prometheus(url, "5m")
    except NothingToReportError:
        return False
    rates = {function.function: function.rate for function in fleet.functions}
    return fleet.instances == 4 and rates.get("__main__.beats", 0) > 0


def report(*arguments: Any, columns: int = 200) -> Result:
    return CliRunner().invoke(main, ["report", *map(str, arguments)], env={"COLUMNS": str(columns)})


def functions(url: str) -> Dict[str, Dict[str, Any]]:
    wait_for_instances(url)
    result = report("--prometheus", url, "--json")
    assert result.exit_code == 0, result.output
    return {each["function"]: each for each in json.loads(result.stdout)["functions"]}


@needs_prometheus
class TestNumbers:
    def test_all_instances_are_added_up(self, url: str) -> None:
        """A function has the exact bridges of all instances, and the number of instances."""
        waits = functions(url)["__main__.waits"]
        assert waits["bridges"] == waits["ok"] == 30
        assert waits["instances"] == 2
        assert waits["time"] >= waits["suspended_time"] >= 30 * 0.001

    def test_suspended(self, url: str) -> None:
        """Suspended bridges are counted."""
        found = functions(url)
        assert found["__main__.waits"]["suspended"] == 30
        assert found["__main__.half"]["suspended"] == 15
        assert found["__main__.finds"]["suspended"] == 0

    def test_outcomes(self, url: str) -> None:
        """Errors and cancelled bridges are counted separately."""
        found = functions(url)
        assert found["__main__.fails"]["errors"] == found["__main__.fails"]["bridges"] == 2
        assert found["__main__.is_cancelled"]["cancelled"] == 2
        assert found["__main__.waits"]["errors"] == 0

    def test_rate(self, url: str) -> None:
        """The rate counts bridges in the window: 0 for a function that is no longer called."""
        found = functions(url)
        assert found["__main__.beats"]["rate"] > 0
        assert found["__main__.waits"]["rate"] == 0

    def test_window(self, url: str) -> None:
        """A rate needs two scrapes in its window."""
        wait_for_instances(url)
        result = report("--prometheus", url, "--window", "1ms", "--json")
        assert {each["rate"] for each in json.loads(result.stdout)["functions"]} == {0}

    def test_collector(self, url: str) -> None:
        """Metrics without suffixes count, and instances on a Collector's page are told apart."""
        found = functions(url)["collected.waits"]
        assert found["bridges"] == found["suspended"] == 20
        assert found["time"] > 0
        assert found["suspended_time"] > 0
        assert found["instances"] == 2


@needs_prometheus
class TestLayout:
    @pytest.fixture(autouse=True)
    def _all_are_up(self, url: str) -> None:
        wait_for_instances(url)

    @pytest.mark.parametrize("columns", [80, 200])
    def test_fits(self, url: str, columns: int) -> None:
        """No line is wider than the terminal, and names and numbers are whole."""
        result = report("--prometheus", url, columns=columns)
        assert result.exit_code == 0
        assert max(map(len, result.stdout.splitlines())) <= columns
        assert "…" not in result.stdout
        assert "__main__.is_cancelled" in result.stdout

    def test_table(self, url: str) -> None:
        """A row has bridges, share of suspended bridges, errors and instances."""
        (row,) = [
            line for line in report("--prometheus", url).stdout.splitlines() if "half" in line
        ]
        assert re.search(r"__main__\.half +30 +0 +50% .* 0 +0 +2 *$", row)

    def test_top(self, url: str) -> None:
        """The output says how many functions --top leaves out."""
        printed = report("--prometheus", url, "--top", 2).stdout
        assert re.search(r"and 5 more functions with \d+ bridges: --top 7 shows all", printed)

    def test_sort_and_function(self, url: str) -> None:
        """--function chooses by a part of the name, and --sort sorts by another number."""
        result = report(
            "--prometheus", url, "--function", "finds", "--function", "waits", "--sort", "bridges"
        )
        assert result.stdout.index("__main__.finds") < result.stdout.index("__main__.waits")
        assert "__main__.half" not in result.stdout
        assert "from 3 of 7 functions in 4 instances" in result.stdout

    def test_no_such_function(self, url: str) -> None:
        """A name that no function has is an error that names an existing function."""
        result = report("--prometheus", url, "--function", "nowhere")
        assert result.exit_code == 2
        assert "none of 7 functions has such a name" in result.output


@needs_prometheus
class TestServer:
    def test_nothing_there(self, tmp_path: Path) -> None:
        """A Prometheus without metrics of greenback is an error that says how to get some."""
        with scraping(tmp_path / "empty", {}) as empty:
            result = report("--prometheus", empty)
        assert result.exit_code == 2
        assert f"{empty}: a Prometheus, but without greenback_bridges_total" in result.output
        assert "GREENBACK_TRACE=1" in result.output

    def test_credentials(self, tmp_path: Path) -> None:
        """User and password in the URL are sent, and never printed."""
        file = tmp_path / "web.yml"
        file.write_text(AUTHENTICATION)
        with scraping(tmp_path / "closed", {}, f"--web.config.file={file}") as closed:
            refused = report("--prometheus", closed)
            wrong = report("--prometheus", closed.replace("//", "//operator:wrong@"))
            let_in = report("--prometheus", closed.replace("//", "//operator:secret@"))
        assert refused.exit_code == wrong.exit_code == let_in.exit_code == 2
        assert f"{closed}: 401 Unauthorized" in refused.output
        assert f"{closed}: 401 Unauthorized" in wrong.output
        assert f"{closed}: a Prometheus, but without" in let_in.output
        assert "wrong" not in wrong.output
        assert "secret" not in let_in.output

    def test_path(self, url: str) -> None:
        """A wrong path is an error that says what the server answers there."""
        result = report("--prometheus", f"{url}/elsewhere/")
        assert result.exit_code == 2
        assert "not the address of a Prometheus" in result.output
        assert "404 Not Found" in result.output


class TestBadInput:
    def test_nobody_there(self) -> None:
        """A server that cannot be reached is an error that says why."""
        with serving({}) as address:
            pass
        result = report("--prometheus", f"http://{address}")
        assert result.exit_code == 2
        assert f"http://{address}: cannot be asked: Connection refused" in result.output

    @pytest.mark.parametrize("page", ["<html>", "[]", '{"status": "success", "data": 3}'])
    def test_not_prometheus(self, page: str) -> None:
        """Another server is not taken for a Prometheus."""
        with serving({"/api/v1/query": page}) as address:
            result = report("--prometheus", f"http://{address}")
        assert result.exit_code == 2
        assert f"http://{address}: not the address of a Prometheus" in result.output

    @pytest.mark.parametrize("url", ["localhost:9090", "http://", "http://[", "file:///etc/passwd"])
    def test_no_url(self, url: str) -> None:
        """A text that is no URL is an error that shows a URL."""
        result = report("--prometheus", url)
        assert result.exit_code == 2
        assert "not a URL. Write one such as http://localhost:9090" in result.output

    def test_no_window(self) -> None:
        """A text that is no duration is an error that shows some, without asking the server."""
        result = report("--prometheus", "http://localhost:1", "--window", "5 minutes")
        assert result.exit_code == 2
        assert "--window 5 minutes: not a duration of Prometheus. Write 5m" in result.output

    def test_files_too(self, tmp_path: Path) -> None:
        """Both files and --prometheus, or neither, is an error."""
        assert report(tmp_path / "file", "--prometheus", "http://localhost:1").exit_code == 2
        assert report().exit_code == 2

    def test_what_metrics_do_not_have(self) -> None:
        """Options that need a trace file are an error with --prometheus."""
        for options in (["--path", "shop"], ["--since", "30m"], ["--sort", "p95"]):
            result = report("--prometheus", "http://localhost:1", *options)
            assert result.exit_code == 2
            assert "metrics have nothing else" in result.output
