"""The JSON of the dashboards, which Grafana imports."""

from __future__ import annotations

import importlib.util
import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any, Dict, Iterator

import pytest

ROOT = Path(__file__).resolve().parents[2]
GRAFANA = ROOT / "dashboards" / "grafana"
NAMES = ["greenback-service.json", "greenback-fleet.json"]

ROWS = {
    "Health": ["Misuses", "Slow steps", "Dropped telemetry"],
    "Bridges": ["Bridges per second", "Suspended share", "Bridge latency"],
    "Hot sites": ["Hot sites", "Bridges per second by function"],
    "Portals": ["Open portals", "Portals opened per second"],
    "Switches": ["Switches per second"],
    "Loop holding": ["Share of time that portal tasks hold the loop", "Slow steps by function"],
    "Migration": ["Bridges per day", "Functions that bridge"],
}


def load(name: str) -> Dict[str, Any]:
    dashboard: Dict[str, Any] = json.loads((GRAFANA / name).read_text(encoding="utf-8"))
    return dashboard


def addresses(part: Any) -> Iterator[str]:
    """All links in a part of a dashboard."""
    if isinstance(part, dict):
        if isinstance(part.get("url"), str):
            yield part["url"]
        part = list(part.values())
    if isinstance(part, list):
        for each in part:
            yield from addresses(each)


class TestBuild:
    @pytest.mark.skipif(
        importlib.util.find_spec("grafana_foundation_sdk") is None,
        reason="needs grafana-foundation-sdk, of the dependency group dashboards",
    )
    def test_what_is_committed_is_current(self) -> None:
        """The JSON files are what the code builds."""
        done = subprocess.run(
            [sys.executable, "-m", "dashboards.build", "--check"],
            cwd=ROOT,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("name", NAMES)
class TestDashboards:
    def test_has_its_rows(self, name: str) -> None:
        """Each dashboard has the rows and panels that the documentation describes."""
        rows: Dict[str, list[str]] = {}
        for panel in load(name)["panels"]:
            if panel["type"] == "row":
                rows[panel["title"]] = titles = []
            else:
                titles.append(panel["title"])
        for row, expected in ROWS.items():
            assert [
                title for title in expected if not any(map(re.compile(title).match, rows[row]))
            ] == []

    def test_panels_explain_themselves(self, name: str) -> None:
        """Each panel has a description, and its queries name the data source by the variable."""
        panels = [panel for panel in load(name)["panels"] if panel["type"] != "row"]
        for panel in panels:
            assert panel["description"], panel["title"]
            for target in panel["targets"]:
                assert target["datasource"]["uid"] == "${prometheus}", panel["title"]
        assert len({panel["id"] for panel in panels}) == len(panels)

    def test_panels_do_not_overlap(self, name: str) -> None:
        """No two panels overlap in the grid."""
        taken: Dict[Any, str] = {}
        for panel in load(name)["panels"]:
            place = panel["gridPos"]
            assert place["x"] + place["w"] <= 24
            for x in range(place["x"], place["x"] + place["w"]):
                for y in range(place["y"], place["y"] + place["h"]):
                    assert taken.setdefault((x, y), panel["title"]) == panel["title"]

    def test_links_use_variables_that_exist(self, name: str) -> None:
        """A link sets only variables of its target, and passes on only those of its dashboard."""
        here = {each["name"] for each in load(name)["templating"]["list"]}
        there = {each["name"] for each in load(NAMES[0])["templating"]["list"]}
        links = list(addresses(load(name)))
        assert any("greenback-service" in link for link in links)
        for kind in ("tempo", "jaeger"):
            assert any(link.startswith("/explore") and kind in link for link in links)
        for link in links:
            assert set(re.findall(r"[?&]var-(\w+)=", link)) <= there, link
            used = set(re.findall(r"\$\{(\w+)(?::queryparam)?\}", link))
            assert {each for each in used if not each.startswith("__")} <= here, link
