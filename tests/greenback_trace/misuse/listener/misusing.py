"""Programs that misuse bridges, and what they log."""

from __future__ import annotations

import contextlib
import logging
import threading
import warnings
from typing import Any, Callable, Dict, Iterator, List

import structlog

import greenback
import greenback_trace
from greenback_trace import Config, MisuseWarning

#: Portals are logged at the level debug.
FROM_INFO = structlog.make_filtering_bound_logger(logging.INFO)


Events = List[Dict[str, Any]]


def misuses_in(events: Events) -> Events:
    return [event for event in events if event["event"] == "greenback.misuse"]


def enable(misuse: str = "warn", **settings: Any) -> None:
    greenback_trace.enable(config=Config(mode="debug", misuse=misuse, **settings))


def holding(lock: Any, wait: Callable[[], Any]) -> None:
    with lock:
        greenback.await_(wait())


def hold(backend: Any, times: int = 1) -> None:
    """Suspend while holding a lock, several times, in one portal."""
    lock = threading.Lock()

    def work() -> None:
        for _ in range(times):
            holding(lock, lambda: backend.sleep(0))

    backend.run(greenback.with_portal_run_sync, work)


async def advised(backend: Any) -> None:
    await greenback.ensure_portal()
    greenback.await_(backend.sleep(0))


@contextlib.contextmanager
def no_warnings() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", MisuseWarning)
        yield
