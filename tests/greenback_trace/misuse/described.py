"""A report of a misuse, made as debug mode makes it."""

from __future__ import annotations

from typing import Any

import greenback
from greenback._engine.state import current_portal
from greenback_trace import Misuse
from greenback_trace.count.sites import site_of
from greenback_trace.misuse.finding import Finding
from greenback_trace.misuse.wording import describe


def in_portal(backend: Any, function: Any) -> Any:
    return backend.run(greenback.with_portal_run_sync, function)


def described(frame: Any, inconclusive: bool = False) -> Misuse:
    finding = Finding(
        "lock_held", frame, "threading.Lock acquired at app.py:12", ("It is locked.",), inconclusive
    )
    portal: Any = current_portal()[2]
    return describe(finding, site_of(frame), frame, portal, 3, ("a" * 32, "b" * 16))
