"""The two engines do the same, and so does each mix of both."""

from __future__ import annotations

import os
from importlib.util import find_spec
from typing import Any

import pytest

from tests.sampling import is_small

from .engines import Difference, Engine, first_difference, fuzz_engines
from .programs import Run
from .transcripts import MODES

pytestmark = pytest.mark.skipif(
    find_spec("greenback._engine._compiled") is None, reason="the engine in C is not installed"
)
#: Programs for each event loop and mode.
PROGRAMS = 15 if is_small() else 50


class TestEngines:
    @pytest.mark.parametrize("mode", MODES)
    def test_same(self, backend: Any, mode: str) -> None:
        """Random programs have the same transcript on both engines: results, exceptions with their
        chains and tracebacks, contexts, counts, and the calls of an instrument."""
        seed = int(os.environ["GREENBACK_FUZZ_SEED"])
        assert fuzz_engines(backend.name, mode, seed, PROGRAMS, ("python", "c"))

    def test_mixed(self, backend: Any) -> None:
        """A bridge begun in one engine is driven by the other, and nothing tells."""
        seed = int(os.environ["GREENBACK_FUZZ_SEED"])
        assert fuzz_engines(backend.name, "untraced", seed, PROGRAMS)


class TestTheComparison:
    """The comparison notices a difference."""

    RUN = Run(
        (("log", 1), ("call", False, "coroutine", (("raise", "Custom", 2),))), "run_sync", None
    )

    def test_difference(self) -> None:
        """An engine that does something else is a difference."""
        one, other = (Engine(name, "asyncio", "untraced") for name in ("python", "c"))
        other.run = lambda run: one.run(run._replace(portal="run"))  # type: ignore[method-assign]
        found = first_difference((one, other), self.RUN)
        one.close()
        assert found is not None
        assert '"with_portal_run_sync"' in found
        assert '"with_portal_run"' in found

    def test_crash(self) -> None:
        """A process that ends is a difference, whose end and last words are told."""
        one, other = (Engine(name, "asyncio", "untraced") for name in ("python", "c"))
        assert first_difference((one, other), self.RUN) is None
        broken = self.RUN._replace(program=(("unknown",),))
        assert "AssertionError" in str(other.run(broken))
        other._command = ("false",)  # type: ignore[assignment]
        other.close()
        found = first_difference((one, other), self.RUN)
        one.close()
        assert found is not None
        assert "it ended" in found

    def test_smallest(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """A difference is told with a small program."""
        with_log = Engine.run
        monkeypatch.setattr(
            Engine,
            "run",
            lambda self, run: self.name if "has_portal" in str(run) else with_log(self, run),
        )
        with pytest.raises(Difference) as raised:
            fuzz_engines("asyncio", "untraced", 1, 30, ("python", "c"))
        assert "Run(program=(('has_portal',),)," in str(raised.value)
