"""The embedded pipeline: a thread that writes spans and metrics to a file as OTLP JSON lines.

Needs the packages of the extra ``report``.

The SDK's tracer makes the spans. The pipeline's own thread writes them, and the metrics. The SDK's
processors and readers are not used: they take locks that a forked child may find held, and start
their threads anew in the child.
"""

from __future__ import annotations

# Imported before the SDK, whose fork handler uses this module: the module's own fork handler must
# run first. Else a child that forks would wait for a lock that is held around each fork
# (OpenTelemetry SDK 1.45).
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

#: Seconds between two writes.
FLUSH_INTERVAL = 5.0
#: `Pipeline.close` waits at most this many seconds for the thread.
_PATIENCE = 10.0
#: At most this many spans wait to be written. A span takes about 3 kB.
_QUEUE = 16_384
#: At most this many spans are in a line. When so many wait, they are written at once.
_BATCH = 512


class _Queue(SpanProcessor):
    """Spans that wait to be written. To add one takes no lock, and never waits."""

    def __init__(self, wake: Callable[[], None]) -> None:
        self.spans: Deque[ReadableSpan] = deque()
        self.dropped = Ticks()
        self._wake = wake

    def on_end(self, span: ReadableSpan) -> None:
        if len(self.spans) >= _QUEUE:
            self.dropped.add()
            return
        self.spans.append(span)
        if len(self.spans) >= _BATCH:  # not ==: another thread may have added a span, too
            self._wake()


class Pipeline:
    """A private tracer provider, and a thread that writes its spans and all metrics to a file.

    The provider is never the global one. It ignores the ``OTEL_*`` variables, except
    ``OTEL_SERVICE_NAME``.

    Args:
        path: The path of the file.
        limit: The size in bytes that the file may have at most.
        totals: The counts for chains and histograms.
        scope: The name, the version and the schema URL of the instrumentation scope.
    """

    def __init__(self, path: str, limit: int, totals: Totals, scope: Tuple[str, str, str]) -> None:
        self.file = LineFile(path, limit)
        about = resource()
        self._queue = _Queue(self._wake_up)
        #: The source of the other metrics.
        self.source = Source()
        self._metrics = Metrics(totals, self.source, about, scope)
        self.tracer_provider = _tracer_provider(about)
        self.tracer_provider.add_span_processor(self._queue)
        self._thread: Optional[threading.Thread] = None
        self._is_closing = False
        self._has_failed = False
        # Held while a thread writes.
        self._writing = threading.Lock()
        # Released to wake the thread. Not an Event: a signal handler could find its lock held by
        # the code that the handler has interrupted. A plain lock can be released from anywhere.
        self._alarm = threading.Lock()
        self._alarm.acquire()
        #: One lock for each call of `flush` that waits; the thread releases it after writing.
        self._waiting: Deque[threading.Lock] = deque()

    def start(self) -> None:
        """Start the thread, which writes every 5 s. Before that, only `close` writes."""
        if self._thread is None:
            thread = threading.Thread(target=self._run, name="greenback_trace", daemon=True)
            try:
                thread.start()
            except RuntimeError:
                return  # the interpreter is about to end
            self._thread = thread

    def flush(self, timeout: float) -> bool:
        """Have the thread write now, and wait at most *timeout* seconds. False if it has not."""
        if self._thread is None or not self._thread.is_alive():
            return False
        done = threading.Lock()
        done.acquire()
        self._waiting.append(done)
        self._wake_up()
        return done.acquire(timeout=timeout)

    def close(self) -> None:
        """Write the rest and close the file."""
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
        self._write(with_metrics=True)  # spans can have come while the thread was ending
        self.file.close()

    def abandon(self) -> None:
        """Write nothing in a forked child: the parent does. Takes no lock."""
        self.file.abandon()

    def dropped_spans(self) -> int:
        """The number of spans dropped because too many were waiting."""
        return self._queue.dropped.read()

    def _wake_up(self) -> None:
        if self._alarm.locked():  # a question takes a tenth of the time of the exception
            try:
                self._alarm.release()
            except RuntimeError:
                pass  # another thread has released it meanwhile

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
                left = len(spans)  # spans that are added meanwhile wait for the next time
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
        else:  # do not make a line for nothing
            self.file.drop()


def _tracer_provider(resource: Resource) -> TracerProvider:
    options: Dict[str, Any] = {}
    if "meter_provider" in inspect.signature(TracerProvider).parameters:
        # Without it, the provider asks for the global one, which can create one.
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
    # OTEL_SDK_DISABLED is meant for the application's provider. No argument overrides it.
    provider._disabled = False
    return provider
