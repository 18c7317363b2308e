"""What the tests of tracing share: the two async libraries, and a program that bridges."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from pathlib import Path
from typing import Any, Awaitable, Callable, Dict, Iterator

import pytest
import trio

import greenback
import greenback_trace
from greenback_trace.count.frames import can_look_at_others

pytest.importorskip("opentelemetry.metrics", reason="tracing needs greenback[trace]")


class AsyncioBackend:
    name = "asyncio"
    sleep = staticmethod(asyncio.sleep)

    def run(self, async_fn: Callable[..., Awaitable[Any]], *args: Any) -> Any:
        return asyncio.run(async_fn(*args))  # type: ignore[arg-type]

    async def cancelled_in(self, async_fn: Callable[[Callable[[], None]], Awaitable[Any]]) -> None:
        """Run *async_fn* and cancel it when it calls what it is passed."""

        async def cancellable() -> None:
            task = asyncio.current_task()
            assert task is not None
            await async_fn(task.cancel)  # type: ignore[arg-type]

        task = asyncio.ensure_future(cancellable())
        await asyncio.wait([task])
        assert task.cancelled()


class TrioBackend:
    name = "trio"
    sleep = staticmethod(trio.sleep)

    def run(self, async_fn: Callable[..., Awaitable[Any]], *args: Any) -> Any:
        return trio.run(async_fn, *args)

    async def cancelled_in(self, async_fn: Callable[[Callable[[], None]], Awaitable[Any]]) -> None:
        with trio.CancelScope() as scope:
            await async_fn(scope.cancel)
        assert scope.cancelled_caught


@pytest.fixture(params=[AsyncioBackend(), TrioBackend()], ids=lambda backend: backend.name)
def backend(request: pytest.FixtureRequest) -> Any:
    return request.param


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
