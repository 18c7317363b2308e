"""`make demo` runs this: a web site that was written for threads, on asyncio and on Trio.

The site (web.py) renders this project's documentation with Jinja2. Its templates come from an HTTP
server and its numbers from SQLite, both through greenback. This module has the HTTP server, readers
that check each page, and the report of the trace.
"""

from __future__ import annotations

import argparse
import hashlib
import html
import http.client
import http.server
import json
import os
import re
import shutil
import sqlite3
import subprocess
import sys
import tempfile
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Dict, Iterator, List, NamedTuple, Tuple

from contents import fill

from greenback_trace.report import load

HERE = Path(__file__).resolve().parent
LIBRARIES = ("asyncio", "trio")
#: The demo gives up on anything that takes more than so many seconds.
PATIENCE = 60


class WrongError(Exception):
    """A result of the demo is wrong."""


class TemplateServer(http.server.ThreadingHTTPServer):
    """An HTTP server for the files in templates/, in a thread of its own.

    Attributes:
        requests: The number of requests answered. Each connection's thread writes it, under a lock.
    """

    request_queue_size = 128
    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _TemplateHandler)
        self.requests = 0
        self._lock = threading.Lock()
        self.files: Dict[str, Tuple[str, bytes]] = {}
        for path in (HERE / "templates").iterdir():
            content = path.read_bytes()
            self.files[f"/{path.name}"] = f'"{hashlib.sha256(content).hexdigest()}"', content
        threading.Thread(target=self.serve_forever, daemon=True).start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def count_request(self) -> None:
        with self._lock:
            self.requests += 1


class _TemplateHandler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    # Headers and body are written one after the other.
    disable_nagle_algorithm = True
    server: TemplateServer

    def do_GET(self) -> None:
        self.server.count_request()
        etag, content = self.server.files.get(self.path, ("", b""))
        if not etag:
            self.send_response(404)
        elif self.headers["If-None-Match"] == etag:
            self.send_response(304)
            content = b""
        else:
            self.send_response(200)
            self.send_header("Content-Type", "text/html; charset=utf-8")
        if etag:
            self.send_header("ETag", etag)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *args: object) -> None:
        pass


class Readers:
    """Reads and checks many pages at a time. Each thread has its own connection."""

    def __init__(self, port: int, expected: Dict[str, List[str]]) -> None:
        self._port = port
        self._expected = expected
        self._threads = threading.local()

    def read(self, name: str) -> Tuple[str, int, str]:
        """The name, the number of views that the page shows, and the page."""
        try:
            connection = self._threads.connection
        except AttributeError:
            connection = http.client.HTTPConnection("127.0.0.1", self._port, timeout=PATIENCE)
            self._threads.connection = connection
        connection.request("GET", f"/{name}.html")
        response = connection.getresponse()
        page = response.read().decode()
        if response.status != 200:
            raise WrongError(f"{name}: HTTP status {response.status}")
        text = html.unescape(page)
        missing = [part for part in self._expected[name] if part not in text]
        views = re.search(r'data-views="(\d+)"', page)
        if missing or views is None:
            raise WrongError(f"{name}: the page does not have {missing or 'its views'}")
        return name, int(views[1]), page


class Result(NamedTuple):
    pages: int
    size: int
    seconds: float
    requests: int
    statements: int


def expectations(database_path: Path) -> Dict[str, List[str]]:
    """What each page must show, from the database before the site has used it."""
    database = sqlite3.connect(str(database_path))
    expected = {}
    for name, title in database.execute("SELECT name, title FROM pages").fetchall():
        sections = database.execute("SELECT anchor, title FROM sections WHERE page = ?", (name,))
        meanings = database.execute(
            "SELECT word, meaning FROM uses JOIN words USING (word) WHERE page = ?", (name,)
        )
        parts = [f"<title>{title} · greenback</title>"]
        parts += [f'<a href="#{anchor}">{heading}</a>' for anchor, heading in sections]
        if name != "index":  # the text of the front page has links to all pages
            parts += [f"<dt>{word}</dt>\n      <dd>{meaning}</dd>" for word, meaning in meanings]
        expected[name] = parts
    database.close()
    return expected


