"""The command ``greenback-trace export``: its input and its errors."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pytest

from .exporting import export, exported

pytest.importorskip("click", reason="the report needs greenback[report]")
pytest.importorskip("rich", reason="the report needs greenback[report]")
pytest.importorskip("opentelemetry.sdk", reason="the report needs greenback[report]")


class TestInput:
    @pytest.mark.parametrize("kind", ["speedscope", "perfetto", "folded", "html"])
    def test_directory(self, kind: str, path: Path, tmp_path: Path) -> None:
        """The export of a directory with the compressed trace is the export of the trace."""
        (tmp_path / "trace.jsonl.gz").write_bytes(gzip.compress(path.read_bytes()))
        assert exported("--format", kind, tmp_path) == exported("--format", kind, path)


class TestBadInput:
    @pytest.mark.parametrize("kind", ["speedscope", "perfetto", "folded", "html"])
    @pytest.mark.parametrize("content", [None, "", "nonsense\n", '{"resourceSpans": []}\n'])
    def test_nothing_in_it(self, kind: str, content: Any, tmp_path: Path) -> None:
        """Without a trace, the command says how to get one, and leaves no file behind."""
        trace, output = tmp_path / "trace.jsonl", tmp_path / "output"
        if content is not None:
            trace.write_text(content)
        result = export("--format", kind, "-o", output, trace)
        assert result.exit_code == 2
        assert "GREENBACK_TRACE=1" in result.output
        assert not output.exists()

    def metrics_only(self, path: Path, tmp_path: Path, left_out: str) -> Path:
        """A trace without spans, and without metrics whose names contain *left_out*."""
        file = tmp_path / "metrics.jsonl"
        with file.open("w") as to:
            for line in path.read_text().splitlines():
                request = json.loads(line)
                for resource in request.get("resourceMetrics", ()):
                    for scope in resource["scopeMetrics"]:
                        scope["metrics"] = [
                            metric for metric in scope["metrics"] if left_out not in metric["name"]
                        ]
                    to.write(json.dumps(request) + "\n")
        return file

    @pytest.mark.parametrize("kind", ["speedscope", "folded", "html"])
    def test_no_chains(self, kind: str, path: Path, tmp_path: Path) -> None:
        """A flame graph of a trace that counts per function only is an error that says so."""
        result = export("--format", kind, self.metrics_only(path, tmp_path, ".chain."))
        assert result.exit_code == 2
        assert "no sync chains" in result.output

    def test_no_spans(self, path: Path, tmp_path: Path) -> None:
        """A timeline of a trace without spans is an error that says so."""
        file = self.metrics_only(path, tmp_path, "nothing")
        result = export("--format", "perfetto", file)
        assert result.exit_code == 2
        assert "no spans" in result.output
        assert b"no spans" in exported("--format", "html", file)

    def test_cannot_be_written(self, path: Path, tmp_path: Path) -> None:
        """An output that cannot be written is an error that names it."""
        output = tmp_path / "missing" / "page.html"
        result = export("--format", "folded", "-o", output, path)
        assert result.exit_code == 2
        assert f"{output} cannot be written: No such file or directory" in result.output
