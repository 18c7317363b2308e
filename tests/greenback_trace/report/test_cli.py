"""The command ``greenback-trace report``."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, Dict, List, Tuple

import pytest

pytest.importorskip("click", reason="the report needs greenback[report]")
pytest.importorskip("rich", reason="the report needs greenback[report]")

from click.testing import CliRunner, Result

import greenback
from greenback_trace.cli import main
from greenback_trace.report.show.choice import to_nanoseconds

REPOSITORY = Path(__file__).resolve().parents[3]


def report(*arguments: Any, columns: int = 200) -> Result:
    return CliRunner().invoke(main, ["report", *map(str, arguments)], env={"COLUMNS": str(columns)})


def point(value: float, time: int = 1, start: int = 0, **attributes: Any) -> Dict[str, Any]:
    values: List[Dict[str, Any]] = []
    for name, content in attributes.items():
        key = name.replace("__", ".")
        if isinstance(content, list):
            value_of = {"arrayValue": {"values": [{"stringValue": item} for item in content]}}
        elif isinstance(content, int):
            value_of = {"intValue": str(content)}  # type: ignore[dict-item]
        else:
            value_of = {"stringValue": content}
        values.append({"key": key, "value": value_of})
    number = ("asInt", str(value)) if isinstance(value, int) else ("asDouble", value)
    return dict([number], attributes=values, timeUnixNano=str(time), startTimeUnixNano=str(start))


def request(
    *metrics: Tuple[str, List[Dict[str, Any]]],
    process: str = "1",
    scope: str = "greenback",
    temporality: int = 2,
) -> str:
    return json.dumps(
        {
            "resourceMetrics": [
                {
                    "resource": {
                        "attributes": [
                            {"key": "service.instance.id", "value": {"stringValue": process}}
                        ]
                    },
                    "scopeMetrics": [
                        {
                            "scope": {"name": scope},
                            "metrics": [
                                {
                                    "name": name,
                                    "sum": {
                                        "aggregationTemporality": temporality,
                                        "dataPoints": points,
                                    },
                                }
                                for name, points in metrics
                            ],
                        }
                    ],
                }
            ]
        }
    )


def chain(function: str, count: int, seconds: float, **more: Any) -> List[Any]:
    place: Dict[str, Any] = {
        "code__function__name": function,
        "code__file__path": "/srv/shop.py",
        "code__line__number": 7,
        "greenback__sync_chain": [f"{function} (/srv/shop.py:7)"],
    }
    return [
        ("greenback.chain.bridges", [point(count, greenback__outcome="ok", **more, **place)]),
        ("greenback.chain.time", [point(seconds, **more, **place)]),
    ]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "trace.jsonl"


class TestNumbers:
    def test_terminal(self, shop: Path) -> None:
        """Each site has its numbers, awaitables and tasks; its chains follow."""
        output = report(shop).stdout
        assert "111 bridges from 6 sites: 49 suspended" in output
        assert f"1 process of shop, engine {greenback.engine}; " in output
        lines = [line.split() for line in output.splitlines()]
        sites = {line[1]: line[2:] for line in lines if len(line) > 10 and line[0].isdigit()}
        assert sites["__main__.Prices.__getitem__"][:5] == ["fetch", "45", "100%", "0", "0"]
        assert sites["__main__.stock"][:5] == ["refuse", "15", "0%", "15", "0"]
        assert sites["__main__.wait"][:5] == ["sleep", "2", "100%", "0", "2"]
        assert "order *" in output
        assert "     __main__.bill  " in output
        assert "called directly from an async function: a plain await would do" in output

    def test_the_rest(self, shop: Path) -> None:
        """Portals, durations, slow steps and misuses have a table each."""
        output = report(shop).stdout
        lines = [line.split() for line in output.splitlines()]
        assert ["task", "17", "0"] in [line[:3] for line in lines]
        assert ["run_sync", "4", "0"] in [line[:3] for line in lines]
        assert ["a", "bridge", "111"] in [line[:3] for line in lines]
        assert ["async_caller", "advice", "__main__.day", "2"] in lines
        assert "Slow steps" in output
        assert "Left out" not in output

    def test_where_misuse_is_explained(self, shop: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """The table of misuses names the command that explains a kind, or the documentation."""
        assert "what to do about it: greenback-trace explain KIND" in report(shop).stdout
        monkeypatch.setenv("GREENBACK_TRACE_DOCS", "https://docs.example.org/[red]/")
        assert "about it: https://docs.example.org/[red]/safe.html" in report(shop).stdout

    def test_a_sample(self, sampled: Path) -> None:
        """The report says that spans are a sample, and what tracing left out."""
        output = report(sampled).stdout
        assert "111 bridges" in output
        assert "a sample with more slow and failed bridges than there are" in output
        assert "spans (rate_limit)" in output

    def test_no_spans(self, shop: Path, path: Path) -> None:
        """The report says that percentiles need spans, and chains need metrics per chain."""
        path.write_text(
            request(
                (
                    "greenback.bridges",
                    [point(4, code__function__name="shop.a", greenback__outcome="error")],
                )
            )
        )
        output = report(path).stdout
        assert "4 bridges from 1 site" in output
        assert "No spans" in output
        assert "No sync chains" in output

    def test_a_fleet(self, shop: Path, till: Path) -> None:
        """Services are named with their numbers of processes; --service leaves the others out."""
        engine = f"engine {greenback.engine}"
        assert f"2 processes of shop (1), till (1), {engine}; " in report(shop, till).stdout
        output = report(shop, till, "--service", "till").stdout
        assert f"1 process of till, {engine}; " in output
        assert "111 bridges" in output

    def test_engines(self, shop: Path, till: Path, path: Path) -> None:
        """Engines are named with their numbers of processes, unless all have the same."""
        text = till.read_text(encoding="utf-8")
        attribute = '"greenback.engine","value":{"stringValue":"%s"}'
        assert attribute % greenback.engine in text
        path.write_text(text.replace(attribute % greenback.engine, attribute % "rust"))
        output = report(shop, path).stdout
        assert f", engines {greenback.engine} (1), rust (1); " in " ".join(output.split())
        path.write_text(text.replace("greenback.engine", "x"))
        output = report(shop, path).stdout
        assert f", engine {greenback.engine} (1); " in " ".join(output.split())
        assert "1 process of till; " in report(path).stdout

    def test_standard_input(self, shop: Path) -> None:
        """A hyphen stands for standard input."""
        result = CliRunner().invoke(main, ["report", "-"], input=shop.read_bytes())
        assert result.exit_code == 0
        assert "111 bridges" in result.stdout


class TestSelection:
    def functions(self, *arguments: Any) -> List[str]:
        result = report(*arguments, "--json")
        assert result.exit_code == 0, result.output
        sites = json.loads(result.stdout)["sites"]
        return [site["function"].replace("__main__.", "") for site in sites]

    @pytest.mark.parametrize(
        ("sort", "first"),
        [
            ("holding", "total"),
            ("bridges", "Prices."),
            ("suspended", "Prices.__getitem__"),
            ("errors", "stock"),
            ("p50", "total"),
        ],
    )
    def test_sort(self, shop: Path, sort: str, first: str) -> None:
        """The first site has the most of what --sort names."""
        assert self.functions(shop, "--sort", sort)[0].startswith(first)

    def test_function(self, shop: Path) -> None:
        """--function takes a part of a name or a pattern for all of it, and can be repeated."""
        known, item = "Prices.known", "Prices.__getitem__"
        assert sorted(self.functions(shop, "--function", "Prices")) == [item, known]
        assert self.functions(shop, "--function", "*.known") == [known]
        both = self.functions(shop, "--function", "known", "--function", "stock")
        assert sorted(both) == [known, "stock"]

    def test_path(self, shop: Path) -> None:
        """--path takes a part of the path, or a pattern for the whole path."""
        assert len(self.functions(shop, "--path", "shop.py")) == 6
        assert len(self.functions(shop, "--path", "*/shop.py")) == 6
        result = report(shop, "--path", "till.py")
        assert result.exit_code == 2
        assert "none of 6 sites" in result.output
        assert "Choose another function or path" in result.output

    def test_only_sites(self, shop: Path) -> None:
        """If sites are chosen, the report shows only these."""
        output = report(shop, "--function", "stock").stdout
        assert "15 bridges from 1 of 6 sites" in output
        assert "Portals" not in output

    def test_time(self, shop: Path) -> None:
        """--since and --until take times in ISO 8601, or ages."""
        whole = json.loads(report(shop, "--json").stdout)
        metrics = next(line for line in shop.read_text().splitlines() if "resourceMetrics" in line)
        written = re.search('"timeUnixNano":"([0-9]*)"', metrics)
        assert written is not None
        moment = datetime.fromtimestamp(int(written[1]) / 1e9 + 1e-5)
        parts = [
            json.loads(report(shop, option, moment.isoformat(), "--json").stdout)["total"]
            for option in ("--since", "--until")
        ]
        assert sum(part["bridges"] for part in parts) == whole["total"]["bridges"]
        assert all(part["bridges"] for part in parts)
        assert report(shop, "--since", "1d").exit_code == 0
        nothing = report(shop, "--until", "1 d")
        assert nothing.exit_code == 2
        assert "Change since or until" in nothing.output
        wrong = report(shop, "--since", "yesterday")
        assert wrong.exit_code == 2
        assert "30m, for 30 minutes ago" in " ".join(wrong.output.split())


class TestTime:
    def test_zones(self) -> None:
        """A time without a zone is local, and Z is UTC."""
        now = datetime(2026, 5, 1, 12, 0, tzinfo=timezone.utc)
        noon = int(now.timestamp()) * 10**9
        assert to_nanoseconds("2026-05-01T12:00Z", now) == noon
        assert to_nanoseconds("2026-05-01 14:00:00.000001+02:00", now) == noon + 1000
        local = now.astimezone().replace(tzinfo=None)
        assert to_nanoseconds(local.isoformat(), now) == noon
        assert to_nanoseconds("1.5h", now) == noon - 5400 * 10**9


class TestJSON:
    def test_fields(self, shop: Path) -> None:
        """--json prints everything in the tables, with all sites."""
        content = json.loads(report(shop, "--json").stdout)
        assert content["total"]["bridges"] == 111
        assert content["services"] == {"shop": 1}
        assert content["engines"] == {greenback.engine: 1}
        sites = {site["function"]: site for site in content["sites"]}
        stock = sites["__main__.stock"]
        assert stock["errors"] == stock["bridges"] == stock["spans"] == 15
        assert stock["error_types"] == {"LookupError": 15}
        assert stock["awaitables"] == {"refuse": 15}
        assert stock["tasks"] == {"order *": 15}
        assert stock["duration"]["p50"] <= stock["duration"]["p95"] <= stock["duration"]["p99"]
        [chain] = stock["chains"]
        assert chain["bridges"] == 15
        assert chain["chain"][0].startswith("__main__.stock (")
        assert content["portals"]["task"]["opened"] == 17
        assert content["misuses"] == [
            {"kind": "async_caller", "function": "__main__.day", "count": 2}
        ]
        begin, end = (datetime.fromisoformat(content[name]) for name in ("begin", "end"))
        assert begin < end

    def test_top(self, shop: Path) -> None:
        """--top sets the number of sites in the JSON."""
        assert len(json.loads(report(shop, "--json", "--top", 2).stdout)["sites"]) == 2


class TestHelp:
    @pytest.mark.parametrize("command", ["", *main.commands])
    def test_fits(self, command: str) -> None:
        """At 80 columns no help is cut off or too wide, and every option has a help text."""
        arguments = [command, "--help"] if command else ["--help"]
        output = CliRunner().invoke(main, arguments, env={"COLUMNS": "80"}).output
        assert max(map(len, output.splitlines())) <= 80
        assert "..." not in output.partition("Options:")[2]
        for parameter in main.commands[command].params if command else ():
            assert parameter.param_type_name == "argument" or parameter.help, parameter.name

    def test_version(self) -> None:
        """--version prints the version of greenback, where it is imported from, and its engine."""
        result = CliRunner().invoke(main, ["--version"])
        assert result.exit_code == 0
        place = os.path.dirname(os.path.abspath(greenback.__file__))
        version = f"greenback {greenback.__version__} from {place}, engine {greenback.engine}"
        assert result.output == f"{version}\n"


class TestProgress:
    def run(self, tmp_path: Path, shop: Path, size: int) -> str:
        """The output on a terminal of a report from a pipe, whose size is unknown."""
        pty = pytest.importorskip("pty", reason="a terminal is needed")
        file = tmp_path / "large.jsonl"
        file.write_bytes(shop.read_bytes() * (size // shop.stat().st_size + 1))
        controller, terminal = pty.openpty()
        process = subprocess.Popen(
            [sys.executable, "-m", "greenback_trace", "report", str(file), "--json"],
            stdout=subprocess.DEVNULL,
            stderr=terminal,
            env={**os.environ, "TERM": "xterm", "PYTHONPATH": str(REPOSITORY)},
        )
        os.close(terminal)
        seen = b""
        while True:
            try:
                part = os.read(controller, 4096)
            except OSError:  # the other end is closed
                break
            if not part:
                break
            seen += part
        os.close(controller)
        assert process.wait(60) == 0
        return seen.decode()

    def test_large(self, tmp_path: Path, shop: Path) -> None:
        """A terminal shows how much is read, while that takes long."""
        seen = self.run(tmp_path, shop, 20_000_000)
        assert "Reading" in seen
        assert "MB" in seen

    def test_small(self, tmp_path: Path, shop: Path) -> None:
        """A small file is read without a bar."""
        assert self.run(tmp_path, shop, 1_000) == ""


class TestLayout:
    def test_order_and_top(self, path: Path) -> None:
        """The sites with the longest total time come first; --top sets their number."""
        path.write_text(
            request(*[metric for n in range(30) for metric in chain(f"shop.f{n}", 1, float(n + 1))])
        )
        output = report(path, "--top", 2).stdout
        assert output.index("shop.f29") < output.index("shop.f28")
        assert "shop.f27" not in output
        assert "and 28 more sites with 28 bridges: --top 30 shows all" in output

    @pytest.mark.parametrize("columns", [80, 120, 200])
    def test_real(self, shop: Path, columns: int) -> None:
        """No line is wider than the terminal, and at 80 and 200 columns nothing is cut off."""
        output = report(shop, columns=columns).stdout
        assert max(map(len, output.splitlines())) <= columns
        assert "…" not in output
        assert "__main__.Prices.__getitem__" in output

    def test_bar(self, shop: Path) -> None:
        """A bar shows a site's total time, divided into waiting and holding."""
        output = report(shop).stdout
        [line, *_] = [each for each in output.splitlines() if "__main__.total  " in each]
        assert "████" in line
        assert "░" not in line

    def test_ascii(self, shop: Path) -> None:
        """A terminal that has only ASCII gets only ASCII."""
        result = CliRunner(charset="ascii").invoke(main, ["report", str(shop)])
        assert result.exit_code == 0
        assert result.stdout.isascii()
        assert "####" in result.stdout

    @pytest.mark.parametrize("columns", [80, 200])
    def test_fits(self, path: Path, columns: int) -> None:
        """Long names are folded, so that nothing is cut off or wider than the terminal."""
        function = "shop.views." + "Very" * 20 + ".load"
        path.write_text(request(*chain(function, 1_234_567, 12_345.6)))
        output = report(path, columns=columns).stdout
        assert max(map(len, output.splitlines())) <= columns
        assert function in "".join(output.split())
        assert "1,234,567" in output
        assert "12,345.6 s" in output

    def test_names_are_not_markup(self, path: Path) -> None:
        """A name that looks like markup of rich is printed literally."""
        path.write_text(request(*chain("shop.[red]<lambda>[/red]", 1, 1.0)))
        assert "shop.[red]<lambda>[/red]" in report(path).stdout