@contextmanager
def site(library: str, database: Path, templates: str, trace: Path) -> Iterator[subprocess.Popen]:
    """Start the web site, traced, as a user would to see where it bridges."""
    environ = {
        **{
            name: value
            for name, value in os.environ.items()
            if not name.startswith("GREENBACK_TRACE")
        },
        "GREENBACK_TRACE": "1",
        "GREENBACK_TRACE_FILE": str(trace),
    }
    process = subprocess.Popen(
        [sys.executable, str(HERE / "web.py"), library, str(database), templates],
        env=environ,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def visit(library: str, contents: Path, directory: Path, count: int, at_once: int) -> Result:
    """Start the site on *library*, read *count* of its pages, and keep the last of each."""
    database = directory / f"{library}.sqlite"
    shutil.copyfile(contents, database)
    expected = expectations(database)
    names = list(expected)
    templates = TemplateServer()
    with site(library, database, templates.url, directory / f"{library}.jsonl") as process:
        ready = process.stdout.readline()
        if not ready:
            raise WrongError(f"the site has not started: exit status {process.wait(PATIENCE)}")
        readers = Readers(json.loads(ready)["port"], expected)
        start = time.perf_counter()
        with ThreadPoolExecutor(at_once) as threads:
            read = list(
                threads.map(readers.read, [names[number % len(names)] for number in range(count)])
            )
        seconds = time.perf_counter() - start
        end, _ = process.communicate(timeout=PATIENCE)
        if process.returncode:
            raise WrongError(f"the site has failed: exit status {process.returncode}")
    templates.shutdown()
    templates.server_close()
    check_views(database, read)
    pages = directory / library
    pages.mkdir()
    for name, _, page in read:
        (pages / f"{name}.html").write_text(page, encoding="utf-8")
    return Result(
        pages=len(read),
        size=sum(len(page.encode()) for _, _, page in read),
        seconds=seconds,
        requests=templates.requests,
        statements=json.loads(end)["statements"],
    )


def check_views(path: Path, read: List[Tuple[str, int, str]]) -> None:
    """Check that readers of a page saw different numbers of views, the last as in the database."""
    seen: Dict[str, List[int]] = {}
    for name, views, _ in read:
        seen.setdefault(name, []).append(views)
    database = sqlite3.connect(str(path))
    stored = dict(database.execute("SELECT name, views FROM pages WHERE views > 0"))
    database.close()
    for name, views in seen.items():
        if sorted(views) != list(range(1, len(views) + 1)) or stored.get(name) != len(views):
            raise WrongError(
                f"{name}: read {len(views)} times, shown as {sorted(views)}, "
                f"stored as {stored.get(name)}"
            )


def check_trace(trace: Path, result: Result) -> None:
    """Check that the trace has a bridge for each HTTP request and SQL statement, and no other."""
    bridges = load(trace).total.bridges
    made = result.requests + result.statements
    if not bridges or bridges != made:
        raise WrongError(
            f"{trace}: {bridges:.0f} bridges, for {result.requests} HTTP requests and "
            f"{result.statements} SQL statements"
        )


def report(trace: Path) -> None:
    status = subprocess.run(
        [sys.executable, "-m", "greenback_trace", "report", str(trace)], check=False
    ).returncode
    if status:
        raise WrongError(f"greenback-trace report {trace}: exit status {status}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--pages", type=int, default=200, help="how many to read, on each library")
    parser.add_argument("--at-once", type=int, default=20, help="how many readers there are")
    options = parser.parse_args()
    directory = Path(tempfile.mkdtemp(prefix="greenback-demo-"))
    contents = directory / "contents.sqlite"
    fill(str(contents))
    for library in LIBRARIES:
        result = visit(library, contents, directory, options.pages, options.at_once)
        trace = directory / f"{library}.jsonl"
        check_trace(trace, result)
        print(
            f"=== {library} ===\n"
            f"{result.pages} pages rendered and checked, {options.at_once} at once: "
            f"{result.size:,} bytes in {result.seconds:.2f} s, "
            f"{result.pages / result.seconds:.0f} pages per second\n"
            f"{result.requests} HTTP requests and {result.statements} SQL statements, "
            "each of them a bridge\n\n"
            f"$ greenback-trace report {trace}",
            flush=True,
        )
        report(trace)
        print(flush=True)
    print(f"Look at what was rendered: {(directory / LIBRARIES[-1] / 'index.html').as_uri()}")


if __name__ == "__main__":
    try:
        main()
    except WrongError as error:
        sys.exit(f"demo: {error}")
