"""`make demo`: demo/run.py, run as a user runs it."""

from __future__ import annotations

import os
import re
import shutil
import sqlite3
import subprocess
import sys
from pathlib import Path
from typing import Dict
from urllib.parse import urlsplit
from urllib.request import url2pathname

import pytest

from .installed import missing

ROOT = Path(__file__).resolve().parent.parent
LIBRARIES = ["asyncio", "trio"]
#: Each page of the site once, so that all links are followed, and the first page twice.
PAGES = len([*(ROOT / "docs").glob("*.rst"), *ROOT.glob("*.md")]) + 1
NEEDED = [
    *("docutils", "httpx", "hypercorn", "jinja2", "markdown-it-py", "trio"),
    *("click", "rich", "opentelemetry-exporter-otlp-proto-common", "opentelemetry-sdk"),
]


MISSING = missing(NEEDED)

pytestmark = [
    pytest.mark.skipif(
        bool(MISSING),
        reason=f"needs the dependency group demo and the extra report: no {', '.join(MISSING)}",
    ),
    pytest.mark.skipif(
        sqlite3.sqlite_version_info < (3, 35),
        reason="SQLite has RETURNING since 3.35",
    ),
]


def run_demo(root: Path, directory: Path, *options: str) -> subprocess.CompletedProcess[str]:
    environ = {**os.environ, "TMPDIR": str(directory), "COLUMNS": "200", "TERM": "dumb"}
    environ["PYTHONPATH"] = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    return subprocess.run(
        [sys.executable, str(root / "demo" / "run.py"), *options],
        env=environ,
        cwd=directory,
        capture_output=True,
        text=True,
        encoding="utf-8",
        timeout=100,
        check=False,
    )


@pytest.fixture(scope="module")
def output(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The output of the demo."""
    directory = tmp_path_factory.mktemp("demo")
    done = run_demo(ROOT, directory, "--pages", str(PAGES), "--at-once", "8")
    assert done.returncode == 0, done.stdout + done.stderr
    # On a busy machine, the demo may well report a slow step.
    assert [line for line in done.stderr.splitlines() if "greenback.slow_step" not in line] == []
    return done.stdout


@pytest.fixture(scope="module")
def parts(output: str) -> Dict[str, str]:
    """The output for each library."""
    pieces = re.split(r"^=== (\w+) ===$", output, flags=re.MULTILINE)[1:]
    return dict(zip(pieces[::2], pieces[1::2]))


class TestDemo:
    @pytest.mark.parametrize("library", LIBRARIES)
    def test_renders_all_pages(self, parts: Dict[str, str], library: str) -> None:
        """Every requested page is rendered and checked, on asyncio and on Trio."""
        assert f"{PAGES} pages rendered and checked" in parts[library]

    @pytest.mark.parametrize("library", LIBRARIES)
    def test_reports_each_request_and_statement(self, parts: Dict[str, str], library: str) -> None:
        """The report has a bridge for each HTTP request and SQL statement, and no other."""
        made = re.search(r"^(\d+) HTTP requests and (\d+) SQL statements", parts[library], re.M)
        bridges = re.search(r"^([\d,]+) bridges from 2 sites", parts[library], re.M)
        assert made is not None
        assert bridges is not None
        requests, statements = map(int, made.groups())
        assert requests > PAGES
        assert statements > PAGES
        assert int(bridges[1].replace(",", "")) == requests + statements

    @pytest.mark.parametrize("library", LIBRARIES)
    def test_reports_a_portal_for_each_page(self, parts: Dict[str, str], library: str) -> None:
        """The report has a portal for each page, and none is left open."""
        (row,) = re.findall(r"^ run_sync .*$", parts[library], re.M)
        assert row.split()[:3] == ["run_sync", str(PAGES), "0"]

    @pytest.mark.parametrize("library", LIBRARIES)
    def test_reports_chains_through_jinja2(self, parts: Dict[str, str], library: str) -> None:
        """A sync chain leads from the program, through Jinja2 and a template, to the database."""
        assert re.search(
            r"^ +rendering\.Pages\.render .*\n"
            r" +jinja2\.environment\.Template\.render .*\n"
            r"(?: +.* \S+\.html:\d+ *\n)+"
            r"(?: +jinja2\..*\n)*"
            r" +rendering\.Pages\.\w+ .*\n"
            r" +clients\.Database\.run ",
            parts[library],
            re.M,
        )

    def test_names_a_page_to_look_at(self, output: str) -> None:
        """The last line has the path of a rendered page, whose links lead to others."""
        url = output.splitlines()[-1].partition(": ")[2]
        page = Path(url2pathname(urlsplit(url).path))
        text = page.read_text(encoding="utf-8")
        assert "<h1>greenback</h1>" in text
        links = re.findall(r'href="([\w-]+\.html)"', text)
        assert "quickstart.html" in links
        assert [link for link in links if not (page.parent / link).is_file()] == []

    def test_fails_when_a_page_is_wrong(self, tmp_path: Path) -> None:
        """A page with another number than in the database ends the demo with an error."""
        for name in ("demo", "docs"):
            shutil.copytree(str(ROOT / name), str(tmp_path / name))
        for source in ROOT.glob("*.md"):
            shutil.copy(str(source), str(tmp_path))
        template = tmp_path / "demo" / "templates" / "base.html"
        text = template.read_text(encoding="utf-8")
        assert "count_view(name)" in text
        template.write_text(text.replace("count_view(name)", "1"), encoding="utf-8")
        done = run_demo(tmp_path, tmp_path, "--pages", str(PAGES), "--at-once", "4")
        assert done.returncode != 0
        assert done.stderr.startswith("demo: index: read 2 times, shown as [1, 1]")
