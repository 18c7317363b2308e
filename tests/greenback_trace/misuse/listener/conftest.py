"""Fixtures of the tests in this folder."""

from __future__ import annotations

from typing import Any, Iterator

import pytest
import structlog

from .misusing import FROM_INFO, Events


@pytest.fixture(autouse=True)
def events() -> Iterator[Events]:
    """The events that the application's structlog gets."""
    seen: Events = []

    def keep(logger: Any, method: str, event: Any) -> Any:
        seen.append({**event, "level": method})
        raise structlog.DropEvent

    structlog.configure(processors=[keep], wrapper_class=FROM_INFO)
    yield seen
    structlog.reset_defaults()
