"""The command `greenback-trace run`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("click", reason="these tests need greenback[report]")
pytest.importorskip("rich", reason="these tests need greenback[report]")

RUN = ("-m", "greenback_trace", "run")
SHOW = """
import json, os, sys
print(json.dumps([sys.argv, sys.path[0], __name__, os.environ["GREENBACK_TRACE"]]))
"""


class TestRun:
    def test_is_as_under_python(self, python: Any, tmp_path: Path) -> None:
        """A script has the same argv, path and name as under Python, and options reach it."""
        (tmp_path / "show.py").write_text(SHOW)
        arguments = ["show.py", "--file", "x", "-m", "--help", "--", "y"]
        result = python(*RUN, *arguments)
        assert result.returncode == 0, result.stderr
        assert result.stdout == python(*arguments, GREENBACK_TRACE="1").stdout
        assert json.loads(result.stdout)[0] == arguments

    def test_module(self, python: Any, tmp_path: Path) -> None:
        """With -m, the command runs a module like python -m."""
        (tmp_path / "show.py").write_text(SHOW)
        result = python(*RUN, "-m", "show", "--top", "1")
        assert result.returncode == 0, result.stderr
        assert result.stdout == python("-m", "show", "--top", "1", GREENBACK_TRACE="1").stdout

    def test_exit_code(self, python: Any, tmp_path: Path) -> None:
        """The exit code is the program's."""
        (tmp_path / "leave.py").write_text("raise SystemExit(7)")
        assert python(*RUN, "leave.py").returncode == 7

    def test_missing(self, python: Any) -> None:
        """If the program does not exist, the error names it and says how to run a module."""
        result = python(*RUN, "missing.py")
        assert result.returncode == 2
        assert "'missing.py'" in result.stderr
        assert "run -m MODULE" in result.stderr
