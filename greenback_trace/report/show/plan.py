"""A plan -> text for a terminal."""

from __future__ import annotations

import os
from typing import Dict, List, Set, Tuple

from rich.console import Console
from rich.padding import Padding
from rich.text import Text

from ..planning.classify import AWAIT, CONSTRUCT, CONVERTIBLE, THIRD_PARTY, UNKNOWN
from ..planning.edits import Edit
from ..planning.plan import Plan, Step
from ..planning.sources import Frame
from .wording import digits, duration, marks, place_of, plural, visible

_BAR = 20
_BLOCKED = 20
#: Edits to show for a step that are guesses: another function may have the same name.
_GUESSES = 20
#: Callers to show for a step that stay sync.
_MOVES = 10


def show_plan(plan: Plan, console: Console) -> None:
    """Print the steps with their edits, and the bridges that stay."""
    total = plan.total
    _print(
        console,
        f"{digits(total.bridges)} {plural(total.bridges, 'bridge')} through {len(plan.chains)} "
        f"sync {plural(len(plan.chains), 'chain')}, {duration(total.time)}. "
        f"Ordered by {plan.weight}.",
        style="bold",
    )
    _print(console, kinds(plan))
    if plan.project.files:
        _print(console, looked_at(plan), style="" if plan.project.is_whole else "yellow")
    if plan.project.missing:
        _print(console, missing(plan), style="yellow")
    if plan.unreadable:
        _print(console, unreadable(plan), style="yellow")
    if plan.changed:
        _print(console, changed(plan), style="yellow")
    shown: Set[str] = set()
    for number, step in enumerate(plan.steps, 1):
        console.print()
        _show_step(number, step, shown, console)
    if plan.blocked:
        console.print()
        _show_blocked(plan, console)


def _print(console: Console, text: str, indent: int = 0, style: str = "") -> None:
    shown = Text(visible(text), style, overflow="fold")
    console.print(Padding(shown, (0, 0, 0, indent), expand=False))


def kinds(plan: Plan) -> str:
    """How many bridges can go away, and what blocks the others."""

    def bridges(*kinds: str) -> float:
        return sum(chain.numbers.bridges for chain in plan.chains if chain.verdict.kind in kinds)

    third_party, construct = bridges(THIRD_PARTY), bridges(CONSTRUCT)
    text = (
        f"A plain await would do for {digits(bridges(AWAIT))}, {digits(bridges(CONVERTIBLE))} can "
        f"be converted, {digits(third_party)} {_is(third_party)} blocked by third-party code and "
        f"{digits(construct)} by a construct that cannot await."
    )
    unknown = bridges(UNKNOWN)
    if unknown:
        text += f" Of {digits(unknown)}, the trace does not have the whole chain."
    return text


def looked_at(plan: Plan) -> str:
    """Where the plan searched for callers outside the trace."""
    count, places = len(plan.project.files), plan.project.directories
    more = f" and {len(places) - 3} more" if len(places) > 3 else ""
    text = (
        f"Callers were looked for in {digits(count)} {plural(count, 'file')} of "
        f"{', '.join(places[:3])}{more}"
    )
    if not plan.project.is_whole:
        text += ", the nearest ones, and there are more: name your code with --root to have all"
    return f"{text}."


def missing(plan: Plan) -> str:
    """Which sources are missing, and what to do about that."""
    files = plan.project.missing
    more = f" and {len(files) - 3} more" if len(files) > 3 else ""
    it, its = ("it", "its") if len(files) == 1 else ("them", "their")
    return (
        f"Not found: {', '.join(files[:3])}{more}. What is said of {it} is from the trace alone, "
        f"and {its} callers were not looked for. Name the directory of the sources: "
        "--root PATH."
    )


def unreadable(plan: Plan) -> str:
    """Which sources exist but cannot be read or parsed, and why."""
    files = [f"{file} ({why})" for file, why in plan.unreadable.items()]
    more = f" and {len(files) - 3} more" if len(files) > 3 else ""
    return f"Not readable: {', '.join(files[:3])}{more}. No callers were looked for there."


