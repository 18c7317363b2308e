"""Files that are no traces, or not whole ones."""

from __future__ import annotations

import copy
import json
import os
from pathlib import Path
from typing import Any, Callable, Dict, List, Tuple

import pytest

from greenback_trace.report.read import inputs
from greenback_trace.report.read.inputs import NothingToReportError
from greenback_trace.report.read.load import Selection, load

from .lines import BRIDGES, numbers, points, requests, write

pytest.importorskip("opentelemetry.sdk", reason="a trace needs greenback[report]")


Change = Callable[[Dict[str, Any]], None]


def spans(request: Dict[str, Any]) -> List[Dict[str, Any]]:
    return [
        span
        for resource in request.get("resourceSpans", ())
        for scope in resource["scopeSpans"]
        for span in scope["spans"]
    ]


BROKEN = [
    ('{"resourceMetrics": [{"reso', "not JSON"),
    ("[]", "not a request of OTLP"),
    ('{"level": "info"}', "not a request of OTLP"),
    ('{"resourceMetrics": [3]}', "not a request of OTLP"),
    ('{"resourceMetrics": {"a": 1}}', "not a request of OTLP"),
    ('{"resourceSpans": [{"scopeSpans": [{"scope": {"name": "greenback"}, "spans": [{}]}]}]}', ""),
    ("\x00\x00\x01\x02", "not JSON"),
    ("[" * 100_000, "not JSON"),
    ('{"resourceSpans": [], "more": ' + "[" * 100_000, "not JSON"),
]


def attribute(name: str, value: Any) -> Change:
    """Give an attribute of spans another value."""

    def change(line: Dict[str, Any]) -> None:
        for span in spans(line):
            for each in span["attributes"]:
                if each["key"] == name:
                    each["value"] = value

    return change


def field(name: str, value: Any) -> Change:
    """Give a field of spans another value."""
    return lambda line: [span.update({name: value}) for span in spans(line)] and None


def count(**fields: Any) -> Change:
    """Give the points of bridges another value."""

    def change(line: Dict[str, Any]) -> None:
        for point in points(line, "greenback.chain.bridges"):
            point.pop("asInt", None)
            point.update(fields)

    return change


def version(value: Any) -> Change:
    """Give the version another value."""

    def change(line: Dict[str, Any]) -> None:
        for part in (*line.get("resourceMetrics", ()), *line.get("resourceSpans", ())):
            for each in part["resource"]["attributes"]:
                if each["key"] == "greenback.trace.version":
                    each["value"] = value

    return change


def function(name: str, value: Any) -> Change:
    """Give an attribute of the functions in chains another value; None for no attribute."""

    def change(line: Dict[str, Any]) -> None:
        for point in points(line, "greenback.chain.functions"):
            point["attributes"] = [
                dict(each, value=value) if each["key"] == name else each
                for each in point["attributes"]
                if each["key"] != name or value is not None
            ]

    return change


def nested(value: Any) -> Any:
    return {"arrayValue": {"values": [value]}}


