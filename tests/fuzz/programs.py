"""Random programs against plain ``await``: untraced, traced, and in debug mode, whose counts have
to be those of the program."""

from __future__ import annotations

from collections import Counter
from random import Random
from typing import Any, Callable, Dict, Iterator, NamedTuple, Optional, Tuple
from typing import Counter as Counted

from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

import greenback_trace
from greenback_trace import Config
from tests.sampling import is_small

from ..greenback.random_programs import (
    CATCHES,
    ERRORS,
    EVENTS,
    PARTNER_STEPS,
    PORTALS,
    VARIABLES,
    WRAPPERS,
    Interpreter,
    assert_same,
    interpreted,
)

MODES = ("untraced", "traced", "debug")
#: Programs for each event loop, mode and seed.
PROGRAMS = 60 if is_small() else 200
#: The kind under which a portal counts, by how the program opens it.
_PORTAL_KINDS = {
    "task": "task",
    "sync in task": "task",
    "run": "run",
    "run_sync": "run_sync",
    "run_tree": "run",
}
_KINDS, _WEIGHTS = zip(
    ("call", 20),
    ("try", 6),
    ("checkpoint", 5),
    ("wait", 4),
    ("log", 2),
    ("handled", 2),
    ("set", 2),
    ("reset", 1),
    ("get", 1),
    ("raise", 1),
    ("raise from", 1),
    ("reraise", 1),
    ("return", 1),
    ("cancel", 1),
)
#: How deeply blocks are nested.
DEPTH = 5


Block = Tuple[Any, ...]


class Run(NamedTuple):
    """A program, and how to run it."""

    program: Block
    portal: str
    cancel_at: Optional[int]


def fuzz_programs(backend: Any, mode: str, seed: int) -> Counted[str]:
    """Run random programs, and return the numbers of programs and of bridges.

    Args:
        backend: The event loop.
        mode: One of `MODES`.

    Raises:
        AssertionError: A program does something else than with ``await``, or counts wrongly. The
            message has the smallest program found that does so.
    """
    done: Counted[str] = Counter()
    for number in range(PROGRAMS):
        random = Random(f"{seed} {number}")
        run = Run(
            _block(random, 2, 5, DEPTH),
            random.choice(PORTALS),
            random.choice([None, *range(PARTNER_STEPS)]),
        )
        failure = _failure(backend, mode, run, done)
        if failure is not None:
            smallest, failure = _smallest(backend, mode, run, failure)
            where = f"program {number} of seed {seed} on {backend.name}, {mode}"
            raise AssertionError(f"{where}: {failure!r}\n{smallest}") from failure
    return done


def _failure(backend: Any, mode: str, run: Run, done: Counted[str]) -> Optional[Exception]:
    try:
        awaited = interpreted(backend, *run, bridged=False)
        if mode == "untraced":
            bridged = interpreted(backend, *run, bridged=True)
        else:
            bridged = _traced(backend, mode, run)
        assert_same(awaited, bridged)
    except Exception as failure:
        return failure
    done["programs"] += 1
    done["bridges"] += _part(bridged.counts, "bridge")
    return None


def _smallest(backend: Any, mode: str, run: Run, failure: Exception) -> Tuple[Run, Exception]:
    """The program without the statements that the failure does not need."""
    for program in smaller_blocks(run.program):
        smaller = run._replace(program=program)
        still = _failure(backend, mode, smaller, Counter())
        if still is not None:
            return _smallest(backend, mode, smaller, still)
    return run, failure


def smaller_blocks(block: Block) -> Iterator[Block]:
    for number, statement in enumerate(block):
        before, after = block[:number], block[number + 1 :]
        yield before + after
        for index, part in enumerate(statement):
            if isinstance(part, tuple):
                yield before + part + after
                for smaller in smaller_blocks(part):
                    yield (*before, (*statement[:index], smaller, *statement[index + 1 :]), *after)


def _block(random: Random, least: int, most: int, depth: int) -> Block:
    count = random.randint(least, most)
    return tuple(random_statement(random, depth, _block) for _ in range(count))


