"""A trace -> which functions to make ``async def``, in what order, and what that removes.

A bridge goes away when all functions of its chain are async. Each step is the set of functions
that removes the most for each function in it, so a function that many chains share comes early,
and two that only help together come together.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from typing import Any, Callable, Dict, FrozenSet, List, Sequence, Set, Tuple

from ..read.inputs import NothingToReportError
from ..read.trace import Numbers, Trace
from .classify import AWAIT, CONVERTIBLE, Classifier, Verdict
from .edits import Edit, Editor
from .project import Project
from .sources import Frame, Sources, frames_of
from .uses import Uses

#: What a bridge costs over a plain await, what one that suspends costs on top, and that for each
#: sync function below it, in seconds. Measured on CPython 3.13; see docs/performance.rst.
_BRIDGE, _SWITCHES, _DEPTH = 0.35e-6, 0.42e-6, 7e-9

Key = Tuple[str, str]


@dataclass
class Planned:
    """One sync chain, with its exact numbers.

    Attributes:
        weight: What the order is made by.
    """

    site: Frame
    frames: Tuple[Frame, ...]
    numbers: Numbers
    verdict: Verdict
    weight: float


@dataclass
class Move:
    """Bridges that a step does not remove, but moves to a caller that stays sync.

    Attributes:
        frame: The caller, at the line where it calls a function that is async now.
        callee: That function. The caller has to write ``await_(callee(...))``.
        before: The bridges below that call today.
        after: About how many there will be: one for each call, as many as the busiest of its
            chains had.
        is_async: Whether the caller does not stay sync: it passes the callee to C code.
    """

    frame: Frame
    callee: Frame
    before: float
    after: float
    is_async: bool


@dataclass
class Step:
    """One commit.

    Attributes:
        functions: What becomes ``async def``. None in the first step if bridges have an async
            caller already.
        removed: What goes away by this step.
        share: Of the weight of all bridges, what has gone after this step.
        bridges_left: About how many bridges there will be after it.
        moved: The bridges that have moved to a caller after it, since the start.
    """

    functions: List[Frame]
    removed: Numbers
    share: float
    bridges_left: float
    moved: List[Move]
    edits: List[Edit] = field(default_factory=list)
    breaks: List[Edit] = field(default_factory=list)


@dataclass
class Plan:
    """What to do about a trace.

    Attributes:
        blocked: The chains that stay, the heaviest first.
        changed: The user's files that were written after the trace, whose lines may be others now.
        project: The code that is the user's, and where callers were looked for.
        unreadable: The files that are here, but cannot be read or parsed, and why.
    """

    weight: str
    total: Numbers
    steps: List[Step]
    blocked: List[Planned]
    chains: List[Planned]
    changed: List[str]
    project: Project
    unreadable: Dict[str, str]

    def as_dict(self) -> Dict[str, Any]:
        return {
            "weight": self.weight,
            "total": _numbers(self.total),
            "changed": self.changed,
            "sources": {
                "directories": self.project.directories,
                "files": len(self.project.files),
                "complete": self.project.is_whole,
                "missing": self.project.missing,
                "unreadable": self.unreadable,
            },
            "steps": [
                {
                    "functions": [_frame(each) for each in step.functions],
                    "removed": _numbers(step.removed),
                    "share": step.share,
                    "bridges_left": step.bridges_left,
                    "moved": [
                        {
                            "caller": _frame(move.frame),
                            "callee": move.callee.function,
                            "before": move.before,
                            "after": move.after,
                            "is_async": move.is_async,
                        }
                        for move in step.moved
                    ],
                    "edits": [vars(edit) for edit in step.edits],
                    "breaks": [vars(edit) for edit in step.breaks],
                }
                for step in self.steps
            ],
            "blocked": [
                {
                    "chain": [_frame(each) for each in chain.frames],
                    "kind": chain.verdict.kind,
                    "by": chain.verdict.by,
                    "frame": None if chain.verdict.frame is None else _frame(chain.verdict.frame),
                    "idiom": chain.verdict.idiom,
                    **_numbers(chain.numbers),
                }
                for chain in self.blocked
            ],
        }


def _bridges(numbers: Numbers, depth: int) -> float:
    return numbers.bridges


def _time(numbers: Numbers, depth: int) -> float:
    return numbers.time


def _overhead(numbers: Numbers, depth: int) -> float:
    return numbers.bridges * _BRIDGE + numbers.suspended * (_SWITCHES + depth * _DEPTH)


_WEIGHTS: Dict[str, Callable[[Numbers, int], float]] = {
    "bridges": _bridges,
    "time": _time,
    "overhead": _overhead,
}
WEIGHTS = tuple(_WEIGHTS)


def make_plan(trace: Trace, weight: str = WEIGHTS[0], roots: Sequence[str] = ()) -> Plan:
    """Order the functions of a trace's chains.

    Raises:
        NothingToReportError: The trace has no sync chains.
    """
    found = [
        (Frame(site.function, site.file, site.line), frames_of(chain), numbers)
        for site in trace.sites
        for chain, numbers in site.chains.items()
        if numbers.bridges
    ]
    project = Project(
        roots, {each for bridging, frames, _ in found for each in (bridging, *frames)}
    )
    # Chains that differ only in comprehensions are one.
    counted: Dict[Tuple[Frame, Tuple[Frame, ...]], Numbers] = {}
    total = Numbers()
    for bridging, frames, numbers in found:
        key = project.here(bridging), tuple(map(project.here, frames))
        counted.setdefault(key, Numbers()).add(numbers)
        total.add(numbers)
    sources = Sources(project.may_read)
    uses = Uses(sources, project.files)
    classifier = Classifier(project, sources, uses)
    chains = [
        Planned(
            bridging,
            frames,
            numbers,
            classifier.classify(frames),
            _WEIGHTS[weight](numbers, len(frames)),
        )
        for (bridging, frames), numbers in counted.items()
    ]
    if not chains:
        raise NothingToReportError(
            "no sync chains in the trace, which a plan is made from: metrics of an application's "
            "own SDK have none. Run the program with GREENBACK_TRACE=1 "
            "GREENBACK_TRACE_FILE=trace.jsonl, and let it bridge"
        )
    editor = Editor(sources, project, classifier, uses, [chain.frames for chain in chains])
    steps: List[Step] = []
    whole = sum(chain.weight for chain in chains)
    gone = 0.0
    done: Set[Key] = set()
    for functions, finished in _order(chains):
        done |= {function.key for function in functions}
        removed = Numbers()
        for each in finished:
            removed.add(each.numbers)
            gone += each.weight
        moved, left = _left(chains, done)
        step = Step(functions, removed, gone / whole if whole else 1.0, left, moved)
        sites = [each.site for each in finished if each.verdict.kind == AWAIT]
        step.edits, step.breaks = editor.edits(functions, done, sites)
        steps.append(step)
    blocked = [chain for chain in chains if chain.verdict.kind not in (AWAIT, CONVERTIBLE)]
    blocked.sort(key=lambda chain: -chain.weight)
    files = {frame.file for chain in chains for frame in (chain.site, *chain.frames)}
    own = sorted(file for file in files if project.is_own(file))
    changed = [file for file in own if trace.end is not None and _written(file) > trace.end]
    unreadable = dict(sorted(sources.unreadable.items()))
    return Plan(weight, total, steps, blocked, chains, changed, project, unreadable)


def _written(file: str) -> int:
    try:
        return os.stat(file).st_mtime_ns
    except OSError:
        return 0


def _order(chains: List[Planned]) -> List[Tuple[List[Frame], List[Planned]]]:
    """The functions of each step, and the chains that it finishes."""
    order: List[Tuple[List[Frame], List[Planned]]] = []
    direct = [chain for chain in chains if chain.verdict.kind == AWAIT]
    if direct:
        order.append(([], direct))
    frames: Dict[Key, Frame] = {}
    # Chains of the same functions are finished together.
    waiting: Dict[FrozenSet[Key], List[Planned]] = {}
    for chain in chains:
        if chain.verdict.kind == CONVERTIBLE:
            for frame in chain.frames:
                frames.setdefault(frame.key, frame)
            waiting.setdefault(frozenset(each.key for each in chain.frames), []).append(chain)
    while waiting:
        functions = _best(waiting)
        finished: List[Planned] = []
        rest: Dict[FrozenSet[Key], List[Planned]] = {}
        for needed, planned in waiting.items():
            if needed <= functions:
                finished += planned
            else:
                rest.setdefault(needed - functions, []).extend(planned)
        waiting = rest
        # As the chain has them: from the outside to the bridge.
        depth = {frame.key: place for chain in finished for place, frame in enumerate(chain.frames)}
        names = sorted(functions, key=lambda key: (depth.get(key, 0), key))
        order.append(([frames[key] for key in names], finished))
    return order


def _best(waiting: Dict[FrozenSet[Key], List[Planned]]) -> FrozenSet[Key]:
    weights = {
        needed: sum(chain.weight for chain in planned) for needed, planned in waiting.items()
    }
    # A set within a candidate has its least function in it: only those are looked at.
    by_least: Dict[Key, List[FrozenSet[Key]]] = {}
    for needed in weights:
        by_least.setdefault(min(needed), []).append(needed)

    def worth(candidate: FrozenSet[Key]) -> Tuple[float, int, List[Key]]:
        removed = sum(
            weights[needed]
            for key in candidate
            for needed in by_least.get(key, ())
            if needed <= candidate
        )
        return -removed / len(candidate), len(candidate), sorted(candidate)

    return min(weights, key=worth)


def _left(chains: List[Planned], done: Set[Key]) -> Tuple[List[Move], float]:
    """Where bridges are once the functions *done* are async, and about how many."""
    left = 0.0
    moves: Dict[Tuple[Frame, ...], Move] = {}
    for chain in chains:
        if chain.verdict.kind == AWAIT:
            continue
        caller = chain.verdict.caller
        frames = chain.frames if caller is None else (caller, *chain.frames)
        depth = len(frames)
        while depth > chain.verdict.stops and frames[depth - 1].key in done:
            depth -= 1
        if not depth:
            continue
        count = chain.numbers.bridges
        if depth == len(frames):
            left += count
            continue
        outer = frames[:depth]
        callee = frames[depth]
        is_async = outer[-1] is caller or outer[-1].key in done
        move = moves.setdefault(
            (*outer, Frame(*callee.key, 0)), Move(outer[-1], callee, 0, 0, is_async)
        )
        move.before += count
        move.after = max(move.after, count)
    found = sorted(moves.values(), key=lambda move: -move.before)
    return found, left + sum(move.after for move in found)


def _frame(frame: Frame) -> Dict[str, Any]:
    return {"function": frame.function, "file": frame.file, "line": frame.line}


def _numbers(numbers: Numbers) -> Dict[str, float]:
    return {
        "bridges": numbers.bridges,
        "suspended": numbers.suspended,
        "time": numbers.time,
        "suspended_time": numbers.suspended_time,
    }
