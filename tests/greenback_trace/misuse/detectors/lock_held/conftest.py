"""Fixtures of the tests in this folder."""

from __future__ import annotations

from typing import Any, Callable, Iterator, Optional

import pytest

import greenback
from greenback.instruments import add_instrument, remove_instrument
from greenback_trace.misuse.evidence.locks import replacements
from greenback_trace.misuse.finding import Finding

from .holding import Watcher


@pytest.fixture(autouse=True)
def watcher() -> Iterator[Watcher]:
    replacements.install()
    watcher = Watcher()
    add_instrument(watcher)
    yield watcher
    remove_instrument(watcher)
    replacements.uninstall()


@pytest.fixture
def suspend(backend: Any, watcher: Watcher) -> Callable[[], Optional[Finding]]:
    """Makes a bridge that suspends, and gives what was found of it."""

    def suspend() -> Optional[Finding]:
        greenback.await_(backend.sleep(0.001))
        return watcher.found.pop()

    return suspend


@pytest.fixture
def in_portal(backend: Any) -> Callable[[Callable[[], Any]], Any]:
    def run(function: Callable[[], Any]) -> Any:
        async def main() -> Any:
            return await greenback.with_portal_run_sync(function)

        return backend.run(main)

    return run
