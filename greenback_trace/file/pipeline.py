"""The embedded pipeline: OTLP JSON lines in a file, written by a pipeline of our own.

One line is one OTLP request, of spans or of metrics. Besides the metrics that every SDK gets, with
exact histograms, there are exact numbers per sync chain, as cumulative sums. A chain's point is
written again only after a change:

================================== ============ ====================================================
``greenback.chain.bridges``        ``{bridge}`` bridges that have finished, by ``greenback.outcome``
``greenback.chain.suspensions``    ``{bridge}`` those of them that suspended
``greenback.chain.time``           ``s``        their total time
``greenback.chain.suspended_time`` ``s``        the part of it spent waiting on the event loop
================================== ============ ====================================================

with the attributes ``code.function.name``, ``code.file.path``, ``code.line.number`` and
``greenback.sync_chain`` (as on spans). The first line that has a function in a chain also says what
its text there is made of: a point of the gauge ``greenback.chain.functions``, with the attributes
``greenback.function.module``, ``greenback.function.qualname``, ``code.file.path`` and
``code.line.number``. So nobody who reads the file has to take a text apart. Needs the packages of
the extra ``report``.

Spans are made by the SDK's tracer. What becomes of them, and the metrics, is up to one thread of
ours: the SDK's own processors and readers take locks that a forked child may find held, and start
their threads anew in it.
"""

from __future__ import annotations

import base64

# What the SDK does in a forked child uses it, and has to come after what it does there itself: a
# child that forks would wait for a lock that is held around each fork (OpenTelemetry SDK 1.45).
import concurrent.futures.thread  # noqa: F401
import errno
import inspect
import json
import logging
import os
import stat
import sys
import threading
import uuid
from collections import deque
from time import monotonic, time_ns
from typing import IO, TYPE_CHECKING, Any, Callable, Deque, Dict, Optional, Sequence, Set, Tuple

from google.protobuf.json_format import MessageToDict
from opentelemetry.exporter.otlp.proto.common.trace_encoder import encode_spans
from opentelemetry.metrics import NoOpMeterProvider
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import (
    ExportMetricsServiceRequest,
)
from opentelemetry.proto.metrics.v1.metrics_pb2 import (
    AGGREGATION_TEMPORALITY_CUMULATIVE,
    NumberDataPoint,
    ScopeMetrics,
)
from opentelemetry.proto.metrics.v1.metrics_pb2 import Metric as MetricMessage
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import ReadableSpan, SpanLimits, SpanProcessor, TracerProvider
from opentelemetry.sdk.trace.sampling import ALWAYS_ON

from ..count.counts import Ticks
from ..count.snapshot import durations
from ..count.totals import Totals
from ..emit.metrics import CHAIN_METRICS, COUNTER, DROPPED, GAUGE, METRICS, Source

if TYPE_CHECKING:
    from ..count.caller import Caller
    from ..count.counts import Chain

#: Of the format, as the resource has it in ``greenback.trace.version``. Files of version 1 do not
#: have that, and of the functions in a chain they have the texts alone.
VERSION = 2
#: Seconds.
FLUSH_INTERVAL = 5.0
#: Seconds that closing waits for what is left to be written, at most.
_PATIENCE = 10.0
#: Spans that wait to be written, at most. One takes about 3 kB.
_QUEUE = 16_384
#: Spans in a line, at most; with so many waiting, they are written at once.
_BATCH = 512
_IDS = ("traceId", "spanId", "parentSpanId")


