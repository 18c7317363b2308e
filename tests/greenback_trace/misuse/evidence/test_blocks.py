"""The ``with`` blocks that a function is inside of."""

from __future__ import annotations

import random
import sys
from types import FrameType
from typing import Any, Dict, List

import pytest

from greenback_trace.misuse.evidence.blocks import inside

from ..garbage import IS_PYPY

# The compiler of PyPy 8.0 has the handler of the outer of two blocks cover too much where both are
# left by a return: the call of its `__exit__`, and what a ``finally`` around them runs then.


class Manager:
    """A context manager that knows which others have been entered and not left."""

    entered: List[int] = []

    def __init__(self, line: int, swallows: bool = False) -> None:
        self.line = line
        self.swallows = swallows

    def __enter__(self) -> None:
        check(sys._getframe(1))
        self.entered.append(self.line)

    def __exit__(self, *exc_info: object) -> bool:
        self.entered.pop()
        if not IS_PYPY:
            check(sys._getframe(1))
        return self.swallows


def check(frame: FrameType) -> None:
    assert [block.line for block in inside(frame)] == Manager.entered[::-1], frame.f_lineno


class Failure(Exception):
    pass


class Program:
    """The source of a function, made at random from statements inside of statements."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)
        self.lines = ["def function():", "    kept = [0]"]
        self.block(1, loops=False)

    def block(self, depth: int, loops: bool) -> None:
        indent = "    " * depth
        kinds = [self.simple] * 3
        if depth < 5 and len(self.lines) < 60:
            kinds += [self.with_, self.with_, self.with_, self.try_, self.finally_]
            kinds += [self.loop, self.if_]
        for _ in range(self.random.randint(1, 3)):
            self.random.choice(kinds)(indent, depth, loops)

    def add(self, line: str) -> None:
        self.lines.append(line)

    def manager(self, option: str = "") -> str:
        return f"Manager({len(self.lines) + 1}{option})"

    def simple(self, indent: str, depth: int, loops: bool) -> None:
        ends = ["raise Failure", "fail()"]
        if not IS_PYPY:
            ends += ["return probe()", "return"]
        if loops:
            ends += ["break", "continue"]
        rest = ["probe()", "probe(1, key=probe())", "yield probe()"]
        if self.random.random() < 0.3:
            self.add(f"{indent}if chance(): {self.random.choice(ends)}")
        else:
            self.add(indent + self.random.choice(rest))

    def with_(self, indent: str, depth: int, loops: bool) -> None:
        swallows = f", {self.random.random() < 0.3}"
        items = [
            self.manager(),
            f"{self.manager(swallows)} as one",
            f"{self.manager()}, {self.manager(swallows)}",
            f"{self.manager()} as one, {self.manager(swallows)} as two",
            f"{self.manager()} as kept[0]",
            f"{self.manager()} as kept[0], {self.manager()} as function.attribute",
        ]
        self.add(f"{indent}with {self.random.choice(items)}:")
        if self.random.random() < 0.2:
            self.add(f"{indent}    pass")
        else:
            self.block(depth + 1, loops)

    def try_(self, indent: str, depth: int, loops: bool) -> None:
        self.add(indent + "try:")
        self.block(depth + 1, loops)
        self.add(indent + self.random.choice(["except Failure:", "except Failure as error:"]))
        self.block(depth + 1, loops)

    def finally_(self, indent: str, depth: int, loops: bool) -> None:
        self.add(indent + "try:")
        self.block(depth + 1, loops)
        self.add(indent + "finally:")
        self.add(indent + "    probe()")
        self.add(f"{indent}    with {self.manager()}:")
        self.add(indent + "        probe()")

    def loop(self, indent: str, depth: int, loops: bool) -> None:
        heads = ["for _ in range(2):", "while chance():", "for _ in generator():"]
        self.add(indent + self.random.choice(heads))
        self.block(depth + 1, True)

    def if_(self, indent: str, depth: int, loops: bool) -> None:
        self.add(indent + "if chance():")
        self.block(depth + 1, loops)
        self.add(indent + "else:")
        self.block(depth + 1, loops)

    def run(self, times: int) -> None:
        """Run it through some of its paths, with checks at each step and between steps."""

        def probe(*arguments: Any, **named: Any) -> int:
            check(sys._getframe(1))
            return 1

        def fail() -> None:
            if self.random.random() < 0.5:
                raise Failure

        names: Dict[str, Any] = {
            "Failure": Failure,
            "Manager": Manager,
            "chance": lambda: self.random.random() < 0.5,
            "fail": fail,
            "generator": lambda: iter((1, 2)),
            "probe": probe,
        }
        exec("\n".join(self.lines + ["    yield"]), names)
        for _ in range(times):
            running = names["function"]()
            try:
                for count, _ in enumerate(running):
                    check(running.gi_frame)
                    if count == 30:
                        running.throw(Failure)
            except Failure:
                pass
            while Manager.entered:  # it goes on, or has caught the exception thrown into it
                try:
                    next(running)
                except (Failure, StopIteration):
                    break
            assert not Manager.entered


class TestInside:
    @pytest.mark.parametrize("seed", range(40))
    def test_knows_what_was_entered(self, seed: int) -> None:
        """The blocks of a frame are those entered and not left, on every path, at every moment."""
        Program(seed).run(times=10)