class TestBadInput:
    def test_broken_lines(self, path: Path) -> None:
        """Broken lines are counted and named, and the rest is reported."""
        good = request(*chain("shop.a", 5, 1.0))
        path.write_text("\n".join([good[:50], good, "[]", '{"resourceMetrics": [3]}', ""]))
        result = report(path)
        assert result.exit_code == 0
        assert "5 bridges" in result.stdout
        assert "3 lines could not be read" in result.stdout
        for number in (1, 3, 4):
            assert f"{path}:{number}: " in "".join(result.stdout.split("\n"))

    @pytest.mark.parametrize(
        ("content", "says"),
        [
            ("", "empty"),
            ("nonsense\n", "no line is OTLP JSON"),
            ('{"resourceSpans": []}\n', "no metrics and no spans of greenback in 1 line"),
        ],
    )
    def test_nothing_in_it(self, path: Path, content: str, says: str) -> None:
        """A file without greenback's metrics is an error that says how to get some."""
        path.write_text(content)
        result = report(path)
        assert result.exit_code == 2
        assert says in result.output
        assert "GREENBACK_TRACE=1 GREENBACK_TRACE_FILE=" in result.output

    def test_missing(self, path: Path) -> None:
        """A missing file is an error that names it, and says what to pass."""
        result = report(path)
        assert result.exit_code == 2
        assert str(path) in result.output
        assert "GREENBACK_TRACE_FILE" in result.output

    @pytest.mark.parametrize(
        "arguments",
        [
            ["report", ""],
            ["plan", ""],
            ["diff", "", ""],
            ["export", "", "--format", "folded"],
            ["top", ""],
        ],
        ids=lambda arguments: arguments[0],
    )
    def test_empty_name(self, arguments: List[str]) -> None:
        """An empty name, as of an unset variable of the shell, is an error that says so."""
        result = CliRunner().invoke(main, arguments)
        assert result.exit_code == 2
        for line in result.output.splitlines():
            assert "the name of a file is empty: is a variable of your shell not set?" in line
            assert "GREENBACK_TRACE_FILE" in line

    def test_window_of_a_file(self, shop: Path) -> None:
        """--window with files is an error, since files have no rates."""
        result = report(shop, "--window", "5m")
        assert result.exit_code == 2
        assert "--window goes with --prometheus" in result.output
