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
    """The two async libraries. What traces tell of uvloop is what they tell of asyncio."""
    return Backend(request.param)


@pytest.fixture(autouse=True)
def _untraced_afterwards() -> Iterator[None]:
    assert not greenback_trace.is_enabled()
    yield
    greenback_trace.disable()


@pytest.fixture
def switching_often() -> Iterator[None]:
    """Threads take turns so often that what two of them do at once goes wrong, if it can."""
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    yield
    sys.setswitchinterval(interval)


@pytest.fixture
def others_are_shown() -> None:
    """What other threads run is looked at, since it stops meanwhile."""
    if not can_look_at_others():
        pytest.skip("without the GIL, nobody looks at what other threads run")


@pytest.fixture
def environment() -> Callable[..., Dict[str, str]]:
    """Makes the environment of another interpreter, without variables of ours but those given."""

    def make(**variables: str) -> Dict[str, str]:
        environ = {
            name: value
            for name, value in os.environ.items()
            if not name.startswith(("GREENBACK_", "OTEL_"))
        }
        files = [str(module.__file__) for module in (greenback, greenback_trace)]
        roots = {str(Path(file).parents[1]) for file in files}
        # A busy machine takes a tenth of a second now and then: only who asks hears of slow steps.
        environ["GREENBACK_TRACE_SLOW"] = "60"
        environ.update(variables, PYTHONPATH=os.pathsep.join(sorted(roots)))
        return environ

    return make


@pytest.fixture
def python(environment: Callable[..., Dict[str, str]], tmp_path: Path) -> Any:
    """Runs another interpreter, in a directory of its own and without variables of ours."""

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
