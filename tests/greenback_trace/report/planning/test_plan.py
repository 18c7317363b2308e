"""The command ``greenback-trace plan``, on the trace of a program with all kinds of chains."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any, Callable, Dict, List, Tuple

import pytest

pytest.importorskip("click", reason="the report needs greenback[report]")
pytest.importorskip("rich", reason="the report needs greenback[report]")
pytest.importorskip("opentelemetry.sdk", reason="the report needs greenback[report]")

from click.testing import CliRunner, Result

from greenback_trace.cli import main
from greenback_trace.report.planning.plan import make_plan
from greenback_trace.report.read.load import load

REPOSITORY = Path(__file__).resolve().parents[4]

RunMain = Callable[..., Path]

PROGRAM = """
import asyncio
import sys

sys.path.insert(0, "vendor/site-packages")

import greenback
import outcome
from greenback import await_
from structured import through


async def fetch(value):
    await asyncio.sleep(0)
    return value


def low(value):
    return await_(fetch(value))


def shared(value):
    return low(value)


def one():
    return [shared(each) for each in range(10)]


def two():
    return shared(2)


def unused():
    return shared(3)


class Box:
    def __init__(self):
        self.value = low(1)

    @property
    def content(self):
        return low(2)

    def __getattr__(self, name):
        return low(3)

    def __lt__(self, other):
        return low(True)

    def __iter__(self):
        return iter([low(4)])


def key(value):
    return low(value)


def by_key():
    return sorted([1], key=key)


def third_party():
    return through(low), outcome.capture(low, 7)


def build():
    return Box()


def use(box):
    return box.content, box.missing, box < box, list(box)


async def program():
    await greenback.ensure_portal()
    one(), two(), by_key(), third_party()
    use(build())
    return await_(fetch(5))


asyncio.run(program())
"""


@pytest.fixture(scope="session")
def traced(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The trace of PROGRAM, beside its source."""
    directory = tmp_path_factory.mktemp("plan")
    (directory / "program.py").write_text(PROGRAM)
    packages = directory / "vendor" / "site-packages"
    packages.mkdir(parents=True)
    (packages / "structured.py").write_text("def through(function):\n    return function(6)\n")
    environ = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("GREENBACK_TRACE", "OTEL_"))
    }
    file = directory / "trace.jsonl"
    environ.update(GREENBACK_TRACE="1", GREENBACK_TRACE_FILE=str(file), PYTHONPATH=str(REPOSITORY))
    program = [sys.executable, str(directory / "program.py")]
    subprocess.run(program, cwd=str(directory), env=environ, check=True, timeout=60)
    return file


def plan(*arguments: Any, columns: int = 200) -> Result:
    return CliRunner().invoke(main, ["plan", *map(str, arguments)], env={"COLUMNS": str(columns)})


def planned(*arguments: Any) -> Dict[str, Any]:
    result = plan(*arguments, "--json")
    assert result.exit_code == 0, result.output
    found: Dict[str, Any] = json.loads(result.output)
    return found


def names(step: Dict[str, Any]) -> List[str]:
    return [each["function"].rpartition(".")[2] for each in step["functions"]]


def line_of(text: str) -> int:
    return PROGRAM.splitlines().index(text) + 1


def edits(steps: List[Dict[str, Any]], kind: str, of: str = "edits") -> List[Tuple[int, str]]:
    return [
        (each["line"], each["what"]) for step in steps for each in step[of] if each["kind"] == kind
    ]


class TestSteps:
    def test_order(self, traced: Path) -> None:
        """Plain awaits come first, then the functions that remove the most bridges per function."""
        steps = planned(traced)["steps"]
        assert [names(step) for step in steps] == [[], ["one", "shared", "low"], ["two"]]
        assert [step["removed"]["bridges"] for step in steps] == [1, 10, 1]

    def test_share(self, traced: Path) -> None:
        """Each step has the share of all bridges that is gone after it."""
        found = planned(traced)
        total = found["total"]["bridges"]
        assert total == 20
        assert [step["share"] for step in found["steps"]] == pytest.approx(
            [1 / total, 11 / total, 12 / total]
        )

    @pytest.mark.parametrize("weight", ["time", "overhead"])
    def test_weight(self, traced: Path, weight: str) -> None:
        """Another weight changes the order, and removes the same bridges in the end."""
        found = planned(traced, "--weight", weight)
        assert found["weight"] == weight
        assert sum(step["removed"]["bridges"] for step in found["steps"]) == 12

    def test_bridges_left(self, traced: Path) -> None:
        """Bridges that a step cannot remove are counted at the caller they move to."""
        step = planned(traced)["steps"][1]
        moved = {each["caller"]["function"].rpartition(".")[2] for each in step["moved"]}
        assert {"two", "__init__", "content", "key", "through"} <= moved
        assert step["bridges_left"] == 9


