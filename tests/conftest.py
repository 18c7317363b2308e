"""Settings and fixtures of all tests: above all `backend`, each of the event loops in turn."""

from __future__ import annotations

import asyncio
import gc
import os
import signal
from random import SystemRandom
from typing import Any, Awaitable, Callable, Iterator

import pytest
import trio

import greenback
from tests import sampling

try:
    import uvloop
except ImportError:  # on PyPy, and on platforms without a wheel
    uvloop = None

BACKENDS = ["asyncio", *(["uvloop"] if uvloop is not None else []), "trio"]


def pytest_configure(config: pytest.Config) -> None:
    """Restore the handler of Ctrl-C: a shell has background processes ignore SIGINT."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
    if os.environ.get("TESTS_WITH_SDK"):
        _set_global_sdk()
    # In the environment, since all processes of xdist must use the same seed.
    seed = os.environ.setdefault("GREENBACK_FUZZ_SEED", str(SystemRandom().getrandbits(32)))
    if not seed.isdecimal():
        raise pytest.UsageError(f"GREENBACK_FUZZ_SEED={seed!r} must be a whole number")
    sampling.configure()


def pytest_report_header() -> str:
    """Which engine the tests run on."""
    pure = os.environ.get("GREENBACK_PURE")
    return f"greenback's engine: {greenback.engine}" + (f", GREENBACK_PURE={pure}" if pure else "")


def pytest_terminal_summary(terminalreporter: Any) -> None:
    """Print how to repeat the random choices of this run."""
    reports = [report for some in terminalreporter.stats.values() for report in some]
    if any(getattr(report, "nodeid", "").startswith("tests/fuzz/") for report in reports):
        seed = os.environ["GREENBACK_FUZZ_SEED"]
        terminalreporter.write_line(f"fuzzed; to repeat it: GREENBACK_FUZZ_SEED={seed}")
    if any("/test_interrupts.py" in getattr(report, "nodeid", "") for report in reports):
        terminalreporter.write_line(
            f"interrupted at some instructions; to repeat it: {sampling.how_to_repeat()}; "
            "at all: TESTS_EVERY=1"
        )


def _set_global_sdk() -> None:
    """Set a real SDK, which gets the telemetry of traced tests, as an application does."""
    from opentelemetry import metrics, trace
    from opentelemetry.sdk.metrics import MeterProvider
    from opentelemetry.sdk.metrics.export import InMemoryMetricReader
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import BatchSpanProcessor
    from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

    provider = TracerProvider(shutdown_on_exit=False)
    provider.add_span_processor(BatchSpanProcessor(InMemorySpanExporter()))
    trace.set_tracer_provider(provider)
    metrics.set_meter_provider(MeterProvider([InMemoryMetricReader()], shutdown_on_exit=False))


@pytest.fixture
def few_objects() -> Iterator[None]:
    """Have the garbage collector skip the existing objects: after other tests they are many."""
    if hasattr(gc, "freeze"):  # PyPy has no freeze()
        gc.freeze()
    yield
    if hasattr(gc, "unfreeze"):
        gc.unfreeze()


class Backend:
    """One of the event loops, and the operations whose spelling depends on the library."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.library = "trio" if name == "trio" else "asyncio"
        self.is_trio = name == "trio"

    def __repr__(self) -> str:
        return self.name

    def run(self, async_fn: Callable[..., Awaitable[Any]], *args: Any) -> Any:
        """Run an async function in a new event loop."""
        if self.is_trio:
            return trio.run(async_fn, *args)
        if self.name == "uvloop":
            loop = uvloop.new_event_loop()
        else:
            loop = asyncio.new_event_loop()
        # As asyncio.Runner (3.11+), for a single call.
        asyncio.set_event_loop(loop)
        try:
            return loop.run_until_complete(async_fn(*args))
        finally:
            try:
                pending = asyncio.all_tasks(loop)
                for task in pending:
                    task.cancel()
                if pending:
                    loop.run_until_complete(asyncio.gather(*pending, return_exceptions=True))
                loop.run_until_complete(loop.shutdown_asyncgens())
            finally:
                asyncio.set_event_loop(None)
                loop.close()

    async def checkpoint(self) -> None:
        """Let other tasks run."""
        if self.is_trio:
            await trio.lowlevel.checkpoint()
        else:
            await asyncio.sleep(0)

    @property
    def sleep(self) -> Callable[[float], Awaitable[Any]]:
        """The library's own sleep(), and not a wrapper of the tests."""
        return trio.sleep if self.is_trio else asyncio.sleep

    def current_task(self) -> Any:
        return trio.lowlevel.current_task() if self.is_trio else asyncio.current_task()

    def event(self) -> Any:
        """An event with set(), is_set() and an async wait()."""
        return trio.Event() if self.is_trio else asyncio.Event()

    @property
    def cancelled(self) -> type:
        """The exception in a task that is cancelled."""
        return trio.Cancelled if self.is_trio else asyncio.CancelledError

    async def together(self, *async_fns: Callable[[], Awaitable[Any]]) -> None:
        """Run several async functions, each in a task of its own, and wait for all."""
        if self.is_trio:
            async with trio.open_nursery() as nursery:
                for async_fn in async_fns:
                    nursery.start_soon(async_fn)
        else:
            await asyncio.gather(*(async_fn() for async_fn in async_fns))

    async def cancelled_in(self, async_fn: Callable[[Callable[[], None]], Awaitable[Any]]) -> None:
        """Run *async_fn*, and cancel it when it calls its argument."""
        if self.is_trio:
            with trio.CancelScope() as scope:
                await async_fn(scope.cancel)
            assert scope.cancelled_caught
            return

        async def cancellable() -> None:
            task = asyncio.current_task()
            assert task is not None
            await async_fn(task.cancel)  # type: ignore[arg-type]

        task = asyncio.ensure_future(cancellable())
        await asyncio.wait([task])
        assert task.cancelled()


@pytest.fixture(params=BACKENDS)
def backend(request: pytest.FixtureRequest) -> Backend:
    """Each of the event loops in turn."""
    return Backend(request.param)


@pytest.fixture(params=[name for name in BACKENDS if name != "trio"])
def asyncio_backend(request: pytest.FixtureRequest) -> Backend:
    """asyncio's own event loop, and uvloop."""
    return Backend(request.param)
