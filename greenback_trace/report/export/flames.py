"""A trace -> stacks of functions with exact weights, which flame graphs are made of."""

from __future__ import annotations

from typing import Dict, List, NamedTuple, Tuple

from ..read.inputs import NothingToReportError
from ..read.trace import Numbers, Trace

#: What a stack can be weighted by, in the order in which they are offered.
WEIGHTS = ("time", "bridges")


class Frame(NamedTuple):
    """A function, whichever of its lines made the call. The file is empty if it is not known."""

    function: str
    file: str


class Stack(NamedTuple):
    """A sync chain, outermost first, down to the function that calls ``await_``."""

    frames: Tuple[Frame, ...]
    numbers: Numbers


def stacks(trace: Trace) -> List[Stack]:
    """The sync chains of *trace*, by total time, the longest first.

    An async function that bridges has a stack of its own, of one frame.

    Raises:
        NothingToReportError: The trace counts per function only.
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
    """What *numbers* weigh: seconds, or bridges."""
    return numbers.time if by == "time" else numbers.bridges