MISFITS: Dict[str, Tuple[Change, str]] = {
    "a count of 10**400": (count(asInt=10**400), "greenback.chain.bridges is out of range"),
    "a negative count": (count(asInt="-1"), "greenback.chain.bridges is out of range: '-1'"),
    "a count NaN": (count(asDouble=float("nan")), "is out of range: nan"),
    "a count of 1e300": (count(asDouble=1e300), "is out of range: 1e+300"),
    "a count abc": (count(asInt="abc"), "is no whole number: 'abc'"),
    "a start of infinity": (field("startTimeUnixNano", float("inf")), "no whole number: inf"),
    "a start of 10**30": (field("startTimeUnixNano", 10**30), "startTimeUnixNano is out of range"),
    "a start below 0": (field("startTimeUnixNano", "-1"), "is out of range: '-1'"),
    "an end of 10**30": (field("endTimeUnixNano", str(10**30)), "endTimeUnixNano is out of range"),
    "an id that is a number": (field("spanId", 3), "the name or an id of a span is no text"),
    "a name with half a pair": (field("name", "\ud800"), "half of a surrogate pair: '\\ud800'"),
    "attributes that are none": (field("attributes", 3), "not a request of OTLP"),
    "a line of infinity": (
        attribute("code.line.number", {"intValue": float("inf")}),
        "code.line.number is no whole number: inf",
    ),
    "a line that is a text": (
        attribute("code.line.number", {"stringValue": "3"}),
        "code.line.number is no number",
    ),
    "a function that is a number": (
        attribute("code.function.name", {"intValue": "7"}),
        "code.function.name is no text",
    ),
    "a file that is an array": (attribute("code.file.path", nested({})), "is no text"),
    "a file with a NUL": (attribute("code.file.path", {"stringValue": "a\0"}), "has a NUL"),
    "a chain of arrays": (
        attribute("greenback.sync_chain", nested(nested({}))),
        "greenback.sync_chain has something else than texts",
    ),
    "a chain that is a text": (
        attribute("greenback.sync_chain", {"stringValue": "abc"}),
        "greenback.sync_chain is no array",
    ),
    "a chain with no end": (
        attribute(
            "greenback.sync_chain", {"arrayValue": {"values": [{"stringValue": "f"}] * 5000}}
        ),
        "greenback.sync_chain has more than 128 functions",
    ),
    "a task with half a pair": (
        attribute("greenback.task.name", {"stringValue": "\ud800"}),
        "greenback.task.name has half of a surrogate pair",
    ),
    "slow steps below 0": (
        attribute("greenback.portal.slow_steps", {"intValue": "-5"}),
        "greenback.portal.slow_steps is out of range: '-5'",
    ),
    "a time that is a text": (
        attribute("greenback.suspended_time", {"stringValue": "x"}),
        "greenback.suspended_time is no number",
    ),
    "a time that is NaN": (
        attribute("greenback.suspended_time", {"doubleValue": "NaN"}),
        "greenback.suspended_time is out of range",
    ),
    "a number that is half a pair": (
        attribute("greenback.portal.suspended_time", {"doubleValue": "\ud800"}),
        "greenback.portal.suspended_time is no number: '\\ud800'",
    ),
    "a version 0": (
        version({"intValue": "0"}),
        "greenback.trace.version is out of range: '0'",
    ),
    "a version that is a text": (
        version({"stringValue": "2"}),
        "greenback.trace.version is no number",
    ),
    "a function without a name": (
        function("greenback.function.qualname", None),
        "greenback.chain.functions has a function without a name",
    ),
    "a name of a function that is a number": (
        function("greenback.function.qualname", {"intValue": "7"}),
        "greenback.function.qualname is no text",
    ),
    "a module with half a pair": (
        function("greenback.function.module", {"stringValue": "\ud800"}),
        "greenback.function.module has half of a surrogate pair",
    ),
    "a file of a function with a NUL": (
        function("code.file.path", {"stringValue": "a\0"}),
        "code.file.path has a NUL",
    ),
    "a line of a function below 0": (
        function("code.line.number", {"intValue": "-1"}),
        "code.line.number is out of range: '-1'",
    ),
    "a flag that is a number": (
        attribute("greenback.suspended", {"intValue": "1"}),
        "greenback.suspended is neither true nor false",
    ),
}


