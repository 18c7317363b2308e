"""A trace -> folded stacks: a line for each, for flamegraph.pl, inferno, speedscope and others."""

from __future__ import annotations

from ..read.trace import Trace
from ..show.wording import visible
from .flames import stacks, weight


def folded(trace: Trace, by: str) -> str:
    """``outermost;...;innermost weight`` for each sync chain.

    The weight is in whole microseconds, or in bridges: readers of this format take integers only.
    """
    factor = 1e6 if by == "time" else 1
    lines = []
    for stack in stacks(trace):
        # A name from generated code may have anything in it.
        names = [
            visible(" ".join(frame.function.replace(";", ":").split())) or "?"
            for frame in stack.frames
        ]
        lines.append(f"{';'.join(names)} {weight(stack.numbers, by) * factor:.0f}\n")
    return "".join(lines)
