"""Random programs against plain ``await``. A class for each mode: xdist keeps one together."""

from __future__ import annotations

from typing import Any

from .programs import fuzz_programs


class TestUntraced:
    def test_as_awaited(self, backend: Any, seed: int) -> None:
        """Random programs do the same with bridges as with ``await``."""
        assert fuzz_programs(backend, "untraced", seed)["bridges"]


class TestTraced:
    def test_as_awaited(self, backend: Any, seed: int) -> None:
        """So they do while they are traced, and each bridge has its span and is counted."""
        assert fuzz_programs(backend, "traced", seed)["bridges"]


class TestInDebugMode:
    def test_as_awaited(self, backend: Any, seed: int) -> None:
        """So they do in debug mode, which finds no misuse in them."""
        assert fuzz_programs(backend, "debug", seed)["bridges"]
