"""``greenback-trace export --format folded``."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Dict

import pytest

from greenback_trace.count.caller import Caller
from greenback_trace.report.export.flames import stacks
from greenback_trace.report.read.load import load
from greenback_trace.report.read.trace import Numbers, SiteReport, Trace

from .exporting import BRIDGES, exported

pytest.importorskip("click", reason="the report needs greenback[report]")
pytest.importorskip("rich", reason="the report needs greenback[report]")
pytest.importorskip("opentelemetry.sdk", reason="the report needs greenback[report]")


class TestFolded:
    def weights(self, *arguments: Any) -> Dict[str, int]:
        lines = exported("--format", "folded", *arguments).decode().splitlines()
        return {stack: int(weight) for stack, weight in (line.rsplit(" ", 1) for line in lines)}

    def test_bridges(self, path: Path) -> None:
        """By bridges, each sync chain has a line with exactly the bridges that it has made."""
        assert self.weights("--weight", "bridges", path) == BRIDGES

    def test_time(self, path: Path) -> None:
        """By time, which is the default, the lines add up to the report's total, in us."""
        weights = self.weights(path)
        assert set(weights) == set(BRIDGES)
        total = sum(site.time for site in load([str(path)]).sites) * 1e6
        assert sum(weights.values()) == pytest.approx(total, abs=len(weights))

    def test_names(self) -> None:
        """A name with what separates stacks in it, from generated code, does not break a line."""
        from greenback_trace.report.export.folded import folded

        site = SiteReport(function="a", chains={(Caller("", "a;b\nc", "/x.py", 1),): Numbers(ok=3)})
        assert folded(Trace(sites=[site]), "bridges") == "a:b c 3\n"
        nameless = SiteReport(function=" ", chains={(): Numbers(ok=3)})
        assert folded(Trace(sites=[nameless]), "bridges") == "? 3\n"


class TestStacks:
    def test_lines_of_one_function(self) -> None:
        """Calls from several lines of a function are one frame, with their sum."""
        chains = {
            (Caller("a", "f", "/x.py", 1), Caller("a", "g", "/x.py", 9)): Numbers(ok=1, time=0.5),
            (Caller("a", "f", "/x.py", 2), Caller("a", "g", "/x.py", 9)): Numbers(ok=2, time=0.25),
        }
        (stack,) = stacks(Trace(sites=[SiteReport(function="a.g", chains=chains)]))
        assert [frame.function for frame in stack.frames] == ["a.f", "a.g"]
        assert (stack.numbers.bridges, stack.numbers.time) == (3, 0.75)
