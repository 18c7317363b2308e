"""``greenback-trace export --format speedscope``."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from greenback_trace.report.read.load import load

from .exporting import BRIDGES, exported

pytest.importorskip("click", reason="the report needs greenback[report]")
pytest.importorskip("rich", reason="the report needs greenback[report]")
pytest.importorskip("opentelemetry.sdk", reason="the report needs greenback[report]")


@pytest.fixture(scope="class")
def schema() -> Any:
    # The schema of the npm package speedscope 1.25.0 (MIT licence).
    return json.loads((Path(__file__).parent / "speedscope-file-format-schema.json").read_text())


class TestSpeedscope:
    @pytest.mark.parametrize("weight", ["time", "bridges"])
    def test_schema(self, path: Path, schema: Any, weight: str) -> None:
        """The file matches speedscope's published schema."""
        jsonschema = pytest.importorskip("jsonschema")
        file = json.loads(exported("--format", "speedscope", "--weight", weight, path))
        jsonschema.validate(file, schema)
        file["profiles"][0]["unit"] = "bridges"
        with pytest.raises(jsonschema.ValidationError):
            jsonschema.validate(file, schema)

    def test_weights(self, path: Path) -> None:
        """Each weight has a profile of exact numbers, beginning with the requested weight."""
        file = json.loads(exported("--format", "speedscope", "--weight", "bridges", path))
        names = [frame["name"] for frame in file["shared"]["frames"]]
        first = file["profiles"][file["activeProfileIndex"]]
        counted = {
            ";".join(names[index] for index in sample): weight
            for sample, weight in zip(first["samples"], first["weights"])
        }
        assert counted == BRIDGES
        assert first["endValue"] == sum(BRIDGES.values())
        sites = load([str(path)]).sites
        ends = {profile["name"]: profile["endValue"] for profile in file["profiles"]}
        assert ends["time in bridges"] == pytest.approx(sum(site.time for site in sites))
        assert ends["time waiting for the event loop"] == pytest.approx(
            sum(site.suspended_time for site in sites)
        )

    def test_files(self, path: Path) -> None:
        """Each frame has the file of its function."""
        file = json.loads(exported("--format", "speedscope", path))
        assert {frame["file"] for frame in file["shared"]["frames"]} == {
            str(path.parent / "shop.py")
        }
