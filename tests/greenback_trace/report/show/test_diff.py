"""The command ``greenback-trace diff``, on traces of two versions of a program."""

from __future__ import annotations

import copy
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any, Callable, Dict, List, Optional, Tuple

import pytest

pytest.importorskip("click", reason="the report needs greenback[report]")
pytest.importorskip("rich", reason="the report needs greenback[report]")
pytest.importorskip("opentelemetry.sdk", reason="the report needs greenback[report]")

from click.testing import CliRunner, Result

from greenback_trace.cli import main
from greenback_trace.report.read.load import load
from greenback_trace.report.read.trace import Trace
from greenback_trace.report.show.diff import compare

REPOSITORY = Path(__file__).resolve().parents[4]

BEFORE = """
import asyncio
import sys

import greenback
from greenback import await_

SLOWER, FASTER, RARE = 0, 0.01, 0


def low():
    await_(asyncio.sleep(0))


def one_way():
    low()


def another_way():
    low()


def removed():
    await_(asyncio.sleep(0))


def becomes_slower():
    await_(asyncio.sleep(SLOWER))


def becomes_faster():
    await_(asyncio.sleep(FASTER))


def rare():
    await_(asyncio.sleep(RARE))


def fails():
    await_(asyncio.wait_for(asyncio.sleep(1), timeout=0))


async def task():
    await greenback.ensure_portal()
    for _ in range(25):
        one_way()
        another_way()
        removed()
        becomes_slower()
        becomes_faster()
    for _ in range(5):
        rare()
    for _ in range(3):
        try:
            fails()
        except asyncio.TimeoutError:
            pass
    await_(asyncio.sleep(0))


async def program(portals):
    for _ in range(portals):
        await asyncio.ensure_future(task())


asyncio.run(program(int(sys.argv[1])))
"""
AFTER = "# Moved down.\n" * 7 + (
    BEFORE.replace("def one_way():\n    low()", "def one_way():\n    added()")
    .replace("def removed():", "def added():\n    await_(asyncio.sleep(0))\n\n\ndef removed():")
    .replace("        removed()\n", "")
    .replace("SLOWER, FASTER, RARE = 0, 0.01, 0", "SLOWER, FASTER, RARE = 0.01, 0, 0.01")
)
ALL_ASYNC = """
import asyncio

import greenback


async def program():
    await greenback.ensure_portal()


asyncio.run(program())
"""


def run(directory: Path, source: str, portals: int) -> Path:
    directory.mkdir()
    program, file = directory / "program.py", directory / "trace.jsonl"
    program.write_text(source)
    environ = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("GREENBACK_TRACE", "OTEL_"))
    }
    environ.update(GREENBACK_TRACE="1", GREENBACK_TRACE_FILE=str(file), PYTHONPATH=str(REPOSITORY))
    command = [sys.executable, str(program), str(portals)]
    subprocess.run(command, env=environ, check=True, timeout=60)
    return file


@pytest.fixture(scope="module")
def traces(tmp_path_factory: pytest.TempPathFactory) -> Tuple[Path, Path]:
    """The traces of the program before and after a change, each in its own directory."""
    directory = tmp_path_factory.mktemp("diff")
    return run(directory / "before", BEFORE, 1), run(directory / "after", AFTER, 1)