def random_statement(random: Random, depth: int, block_of: Callable[..., Block]) -> Block:
    """A random statement, whose blocks *block_of* makes."""
    (kind,) = random.choices(_KINDS, _WEIGHTS)
    if depth and kind == "call":
        callee = block_of(random, 1, 3, depth - 1)
        return kind, random.random() < 0.5, random.choice(sorted(WRAPPERS)), callee
    if depth and kind == "try":
        body = block_of(random, 1, 3, depth - 1)
        others = [block_of(random, 0, 2, depth - 1) for _ in range(3)]
        return (kind, body, random.choice(sorted(CATCHES)), *others)
    if kind == "wait":
        return kind, random.randrange(EVENTS)
    if kind in ("log", "return"):
        return kind, random.randrange(4)
    if kind == "raise":
        return kind, random.choice(sorted(ERRORS)), random.randrange(4)
    if kind == "raise from":
        cause, error = random.choices(sorted(ERRORS), k=2)
        return kind, cause, error, random.randrange(4)
    if kind == "set":
        return kind, random.randrange(len(VARIABLES)), random.randrange(4)
    return ("checkpoint" if kind in ("call", "try") else kind,)


def _traced(backend: Any, mode: str, run: Run) -> Interpreter:
    spans = InMemorySpanExporter()
    provider = TracerProvider(shutdown_on_exit=False)
    provider.add_span_processor(SimpleSpanProcessor(spans))
    # A busy machine takes a tenth of a second now and then: slow steps are not checked here.
    config = Config(mode="debug" if mode == "debug" else "on", span_rate=0, slow=60)
    greenback_trace.enable(tracer_provider=provider, config=config)
    try:
        bridged = interpreted(backend, *run, bridged=True, counts_traps=True)
    finally:
        greenback_trace.disable()
    _assert_counted(bridged.counts, _PORTAL_KINDS[run.portal], backend.library)
    names = Counter(span.name.partition(" ")[0] for span in spans.get_finished_spans())
    assert names["await_"] == _part(bridged.counts, "bridge"), names
    assert names["portal"] == 1, names
    return bridged


def _assert_counted(counts: Counted[Tuple[Any, ...]], kind: str, library: str) -> None:
    """Check that the totals are the program's own counts."""
    totals = greenback_trace.snapshot()
    chains: Counted[Tuple[Any, ...]] = Counter()
    for chain in totals.chains:
        for outcome, count in (
            ("ok", chain.ok),
            ("error", chain.errors),
            ("cancelled", chain.cancelled),
        ):
            chains["bridge", len(chain.chain), outcome] += count
    bridges = {key: count for key, count in counts.items() if key[0] == "bridge"}
    assert +chains == bridges, f"counted: {+chains}; made: {bridges}"
    made = sum(bridges.values())
    suspended, switches = counts["suspended",], counts["switch",]
    for name, each in (
        ("chains", totals.chains),
        ("sites", totals.sites),
        ("portals", tuple(totals.portals.values())),
    ):
        found = sum(one.bridges for one in each), sum(one.suspended for one in each)
        assert found == (made, suspended), f"{name}: {found}; made: {made}, {suspended}"
    portals = {name: (each.opened, each.closed) for name, each in totals.portals.items()}
    assert portals == {kind: (1, 1)}, portals
    assert not any(totals.active.values()), f"under way in the end: {totals.active}"
    for direction in ("to_loop", "to_task"):
        found_switches = totals.switches.get(direction, 0)
        assert found_switches == switches, f"{direction}: {found_switches}; made: {switches}"
    durations: Dict[str, int] = {}
    for one in totals.durations:
        durations[one.name] = durations.get(one.name, 0) + one.count
    steps = totals.steps[library].steps
    expected = {
        "greenback.bridge.duration": made,
        "greenback.switch.duration": 2 * switches,
        "greenback.step.duration": steps,
        "greenback.portal.duration": 1,
    }
    assert durations == {name: count for name, count in expected.items() if count}, durations
    assert totals.misuses == (), totals.misuses
    assert totals.dropped == {}, totals.dropped


def _part(counts: Counted[Tuple[Any, ...]], what: str) -> int:
    return sum(count for key, count in counts.items() if key[0] == what)
