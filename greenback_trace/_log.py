"""Events -> structlog."""

from __future__ import annotations

import sys
from typing import Any

import structlog

from ._snapshot import Snapshot

_SITES_IN_SUMMARY = 5


def _logger() -> Any:
    """The application's, if it has configured structlog; otherwise one for standard error."""
    if structlog.is_configured():
        return structlog.get_logger("greenback")
    return structlog.wrap_logger(
        structlog.PrintLogger(sys.stderr),
        processors=[
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso"),
            structlog.processors.KeyValueRenderer(key_order=["timestamp", "level", "event"]),
        ],
    )


def summary(totals: Snapshot) -> None:
    """Log ``greenback.summary``: what was counted, where nobody else will tell."""
    sites = totals.sites
    _logger().info(
        "greenback.summary",
        portals={kind: portals.opened for kind, portals in totals.portals.items()},
        bridges=sum(site.bridges for site in sites),
        suspended=sum(site.suspended for site in sites),
        errors=sum(site.errors for site in sites),
        cancelled=sum(site.cancelled for site in sites),
        time=sum(site.time for site in sites),
        suspended_time=sum(site.suspended_time for site in sites),
        sites=[
            f"{site.function} ({site.file}:{site.line}): {site.bridges} bridges, "
            f"{site.suspended} suspended, {site.time:.3g} s"
            for site in sites[:_SITES_IN_SUMMARY]
        ],
    )