class TestBlocked:
    def test_constructs(self, traced: Path) -> None:
        """A chain through a construct that cannot await names the construct, and what to do."""
        blocked = planned(traced)["blocked"]
        assert {(each["kind"], each["by"]) for each in blocked} == {
            ("construct", "construction (__init__)"),
            ("construct", "property (@property)"),
            ("construct", "attribute access (__getattr__)"),
            ("construct", "comparison (__lt__)"),
            ("construct", "iterator protocol (__iter__)"),
            ("construct", "C callback (sorted)"),
            ("third party", "structured"),
            ("third party", "outcome"),
        }
        assert all(each["idiom"] for each in blocked)

    def test_root(self, traced: Path) -> None:
        """With --root, an installed package below it can be converted, too."""
        blocked = planned(traced, "--root", traced.parent)["blocked"]
        assert "structured" not in {each["by"] for each in blocked}

    def test_other_root(self, tmp_path: Path, traced: Path) -> None:
        """Code that is not below any --root is not the user's."""
        found = planned(traced, "--root", tmp_path)
        assert [names(step) for step in found["steps"]] == [[]]


def calling(code: str, entry: str = "") -> Dict[str, str]:
    """A program with a *code* in its async function, and *entry* before that."""
    return {
        "main.py": f"""
import asyncio
import functools
import greenback

def low(*arguments):
    greenback.await_(asyncio.sleep(0))
    return 0

{entry}

async def main():
    await greenback.ensure_portal()
    items = [3, 1, 2]
    {code}

asyncio.run(main())
"""
    }


class TestCallbacks:
    @pytest.mark.parametrize(
        ("code", "through"),
        [
            ("sorted(items, key=low)", "sorted"),
            ("items.sort(key=low)", "sort"),
            ("list(map(low, items))", "map"),
            ("for each in filter(low, items): pass", "filter"),
            ("max(items, key=low)", "max"),
            pytest.param(
                "functools.reduce(low, items)",
                "reduce",
                marks=pytest.mark.skipif(
                    sys.implementation.name == "pypy", reason="has it in Python"
                ),
            ),
            ("sorted(items, key=functools.partial(low, 1))", "sorted"),
        ],
    )
    def test_of_an_async_function(self, run_main: RunMain, code: str, through: str) -> None:
        """A function that an async one passes to C code is blocked, since C code does not await."""
        found = planned(run_main(calling(code)))
        assert found["steps"] == []
        (blocked,) = found["blocked"]
        assert blocked["by"] == f"C callback ({through})"
        assert blocked["frame"]["function"] == "main"
        assert blocked["frame"]["line"] == 15

    def test_called_as_well(self, run_main: RunMain) -> None:
        """If an async function both calls and passes on a function, the plan names both places."""
        (step,) = planned(run_main(calling("low(sorted(items, key=low))")))["steps"]
        assert (15, "await low(...)") in edits([step], "await")
        assert edits([step], "breaks", "breaks") == [
            (15, "main passes low on: autoawait(low), for now")
        ]

    def test_async_for_others(self, run_main: RunMain) -> None:
        """A function made async for others does not stay sync, though C code bridges to it."""
        entry = "def once(): return low()"
        trace = run_main(calling("once(), sorted(items, key=low)", entry))
        (step,) = planned(trace)["steps"]
        assert names(step) == ["once", "low"]
        assert step["bridges_left"] == 3
        (moved,) = step["moved"]
        assert (moved["caller"]["function"], moved["is_async"]) == ("main", True)
        assert "stays sync" not in plan(trace).output

    def test_in_an_async_function(self, run_main: RunMain) -> None:
        """An async function that passes another one to C code is not said to stay sync."""
        entry = "def both():\n    low()\n    sorted([3, 1, 2], key=low)"
        output = plan(run_main(calling("both()", entry))).output
        assert "async def both" in output
        assert "stays sync" not in output
        assert "bridges through C code" in output