class LineFile:
    """Appends lines to a file, and gives up, with one warning, when it cannot or may not.

    A line is one ``write()`` at the end of the file, so that several processes can share it.
    """

    def __init__(self, path: str, limit: int) -> None:
        self.path = os.path.abspath(path.replace("{pid}", str(os.getpid())))
        #: Lines not written, by the reason: ``limit`` or ``write_error``.
        self.dropped: Dict[str, int] = {}
        self._limit = limit
        # Written under the lock, by whoever writes or closes.
        self._lock = threading.Lock()
        self._file: Optional[IO[bytes]] = None
        self._reason = "write_error"
        try:
            # Without a buffer, so that what is written is there when the process is killed.
            self._file = open(  # noqa: SIM115  (kept)
                self.path, "ab", buffering=0, opener=_open_at_once
            )
        except OSError as error:
            self._give_up("write_error", f"cannot be opened ({_said(self.path, error)})")

    def write(self, message: Any) -> None:
        """Append a protobuf message as a line of OTLP JSON."""
        line = b""
        if self._file is not None:
            fields = MessageToDict(message, use_integers_for_enums=True)
            _ids_to_hex(fields)
            line = json.dumps(fields, separators=(",", ":")).encode() + b"\n"
        with self._lock:
            if self._file is None or not self._append(self._file, line):
                self.drop()

    def drop(self) -> None:
        """Count a line that is not written."""
        self.dropped[self._reason] = self.dropped.get(self._reason, 0) + 1

    def close(self) -> None:
        with self._lock:
            self.abandon()

    def abandon(self) -> None:
        """Close the file without the lock: in a forked child, somebody may have held that."""
        file, self._file = self._file, None
        if file is not None:
            file.close()

    def _append(self, file: IO[bytes], line: bytes) -> bool:
        try:
            # Other processes may write to it, too.
            is_full = os.fstat(file.fileno()).st_size + len(line) > self._limit
            if not is_full:
                written = file.write(line)
                if written == len(line):
                    return True
                # No more than a part of the line has found room. Take that back, unless another
                # process has added something by now.
                end = file.tell()
                if end == os.fstat(file.fileno()).st_size:
                    file.truncate(end - written)
        except OSError as error:
            self._give_up("write_error", f"cannot be written ({error})")
            return False
        if is_full:
            self._give_up("limit", f"has reached its limit of {self._limit} bytes")
        else:
            self._give_up("write_error", "cannot be written (no space is left)")
        return False

    def _give_up(self, reason: str, why: str) -> None:
        self._reason = reason
        self.abandon()
        logging.getLogger("greenback").warning(
            "GREENBACK_TRACE_FILE: %s %s; the program goes on, and the rest of its trace is lost. "
            "Name a file that can be written, or set GREENBACK_TRACE_FILE_LIMIT",
            self.path,
            why,
        )


def _open_at_once(path: str, flags: int) -> int:
    """Open a file for writing, without waiting for anybody: an opener for `open`.

    A new file can be read by its owner only: a trace shows what a program is made of. Opening a
    pipe with a name waits until somebody reads it, which this does not. The file that is returned
    waits when it is written, as a pipe that is full makes it: that is up to the pipeline's thread.

    Raises:
        OSError: The file cannot be opened, or is a disk.
    """
    flags |= getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_NOCTTY", 0)
    descriptor = os.open(path, flags, 0o600)
    try:
        if stat.S_ISBLK(os.fstat(descriptor).st_mode):
            raise OSError(errno.EINVAL, "it is a disk", path)
        if hasattr(os, "O_NONBLOCK"):
            os.set_blocking(descriptor, True)
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


def _said(path: str, error: OSError) -> str:
    """Why *path* could not be opened, where the system's own words do not tell."""
    if error.errno == errno.ENXIO:
        try:
            mode = os.stat(path).st_mode
        except OSError:
            return str(error)
        if stat.S_ISFIFO(mode):
            return "it is a pipe that nobody reads"
        if stat.S_ISSOCK(mode):
            return "it is a socket"
    return str(error)


