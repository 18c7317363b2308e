"""What the tests of tracing share: the two async libraries, and a program that bridges."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any, Callable, Dict, Iterator

import pytest

import greenback
import greenback_trace
from greenback_trace.count.frames import can_look_at_others
from tests.conftest import Backend

pytest.importorskip("opentelemetry.metrics", reason="tracing needs greenback[trace]")


@pytest.fixture(params=["asyncio", "trio"])
def backend(request: pytest.FixtureRequest) -> Backend:
    """The two async libraries. For traces, uvloop is the same as asyncio."""
    return Backend(request.param)


@pytest.fixture(autouse=True)
def _untraced_afterwards() -> Iterator[None]:
    assert not greenback_trace.is_enabled()
    yield
    greenback_trace.disable()


@pytest.fixture
def switching_often() -> Iterator[None]:
    """Threads switch so often that races between two of them show."""
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    yield
    sys.setswitchinterval(interval)


@pytest.fixture
def others_are_shown() -> None:
    """Other threads stop while their frames are read, so these are shown."""
    if not can_look_at_others():
        pytest.skip("without the GIL, nobody looks at what other threads run")


@pytest.fixture
def environment() -> Callable[..., Dict[str, str]]:
    """Makes the environment of another interpreter, with no GREENBACK_... but those given."""

    def make(**variables: str) -> Dict[str, str]:
        environ = {
            name: value
            for name, value in os.environ.items()
            if not name.startswith(("GREENBACK_TRACE", "OTEL_"))
        }
        files = [str(module.__file__) for module in (greenback, greenback_trace)]
        roots = {str(Path(file).parents[1]) for file in files}
        # A busy machine takes a tenth of a second now and then: slow steps only where a test asks.
        environ["GREENBACK_TRACE_SLOW"] = "60"
        environ.update(variables, PYTHONPATH=os.pathsep.join(sorted(roots)))
        return environ

    return make


@pytest.fixture
def python(environment: Callable[..., Dict[str, str]], tmp_path: Path) -> Any:
    """Runs another interpreter, in a directory of its own and without greenback's variables."""

    def run(*arguments: str, **variables: str) -> Any:
        return subprocess.run(
            [sys.executable, *arguments],
            env=environment(**variables),
            cwd=str(tmp_path),
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )

    return run