class TestNames:
    @pytest.mark.parametrize(
        ("code", "entry", "by"),
        [
            ("Box().value", "class Box:\n    value = property(low)", "property (property)"),
            (
                "Box().value",
                "class Box:\n    def load(self): return low()\n    value = property(fget=load)",
                "property (property)",
            ),
            (
                "Box().value = 1",
                "class Box:\n    value = property(print)\n    value = value.setter(low)",
                "property (setter)",
            ),
            (
                "len(Box())",
                "class Box:\n    def count(self): return low()\n    size = __len__ = count",
                "len() (__len__)",
            ),
            ("cached()", "cached = functools.lru_cache(low)", "cache (lru_cache)"),
            ("cached()", "cached = functools.lru_cache(maxsize=1)(low)", "cache (lru_cache)"),
        ],
    )
    def test_constructs(self, run_main: RunMain, code: str, entry: str, by: str) -> None:
        """A function made a construct by an assignment blocks its chain, as with a decorator."""
        found = planned(run_main(calling(code, entry)))
        assert found["steps"] == []
        assert [each["by"] for each in found["blocked"]] == [by]

    @pytest.mark.parametrize(
        "statement", ["alias = load", "table = {'load': load}", "alias: object = load"]
    )
    def test_in_a_class(self, run_main: RunMain, statement: str) -> None:
        """The plan names the place where the body of a class stores a method."""
        entry = f"class Box:\n    def load(self): return low()\n    {statement}"
        (step,) = planned(run_main(calling("Box().load()", entry)))["steps"]
        what = "the body of Box has load without a call: await where it is called"
        assert edits([step], "breaks", "breaks") == [(12, what)]

    def test_called_in_a_class(self, run_main: RunMain) -> None:
        """The plan names the place where the body of a class calls a method."""
        entry = "class Box:\n    def load(self=0): return low()\n    if 0: load()"
        (step,) = planned(run_main(calling("Box().load()", entry)))["steps"]
        assert edits([step], "breaks", "breaks") == [
            (12, "the body of Box calls load and stays sync")
        ]


def said(steps: List[Dict[str, Any]]) -> List[Tuple[int, str]]:
    """The edits and breaks of the steps."""
    return sorted(
        (each["line"], each["what"])
        for step in steps
        for each in step["edits"] + step["breaks"]
        if each["kind"] not in ("def", "unwrap")
    )


#: A partial in a variable, and a partial that is called at once.
PARTIALS = ["p = functools.partial(low, 1); p(); str(p())", "functools.partial(low, 1)()"]


class TestPartials:
    @pytest.mark.parametrize("call", PARTIALS)
    def test_called(self, run_main: RunMain, call: str) -> None:
        """The call of a partial gets the await, and its construction stays as it is."""
        name = "p" if "p()" in call else "low"
        times = call.count("()")
        trace = run_main(calling("top()", f"def top(): {call}"))
        assert said(planned(trace)["steps"]) == [
            *[(10, f"await {name}(...)")] * times,
            (15, "await top(...)"),
        ]

    @pytest.mark.parametrize("call", PARTIALS)
    def test_called_by_an_async_function(self, run_main: RunMain, call: str) -> None:
        """The call of a partial in an async function that is not in the trace gets the await."""
        name = "p" if "p()" in call else "low"
        trace = run_main(calling(call))
        assert said(planned(trace)["steps"]) == [(15, f"await {name}(...)")] * call.count("()")

    def test_in_a_sync_function(self, run_main: RunMain) -> None:
        """In a function that stays sync, only the call of the partial bridges."""
        entry = "class Box:\n    @property\n    def top(self): p = functools.partial(low); p()"
        trace = run_main(calling("low(); Box().top", entry))
        assert said(planned(trace)["steps"]) == [
            (12, "await_(p(...)) for now"),
            (17, "await low(...)"),
        ]

    def test_untraced(self, run_main: RunMain) -> None:
        """A caller outside the trace is named at the line where it calls the partial."""
        entry = "def top():\n    p = functools.partial(low, 1)\n    p()\n    return p"
        trace = run_main(calling("low()", entry))
        assert said(planned(trace)["steps"]) == [
            (12, "top calls p and stays sync"),
            (13, "top has p without a call: await where it is called"),
            (18, "await low(...)"),
        ]

    def test_elsewhere(self, run_main: RunMain) -> None:
        """A partial that is stored elsewhere is named, since its callers have to await it."""
        entry = "later = functools.partial(low, 1)\ndef top(): return later()"
        trace = run_main(calling("top()", entry))
        assert said(planned(trace)["steps"]) == [
            (10, "the module makes a partial of low: await where it is called"),
            (11, "await later(...)"),
            (16, "await top(...)"),
        ]

    def test_in_c_code(self, run_main: RunMain) -> None:
        """C code that gets a partial from an async function blocks the chain."""
        trace = run_main(calling("p = functools.partial(low, 1); sorted(items, key=p)"))
        found = planned(trace)
        assert found["steps"] == []
        assert [each["by"] for each in found["blocked"]] == ["C callback (sorted)"]


