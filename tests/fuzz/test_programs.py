"""Random programs against plain ``await``. Each mode has a class: xdist keeps one together."""

from __future__ import annotations

from typing import Any

from .programs import fuzz_programs


class TestUntraced:
    def test_as_awaited(self, backend: Any, seed: int) -> None:
        """Random programs do the same with bridges as with ``await``."""
        assert fuzz_programs(backend, "untraced", seed)["bridges"]


class TestTraced:
    def test_as_awaited(self, backend: Any, seed: int) -> None:
        """Random programs do the same while traced, and each bridge is counted and has a span."""
        assert fuzz_programs(backend, "traced", seed)["bridges"]


class TestInDebugMode:
    def test_as_awaited(self, backend: Any, seed: int) -> None:
        """Random programs do the same in debug mode, which finds no misuse in them."""
        assert fuzz_programs(backend, "debug", seed)["bridges"]
