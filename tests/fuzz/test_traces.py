"""Mutated traces through the commands. A class for each: xdist keeps one together."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Iterator

import pytest

pytest.importorskip("click", reason="the commands need greenback[report]")
pytest.importorskip("rich", reason="the commands need greenback[report]")

from .traces import fuzz_traces, make_trace


@pytest.fixture(scope="session")
def clean(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_trace(tmp_path_factory.mktemp("traces"))


@pytest.fixture(autouse=True)
def current_directory(clean: Path) -> Iterator[None]:
    """The program is below the current directory: a plan reads no other sources."""
    before = os.getcwd()
    os.chdir(str(clean.parent))
    yield
    os.chdir(before)


class TestReport:
    def test_mutated(self, clean: Path, seed: int) -> None:
        """Whatever is in a trace, a report is printed, or what is wrong with the trace."""
        assert fuzz_traces("report", clean, seed)["reported"]


class TestParsers:
    def test_mutated(self, clean: Path, seed: int) -> None:
        """The fast parser and the one of the standard library make the same of it."""
        assert fuzz_traces("parsers", clean, seed)["reported"]


class TestPlan:
    def test_mutated(self, clean: Path, seed: int) -> None:
        """A plan, or what is wrong."""
        assert fuzz_traces("plan", clean, seed)["reported"]


class TestDiff:
    def test_mutated(self, clean: Path, seed: int) -> None:
        """A comparison with the trace as it was, or what is wrong."""
        assert fuzz_traces("diff", clean, seed)["reported"]


class TestExport:
    def test_mutated(self, clean: Path, seed: int) -> None:
        """Files of each format that other tools can read, or what is wrong."""
        assert fuzz_traces("export", clean, seed)["reported"]


class TestTop:
    def test_mutated(self, clean: Path, seed: int) -> None:
        """What is shown of a program that runs, or what is wrong."""
        assert fuzz_traces("top", clean, seed)["reported"]
