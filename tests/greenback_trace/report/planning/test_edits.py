"""The edits of a plan, applied one after another to a program that must still work."""

from __future__ import annotations

import ast
import os
import shutil
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Dict, Iterable, List, Sequence, Tuple

import pytest

pytest.importorskip("click", reason="the report needs greenback[report]")
pytest.importorskip("rich", reason="the report needs greenback[report]")
pytest.importorskip("opentelemetry.sdk", reason="the report needs greenback[report]")

from greenback_trace.count.caller import Caller
from greenback_trace.report.planning.edits import AWAIT, PORTAL, UNWRAP, Edit
from greenback_trace.report.planning.plan import Plan, make_plan
from greenback_trace.report.read.load import load
from greenback_trace.report.read.trace import Numbers, SiteReport, Trace

REPOSITORY = Path(__file__).resolve().parents[4]

STORE = """
import asyncio

from greenback import await_


async def fetch(value):
    await asyncio.sleep(0)
    return value


class Base:
    def load(self, name):
        raise NotImplementedError


class Store(Base):
    def load(self, name):
        return await_(fetch(len(name)))


class Memory(Base):
    def load(self, name):
        return 1


class Cached(Store):
    def load(self, name):
        return super().load(name) + 1
"""

PRICES = """
import functools

from greenback import await_

from . import store as storage
from .store import Memory, Store, fetch as get


def logged(function):
    @functools.wraps(function)
    def wrapper(*args):
        return function(*args)

    return wrapper


class Prices:
    def __init__(self, store):
        self.store = store
        self.backup = Memory()

    def of(self, name):
        return self.store.load(name)

    @logged
    def twice(self, name):
        return self.of(name) * 2

    @logged
    def thrice(self, name):
        return 3

    def unlogged(self):
        return self.thrice("x")

    @property
    def first(self):
        return self.of("first")

    @staticmethod
    def fixed():
        return await_(get(5))

    @classmethod
    def make(cls):
        return cls(storage.Store())

    def names(self):
        return [name for name in ["b", "aa"] if self.of(name)]

    def ordered(self):
        return sorted(["b", "aa"], key=self.of)


def total(prices, names):
    result = 0
    for each in parts(prices, names):
        result += each
    return result


def parts(prices, names):
    return [prices.of(name) for name in names]


def lazy(prices, names):
    return sum(prices.of(name) for name in names)


def nested(prices):
    def inner(name):
        with open("/dev/null"):
            return prices.of(name)

    return {name: inner(name) for name in ("x", "yy")}


def chained(prices):
    return prices.of("a" * prices.of("b" * prices.of("c")))


def untraced(prices):
    return total(prices, ["never"])


def choose(prices, often):
    return total(prices, ["x"]) if often else total(prices, [])
"""

MAIN = """
import asyncio
import functools

import greenback
import shop.prices
from shop.prices import Prices, chained, choose, nested as nest, total
from shop.store import Cached


def bill(names):
    prices = Prices.make()
    return total(prices, names) + prices.twice("ab") + functools.partial(prices.of, "abc")()


async def main():
    await greenback.ensure_portal()
    prices = Prices(Cached())
    print(total(prices, ["a", "bb"]), prices.of("abc"), prices.first, Prices.fixed())
    print(prices.names(), prices.ordered(), nest(prices), chained(prices))
    print(shop.prices.lazy(prices, ["a", "b"]), choose(prices, True))
    print(prices.twice("x"), sum(prices.of(each) for each in ["x", "yy"]))
    print(await greenback.with_portal_run_sync(bill, ["a", "b"]))
    print(greenback.await_(shop.store.fetch(3)))


asyncio.run(main())
"""

OUTPUT = """\
5 4 6 5
['b', 'aa'] ['b', 'aa'] {'x': 2, 'yy': 3} 4
4 2
4 5
9
3
"""


def write(directory: Path) -> Path:
    """Put the package shop into a directory."""
    shop = directory / "shop"
    shop.mkdir(parents=True)
    for name, text in (("__init__", ""), ("store", STORE), ("prices", PRICES), ("main", MAIN)):
        (shop / f"{name}.py").write_text(text)
    return shop


