"""Mutated traces through the commands. Each has a class, since xdist keeps one together."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Iterator

import pytest

pytest.importorskip("click", reason="the commands need greenback[report]")
pytest.importorskip("rich", reason="the commands need greenback[report]")

from greenback_trace.report.read import otlp

from .traces import fuzz_traces, make_trace


@pytest.fixture(scope="session")
def clean(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_trace(tmp_path_factory.mktemp("traces"))


@pytest.fixture(autouse=True)
def current_directory(clean: Path) -> Iterator[None]:
    """The trace of a program below the current directory, since a plan reads no other sources."""
    before = os.getcwd()
    os.chdir(str(clean.parent))
    yield
    os.chdir(before)


class TestReport:
    def test_mutated(self, clean: Path, seed: int) -> None:
        """A report of any mutated trace is printed, or an error that says what is wrong."""
        assert fuzz_traces("report", clean, seed)["reported"]


@pytest.mark.skipif(otlp._fast is None, reason="there is one parser only without msgspec")
class TestParsers:
    def test_mutated(self, clean: Path, seed: int) -> None:
        """msgspec and the parser of the standard library read any mutated trace alike."""
        assert fuzz_traces("parsers", clean, seed)["reported"]


class TestPlan:
    def test_mutated(self, clean: Path, seed: int) -> None:
        """A plan of any mutated trace is printed, or an error that says what is wrong."""
        assert fuzz_traces("plan", clean, seed)["reported"]


class TestDiff:
    def test_mutated(self, clean: Path, seed: int) -> None:
        """A comparison with the original trace is printed, or an error that says what is wrong."""
        assert fuzz_traces("diff", clean, seed)["reported"]


class TestExport:
    def test_mutated(self, clean: Path, seed: int) -> None:
        """Each export is a file that other tools can read, or an error that says what is wrong."""
        assert fuzz_traces("export", clean, seed)["reported"]


class TestTop:
    def test_mutated(self, clean: Path, seed: int) -> None:
        """top shows any mutated trace, or ends with an error that says what is wrong."""
        assert fuzz_traces("top", clean, seed)["reported"]
