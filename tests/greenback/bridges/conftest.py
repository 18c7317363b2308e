"""Fixtures of the tests in this folder."""

from __future__ import annotations

from typing import Any

import pytest

from .awaitables import PORTALS


@pytest.fixture(params=PORTALS, ids=lambda portal: portal.__name__)
def portal(request: pytest.FixtureRequest) -> Any:
    """Each way to call a sync function in a portal, in turn."""
    return request.param