class TestBroken:
    @pytest.mark.parametrize(("line", "why"), BROKEN, ids=range(len(BROKEN)))
    def test_named(self, shop: Path, path: Path, line: str, why: str) -> None:
        """A broken line is named with its place and what is wrong; the rest is counted."""
        before, *after = shop.read_bytes().splitlines(keepends=True)
        path.write_bytes(before + line.encode() + b"\n" + b"".join(after))
        trace = load([str(path)])
        assert trace.broken_lines == 1
        assert trace.broken[0].startswith(f"{path}:2: ")
        assert why in trace.broken[0]
        assert numbers(trace) == numbers(load([str(shop)]))

    @pytest.mark.parametrize(("change", "why"), MISFITS.values(), ids=MISFITS)
    def test_misfit(self, shop: Path, path: Path, change: Change, why: str) -> None:
        """A value that has another type or range than it should breaks its line, and no other."""
        extra = copy.deepcopy(requests(shop))
        for line in extra:
            change(line)
        changed = [line for line, before in zip(extra, requests(shop)) if line != before]
        assert changed
        # First, so that none of it can have been counted before.
        trace = load([str(write(path, [*changed, *requests(shop)]))])
        assert trace.broken_lines == len(changed)
        assert trace.broken[0].startswith(f"{path}:1: ")
        assert why in trace.broken[0]
        assert numbers(trace) == numbers(load([str(shop)]))

    def test_deep_array(self, shop: Path, path: Path) -> None:
        """Arrays that are nested deeper than anybody needs break a line."""
        text = json.dumps(requests(shop, "resourceSpans")[-1])
        deep = '{"arrayValue": {"values": [' * 50 + "{}" + "]}}" * 50
        field = '"attributes": ['
        odd = text.replace(field, field + '{"key": "odd", "value": ' + deep + "}, ", 1)
        path.write_bytes(odd.encode() + b"\n" + shop.read_bytes())
        trace = load([str(path)])
        assert trace.broken_lines == 1
        assert "nested deeper than 8" in trace.broken[0]
        assert numbers(trace) == numbers(load([str(shop)]))

    def test_wrong_number(self, shop: Path, path: Path) -> None:
        """A line with a number that is none is left out as a whole."""
        extra = requests(shop, "resourceMetrics")[-1]
        for point in points(extra):
            point["timeUnixNano"] = str(int(point["timeUnixNano"]) + 1)
            point["startTimeUnixNano"] = "1"
        points(extra)[-1]["timeUnixNano"] = "yesterday"
        trace = load([str(write(path, [*requests(shop), extra]))])
        assert trace.broken_lines == 1
        assert numbers(trace) == numbers(load([str(shop)]))

    def test_last_line(self, shop: Path, path: Path) -> None:
        """A last line that is still being written is a broken one."""
        path.write_bytes(shop.read_bytes() + b'{"resourceMetrics":[{"resource":{"attr')
        trace = load([str(path)])
        assert trace.broken_lines == 1
        assert trace.total.bridges == BRIDGES

    def test_too_long(self, shop: Path, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """A line without an end does not fill the memory: it is named, and skipped."""
        monkeypatch.setattr(inputs, "_LONGEST", 1 << 20)
        path.write_bytes(b"[" * (5 << 20) + b"\n" + shop.read_bytes() + b"[" * (3 << 20))
        trace = load([str(path)])
        assert trace.broken == [
            f"{path}:1: longer than 1 MiB",
            f"{path}:{len(shop.read_bytes().splitlines()) + 2}: longer than 1 MiB",
        ]
        assert trace.total.bridges == BRIDGES

    def test_many(self, shop: Path, path: Path) -> None:
        """All broken lines are counted, and the first thousand are named."""
        path.write_bytes(b"nonsense\n" * 1500 + shop.read_bytes())
        trace = load([str(path)])
        assert trace.broken_lines == 1500
        assert len(trace.broken) == 1000
        assert trace.total.bridges == BRIDGES

    @pytest.mark.parametrize("odd", ['"NaN"', "NaN", "null", "1"])
    def test_odd_numbers(self, shop: Path, path: Path, odd: str) -> None:
        """A value that JSON has no number for does not break a line."""
        text = json.dumps(requests(shop, "resourceMetrics")[-1])
        attribute = '{"key": "odd", "value": {"doubleValue": ' + odd + "}}, "
        field = '"attributes": ['
        path.write_text(text.replace(field, field + attribute, 1))
        trace = load([str(path)])
        assert trace.broken == []
        assert trace.total.bridges == BRIDGES

    def test_empty_lines_and_byte_order_mark(self, shop: Path, path: Path) -> None:
        """Empty lines, and what an editor has put before the first line, are no errors."""
        path.write_bytes(b"\xef\xbb\xbf" + shop.read_bytes().replace(b"\n", b"\r\n\r\n"))
        trace = load([str(path)])
        assert trace.broken == []
        assert trace.total.bridges == BRIDGES


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs pipes with names")
@pytest.mark.parametrize("kind", ["pipe", "device"])
def test_special_files_in_a_directory(shop: Path, tmp_path: Path, kind: str) -> None:
    """Of a directory or a pattern, only regular files are opened; the others are named."""
    (tmp_path / "a.jsonl").write_bytes(shop.read_bytes())
    special = tmp_path / "b.jsonl"
    if kind == "pipe":
        os.mkfifo(special)
    else:
        special.symlink_to("/dev/zero")
    for path in (tmp_path, tmp_path / "*.jsonl"):
        trace = load([str(path)])
        assert trace.total.bridges == BRIDGES
        assert trace.broken == [
            f"{special}:1: not a regular file, which is read only if it is named itself"
        ]


class TestNothing:
    @pytest.mark.parametrize(
        ("content", "says"),
        [
            ("", "empty"),
            ("\n\n", "empty"),
            ("nonsense\n", "no line is OTLP JSON"),
            ('{"resourceSpans": []}\n', "no metrics and no spans of greenback in 1 line"),
            ('{"resourceLogs": []}\n' * 2, "no metrics and no spans of greenback in 2 lines"),
        ],
    )
    def test_content(self, path: Path, content: str, says: str) -> None:
        """Files without anything of greenback are an error that says how to get some."""
        path.write_text(content)
        with pytest.raises(NothingToReportError) as caught:
            load([str(path)])
        assert str(caught.value).startswith(f"{path}: {says}")
        assert "GREENBACK_TRACE=1 GREENBACK_TRACE_FILE=trace.jsonl" in str(caught.value)

    def test_missing(self, shop: Path, path: Path) -> None:
        """A file that is not there is an error, even if others are."""
        with pytest.raises(NothingToReportError) as caught:
            load([str(shop), str(path)])
        assert str(caught.value).startswith(f"{path} cannot be read: No such file")
        assert "GREENBACK_TRACE_FILE" in str(caught.value)

    def test_pattern(self, tmp_path: Path) -> None:
        """A pattern that matches nothing is an error."""
        with pytest.raises(NothingToReportError, match="no file has such a name"):
            load([str(tmp_path / "*.jsonl")])

    def test_directory(self, tmp_path: Path) -> None:
        """A directory without a trace is an error that says what a trace is called."""
        (tmp_path / "notes.txt").write_text("not a trace")
        with pytest.raises(NothingToReportError, match=r"\.jsonl"):
            load([str(tmp_path)])

    def test_service(self, shop: Path, till: Path) -> None:
        """A service that is not there is an error that says which ones are."""
        with pytest.raises(NothingToReportError, match="nothing of greenback from web") as caught:
            load([str(shop), str(till)], selection=Selection(service="web"))
        assert "but from shop, till" in str(caught.value)
