"""The embedded pipeline: a thread that writes spans and metrics to a file as OTLP JSON lines.

Needs the packages of the extra ``report``.

Spans are made by the SDK's tracer. What becomes of them, and the metrics, is up to one thread of
ours: the SDK's own processors and readers take locks that a forked child may find held, and start
their threads anew in it.
"""

from __future__ import annotations

# What the SDK does in a forked child uses it, and has to come after what it does there itself: a
# child that forks would wait for a lock that is held around each fork (OpenTelemetry SDK 1.45).
import concurrent.futures.thread  # noqa: F401
import inspect
import logging
import threading
from collections import deque
from time import monotonic
from typing import Any, Callable, Deque, Dict, Optional, Tuple

from opentelemetry.exporter.otlp.proto.common.trace_encoder import encode_spans
from opentelemetry.metrics import NoOpMeterProvider
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import ReadableSpan, SpanLimits, SpanProcessor, TracerProvider
from opentelemetry.sdk.trace.sampling import ALWAYS_ON

from ..count.counts import Ticks
from ..count.totals import Totals
from ..emit.metrics import Source
from .lines import LineFile
from .otlp import Metrics, line_of, resource

#: Seconds.
FLUSH_INTERVAL = 5.0
#: Seconds that closing waits for what is left to be written, at most.
_PATIENCE = 10.0
#: Spans that wait to be written, at most. One takes about 3 kB.
_QUEUE = 16_384
#: Spans in a line, at most; with so many waiting, they are written at once.
_BATCH = 512


class _Queue(SpanProcessor):
    """Spans that wait to be written. Whoever ends a span takes no lock here, and never waits."""

    def __init__(self, wake: Callable[[], None]) -> None:
        self.spans: Deque[ReadableSpan] = deque()
        self.dropped = Ticks()
        self._wake = wake

    def on_end(self, span: ReadableSpan) -> None:
        if len(self.spans) >= _QUEUE:
            self.dropped.add()
            return
        self.spans.append(span)
        if len(self.spans) >= _BATCH:  # another thread may have added the one that fills it
            self._wake()


class Pipeline:
    """A tracer provider of our own, and the file that its spans and all metrics are written to.

    Never global, and without regard to ``OTEL_*`` variables, but for the name of the service.

    Args:
        path: Where the file is.
        limit: How many bytes it has at most.
        totals: What the chains and the histograms are read from.
        scope: The name, the version and the schema of what counts.
    """

    def __init__(self, path: str, limit: int, totals: Totals, scope: Tuple[str, str, str]) -> None:
        self.file = LineFile(path, limit)
        about = resource()
        self._queue = _Queue(self._wake_up)
        #: What the other metrics are read from.
        self.source = Source()
        self._metrics = Metrics(totals, self.source, about, scope)
        self.tracer_provider = _tracer_provider(about)
        self.tracer_provider.add_span_processor(self._queue)
        self._thread: Optional[threading.Thread] = None
        self._is_closing = False
        self._has_failed = False
        # Held by whoever writes.
        self._writing = threading.Lock()
        # Released to wake the thread. Unlike an Event, whose lock a signal handler could find held
        # by the code that it has interrupted, this can be done from anywhere.
        self._alarm = threading.Lock()
        self._alarm.acquire()
        #: Those who wait until all is written hold a lock each, to be released.
        self._waiting: Deque[threading.Lock] = deque()

    def start(self) -> None:
        """Write every few seconds from now on. Until then, only `close` does."""
        if self._thread is None:
            thread = threading.Thread(target=self._run, name="greenback_trace", daemon=True)
            try:
                thread.start()
            except RuntimeError:
                return  # the interpreter is about to end
            self._thread = thread

    def flush(self, timeout: float) -> bool:
        """Have all written that there is now, waiting for it *timeout* seconds at most."""
        if self._thread is None or not self._thread.is_alive():
            return False
        done = threading.Lock()
        done.acquire()
        self._waiting.append(done)
        self._wake_up()
        return done.acquire(timeout=timeout)

    def close(self) -> None:
        """Write what is left. Nothing is written after this."""
        self._is_closing = True
        self._wake_up()
        thread = self._thread
        if thread is not None:
            thread.join(_PATIENCE)
            if thread.is_alive():
                logging.getLogger("greenback").warning(
                    "GREENBACK_TRACE_FILE: %s could not be completed within %g s; the program goes "
                    "on. Name a file on a disk that is faster",
                    self.file.path,
                    _PATIENCE,
                )
                return
        self._write(with_metrics=True)  # also what came while the thread was ending
        self.file.close()

    def abandon(self) -> None:
        """Forget it all, in a forked child: it is the parent's to write. Takes no lock."""
        self.file.abandon()

    def dropped_spans(self) -> int:
        """Those that were not written because too many were waiting."""
        return self._queue.dropped.read()

    def _wake_up(self) -> None:
        if self._alarm.locked():  # asking takes a tenth of what the exception does
            try:
                self._alarm.release()
            except RuntimeError:
                pass  # another thread has woken it

    def _run(self) -> None:
        due = monotonic() + FLUSH_INTERVAL
        is_closing = False
        while not is_closing:
            self._alarm.acquire(timeout=max(due - monotonic(), 0))
            is_closing = self._is_closing
            waiting = [self._waiting.popleft() for _ in range(len(self._waiting))]
            is_due = monotonic() >= due
            self._write(with_metrics=bool(is_due or waiting or is_closing))
            for done in waiting:
                done.release()
            if is_due:
                due = monotonic() + FLUSH_INTERVAL

    def _write(self, with_metrics: bool) -> None:
        with self._writing:
            try:
                spans = self._queue.spans
                left = len(spans)  # those that are added meanwhile are for the next time
                if left and not with_metrics:
                    request = self._metrics.functions()
                    if request is not None:
                        self._write_line(request)
                while left:
                    batch = [spans.popleft() for _ in range(min(left, _BATCH))]
                    left -= len(batch)
                    self._write_line(encode_spans(batch))
                if with_metrics:
                    request = self._metrics.request()
                    if request is not None:
                        self._write_line(request)
            except Exception as error:
                self.file.drop()
                if not self._has_failed:
                    self._has_failed = True
                    logging.getLogger("greenback").error(
                        "GREENBACK_TRACE_FILE: a line for %s is lost, and perhaps more; the "
                        "program goes on: %r",
                        self.file.path,
                        error,
                        exc_info=error,
                    )

    def _write_line(self, request: Any) -> None:
        if self.file.is_open():
            self.file.write(line_of(request))
        else:  # making the line would be for nothing
            self.file.drop()


def _tracer_provider(resource: Resource) -> TracerProvider:
    options: Dict[str, Any] = {}
    if "meter_provider" in inspect.signature(TracerProvider).parameters:
        # It would otherwise ask for the global one, which could install one.
        options["meter_provider"] = NoOpMeterProvider()
    provider = TracerProvider(
        sampler=ALWAYS_ON,
        resource=resource,
        shutdown_on_exit=False,
        span_limits=SpanLimits(
            max_attributes=128,
            max_events=128,
            max_links=128,
            max_span_attributes=128,
            max_event_attributes=128,
            max_link_attributes=128,
            max_attribute_length=SpanLimits.UNSET,
            max_span_attribute_length=SpanLimits.UNSET,
        ),
        **options,
    )
    # OTEL_SDK_DISABLED is for the application's; there is no argument that says so.
    provider._disabled = False
    return provider
