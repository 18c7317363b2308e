"""The output of ``greenback-trace``, for odd names in a trace and for all kinds of outputs."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any, Dict, List, Sequence, Tuple

import pytest

pytest.importorskip("click", reason="the report needs greenback[report]")
pytest.importorskip("rich", reason="the report needs greenback[report]")

from .test_cli import REPOSITORY, chain, point, request

COMMANDS: List[Tuple[str, ...]] = [
    ("report", "after.jsonl"),
    ("plan", "after.jsonl"),
    ("diff", "before.jsonl", "after.jsonl"),
]
EXPORT = ("export", "after.jsonl", "--format", "folded")


def call(
    directory: Path, arguments: Sequence[str], stdout: Any = subprocess.PIPE, **variables: str
) -> subprocess.CompletedProcess[bytes]:
    """Run the command in a process of its own, with its output to a file or a pipe."""
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
    """Write two traces; in the second, *function* is new."""
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
        """A letter that the output's encoding lacks is shown as an escape."""
        write(tmp_path, "shop.größe")
        done = call(tmp_path, arguments, **variables)
        assert (done.returncode, done.stderr) == (0, b"")
        if "LC_ALL" in variables and sys.implementation.name == "pypy":
            assert "größe".encode() in done.stdout  # PyPy 8 writes UTF-8 in this locale
        else:
            assert b"gr\\xf6\\xdfe" in done.stdout

    def test_bars_of_a_plan(self, tmp_path: Path) -> None:
        """Bars use characters of the encoding."""
        write(tmp_path, "shop.b")
        done = call(tmp_path, ["plan", "after.jsonl"], PYTHONIOENCODING="ascii")
        assert b" ####" in done.stdout
        assert b"\\u" not in done.stdout

    @pytest.mark.parametrize(
        "arguments", [*COMMANDS, EXPORT], ids=[each[0] for each in (*COMMANDS, EXPORT)]
    )
    def test_names_that_no_encoding_has(self, tmp_path: Path, arguments: Sequence[str]) -> None:
        """A line with half of a surrogate pair, which JSON can have and UTF-8 cannot, is broken."""
        write(tmp_path, "shop.\udcff")
        done = call(tmp_path, arguments, PYTHONIOENCODING="utf-8")
        assert done.returncode == 2
        assert b"half of a surrogate pair" in done.stderr
        assert b"Traceback" not in done.stderr


