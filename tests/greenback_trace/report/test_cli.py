"""The command ``greenback-trace report``."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Dict, List, Tuple

import pytest

pytest.importorskip("click", reason="the report needs greenback[report]")
pytest.importorskip("rich", reason="the report needs greenback[report]")

from click.testing import CliRunner, Result

from greenback_trace.cli import main


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
    def headline(self, *paths: Path) -> str:
        result = report(*paths)
        assert result.exit_code == 0, result.output
        return result.stdout.splitlines()[0]

    def test_the_last_point_counts(self, path: Path) -> None:
        """A counter that was written many times is counted once, as it was last."""
        path.write_text(
            "\n".join(
                [
                    request(*chain("shop.a", 5, 1.0, time=1)),
                    request(*chain("shop.a", 9, 2.0, time=2)),
                ]
            )
        )
        assert self.headline(path).startswith("9 bridges from 1 site: 0 suspended, 2.0 s in total")

    def test_processes_are_added_up(self, path: Path, tmp_path: Path) -> None:
        """Several processes, in one file or in several, are added up."""
        other = tmp_path / "other.jsonl"
        path.write_text(
            "\n".join(
                [
                    request(*chain("shop.a", 5, 1.0)),
                    request(*chain("shop.a", 6, 1.0), process="2"),
                ]
            )
        )
        other.write_text(request(*chain("shop.a", 7, 1.0), process="3"))
        assert self.headline(path, other).startswith("18 bridges from 1 site")
        assert "3 processes" in self.headline(path, other)

    def test_deltas_are_added_up(self, path: Path) -> None:
        """Points that say what was added since the last one are added up."""
        path.write_text(
            "\n".join(
                [
                    request(*chain("shop.a", 5, 1.0, time=1), temporality=1),
                    request(*chain("shop.a", 9, 2.0, time=2), temporality=1),
                ]
            )
        )
        assert self.headline(path).startswith("14 bridges")

    def test_metrics_of_any_sdk(self, path: Path) -> None:
        """Without numbers per chain, those per function are shown; with them, none is doubled."""
        plain = (
            "greenback.bridges",
            [point(4, code__function__name="shop.a", greenback__outcome="error")],
        )
        path.write_text(request(plain))
        assert self.headline(path).startswith("4 bridges from 1 site")
        path.write_text(request(plain, *chain("shop.a", 4, 1.0)))
        assert self.headline(path).startswith("4 bridges from 1 site")

    def test_other_scopes_are_left_out(self, path: Path) -> None:
        """Metrics of the application itself do not count."""
        path.write_text(
            "\n".join(
                [
                    request(*chain("shop.a", 5, 1.0)),
                    request(*chain("shop.b", 5, 1.0), scope="shop"),
                ]
            )
        )
        assert self.headline(path).startswith("5 bridges from 1 site")


class TestLayout:
    def test_order_and_top(self, path: Path) -> None:
        """The sites with the longest total time come first; --top says how many."""
        path.write_text(
            request(*[metric for n in range(30) for metric in chain(f"shop.f{n}", 1, float(n + 1))])
        )
        output = report(path, "--top", 2).stdout
        assert output.index("shop.f29") < output.index("shop.f28")
        assert "shop.f27" not in output
        assert "and 28 more sites with 28 bridges: --top 30 shows all" in output

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
        """What looks like markup of the terminal library in a name is printed as it is."""
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
            ('{"resourceSpans": []}\n', "no metrics of greenback in 1 lines"),
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
        """A file that does not exist is an error that names it and what it should be."""
        result = report(path)
        assert result.exit_code == 2
        assert str(path) in result.output
        assert "GREENBACK_TRACE_FILE" in result.output