def _ids_to_hex(fields: Any) -> None:
    """OTLP writes ids in hexadecimal, where the JSON form of protobuf has base64."""
    if isinstance(fields, dict):
        for name, value in fields.items():
            if name in _IDS and isinstance(value, str):
                fields[name] = base64.b64decode(value).hex()
            else:
                _ids_to_hex(value)
    elif isinstance(fields, list):
        for value in fields:
            _ids_to_hex(value)


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
        resource = Resource(
            {
                "service.name": os.environ.get("OTEL_SERVICE_NAME") or _program(),
                "service.instance.id": str(uuid.uuid4()),
                "process.pid": os.getpid(),
                "telemetry.sdk.language": "python",
                "greenback.trace.version": VERSION,
            }
        )
        self._queue = _Queue(self._wake_up)
        #: What the other metrics are read from.
        self.source = Source()
        self._metrics = _Metrics(totals, self.source, resource, scope)
        self.tracer_provider = _tracer_provider(resource)
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
                        self.file.write(request)
                while left:
                    batch = [spans.popleft() for _ in range(min(left, _BATCH))]
                    left -= len(batch)
                    self.file.write(encode_spans(batch))
                if with_metrics:
                    request = self._metrics.request()
                    if request is not None:
                        self.file.write(request)
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


class _Metrics:
    """What has been counted, with histograms and chains, as OTLP requests."""

    def __init__(
        self, totals: Totals, source: Source, resource: Resource, scope: Tuple[str, str, str]
    ) -> None:
        self._totals = totals
        self._source = source
        self._resource = resource
        self._scope = scope
        self._start = time_ns()
        self._chains = _Chains(totals, self._start)
        self._written: Any = None

    def request(self) -> Optional[ExportMetricsServiceRequest]:
        """None if there is no news: the file of an idle program does not grow."""
        if not self._totals.by_kind():
            return None  # no portal was ever opened
        found = {metric.name: self._source.read(metric) for metric in METRICS}
        # A line that is lost is no news that is worth another one.
        news = {name: values for name, values in found.items() if name != DROPPED}
        if news == self._written:
            return None
        self._written = news
        now = time_ns()
        request, scope_metrics = self._empty()
        for each in METRICS:
            values = found[each.name]
            if not values:
                continue
            metric = scope_metrics.metrics.add(
                name=each.name, unit=each.unit, description=each.description
            )
            if each.kind == GAUGE:
                points = metric.gauge.data_points
            else:
                metric.sum.is_monotonic = each.kind == COUNTER
                metric.sum.aggregation_temporality = AGGREGATION_TEMPORALITY_CUMULATIVE
                points = metric.sum.data_points
            for value, attributes in values:
                point = points.add(start_time_unix_nano=self._start, time_unix_nano=now)
                _set(point, value)
                _put(point.attributes, attributes)
        self._add_histograms(scope_metrics, now)
        self._chains.add_to(scope_metrics, now)
        return request

    def functions(self) -> Optional[ExportMetricsServiceRequest]:
        """What the chains of the first spans are made of; None after the first metrics.

        Where the process is killed before these, its spans are all that there is.
        """
        if self._written is not None:
            return None
        request, scope_metrics = self._empty()
        self._chains.add_functions(scope_metrics, list(self._totals.by_chain()), time_ns())
        return request if scope_metrics.metrics else None

    def _empty(self) -> Tuple[ExportMetricsServiceRequest, ScopeMetrics]:
        request = ExportMetricsServiceRequest()
        resource_metrics = request.resource_metrics.add()
        _put(resource_metrics.resource.attributes, self._resource.attributes)
        name, version, schema_url = self._scope
        scope_metrics = resource_metrics.scope_metrics.add(schema_url=schema_url)
        scope_metrics.scope.name = name
        scope_metrics.scope.version = version
        return request, scope_metrics

    def _add_histograms(self, scope_metrics: ScopeMetrics, now: int) -> None:
        metrics: Dict[str, Any] = {}
        for each in durations(self._totals):
            metric = metrics.get(each.name)
            if metric is None:
                metric = metrics[each.name] = scope_metrics.metrics.add(name=each.name, unit="s")
                metric.histogram.aggregation_temporality = AGGREGATION_TEMPORALITY_CUMULATIVE
            point = metric.histogram.data_points.add(
                start_time_unix_nano=self._start,
                time_unix_nano=now,
                count=each.count,
                sum=each.sum,
                bucket_counts=each.counts,
                explicit_bounds=each.bounds,
            )
            _put(point.attributes, each.attributes)