class TestControlCharacters:
    """A trace is a file that somebody else may have written."""

    NAME = "shop.\x1b[31mred\x07\r\n0 bridges\x9b2J\u202e\t"
    SEEN = r"shop.\x1b[31mred\x07\r\n0 bridges\x9b2J\u202e\t"

    def is_harmless(self, output: bytes) -> bool:
        text = output.decode()
        return all(each.isprintable() for each in text.split("\n"))

    @pytest.mark.parametrize("columns", ["80", "300"])
    @pytest.mark.parametrize("arguments", COMMANDS, ids=[each[0] for each in COMMANDS])
    def test_tables(self, tmp_path: Path, arguments: Sequence[str], columns: str) -> None:
        """Control characters in a name are shown as escapes, within the name's line."""
        write(tmp_path, self.NAME)
        done = call(tmp_path, arguments, PYTHONIOENCODING="utf-8", COLUMNS=columns)
        assert (done.returncode, done.stderr) == (0, b"")
        assert self.is_harmless(done.stdout)
        name = self.SEEN.rpartition(".")[2] if arguments[0] == "plan" else self.SEEN
        assert name.replace(" ", "") in "".join(done.stdout.decode().split())

    def test_folded(self, tmp_path: Path) -> None:
        """Folded stacks have escapes, too, since a user may print them in a terminal."""
        write(tmp_path, self.NAME)
        done = call(tmp_path, EXPORT)
        assert (done.returncode, done.stderr) == (0, b"")
        assert self.is_harmless(done.stdout)
        assert rb"shop.\x1b[31mred\x07 0 bridges\x9b2J\u202e" in done.stdout

    @pytest.mark.parametrize("arguments", COMMANDS, ids=[each[0] for each in COMMANDS])
    def test_everywhere(self, tmp_path: Path, arguments: Sequence[str]) -> None:
        """All texts in a trace are escaped: files, tasks, services, kinds."""
        name = self.NAME
        place: Dict[str, Any] = {
            "code__function__name": name,
            "code__file__path": name,
            "code__line__number": 7,
            "greenback__sync_chain": [f"{name} ({name}:7)", name],
        }
        kinds = {
            "greenback__portal__kind": name,
            "greenback__misuse__kind": name,
            "greenback__trace__item": name,
            "greenback__trace__drop__reason": name,
        }
        rest = ("portals", "slow_steps", "misuses", "trace.item.dropped")
        lines = request(
            ("greenback.chain.bridges", [point(3, greenback__outcome="ok", **place)]),
            *[(f"greenback.{each}", [point(3, **kinds, **place)]) for each in rest],
            process=name,
        ).replace("service.instance.id", "service.name")
        write(tmp_path, name)
        (tmp_path / "after.jsonl").write_text(f"{lines}\n{span(name)}\n{name}\n")
        done = call(tmp_path, arguments, PYTHONIOENCODING="utf-8", COLUMNS="300")
        assert (done.returncode, done.stderr) == (0, b"")
        assert self.is_harmless(done.stdout)
        assert rb"\x1b" in done.stdout

    @pytest.mark.parametrize("command", ["report", "plan", "diff", "top", "export"])
    def test_errors(self, tmp_path: Path, command: str) -> None:
        """An error message is one line for each file, whatever its name contains."""
        name = "a\x1b[31m\nb"
        arguments = [command, name]
        arguments += {"diff": [name], "export": ["--format", "folded"]}.get(command, [])
        done = call(tmp_path, arguments)
        assert done.returncode == 2
        assert self.is_harmless(done.stderr)
        lines = done.stderr.decode().splitlines()
        assert len(lines) == (2 if command == "diff" else 1)
        assert all(each.startswith("greenback-trace: ") for each in lines)
        assert r"a\x1b[31m\nb" in lines[-1]


def span(name: str) -> str:
    """A line with a span of a failed bridge, in which every text is *name*."""
    texts = ["code.function.name", "code.file.path", "greenback.awaitable", "error.type"]
    texts += ["greenback.task.name", "greenback.portal.kind"]
    found = {
        "traceId": "1" * 32,
        "spanId": "1" * 16,
        "name": f"await_ {name}",
        "startTimeUnixNano": "1",
        "endTimeUnixNano": "2",
        "status": {"code": 2, "message": name},
        "attributes": [{"key": each, "value": {"stringValue": name}} for each in texts],
    }
    resource = {"attributes": [{"key": "service.name", "value": {"stringValue": name}}]}
    scopes = [{"scope": {"name": "greenback"}, "spans": [found]}]
    return json.dumps({"resourceSpans": [{"resource": resource, "scopeSpans": scopes}]})


ALL: List[Tuple[str, ...]] = [
    *COMMANDS,
    *[(*each, "--json") for each in COMMANDS],
    EXPORT,
    ("export", "after.jsonl", "--format", "html"),
    ("explain",),
    ("explain", "lock_held"),
]


class TestWriting:
    @pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs /dev/full")
    @pytest.mark.parametrize("arguments", ALL, ids=" ".join)
    def test_full(self, tmp_path: Path, arguments: Sequence[str]) -> None:
        """An output that cannot be written is one line that says why, and the exit status 2."""
        write(tmp_path, "shop.b")
        with open("/dev/full", "wb") as full:
            done = call(tmp_path, arguments, stdout=full)
        assert done.stderr.decode() == (
            "greenback-trace: standard output cannot be written: No space left on device\n"
        )
        assert done.returncode == 2

    @pytest.mark.parametrize("arguments", ALL, ids=" ".join)
    def test_closed_pipe(self, tmp_path: Path, arguments: Sequence[str]) -> None:
        """A pipe that is closed after the first lines, as by head, is no error."""
        write(tmp_path, "shop.b")
        reader, writer = os.pipe()
        os.close(reader)
        with open(writer, "wb") as pipe:
            done = call(tmp_path, arguments, stdout=pipe)
        assert done.stderr == b""
        assert done.returncode == 1
