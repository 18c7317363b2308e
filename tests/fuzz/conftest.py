"""The seeds of the fuzzers: a fixed seed, and a new seed in each run."""

from __future__ import annotations

import os
from typing import Iterator

import pytest

import greenback_trace

pytest.importorskip("opentelemetry.sdk", reason="the fuzzers need greenback[report]")

FIXED = 1


@pytest.fixture(params=["fixed", "random"])
def seed(request: pytest.FixtureRequest) -> int:
    """Each of the two seeds in turn."""
    return FIXED if request.param == "fixed" else int(os.environ["GREENBACK_FUZZ_SEED"])


@pytest.fixture(autouse=True)
def _untraced_afterwards() -> Iterator[None]:
    assert not greenback_trace.is_enabled()
    yield
    greenback_trace.disable()
