"""The verdicts on constructs that cannot await, on the trace of a program that has all of them."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import List

import pytest

pytest.importorskip("click", reason="the report needs greenback[report]")
pytest.importorskip("rich", reason="the report needs greenback[report]")
pytest.importorskip("opentelemetry.sdk", reason="the report needs greenback[report]")

from greenback_trace.report.planning.plan import Plan, Planned, make_plan
from greenback_trace.report.read.load import load

REPOSITORY = Path(__file__).resolve().parents[4]

PROGRAM = """
import asyncio
import dataclasses
import functools
import contextlib
import itertools

import greenback
from greenback import await_


async def fetch(value):
    await asyncio.sleep(0)
    return value


def low(value=1):
    return await_(fetch(value))


class Thing:
    def __init__(self, value=0):
        self.value = low(value)


class Made:
    def __new__(cls):
        low()
        return super().__new__(cls)


@dataclasses.dataclass
class Data:
    value: int = 0

    def __post_init__(self):
        self.value = low(2)


class Odd:
    @property
    def prop(self):
        return low()

    @prop.setter
    def prop(self, value):
        low(value)

    @functools.cached_property
    def cached(self):
        return low()

    def __getattr__(self, name):
        if name.startswith("_"):
            raise AttributeError(name)
        return low()

    def __getitem__(self, key):
        return low(key)

    def __contains__(self, key):
        return bool(low(key))

    def __len__(self):
        return low(3)

    def __bool__(self):
        return bool(low(1))

    def __eq__(self, other):
        return bool(low(1))

    def __hash__(self):
        return low(1)

    def __lt__(self, other):
        return bool(low(1))

    def __add__(self, other):
        return low(other)

    def __str__(self):
        return str(low(1))

    def __enter__(self):
        return low(1)

    def __exit__(self, *error):
        low(1)

    def __call__(self, value):
        return low(value)


class Steps:
    def __init__(self):
        self.left = 2

    def __iter__(self):
        return self

    def __next__(self):
        if not self.left:
            raise StopIteration
        self.left -= 1
        return low(self.left)


def numbers():
    yield low(1)


@contextlib.contextmanager
def managed():
    yield low(1)


@functools.lru_cache(maxsize=None)
def remembered(value):
    return low(value)


@functools.singledispatch
def dispatched(value):
    return low(value)


def key(value):
    return low(value)


def by_sorted():
    return sorted([2, 1], key=key)


def by_sort():
    found = [2, 1]
    found.sort(key=lambda value: low(value))
    return found


def by_map():
    return list(map(key, [1]))


def by_lazy_map():
    found = map(key, [1])
    result = []
    for each in found:
        result.append(each)
    return result


def by_filter():
    return [each for each in filter(key, [1])]


def by_reduce():
    return functools.reduce(add, [1, 2])


def add(one, other):
    return low(one + other)


def by_max():
    return max([1, 2], key=key)


def by_partial():
    return functools.partial(low, 7)()


def by_alias():
    call = low
    return call(8)


def by_call():
    odd = Odd()
    return odd(3)


def by_genexp():
    return sum(low(each) for each in [1])


def by_class():
    class Inner:
        value = low(1)

    return Inner.value


def by_listcomp():
    return [low(each) for each in [1]]


def by_dictcomp():
    return {each: low(each) for each in [1]}


def make_things():
    return Thing(1), Made(), Data()


def use(odd):
    found = [odd.prop, odd.cached, odd.missing, odd[1], 1 in odd, len(odd), odd == 1, hash(odd)]
    odd.prop = 5
    if odd < 3:
        found.append(odd + 1)
    if odd:
        found.append(str(odd))
    with odd:
        pass
    with managed() as value:
        found.append(value)
    for each in Steps():
        found.append(each)
    for each in numbers():
        found.append(each)
    found.append(remembered(1))
    found.append(dispatched(1))
    return found


async def program():
    await greenback.ensure_portal()
    for each in (
        by_sorted, by_sort, by_map, by_lazy_map, by_filter, by_reduce, by_max, by_partial,
        by_alias, by_call, by_genexp, by_class, by_listcomp, by_dictcomp, make_things,
    ):
        each()
    use(Odd())
    return [await_(fetch(5))]


