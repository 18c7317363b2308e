"""Shared by the tests of the detectors: real bridges, and the findings at their start."""

from __future__ import annotations

from typing import Any, Callable, List

import pytest

import greenback
from greenback.instruments import Bridge, Instrument
from greenback_trace.misuse.detect import at_start
from greenback_trace.misuse.finding import Finding

from .garbage import IS_PYPY, until


class Looking(Instrument):
    """Asks the detectors at the start of each bridge."""

    def __init__(self) -> None:
        self.findings: List[Finding] = []
        self.bridges = 0

    def bridge_started(self, bridge: Bridge) -> None:
        self.bridges += 1
        assert bridge.frame is not None
        found = at_start(bridge.frame)
        if found is not None:
            self.findings.append(found)

    def in_portal(self, backend: Any, sync_fn: Callable[[], Any]) -> List[Finding]:
        """The findings while *sync_fn*, which must bridge, runs in a portal."""
        self.findings.clear()
        self.bridges = 0
        greenback.instruments.add_instrument(self)
        try:
            until(
                lambda: self.bridges,
                lambda: backend.run(greenback.with_portal_run_sync, sync_fn),
            )
        finally:
            greenback.instruments.remove_instrument(self)
        assert self.bridges
        found, self.findings = self.findings, []
        return found

    def only(self, backend: Any, sync_fn: Callable[[], Any], kind: str) -> Finding:
        """The only finding, which must be of that kind and certain."""
        found = self.in_portal(backend, sync_fn)
        assert [each.kind for each in found] == [kind], [
            (each.kind, each.subject, each.evidence) for each in found
        ]
        assert not found[0].inconclusive, found[0].evidence
        return found[0]

    def none(self, backend: Any, sync_fn: Callable[[], Any]) -> None:
        """Checks that nothing is found."""
        found = self.in_portal(backend, sync_fn)
        assert not found, [(each.kind, each.subject, each.evidence) for each in found]


@pytest.fixture
def looking() -> Looking:
    return Looking()


@pytest.fixture
def bridge(backend: Any) -> Callable[[], None]:
    """Bridges once, to something that suspends. On PyPy, not where a finalizer has no portal."""

    def bridge() -> None:
        if not IS_PYPY or greenback.has_portal():
            greenback.await_(backend.sleep(0))

    return bridge