def changed(plan: Plan) -> str:
    """Which sources are newer than the trace."""
    files = [os.path.basename(file) for file in plan.changed]
    more = f" and {len(files) - 3} more" if len(files) > 3 else ""
    return (
        f"Written after the trace: {', '.join(files[:3])}{more}. What is said of their lines may "
        "be wrong: trace again."
    )


def _is(count: float) -> str:
    return "is" if digits(count) == "1" else "are"


def _show_step(number: int, step: Step, shown: Set[str], console: Console) -> None:
    names = len(step.functions)
    title = f"make {names} {plural(names, 'function')} async" if names else "plain awaits"
    _print(console, f"Step {number}: {title}", style="bold")
    full, empty, _ = marks(console)
    filled = round(_BAR * step.share)
    _print(
        console,
        f"{full * filled}{empty * (_BAR - filled)} {step.share:.1%} removed so far; this step "
        f"removes {digits(step.removed.bridges)} {plural(step.removed.bridges, 'bridge')} and "
        f"{duration(step.removed.time)}; about {digits(step.bridges_left)} "
        f"{_is(step.bridges_left)} left",
        2,
    )
    _show_edits(step.edits, console)
    lines = [line for line in moves(step) if line not in shown]
    shown.update(lines)
    for line in lines[:_MOVES]:
        _print(console, line, 4, "dim")
    if len(lines) > _MOVES:
        more = len(lines) - _MOVES
        _print(console, f"and {more} more {plural(more, 'caller')}: --json has all", 4, "dim")
    if step.breaks:
        _print(console, "Callers outside the trace that would get a coroutine:", 2, "yellow")
        _show_edits(step.breaks, console)


def moves(step: Step) -> List[str]:
    """Where bridges have moved to: one line for each caller, over all chains above the caller."""
    callers: Dict[Tuple[Frame, bool], List[float]] = {}
    for move in step.moved:
        counts = callers.setdefault((move.frame, move.is_async), [0, 0])
        counts[0] += move.before
        counts[1] += move.after
    return [
        f"{frame.function} ({place_of(frame.file, frame.line)}) "
        f"{'bridges through C code' if is_async else 'stays sync and bridges itself'}: "
        f"about {digits(after)} for {digits(before)} below it today"
        for (frame, is_async), (before, after) in callers.items()
    ]


def _show_edits(edits: List[Edit], console: Console) -> None:
    guesses = 0
    shown: Set[str] = set()
    for edit in edits:
        guess = "" if edit.certain else " (by name only: look whether it is this one)"
        line = f"{place_of(edit.file, edit.line)}  {edit.what}{guess}"
        guesses += not edit.certain
        if line not in shown and (edit.certain or guesses <= _GUESSES):
            shown.add(line)
            _print(console, line, 4)
    if guesses > _GUESSES:
        _print(console, f"and more by name only: --json has all {guesses}", 4, "dim")


def _show_blocked(plan: Plan, console: Console) -> None:
    stays: List[float] = [chain.numbers.bridges for chain in plan.blocked]
    count = sum(stays)
    _print(console, f"What stays: {digits(count)} {plural(count, 'bridge')}", style="bold")
    for chain in plan.blocked[:_BLOCKED]:
        frame = chain.verdict.frame
        where = "" if frame is None else f"{frame.function} ({place_of(frame.file, frame.line)})"
        _print(
            console,
            f"{digits(chain.numbers.bridges)} {plural(chain.numbers.bridges, 'bridge')}, "
            f"{duration(chain.numbers.time)}: {chain.verdict.by} at {where}",
            2,
        )
        _print(console, chain.verdict.idiom, 4, "dim")
    left = len(plan.blocked) - _BLOCKED
    if left > 0:
        _print(console, f"and {left} more {plural(left, 'chain')}: --json has all", 2, "dim")