asyncio.run(program())
"""


@pytest.fixture(scope="module")
def plan(tmp_path_factory: pytest.TempPathFactory) -> Plan:
    directory = tmp_path_factory.mktemp("constructs")
    program, trace = directory / "program.py", directory / "trace.jsonl"
    program.write_text(PROGRAM)
    environ = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("GREENBACK_TRACE", "OTEL_"))
    }
    environ.update(GREENBACK_TRACE="1", GREENBACK_TRACE_FILE=str(trace), PYTHONPATH=str(REPOSITORY))
    subprocess.run([sys.executable, str(program)], env=environ, check=True, timeout=60)
    return make_plan(load([str(trace)]), roots=[str(directory)])


def names(chain: Planned) -> List[str]:
    return [frame.name for frame in chain.frames]


def blocked(plan: Plan, name: str) -> List[Planned]:
    """The chains with a function in them."""
    found = [chain for chain in plan.blocked if name in names(chain)]
    assert found
    return found


class TestConstructs:
    @pytest.mark.parametrize(
        ("function", "by", "instead"),
        [
            ("Thing.__init__", "construction (__init__)", "await C.create()"),
            ("Made.__new__", "construction (__new__)", "await C.create()"),
            ("Data.__post_init__", "construction (__init__)", "await C.create()"),
            ("Odd.prop", "property (@property)", "async method"),
            ("Odd.prop", "property (@setter)", "async method"),
            ("Odd.cached", "property (@cached_property)", "async method"),
            ("Odd.__getattr__", "attribute access (__getattr__)", "async method"),
            ("Odd.__getitem__", "container protocol (__getitem__)", "async method"),
            ("Odd.__contains__", "container protocol (__contains__)", "async method"),
            ("Odd.__len__", "len() (__len__)", "await obj.count()"),
            ("Odd.__eq__", "comparison (__eq__)", "before they are compared"),
            ("Odd.__hash__", "comparison (__hash__)", "before they are compared"),
            ("Odd.__lt__", "comparison (__lt__)", "before they are compared"),
            ("Odd.__add__", "operator (__add__)", "async method"),
            ("Odd.__bool__", "conversion (__bool__)", "await the value first"),
            ("Odd.__str__", "conversion (__str__)", "await the value first"),
            ("Odd.__enter__", "with statement (__enter__)", "async with"),
            ("Odd.__exit__", "with statement (__exit__)", "async with"),
            ("managed", "context manager (@contextmanager)", "@asynccontextmanager"),
            ("Steps.__next__", "iterator protocol (__next__)", "async for"),
            ("numbers", "generator", "async for"),
            ("remembered", "cache (@lru_cache)", "keep the result"),
            ("dispatched", "dispatch (@singledispatch)", "dispatch on the type first"),
            ("by_sorted", "C callback (sorted)", "[await key(x) for x in xs]"),
            ("by_sort", "C callback (sort)", "[await key(x) for x in xs]"),
            ("by_max", "C callback (max)", "[await key(x) for x in xs]"),
            ("by_map", "C callback (map)", "[await key(x) for x in xs]"),
            ("by_lazy_map", "C callback (an iterator)", "[await key(x) for x in xs]"),
            ("by_filter", "C callback (filter)", "[await key(x) for x in xs]"),
            ("by_reduce", "C callback (reduce)", "[await key(x) for x in xs]"),
            ("by_genexp", "generator expression", "make a list"),
            ("by_class", "class body", "before the class statement"),
        ],
    )
    def test_named(self, plan: Plan, function: str, by: str, instead: str) -> None:
        """The verdict names the construct, and the async way to write the same."""
        found = blocked(plan, function.rpartition(".")[2])
        verdicts = [chain.verdict for chain in found if chain.verdict.by == by]
        assert verdicts, [chain.verdict for chain in found]
        assert {verdict.kind for verdict in verdicts} == {"construct"}
        assert all(instead in verdict.idiom for verdict in verdicts)

    @pytest.mark.parametrize(
        "function", ["by_partial", "by_alias", "by_call", "by_listcomp", "by_dictcomp"]
    )
    def test_convertible(self, plan: Plan, function: str) -> None:
        """Chains of partials, aliases, __call__ and comprehensions are convertible."""
        converted = {frame.name for step in plan.steps for frame in step.functions}
        assert function in converted
        assert function not in {name for chain in plan.blocked for name in names(chain)}

    def test_nothing_else(self, plan: Plan) -> None:
        """Every bridge is in a step that removes it, or among the bridges that stay."""
        removed = sum(step.removed.bridges for step in plan.steps)
        stays = sum(chain.numbers.bridges for chain in plan.blocked)
        assert removed + stays == plan.total.bridges
        # These stay bridges even after their callees are async.
        assert plan.steps[-1].bridges_left == stays
