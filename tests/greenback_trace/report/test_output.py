"""What ``greenback-trace`` prints, whatever names a trace has and wherever the output goes."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any, Dict, List, Sequence, Tuple

import pytest

pytest.importorskip("click", reason="the report needs greenback[report]")
pytest.importorskip("rich", reason="the report needs greenback[report]")

from .test_cli import REPOSITORY, chain, request

COMMANDS: List[Tuple[str, ...]] = [
    ("report", "after.jsonl"),
    ("plan", "after.jsonl"),
    ("diff", "before.jsonl", "after.jsonl"),
]


def call(
    directory: Path, arguments: Sequence[str], stdout: Any = subprocess.PIPE, **variables: str
) -> subprocess.CompletedProcess[bytes]:
    """Run the command in a process of its own, whose output is a file's or a pipe's."""
    return subprocess.run(
        [sys.executable, "-m", "greenback_trace", *arguments],
        cwd=str(directory),
        env={**os.environ, "PYTHONPATH": str(REPOSITORY), **variables},
        stdin=subprocess.DEVNULL,
        stdout=stdout,
        stderr=subprocess.PIPE,
        timeout=60,
        check=False,
    )


def write(directory: Path, function: str) -> None:
    """A trace in which that function is new."""
    before = chain("shop.a", 1, 1.0)
    (directory / "before.jsonl").write_text(request(*before))
    (directory / "after.jsonl").write_text(request(*before, *chain(function, 2, 2.0)))


class TestEncoding:
    @pytest.mark.parametrize(
        "variables",
        [
            {"PYTHONIOENCODING": "ascii"},
            {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"},
        ],
        ids=["variable", "locale"],
    )
    @pytest.mark.parametrize("arguments", COMMANDS, ids=[each[0] for each in COMMANDS])
    def test_names_that_it_lacks(
        self, tmp_path: Path, arguments: Sequence[str], variables: Dict[str, str]
    ) -> None:
        """A letter that the output's encoding has not is shown as its escape."""
        write(tmp_path, "shop.größe")
        done = call(tmp_path, arguments, **variables)
        assert (done.returncode, done.stderr) == (0, b"")
        assert b"gr\\xf6\\xdfe" in done.stdout

    def test_bars_of_a_plan(self, tmp_path: Path) -> None:
        """Bars are of what the encoding has."""
        write(tmp_path, "shop.b")
        done = call(tmp_path, ["plan", "after.jsonl"], PYTHONIOENCODING="ascii")
        assert b" ####" in done.stdout
        assert b"\\u" not in done.stdout

    @pytest.mark.parametrize("arguments", COMMANDS, ids=[each[0] for each in COMMANDS])
    def test_names_that_no_encoding_has(self, tmp_path: Path, arguments: Sequence[str]) -> None:
        """Neither has UTF-8 half of a surrogate pair, which JSON can have."""
        write(tmp_path, "shop.\udcff")
        done = call(tmp_path, arguments, PYTHONIOENCODING="utf-8")
        assert (done.returncode, done.stderr) == (0, b"")
        assert b"shop.\\udcff" in done.stdout or b"async def \\udcff" in done.stdout
