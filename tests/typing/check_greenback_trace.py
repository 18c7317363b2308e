"""What a type checker sees of greenback_trace. Read by mypy and pyright, never run.

A call that must be refused carries an ignore comment, and both checkers report one that suppresses
nothing.
"""

# pyright: reportUnnecessaryTypeIgnoreComment=true

from __future__ import annotations

from datetime import datetime
from pathlib import Path
from typing import Any, Dict, List

from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.trace import TracerProvider
from typing_extensions import assert_type

import greenback_trace
from greenback_trace import report


def switched_on_and_off() -> None:
    greenback_trace.enable()
    greenback_trace.enable(tracer_provider=TracerProvider(), meter_provider=MeterProvider())
    greenback_trace.enable(config=greenback_trace.Config(spans="suspended", sites=20))
    greenback_trace.enable(greenback_trace.Config())  # type: ignore[call-arg]
    greenback_trace.enable(config="debug")  # type: ignore[arg-type]
    greenback_trace.disable()
    assert_type(greenback_trace.is_enabled(), bool)


def configured() -> None:
    assert_type(greenback_trace.Config.from_env(), greenback_trace.Config)
    greenback_trace.Config().spans = "none"  # type: ignore[misc]
    error: ValueError = greenback_trace.ConfigError()
    raise error


def counted() -> None:
    snapshot = greenback_trace.snapshot()
    assert_type(snapshot, greenback_trace.Snapshot)
    assert_type(snapshot.as_dict(), Dict[str, Any])
    for site in snapshot.sites:
        assert_type(site.bridges, int)
        assert_type(site.suspended, int)
    for chain in snapshot.chains:
        assert_type(chain.bridges, int)
    assert_type(snapshot.portals["task"].bridges, int)
    for misuse in snapshot.misuses:
        assert_type(misuse, greenback_trace.Misuse)
        assert_type(misuse.format(), str)


def allowed() -> None:
    with greenback_trace.allow("lock_held", reason="nobody else takes it"):
        pass
    greenback_trace.allow("lock_held")  # type: ignore[call-arg]
    greenback_trace.allow("lock_held", "nobody else takes it")  # type: ignore[call-arg]
    try:
        pass
    except greenback_trace.MisuseError as error:
        assert_type(error.misuse, greenback_trace.Misuse)


def reported() -> None:
    trace = report.load("a.jsonl", Path("b.jsonl"), since="30m", until=datetime.now())
    assert_type(trace, report.Trace)
    assert_type(trace.total, report.Numbers)
    for site in report.hot_spots(trace, sort="waiting", functions="price", top=3):
        assert_type(site, report.SiteReport)
        assert_type(site.bridges, float)
    plan = report.plan(trace, weight="time", roots=[Path("src")])
    assert_type(plan, report.Plan)
    for step in plan.steps:
        assert_type(step, report.Step)
        assert_type(step.moved, List[report.Move])
        assert_type(step.edits, List[report.Edit])
    error: ValueError = report.NothingToReportError()
    report.load(["a.jsonl"])  # type: ignore[arg-type]
    report.hot_spots(trace, "waiting")  # type: ignore[call-arg]
    raise error
