"""Fixtures of the tests in this folder."""

from __future__ import annotations

from pathlib import Path

import pytest

from greenback_trace.report.read import otlp


@pytest.fixture(params=["msgspec", "json"], autouse=True)
def parser(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Run each test with msgspec and with the standard library's parser, which must read alike."""
    if request.param == "json":
        monkeypatch.setattr(otlp, "_fast", None)
    else:
        pytest.importorskip("msgspec", reason="the fast parser is not installed")


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "trace.jsonl"
