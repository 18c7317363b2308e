"""``greenback_trace.report`` in programs and notebooks."""

from __future__ import annotations

import json
import subprocess
import sys
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, Dict

import pytest

pytest.importorskip("click", reason="the report needs greenback[report]")
pytest.importorskip("rich", reason="the report needs greenback[report]")

from click.testing import CliRunner

from greenback_trace import report
from greenback_trace.cli import main

from .test_cli import REPOSITORY, chain, request


def printed(*arguments: Any) -> Dict[str, Any]:
    """What the command prints as JSON."""
    result = CliRunner().invoke(main, [*map(str, arguments), "--json"])
    assert result.exit_code == 0, result.output
    content: Dict[str, Any] = json.loads(result.stdout)
    return content


class TestLoad:
    def test_has_what_the_command_shows(self, shop: Path, till: Path) -> None:
        """Several traces are added up, as by the command; a path can be a `Path`."""
        trace = report.load(shop, str(till))
        content = printed("report", shop, till)
        assert isinstance(trace, report.Trace)
        assert trace.total.bridges == content["total"]["bridges"] == 222
        assert trace.services == {"shop": 1, "till": 1}
        assert trace.portals["task"].opened == content["portals"]["task"]["opened"]

    def test_service(self, shop: Path, till: Path) -> None:
        """*service* counts only the processes of that service."""
        assert report.load(shop, till, service="till").services == {"till": 1}

    def test_times(self, shop: Path) -> None:
        """A time can be a datetime, a text as for the command, or nanoseconds as in a trace."""
        whole = report.load(shop)
        assert whole.begin is not None
        assert whole.end is not None
        end = datetime.fromtimestamp(whole.end / 1e9 + 1, timezone.utc)
        for until in (end, end.isoformat(), whole.end, end.astimezone().replace(tzinfo=None)):
            assert report.load(shop, until=until).total.bridges == 111
        assert report.load(shop, since="1d").total.bridges == 111
        with pytest.raises(report.NothingToReportError, match="nothing of greenback at that time"):
            report.load(shop, since=end)

    def test_a_time_that_is_none(self, shop: Path) -> None:
        """A text that is no time is an error that shows times."""
        with pytest.raises(ValueError, match=r"until='yesterday' is no time.*'30m'"):
            report.load(shop, until="yesterday")

    def test_no_path(self) -> None:
        """No path at all is an error that says so."""
        with pytest.raises(ValueError, match="no path"):
            report.load()

    def test_a_file_that_is_not_there(self, tmp_path: Path) -> None:
        """The command's error is the message of an exception, which is a ValueError."""
        path = tmp_path / "none.jsonl"
        with pytest.raises(ValueError, match="cannot be read") as caught:
            report.load(path)
        assert isinstance(caught.value, report.NothingToReportError)
        result = CliRunner().invoke(main, ["report", str(path)])
        assert result.output == f"greenback-trace: {caught.value}\n"


class TestHotSpots:
    @pytest.mark.parametrize("sort", ["total", "bridges", "errors", "p95"])
    def test_order_is_that_of_the_command(self, shop: Path, sort: str) -> None:
        """The order of sites is that of the command."""
        sites = report.hot_spots(report.load(shop), sort=sort, top=3)
        content = printed("report", shop, "--sort", sort, "--top", 3)
        assert [site.function for site in sites] == [each["function"] for each in content["sites"]]
        assert isinstance(sites[0], report.SiteReport)

    def test_all(self, shop: Path) -> None:
        """Without *top*, all sites are returned."""
        trace = report.load(shop)
        assert len(report.hot_spots(trace)) == len(trace.sites) == 6

    def test_chosen(self, shop: Path) -> None:
        """Functions and files are chosen by parts and patterns; a single text needs no list."""
        trace = report.load(shop)
        [site] = report.hot_spots(trace, functions="stock", paths=["*/shop.py"])
        assert (site.function, site.errors) == ("__main__.stock", 15)
        assert len(report.hot_spots(trace, functions=["stock", "known"])) == 2
        with pytest.raises(report.NothingToReportError, match="none of 6 sites"):
            report.hot_spots(trace, functions="nothing")

    def test_sort_is_checked(self, shop: Path) -> None:
        """An unknown *sort* is an error that names the known ones."""
        with pytest.raises(ValueError, match="sort='most' is none of total, waiting"):
            report.hot_spots(report.load(shop), sort="most")


class TestPlan:
    def test_is_that_of_the_command(self, shop: Path) -> None:
        """The plan is the plan of the command, with its steps as objects."""
        plan = report.plan(report.load(shop), weight="time", roots=[shop.parent])
        assert plan.as_dict() == printed(
            "plan", shop, "--weight", "time", "--root", str(shop.parent)
        )
        assert isinstance(plan, report.Plan)
        assert isinstance(plan.steps[0], report.Step)
        assert plan.steps[0].removed.bridges

    def test_no_chains(self, tmp_path: Path) -> None:
        """A trace without sync chains is an error that says so."""
        path = tmp_path / "trace.jsonl"
        path.write_text(request(*chain("shop.a", 5, 1.0)))
        trace = report.load(path)
        trace.sites[0].chains.clear()
        with pytest.raises(report.NothingToReportError, match="no sync chains"):
            report.plan(trace)

    def test_arguments_are_checked(self, shop: Path, tmp_path: Path) -> None:
        """An unknown weight and a missing root are errors."""
        trace = report.load(shop)
        with pytest.raises(ValueError, match="weight='most' is none of bridges, time, overhead"):
            report.plan(trace, weight="most")
        with pytest.raises(FileNotFoundError, match="none"):
            report.plan(trace, roots=[tmp_path / "none"])
        with pytest.raises(FileNotFoundError, match="none"):
            report.plan(trace, roots=str(tmp_path / "none"))


class TestModule:
    def test_import_is_cheap(self) -> None:
        """Importing it imports no code that reads, plans or prints; only a call does."""
        code = (
            "import sys, greenback_trace\n"
            "before = set(sys.modules)\n"
            "import greenback_trace.report as report\n"
            "print(*sorted(set(sys.modules) - before))\n"
        )
        done = subprocess.run(
            [sys.executable, "-c", code],
            cwd=str(REPOSITORY),
            capture_output=True,
            text=True,
            timeout=60,
            check=True,
        )
        added = done.stdout.split()
        assert "greenback_trace.report" in added
        for name in ("rich", "click", "msgspec", "json", "greenback_trace.report.planning.plan"):
            assert name not in added

    def test_exports(self) -> None:
        """It has all names in `__all__`, and any other name is an AttributeError."""
        for name in report.__all__:
            assert getattr(report, name).__name__ == name
        with pytest.raises(AttributeError, match="no attribute 'lode'"):
            report.lode  # type: ignore[attr-defined]
