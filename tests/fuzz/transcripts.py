"""Runs random programs on one engine, and writes a transcript of each.

Run it as ``python -m tests.fuzz.transcripts ENGINE BACKEND MODE``. Each line of the input is the
text of a `Run`, each line of the output the transcript in JSON: all that the program did, its
exceptions with their chains and tracebacks, what was counted, and the calls of an instrument.
"""

from __future__ import annotations

import ast
import contextvars
import faulthandler
import gc
import json
import logging
import sys
import warnings
from typing import Any, List

import trio._core._run

import greenback
import greenback_trace
from greenback.instruments import Instrument, add_instrument, remove_instrument
from greenback_trace import Config
from tests.conftest import Backend

from .programs import Run
from .richer import Richer, described_wholly, text_of

#: A program runs untraced, traced, in debug mode, or watched by an instrument.
MODES = ("untraced", "traced", "debug", "watched")
#: In seconds. A program that takes longer hangs.
LIMIT = 15


class Watcher(Instrument):
    """Notes the calls of its hooks, portals and bridges by number."""

    def __init__(self, log: List[Any]) -> None:
        self.log = log
        self.kept: List[Any] = []

    def note(self, hook: str, what: Any, *more: Any) -> None:
        numbers = [number for number, kept in enumerate(self.kept) if kept is what]
        if not numbers:
            self.kept.append(what)
            numbers = [len(self.kept) - 1]
        self.log.append((hook, numbers[0], *more))

    def portal_opened(self, portal: Any) -> None:
        self.note("opened", portal, portal.kind)

    def portal_closed(self, portal: Any) -> None:
        self.note("closed", portal)

    def bridge_started(self, bridge: Any) -> None:
        self.note("started", bridge, text_of(type(bridge.awaitable)))

    def bridge_suspended(self, bridge: Any) -> None:
        self.note("suspended", bridge)

    def bridge_resumed(self, bridge: Any) -> None:
        self.note("resumed", bridge)

    def bridge_finished(self, bridge: Any, error: Any) -> None:
        self.note("finished", bridge, described_wholly(error))

    def step_started(self, portal: Any) -> None:
        self.note("step", portal)

    def step_finished(self, portal: Any) -> None:
        self.note("stop", portal)


def transcript(backend: Backend, mode: str, run: Run) -> List[Any]:
    """All that a program does."""
    interpreter = Richer(backend)
    log = interpreter.log
    # When a coroutine is destroyed that was never awaited depends on what has kept an exception.
    warned: List[str] = []
    watcher = Watcher(log)

    async def main(interpreter: Richer) -> None:
        interpreter.events = [backend.event() for _ in interpreter.events]
        if backend.is_trio:
            await interpreter.on_trio(run.program, run.portal)
        else:
            await interpreter.on_asyncio(run.program, run.portal, run.cancel_at)

    def note_warning(message: Any, *_: Any, **__: Any) -> None:
        warned.append(text_of(message))

    # Trio shuffles the tasks that are ready.
    trio._core._run._ALLOW_DETERMINISTIC_SCHEDULING = True  # type: ignore[attr-defined]
    trio._core._run._r.seed(0)
    sys.unraisablehook = lambda failure: log.append(
        ("unraisable", described_wholly(failure.exc_value))
    )
    if mode in ("traced", "debug"):
        config = Config(mode="debug" if mode == "debug" else "on", span_rate=0, slow=60)
        greenback_trace.enable(config=config)
    elif mode == "watched":
        add_instrument(watcher)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("always")
            warnings.showwarning = note_warning
            try:
                contextvars.Context().run(backend.run, main, interpreter)
            except BaseException as error:
                log.append(("ended with", described_wholly(error)))
            del interpreter, watcher.kept[:]
            gc.collect()
    finally:
        if mode in ("traced", "debug"):
            greenback_trace.disable()
            log.append(("counts", counts()))
        elif mode == "watched":
            remove_instrument(watcher)
        sys.unraisablehook = sys.__unraisablehook__
    log.append(("warnings", sorted(warned)))
    return log


def counts() -> Any:
    """The totals, without times."""
    totals = greenback_trace.snapshot()
    return {
        "portals": {
            kind: (each.opened, each.closed, each.ok, each.errors, each.cancelled, each.suspended)
            for kind, each in totals.portals.items()
        },
        "chains": sorted(
            (each.chain, each.ok, each.errors, each.cancelled, each.suspended)
            for each in totals.chains
        ),
        "sites": sorted(
            (each.function, each.line, each.ok, each.errors, each.cancelled, each.suspended)
            for each in totals.sites
        ),
        "active": totals.active,
        "switches": totals.switches,
        "steps": {library: each.steps for library, each in totals.steps.items()},
        "durations": sorted(
            (each.name, sorted(each.attributes.items()), each.count) for each in totals.durations
        ),
        "misuses": sorted(
            (each.kind, each.severity, each.site, each.offender, each.inconclusive, each.count)
            for each in totals.misuses
        ),
    }


def main() -> None:
    _, engine, name, mode = sys.argv
    if greenback.engine != engine:
        raise SystemExit(f"the engine is {greenback.engine}, not {engine}")
    logging.disable(logging.CRITICAL)
    faulthandler.enable()
    # At the same places in both engines: only where it is asked for.
    gc.disable()
    gc.freeze()
    backend = Backend(name)
    answers, sys.stdout = sys.stdout, sys.stderr
    for line in sys.stdin:
        faulthandler.dump_traceback_later(LIMIT, exit=True)
        done = transcript(backend, mode, Run(*ast.literal_eval(line)))
        faulthandler.cancel_dump_traceback_later()
        print(json.dumps(done, default=text_of), file=answers, flush=True)


if __name__ == "__main__":
    main()
