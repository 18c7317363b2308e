"""A trace -> the stacks of a flame graph, with exact weights."""

from __future__ import annotations

from typing import Dict, List, NamedTuple, Tuple

from ..read.inputs import NothingToReportError
from ..read.trace import Numbers, Trace

#: A stack can be weighted by these. The first is the default.
WEIGHTS = ("time", "bridges")


class Frame(NamedTuple):
    """A function in a flame graph, for all of its lines. The file is empty if unknown."""

    function: str
    file: str


class Stack(NamedTuple):
    """A sync chain, from the outermost function to the one that calls ``await_``."""

    frames: Tuple[Frame, ...]
    numbers: Numbers


def stacks(trace: Trace) -> List[Stack]:
    """The sync chains of *trace*, by total time, longest first.

    An async function that calls ``await_`` itself is a stack of one frame.

    Raises:
        NothingToReportError: The trace has no sync chains, only counts per function.
    """
    found: Dict[Tuple[Frame, ...], Numbers] = {}
    for site in trace.sites:
        for chain, numbers in site.chains.items():
            frames = tuple([Frame(caller.function, caller.file) for caller in chain])
            frames = frames or (Frame(site.function, site.file),)
            found.setdefault(frames, Numbers()).add(numbers)
    if not found:
        raise NothingToReportError(
            "the trace has no sync chains, which a flame graph is made of: the metrics of an "
            "application's own OpenTelemetry SDK count per function only. Run the program with "
            "GREENBACK_TRACE=1 GREENBACK_TRACE_FILE=trace.jsonl"
        )
    return sorted(
        (Stack(frames, numbers) for frames, numbers in found.items()),
        key=lambda stack: (-stack.numbers.time, -stack.numbers.bridges, stack.frames),
    )


def weight(numbers: Numbers, by: str) -> float:
    """The weight of *numbers*: seconds if *by* is ``"time"``, else bridges."""
    return numbers.time if by == "time" else numbers.bridges