def _set(point: NumberDataPoint, value: float) -> None:
    if isinstance(value, int):
        point.as_int = value
    else:
        point.as_double = value


def _put(holder: Any, attributes: Any) -> None:
    """Add attributes to those of an OTLP message."""
    for key, value in attributes.items():
        to = holder.add(key=key).value
        if isinstance(value, bool):
            to.bool_value = value
        elif isinstance(value, int):
            to.int_value = value
        elif isinstance(value, float):
            to.double_value = value
        elif isinstance(value, str):
            to.string_value = value
        else:
            to.array_value.SetInParent()
            for item in value:
                to.array_value.values.add(string_value=item)


class _Chains:
    """The metric points of the chains that have changed since they were last written."""

    def __init__(self, totals: Totals, start: int) -> None:
        self._totals = totals
        self._start = start
        self._written: Dict[Chain, Tuple[int, int, int]] = {}
        self._told: Set[Caller] = set()

    def add_to(self, scope_metrics: ScopeMetrics, now: int) -> None:
        changed = []
        for chain, tally in self._totals.by_chain().items():
            state = (tally.bridges, tally.time_ns, tally.suspended_ns)
            if self._written.get(chain) != state:
                self._written[chain] = state
                changed.append((chain, tally))
        if not changed:
            return
        self.add_functions(scope_metrics, [chain for chain, _ in changed], now)
        for each in CHAIN_METRICS:
            metric = scope_metrics.metrics.add(name=each.name, unit=each.unit)
            metric.sum.is_monotonic = True
            metric.sum.aggregation_temporality = AGGREGATION_TEMPORALITY_CUMULATIVE
            for chain, tally in changed:
                for value, attributes in each.read(tally):
                    point = self._point(metric, chain, now)
                    _put(point.attributes, attributes)
                    _set(point, value)

    def add_functions(self, scope_metrics: ScopeMetrics, chains: Sequence[Chain], now: int) -> None:
        """Say once of each function, and line, what its text in a chain is made of."""
        new = {
            caller: None
            for chain in chains
            if not chain[-1].is_async
            for caller in chain
            if caller not in self._told
        }
        if not new:
            return
        self._told.update(new)
        metric = scope_metrics.metrics.add(name="greenback.chain.functions", unit="{function}")
        for caller in new:
            point = metric.gauge.data_points.add(
                start_time_unix_nano=self._start, time_unix_nano=now, as_int=1
            )
            attributes: Dict[str, Any] = {"greenback.function.qualname": caller.qualname}
            if caller.module:
                attributes["greenback.function.module"] = caller.module
            _put(point.attributes, attributes)
            _put(point.attributes, _place(caller))

    def _point(self, metric: MetricMessage, chain: Chain, now: int) -> NumberDataPoint:
        point = metric.sum.data_points.add(start_time_unix_nano=self._start, time_unix_nano=now)
        site = chain[-1]
        attributes: Dict[str, Any] = {"code.function.name": site.function, **_place(site)}
        attributes["greenback.sync_chain"] = [] if site.is_async else [str(each) for each in chain]
        _put(point.attributes, attributes)
        return point


def _place(caller: Caller) -> Dict[str, Any]:
    if not caller.file:
        return {}
    return {"code.file.path": caller.file, "code.line.number": caller.line}


def _program() -> str:
    name = os.path.basename(sys.argv[0]) if sys.argv and sys.argv[0] else ""
    return name if name not in ("", "-c", "-m") else "python"
