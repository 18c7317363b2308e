"""One way to trace one implementation. tracing.py starts it and asks it for measurements.

It answers like worker.py, and adds ``"cpu"``: seconds of processor time per call in all threads of
the process, including the threads that collect and export.
"""

from __future__ import annotations

import gc
import logging
import sys
from itertools import repeat
from time import perf_counter, process_time
from typing import Any, Callable, Dict, List

import worker

SITES = 200
#: How often a site bridges before the next site does.
BURST = 10


async def enter_plainly(work: Callable[[int, int], Any], n: int, depth: int) -> Any:
    return await work(n, depth)


#: Every work of this process runs in this. A setup may replace it.
enter: Callable[..., Any] = enter_plainly


# Works that bridge at many sites


def make_sites(call: str) -> List[Callable[..., None]]:
    names: Dict[str, Any] = {"repeat": repeat}
    for number in range(SITES):
        exec(  # the loop of worker.py, in many functions
            f"def site_{number}(n, await_, nop, sleep):\n"
            f"    for _ in repeat(None, n):\n"
            f"        await_({call})\n",
            names,
        )
    return [names[f"site_{number}"] for number in range(SITES)]


def time_sites(n: int, call: str) -> float:
    await_, nop, sleep = worker.implementation.await_, worker.nop, worker.loop.sleep
    sites = made.get(call) or made.setdefault(call, make_sites(call))
    start = perf_counter()
    for _ in repeat(None, n // (SITES * BURST)):
        for site in sites:
            site(BURST, await_, nop, sleep)
    return perf_counter() - start


#: The functions are made once, so that they are the same sites in every repetition.
made: Dict[str, List[Callable[..., None]]] = {}


async def bridge_sites(n: int, depth: int) -> Any:
    return await worker.implementation.enter(time_sites, n, "nop()")


async def bridged_sleep_sites(n: int, depth: int) -> Any:
    return await worker.implementation.enter(time_sites, n, "sleep(0)")


WORKS: Dict[str, Callable[[int, int], Any]] = {
    **worker.WORKS,
    "bridge_sites": bridge_sites,
    "bridged_sleep_sites": bridged_sleep_sites,
}


# Setups


def never() -> None:
    pass


def imported() -> None:
    import greenback_trace

    assert not greenback_trace.is_enabled()


def off() -> None:
    import greenback_trace

    trace()
    for work in ("bridge", "bridged_sleep", "portal_sleep"):
        worker.loop.run(worker.WORKS[work], 1000, 1)
    greenback_trace.disable()


def metrics() -> None:
    trace(spans="none")


def debug() -> None:
    """Debug mode. Its detectors find that the benchmark bridges from an async caller."""
    import warnings

    warnings.simplefilter("ignore")
    trace(spans="none", mode="debug")


def metrics_sdk() -> None:
    trace(meter_provider=new_meter_provider(), spans="none")


def unsampled() -> None:
    """Spans, with every bridge under a parent span that is not sampled."""
    global enter
    from opentelemetry import context
    from opentelemetry import trace as api

    parent = api.NonRecordingSpan(
        api.SpanContext(1, 1, is_remote=True, trace_flags=api.TraceFlags(0))
    )

    async def enter_under_parent(work: Callable[[int, int], Any], n: int, depth: int) -> Any:
        context.attach(api.set_span_in_context(parent))
        return await work(n, depth)

    enter = enter_under_parent
    trace(tracer_provider=new_tracer_provider())


def spans_limited() -> None:
    trace(tracer_provider=new_tracer_provider())


def spans_all() -> None:
    trace(tracer_provider=new_tracer_provider(), span_rate=0)


def trace(tracer_provider: Any = None, meter_provider: Any = None, **settings: Any) -> None:
    import structlog

    import greenback_trace

    # Some works hold the loop for seconds. No slow-step events, please.
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.CRITICAL))
    greenback_trace.enable(
        config=greenback_trace.Config(**settings),
        tracer_provider=tracer_provider,
        meter_provider=meter_provider,
    )


def naive() -> None:
    """The simplest tracing one could write: a span, a counter and a histogram for every bridge."""
    from opentelemetry.trace import StatusCode

    tracer = new_tracer_provider().get_tracer("naive")
    meter = new_meter_provider().get_meter("naive")
    bridges = meter.create_counter("bridges")
    duration = meter.create_histogram("duration", "s")
    await_ = worker.implementation.await_

    def traced(aw: Any) -> Any:
        caller = sys._getframe(1).f_code
        function = caller.co_name
        started = perf_counter()
        outcome = "ok"
        with tracer.start_as_current_span(
            f"await_ {function}",
            attributes={
                "code.function.name": function,
                "code.file.path": caller.co_filename,
            },
        ) as span:
            try:
                return await_(aw)
            except BaseException as error:
                outcome = "error"
                span.set_status(StatusCode.ERROR)
                span.set_attribute("error.type", type(error).__qualname__)
                raise
            finally:
                attributes = {"code.function.name": function, "greenback.outcome": outcome}
                bridges.add(1, attributes)
                duration.record(perf_counter() - started, attributes)

    worker.implementation.await_ = traced


SETUPS = {
    setup.__name__: setup
    for setup in (
        never,
        imported,
        off,
        metrics,
        debug,
        metrics_sdk,
        unsampled,
        spans_limited,
        spans_all,
        naive,
    )
}


def new_tracer_provider() -> Any:
    """Batches spans as in production, for an exporter that does nothing with them."""
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter, SpanExportResult

    class Nowhere(SpanExporter):
        def export(self, spans: Any) -> SpanExportResult:
            return SpanExportResult.SUCCESS

    provider = TracerProvider()
    # Large enough for all spans that end before the exporting thread gets its turn.
    provider.add_span_processor(BatchSpanProcessor(Nowhere(), max_queue_size=1 << 16))
    return provider


def new_meter_provider() -> Any:
    """Collects every second, for an exporter that does nothing with it."""
    from opentelemetry.sdk.metrics import MeterProvider
    from opentelemetry.sdk.metrics.export import (
        MetricExporter,
        MetricExportResult,
        PeriodicExportingMetricReader,
    )

    class Nowhere(MetricExporter):
        def export(self, *args: Any, **kwds: Any) -> MetricExportResult:
            return MetricExportResult.SUCCESS

        def force_flush(self, timeout_millis: float = 0) -> bool:
            return True

        def shutdown(self, *args: Any, **kwds: Any) -> None:
            pass

    reader = PeriodicExportingMetricReader(Nowhere(), export_interval_millis=1000)
    return MeterProvider([reader])


def answer(work: str, n: int, depth: int) -> Dict[str, Any]:
    gc.collect()
    gc.disable()
    try:
        started = process_time()
        seconds = worker.loop.run(enter, WORKS[work], n, depth)
        return {"seconds": seconds / n, "cpu": (process_time() - started) / n}
    finally:
        gc.enable()


if __name__ == "__main__":
    worker.serve(answer, SETUPS[sys.argv[3]])