def run(directory: Path) -> Plan:
    """Run the package, which must print the same each time, and plan from its trace."""
    environ = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("GREENBACK_TRACE", "OTEL_"))
    }
    trace = directory / "trace.jsonl"
    environ.update(GREENBACK_TRACE="1", GREENBACK_TRACE_FILE=str(trace), PYTHONPATH=str(REPOSITORY))
    done = subprocess.run(
        [sys.executable, "-m", "shop.main"],
        cwd=str(directory),
        env=environ,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout == OUTPUT
    return make_plan(load([str(trace)]), roots=[str(directory)])


Position = Tuple[int, int, int, int]


def apply(text: str, edits: Iterable[Edit]) -> str:
    """The text of a file after edits. A later edit of the same place wins."""
    lines = text.splitlines(keepends=True)

    def offset(line: int, column: int) -> int:
        before = lines[line - 1].encode()[:column].decode()
        return sum(map(len, lines[: line - 1])) + len(before)

    chosen: Dict[Position, Edit] = {}
    for edit in edits:
        assert edit.column >= 0, edit
        chosen[edit.line, edit.column, edit.end_line, edit.end_column] = edit
    # The place, the order within a place, the new text, and the length of the text it replaces.
    changes: List[Tuple[int, int, str, int]] = []
    for (line, column, end_line, end_column), edit in chosen.items():
        start, end = offset(line, column), offset(end_line, end_column)
        old = text[start:end]
        if old.startswith("def "):
            changes.append((start, 0, "async ", 0))
        elif edit.kind == PORTAL:
            changes.append((start, 0, "greenback.with_portal_run", end - start))
        else:
            node = ast.parse(old, mode="eval").body
            name, replaced = "(await ", 0
            if edit.kind == UNWRAP:
                assert isinstance(node, ast.Call)
                replaced = len(ast.get_source_segment(old, node.func) or "")
            elif edit.kind != AWAIT:
                name = f"greenback.{'await_' if isinstance(node, ast.Call) else 'autoawait'}("
            changes += [(start, start - end, name, replaced), (end, end - start, ")", 0)]
    for at, _, new, replaced in sorted(changes, reverse=True):
        text = text[:at] + new + text[at + replaced :]
    return text if "\nimport greenback\n" in text else f"import greenback\n{text}"


@pytest.fixture(scope="module")
def before(tmp_path_factory: pytest.TempPathFactory) -> Tuple[Path, Plan]:
    directory = tmp_path_factory.mktemp("edits")
    write(directory)
    return directory, run(directory)


def edits_of(
    directory: Path, text: str, *names: str, others: Sequence[str] = ()
) -> List[Tuple[int, str]]:
    """The edits that make functions async. *names* is a chain of functions, with lines."""
    file = directory / "program.py"
    file.write_text(textwrap.dedent(text))

    def chain(names: Sequence[str]) -> Tuple[Caller, ...]:
        found = []
        for name in names:
            function, _, line = name.partition(" ")
            lines = file.read_text().splitlines()
            start = f"def {function.rpartition('.')[2]}("
            line = line or str(next(n for n, each in enumerate(lines, 1) if start in each))
            found.append(Caller("program", function, str(file), int(line)))
        return tuple(found)

    chains = {chain(names or ["low"]): Numbers(ok=10)}
    if others:
        chains[chain(others)] = Numbers(ok=1)
    site = SiteReport(ok=11, function="program.low", file=str(file), line=1, chains=chains)
    step = make_plan(Trace(sites=[site]), roots=[str(directory)]).steps[0]
    return [(edit.line, edit.what) for edit in (*step.edits, *step.breaks)]


class TestApply:
    def test_each_step(self, before: Tuple[Path, Plan], tmp_path: Path) -> None:
        """After each step the program prints the same, with as many bridges as predicted."""
        directory, plan = before
        assert len(plan.steps) > 5
        for count, step in enumerate(plan.steps, 1):
            edited = tmp_path / str(count)
            # Bytecode of the original would pass for that of a file of the same size and second.
            no_bytecode = shutil.ignore_patterns("__pycache__")
            shutil.copytree(str(directory / "shop"), str(edited / "shop"), ignore=no_bytecode)
            for file in (edited / "shop").glob("*.py"):
                source = os.path.realpath(str(directory / "shop" / file.name))
                edits = [
                    edit
                    for each in plan.steps[:count]
                    for edit in (*each.edits, *each.breaks)
                    if edit.file == source
                ]
                file.write_text(apply(file.read_text(), edits))
            assert run(edited).total.bridges == step.bridges_left

    def test_what_is_left(self, before: Tuple[Path, Plan]) -> None:
        """After the last step, only chains that a construct blocks have bridges."""
        _, plan = before
        stays = {chain.verdict.by for chain in plan.blocked}
        assert stays == {"C callback (sorted)", "generator expression", "property (@property)"}
        assert plan.steps[-1].bridges_left == sum(each.numbers.bridges for each in plan.blocked)


class TestEdits:
    def test_without_a_call(self, tmp_path: Path) -> None:
        """The plan names a place that stores a function, since its callers are unknown."""
        found = edits_of(
            tmp_path,
            """
            async def main(): low()

            def low(): await_(fetch())

            table = {"low": low}
            """,
        )
        assert (6, "the module has low without a call: await where it is called") in found

    def test_arguments_are_other_things(self, tmp_path: Path) -> None:
        """A name that a local argument or variable hides is not taken for the function."""
        found = edits_of(
            tmp_path,
            """
            async def main(): low()

            def low(): await_(fetch())

            def other(low): low()

            def another():
                low = print
                low()
            """,
        )
        assert {line for line, _ in found} == {2, 4}

    def test_methods_of_others(self, tmp_path: Path) -> None:
        """A method of the same name on an object of another known class is left alone."""
        found = edits_of(
            tmp_path,
            """
            async def main(): Own().get()

            class Own:
                def get(self): await_(fetch())

            class Other:
                def get(self): pass

            def use(other: Other, unknown):
                other.get()
                {}.get(1)
                unknown.get()
            """,
            "Own.get",
        )
        assert {line for line, _ in found} == {2, 5, 13}

    def test_a_wrapper_of_both(self, tmp_path: Path) -> None:
        """A call that means both async and sync functions gets an edit that says so."""
        found = edits_of(
            tmp_path,
            """
            async def main(): outer(low), outer(high)

            def low(): await_(fetch())

            def high(): await_(fetch())

            def outer(function): function()
            """,
            "outer 8",
            "low",
            others=["outer 8", "high"],
        )
        what = "await function(...) if it is awaitable: high is called here, and sync still"
        assert (8, what) in found

    def said(self, plan: Plan, name: str, text: str, start: int = 0) -> List[str]:
        """The edits for the lines of a file that contain a text."""
        source = {"main.py": MAIN, "prices.py": PRICES, "store.py": STORE}[name].splitlines()
        lines = [number for number, line in enumerate(source, 1) if text in line]
        assert lines
        return [
            edit.what
            for step in plan.steps[start:]
            for edit in (*step.edits, *step.breaks)
            if os.path.basename(edit.file) == name and edit.line in lines
        ]

    @pytest.mark.parametrize(
        ("name", "text", "what"),
        [
            ("store.py", "return super().load(name) + 1", ["await load(...)"]),
            ("store.py", "return await_(fetch(len(name)))", ["await_(...) becomes await ..."]),
            ("prices.py", "return self.store.load(name)", ["await load(...)"]),
            ("prices.py", "return await_(get(5))", ["await_(...) becomes await ..."]),
            (
                "prices.py",
                'sorted(["b", "aa"], key=self.of)',
                ["autoawait(of) in place of of, for now"],
            ),
            ("prices.py", "sum(prices.of(name) for name in names)", ["await_(of(...)) for now"]),
            ("prices.py", "return function(*args)", ["await function(...)"]),
            ("prices.py", "return wrapper", []),
            (
                "prices.py",
                "return [prices.of(name) for name in names]",
                ["await_(of(...)) for now", "await_(of(...)) becomes await of(...)"],
            ),
            ("prices.py", "for each in parts(prices, names):", ["await parts(...)"]),
            (
                "prices.py",
                'return total(prices, ["never"])',
                ["untraced calls total and stays sync"],
            ),
            (
                "main.py",
                "print(prices.names()",
                ["await chained(...)", "await names(...)", "await nest(...)"],
            ),
            (
                "main.py",
                "with_portal_run_sync",
                ["with_portal_run_sync(bill, ...) becomes with_portal_run(bill, ...)"],
            ),
        ],
    )
    def test_said(self, before: Tuple[Path, Plan], name: str, text: str, what: List[str]) -> None:
        """A line has one edit, and another one only when a later step allows more."""
        assert sorted(self.said(before[1], name, text)) == sorted(what)

    def test_overrides(self, before: Tuple[Path, Plan]) -> None:
        """A method that overrides a converted method has to become async, too."""
        found = [edit.what for step in before[1].steps for edit in step.edits]
        assert "async def load, since Base.load is called like it" in found
        assert "async def load, since Memory.load is called like it" in found

    def test_decorated(self, before: Tuple[Path, Plan]) -> None:
        """A function whose decorator awaits now has to become async; its callers are listed."""
        found = [edit.what for step in before[1].steps for edit in (*step.edits, *step.breaks)]
        assert "async def thrice, since wrapper awaits it now" in found
        assert "unlogged calls thrice and stays sync" in found

    def test_certain(self, before: Tuple[Path, Plan]) -> None:
        """An edit is no guess if the sources show the class of the object."""
        assert [edit for step in before[1].steps for edit in step.edits if not edit.certain] == []