@pytest.fixture(scope="module")
def longer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The trace of the program before the change, run with three portals."""
    return run(tmp_path_factory.mktemp("diff") / "longer", BEFORE, 3)


def diff(*arguments: Any, columns: int = 200, stdin: Optional[bytes] = None) -> Result:
    return CliRunner().invoke(
        main, ["diff", *map(str, arguments)], env={"COLUMNS": str(columns)}, input=stdin
    )


def compared(*arguments: Any) -> Dict[str, Any]:
    result = diff(*arguments, "--json")
    assert result.exit_code == 0, result.output
    found: Dict[str, Any] = json.loads(result.stdout)
    return found


def verdicts(found: Dict[str, Any]) -> Dict[str, List[str]]:
    return {site["function"].replace("__main__.", ""): site["verdicts"] for site in found["sites"]}


class TestSites:
    def test_gone_and_new(self, traces: Tuple[Path, Path]) -> None:
        """A function that no longer bridges is gone; one that did not bridge before is new."""
        found = compared(*traces)
        assert verdicts(found)["removed"] == ["gone"]
        assert verdicts(found)["added"] == ["new"]
        assert [site["verdicts"] for site in found["sites"]][:2] == [["gone"], ["new"]]
        gone, new = found["sites"][:2]
        assert gone["after"] is None
        assert gone["before"]["bridges"] == 25
        assert new["before"] is None
        assert new["after"]["bridges"] == 25

    def test_lines_and_directories_do_not_matter(self, traces: Tuple[Path, Path]) -> None:
        """A site is the same after its source has moved to other lines and another directory."""
        (site,) = [
            each for each in compared(*traces)["sites"] if each["function"].endswith("fails")
        ]
        assert site["file"] == "program.py"
        assert site["before"]["errors"] == site["after"]["errors"] == 3

    def test_files_matter(self, traces: Tuple[Path, Path], tmp_path: Path) -> None:
        """Functions of the same name in files of different names are two sites."""
        other = tmp_path / "trace.jsonl"
        other.write_text(traces[0].read_text().replace("program.py", "other.py"))
        found = compared(traces[0], other)
        assert {tuple(site["verdicts"]) for site in found["sites"]} == {("gone",), ("new",)}

    def test_without_files(self, traces: Tuple[Path, Path], tmp_path: Path) -> None:
        """If one trace has no files, as from an SDK, sites match by functions alone."""
        other = tmp_path / "trace.jsonl"
        other.write_text(
            traces[0].read_text().replace("greenback.chain.", "-").replace("code.file.path", "-")
        )
        found = compared(traces[0], other)
        assert not any({"gone", "new"} & set(site["verdicts"]) for site in found["sites"])
        assert found["chains"] == []
        assert found["notes"][0].startswith("B has no sync chains")

    def test_only_spans(self, traces: Tuple[Path, Path], tmp_path: Path) -> None:
        """If one trace has only spans, a note says that they may be a sample."""
        other = tmp_path / "trace.jsonl"
        lines = traces[0].read_text().splitlines(keepends=True)
        other.write_text("".join(line for line in lines if "resourceSpans" in line))
        (note,) = compared(traces[0], other)["notes"]
        assert note.startswith("B has processes without metrics")


class TestTime:
    def test_slower_and_faster(self, traces: Tuple[Path, Path]) -> None:
        """A site is slower or faster if its time per bridge is longer or shorter."""
        found = verdicts(compared(*traces))
        assert found["becomes_slower"] == ["slower"]
        assert found["becomes_faster"] == ["faster"]

    def test_few_bridges_are_not_judged(self, traces: Tuple[Path, Path]) -> None:
        """The time is not compared with fewer than 20 bridges."""
        assert verdicts(compared(*traces))["rare"] == []

    @pytest.mark.parametrize(
        ("before_ms", "after_ms", "verdict"),
        [
            (1, 1.15, []),
            (1, 1.25, ["slower"]),
            (1, 0.9, []),
            (1, 0.8, ["faster"]),
            (0.02, 0.11, []),
            (0.02, 0.13, ["slower"]),
        ],
    )
    def test_noise(
        self, traces: Tuple[Path, Path], before_ms: float, after_ms: float, verdict: List[str]
    ) -> None:
        """A time per bridge that differs by less than a factor of 1.2 or 0.1 ms is as before."""
        before = load([str(traces[0])])
        after = copy.deepcopy(before)
        for trace, each in ((before, before_ms), (after, after_ms)):
            for site in trace.sites:
                site.time = site.bridges * each / 1000
        assert self.verdicts_on_low(before, after) == verdict

    def test_totals_do_not_matter(self, traces: Tuple[Path, Path]) -> None:
        """A site with twice the bridges in twice the time has more bridges, and is not slower."""
        before = load([str(traces[0])])
        after = copy.deepcopy(before)
        for site in after.sites:
            site.add(copy.copy(site))
        assert self.verdicts_on_low(before, after) == ["more"]

    def verdicts_on_low(self, before: Trace, after: Trace) -> List[str]:
        (low,) = [site for site in compare(before, after).sites if site.function.endswith(".low")]
        return low.verdicts


class TestCounts:
    def test_totals(self, traces: Tuple[Path, Path]) -> None:
        """The totals of both traces have bridges, suspended bridges, errors, portals and time."""
        found = compared(*traces)
        for name in ("before", "after"):
            numbers = found[name]
            assert numbers["portals"] == 1
            assert numbers["errors"] == 3
            assert numbers["suspended_time"] <= numbers["time"]
        assert found["before"]["bridges"] == 5 * 25 + 5 + 3 + 1
        assert found["after"]["bridges"] == 4 * 25 + 5 + 3 + 1

    def test_fewer(self, traces: Tuple[Path, Path]) -> None:
        """If both traces have as many portals, any difference of bridges is shown."""
        assert "fewer" in verdicts(compared(*traces))["low"]

    def test_different_lengths(self, traces: Tuple[Path, Path], longer: Path) -> None:
        """If one trace has more portals, bridges are compared and shown per portal, too."""
        found = compared(traces[0], longer)
        assert found["after"]["portals"] == 3
        for site in found["sites"]:
            assert site["after"]["bridges"] == 3 * site["before"]["bridges"]
            assert site["after"]["bridges_per_portal"] == site["before"]["bridges_per_portal"]
            assert not {"fewer", "more"} & set(site["verdicts"])
        assert "per portal" in diff(traces[0], longer).stdout


class TestChains:
    def test_gone_new_and_kept(self, traces: Tuple[Path, Path]) -> None:
        """Sync chains match by their functions: one chain is gone, and the other stays."""
        chains = {
            tuple(name.replace("__main__.", "") for name in chain["functions"]): chain
            for chain in compared(*traces)["chains"]
        }
        assert chains["one_way", "low"]["verdicts"] == ["gone"]
        assert chains["one_way", "added"]["verdicts"] == ["new"]
        kept = chains["another_way", "low"]
        assert kept["before"]["bridges"] == kept["after"]["bridges"] == 25

    def test_versions(self, traces: Tuple[Path, Path], tmp_path: Path) -> None:
        """A trace of version 1, without the parts of functions, can be compared."""
        old = tmp_path / "old.jsonl"
        with old.open("w") as file:
            for request in map(json.loads, traces[0].read_text().splitlines()):
                for part in request.get("resourceMetrics", ()):
                    for scope in part["scopeMetrics"]:
                        scope["metrics"] = [
                            metric
                            for metric in scope["metrics"]
                            if metric["name"] != "greenback.chain.functions"
                        ]
                file.write(json.dumps(request).replace("greenback.trace.version", "x") + "\n")
        for pair in ((old, traces[0]), (traces[0], old)):
            found = compared(*pair)
            assert len(found["chains"]) > 5
            assert {tuple(chain["verdicts"]) for chain in found["chains"]} == {()}
        assert compared(old, traces[1])["chains"] == compared(*traces)["chains"]

    def test_direct(self, traces: Tuple[Path, Path]) -> None:
        """Bridges of an async function itself are a chain without sync functions."""
        (chain,) = [chain for chain in compared(*traces)["chains"] if chain["direct"]]
        assert chain["functions"] == ["__main__.task"]


class TestLayout:
    @pytest.mark.parametrize("columns", [80, 200])
    def test_fits(self, traces: Tuple[Path, Path], longer: Path, columns: int) -> None:
        """No line is wider than the terminal, and names and numbers are whole."""
        for other in (traces[1], longer):
            result = diff(traces[0], other, columns=columns)
            assert result.exit_code == 0
            assert max(map(len, result.stdout.splitlines())) <= columns
            assert "…" not in result.stdout
        assert "__main__.becomes_faster" in diff(*traces, columns=columns).stdout

    def test_headline(self, traces: Tuple[Path, Path]) -> None:
        """The first line has the numbers of bridges after and before."""
        assert diff(*traces).stdout.startswith("109 bridges after 134: 25 fewer (-18.7%).")

    def test_top(self, traces: Tuple[Path, Path]) -> None:
        """The output says how many changes --top leaves out."""
        printed = diff(*traces, "--top", 1).stdout
        assert "__main__.removed" in printed
        assert "__main__.added" not in printed
        assert "4 more changed: --top 5 shows all." in printed

    def test_no_difference(self, traces: Tuple[Path, Path]) -> None:
        """A trace compared with itself has no changes."""
        printed = diff(traces[0], traces[0]).stdout
        assert "134 bridges after 134: as many as before." in printed
        assert "\n7 as before." in printed

    def test_nothing_left(self, traces: Tuple[Path, Path], tmp_path: Path) -> None:
        """After the last step there are portals and no bridges, and all sites are gone."""
        other = run(tmp_path / "last", ALL_ASYNC, 1)
        result = diff(traces[0], other)
        assert result.exit_code == 0
        assert result.stdout.startswith("0 bridges after 134: 134 fewer (-100.0%).")
        assert {tuple(found) for found in verdicts(compared(traces[0], other)).values()} == {
            ("gone",)
        }


class TestInput:
    def test_directory_pattern_and_pipe(self, traces: Tuple[Path, Path]) -> None:
        """Each trace can be a directory, a pattern or standard input."""
        whole = compared(*traces)
        before, after = traces
        assert compared(before.parent, f"{after.parent}/*.jsonl") == whole
        piped = diff("-", after, "--json", stdin=before.read_bytes())
        assert json.loads(piped.stdout) == whole

    @pytest.mark.parametrize(
        ("spoil", "says"),
        [
            (lambda file: file.unlink(), "cannot be read"),
            (lambda file: file.write_text(""), "empty"),
            (lambda file: file.write_text("nonsense\n"), "no line is OTLP JSON"),
            (lambda file: file.write_text('{"resourceSpans": []}\n'), "no metrics and no spans"),
        ],
        ids=["missing", "empty", "nonsense", "foreign"],
    )
    @pytest.mark.parametrize("which", [0, 1], ids=["A", "B"])
    def test_bad(
        self,
        traces: Tuple[Path, Path],
        tmp_path: Path,
        which: int,
        spoil: Callable[[Path], Any],
        says: str,
    ) -> None:
        """The error says which of the two traces is wrong, and why; the exit status is 2."""
        files = [
            Path(shutil.copy(str(file), str(tmp_path / f"{n}.jsonl")))
            for n, file in enumerate(traces)
        ]
        spoil(files[which])
        result = diff(*files)
        assert result.exit_code == 2
        name = ("A, the trace before", "B, the trace after")[which]
        assert f"greenback-trace: {name}: {files[which]}" in result.output
        assert says in result.output

    def test_both_bad(self, tmp_path: Path) -> None:
        """If both traces are wrong, the error names both."""
        result = diff(tmp_path / "one", tmp_path / "two")
        assert result.exit_code == 2
        assert "A, the trace before: " in result.output
        assert "B, the trace after: " in result.output

    def test_standard_input_twice(self) -> None:
        """Standard input cannot be both traces."""
        result = diff("-", "-")
        assert result.exit_code == 2
        assert "A and B are both standard input" in result.output

    def test_broken_lines(self, traces: Tuple[Path, Path], tmp_path: Path) -> None:
        """Broken lines are counted, and the first is named."""
        other = tmp_path / "trace.jsonl"
        other.write_text(traces[1].read_text() + "nonsense\n")
        (note,) = compared(traces[0], other)["notes"]
        assert note.startswith("B has 1 line that could not be read: ")
        assert f"{other}:" in note


class TestTutorial:
    PAGE = (REPOSITORY / "docs" / "migrate.rst").read_text(encoding="utf-8")

    def test_numbers(self, tutorial: Tuple[Path, List[List[int]]]) -> None:
        """The table in docs/migrate.rst has the predicted and the counted bridges."""
        rows = re.findall(r"   \* - (\d)\n     -.*\n     - (\d+)\n     - (\d+)\n", self.PAGE)
        assert [list(map(int, row)) for row in rows] == tutorial[1]

    def test_output(self, tutorial: Tuple[Path, List[List[int]]]) -> None:
        """The output of diff in docs/migrate.rst is the actual output, except for times."""
        directory, _ = tutorial
        shown = re.findall(
            r"    \$ greenback-trace diff (\S+) (\S+)\n((?:    .*\n|\n)+)", self.PAGE
        )
        assert [files for *files, _ in shown] == [["0.jsonl", "1.jsonl"], ["0.jsonl", "4.jsonl"]]
        for before, after, output in shown:
            printed = timeless(diff(directory / before, directory / after, columns=100).stdout)
            for part in filter(None, map(timeless, output.split("    ...\n"))):
                assert part in printed
                printed = printed.partition(part)[2]


def timeless(printed: str) -> str:
    """The words in the output of diff, without times and their changes."""
    printed = re.sub(r"^( *(?:time|waiting) .*?)[+-][\d.]+%$", r"\1", printed, flags=re.MULTILINE)
    if sys.version_info >= (3, 14):
        # asyncio does not wait there for a thread that is already done.
        printed = re.sub(r"^( *suspended ).*", r"\1", printed, flags=re.MULTILINE)
    return " ".join(re.sub(r"[\d.,]+ (?:us|ms|s)\b", "", printed).split())