class TestEdits:
    def test_lines(self, traced: Path) -> None:
        """The edits are the lines of the definitions, of the calls and of the bridges."""
        steps = planned(traced)["steps"]
        assert edits(steps, "def") == [
            (line_of("def low(value):"), "async def low"),
            (line_of("def shared(value):"), "async def shared"),
            (line_of("def one():"), "async def one"),
            (line_of("def two():"), "async def two"),
        ]
        assert edits(steps, "unwrap") == [
            (line_of("    return await_(fetch(5))"), "await_(...) becomes await ..."),
            (line_of("    return await_(fetch(value))"), "await_(...) becomes await ..."),
        ]
        entry = line_of("    one(), two(), by_key(), third_party()")
        assert (entry, "await one(...)") in edits(steps, "await")
        assert (line_of("    return low(value)"), "await low(...)") in edits(steps, "await")
        assert (line_of("        return low(2)"), "await_(low(...)) for now") in edits(
            steps, "wrap"
        )

    def test_breaks(self, traced: Path) -> None:
        """A caller outside the trace is named, since it would get a coroutine."""
        passing = line_of("    return through(low), outcome.capture(low, 7)")
        assert edits(planned(traced)["steps"], "breaks", "breaks") == [
            (line_of("    return shared(3)"), "unused calls shared and stays sync"),
            *[(passing, "third_party passes low on: autoawait(low), for now")] * 2,
        ]


class TestText:
    @pytest.mark.parametrize("columns", [80, 200])
    def test_width(self, traced: Path, columns: int) -> None:
        """No line is wider than the terminal."""
        result = plan(traced, columns=columns)
        assert result.exit_code == 0, result.output
        assert max(map(len, result.output.splitlines())) <= columns
        assert "Step 2: make 3 functions async" in result.output
        assert "What stays: 8 bridges" in result.output

    def test_margin(self, traced: Path) -> None:
        """Lines without indentation begin in the first column."""
        lines = plan(traced).output.splitlines()
        assert lines[0].startswith("20 bridges")
        assert {"Step 1: plain awaits", "What stays: 8 bridges"} <= set(lines)

    def test_one(self, run_main: RunMain) -> None:
        """Words with the number one are in the singular."""
        trace = run_main(
            {
                "main.py": """
                import asyncio
                import greenback

                class Box:
                    def __init__(self): greenback.await_(asyncio.sleep(0))

                def low(): greenback.await_(asyncio.sleep(0))

                async def main():
                    await greenback.ensure_portal()
                    low(), Box()

                asyncio.run(main())
                """
            }
        )
        output = plan(trace).output
        assert "What stays: 1 bridge\n" in output
        assert "about 1 is left" in output


class TestChanged:
    def test_changed(self, traced: Path) -> None:
        """Sources written after the trace are named, since their lines may have moved."""
        program = traced.parent / "program.py"
        assert planned(traced)["changed"] == []
        before = program.stat()
        later = traced.stat().st_mtime_ns + 10**9
        os.utime(str(program), ns=(later, later))
        try:
            assert [Path(each).name for each in planned(traced)["changed"]] == ["program.py"]
            assert "Written after the trace: program.py." in plan(traced).output
        finally:
            os.utime(str(program), ns=(before.st_atime_ns, before.st_mtime_ns))
        assert "Written after the trace" not in plan(traced).output


class TestNothing:
    def test_missing(self, tmp_path: Path) -> None:
        """A missing trace is an error that names it, with what to do."""
        result = plan(tmp_path / "none.jsonl")
        assert result.exit_code == 2
        assert "none.jsonl cannot be read" in result.output

    def test_empty(self, tmp_path: Path) -> None:
        """An empty file says how to get something into it."""
        file = tmp_path / "empty.jsonl"
        file.touch()
        result = plan(file)
        assert result.exit_code == 2
        assert "empty" in result.output

    def test_no_chains(self, traced: Path, tmp_path: Path) -> None:
        """A trace with metrics per function only is an error that says that a plan needs chains."""
        file = tmp_path / "chainless.jsonl"
        content = traced.read_text().replace("greenback.chain.", "elsewhere.")
        file.write_text(content)
        result = plan(file)
        assert result.exit_code == 2
        assert "no sync chains" in result.output


class TestTutorial:
    def test_prediction(self, tutorial: Tuple[Path, List[List[int]]]) -> None:
        """The steps of docs/migrate.rst leave as many bridges as the plan predicts, within 5 %."""
        directory, rows = tutorial
        assert [step for step, _, _ in rows] == [0, 1, 2, 3, 4]
        assert rows[-1][2] < rows[0][2] / 10
        for _, predicted, counted in rows:
            assert predicted == pytest.approx(counted, rel=0.05)
        left = make_plan(load([str(directory / "4.jsonl")]), roots=[str(directory)]).total.bridges
        assert left == rows[-1][2]
