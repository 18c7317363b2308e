"""The embedded pipeline: OTLP JSON lines in a file, written by an SDK of our own.

One line is one OTLP request, of spans or of metrics. Besides the metrics that every SDK gets, there
are exact numbers per sync chain, as cumulative sums. A point is written again only after a change:

================================== ============ ====================================================
``greenback.chain.bridges``        ``{bridge}`` bridges that have finished, by ``greenback.outcome``
``greenback.chain.suspensions``    ``{bridge}`` those of them that suspended
``greenback.chain.time``           ``s``        their total time
``greenback.chain.suspended_time`` ``s``        the part of it spent waiting on the event loop
================================== ============ ====================================================

with the attributes ``code.function.name``, ``code.file.path``, ``code.line.number`` and
``greenback.sync_chain`` (as on spans). Needs the packages of the extra ``report``.
"""

from __future__ import annotations

import base64
import json
import logging
import os
import sys
import threading
import uuid
from time import time_ns
from typing import IO, TYPE_CHECKING, Any, Dict, Optional, Sequence, Tuple

from google.protobuf.json_format import MessageToDict
from opentelemetry.exporter.otlp.proto.common.metrics_encoder import encode_metrics
from opentelemetry.exporter.otlp.proto.common.trace_encoder import encode_spans
from opentelemetry.proto.metrics.v1.metrics_pb2 import (
    AGGREGATION_TEMPORALITY_CUMULATIVE,
    NumberDataPoint,
    ScopeMetrics,
)
from opentelemetry.sdk.metrics import AlwaysOffExemplarFilter, MeterProvider
from opentelemetry.sdk.metrics.export import (
    MetricExporter,
    MetricExportResult,
    MetricsData,
    PeriodicExportingMetricReader,
)
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import ReadableSpan, SpanLimits, TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter, SpanExportResult
from opentelemetry.sdk.trace.sampling import ALWAYS_ON

from ._counts import Tally
from ._totals import Totals

if TYPE_CHECKING:
    from ._counts import Chain

FLUSH_INTERVAL = 5.0
#: Spans that wait to be written, at most. One takes about 3 kB.
_QUEUE = 16_384
_IDS = ("traceId", "spanId", "parentSpanId")


class LineFile:
    """Appends lines to a file, and gives up, with one warning, when it cannot or may not."""

    def __init__(self, path: str, limit: int) -> None:
        self.path = os.path.abspath(path.replace("{pid}", str(os.getpid())))
        self._limit = limit
        # Spans and metrics come from a thread each.
        self._lock = threading.Lock()
        self._process = os.getpid()
        self._file: Optional[IO[bytes]] = None
        self._size = 0
        try:
            # Without a buffer, so that what is written is there when the process is killed.
            self._file = open(self.path, "ab", buffering=0)  # noqa: SIM115  (kept)
            self._size = self._file.tell()
        except OSError as error:
            self._give_up(f"cannot be opened ({error})")

    def write(self, message: Any) -> None:
        """Append a protobuf message as a line of OTLP JSON."""
        fields = MessageToDict(message, use_integers_for_enums=True)
        _ids_to_hex(fields)
        line = json.dumps(fields, separators=(",", ":")).encode() + b"\n"
        if os.getpid() != self._process:
            # A forked child must not write what its parent has counted; and the lock may have been
            # held when it was forked.
            return
        with self._lock:
            if self._file is None:
                return
            if self._size + len(line) > self._limit:
                self._give_up(f"has reached its limit of {self._limit} bytes")
            else:
                try:
                    written = self._file.write(line)
                except OSError as error:
                    self._give_up(f"cannot be written ({error})")
                else:
                    self._size += written
                    if written < len(line):
                        self._give_up("cannot be written (no space is left)")

    def close(self) -> None:
        with self._lock:
            if self._file is not None:
                self._file.close()
                self._file = None

    def _give_up(self, why: str) -> None:
        logging.getLogger("greenback").warning(
            "GREENBACK_TRACE_FILE: %s %s; the program goes on, and the rest of its trace is lost. "
            "Name a file that can be written, or set GREENBACK_TRACE_FILE_LIMIT",
            self.path,
            why,
        )
        if self._file is not None:
            self._file.close()
            self._file = None


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


class _SpanWriter(SpanExporter):
    def __init__(self, file: LineFile) -> None:
        self._file = file

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        self._file.write(encode_spans(spans))
        return SpanExportResult.SUCCESS

    def shutdown(self) -> None:
        pass

    def force_flush(self, timeout_millis: int = 30_000) -> bool:
        return True


class _MetricWriter(MetricExporter):
    def __init__(self, file: LineFile, totals: Totals) -> None:
        super().__init__()
        self._file = file
        self._totals = totals
        self._chains = _Chains(totals)
        self._written: Any = None

    def export(
        self, metrics_data: MetricsData, timeout_millis: float = 10_000, **kwargs: Any
    ) -> MetricExportResult:
        if not self._totals.by_kind():
            return MetricExportResult.SUCCESS  # no portal was ever opened
        request = encode_metrics(metrics_data)
        values = [
            (metric.name, [(point.as_int, point.as_double) for point in metric.sum.data_points])
            for resource_metrics in request.resource_metrics
            for scope_metrics in resource_metrics.scope_metrics
            for metric in scope_metrics.metrics
        ]
        if values != self._written:  # an idle program's file does not grow
            self._written = values
            for resource_metrics in request.resource_metrics:
                for scope_metrics in resource_metrics.scope_metrics:
                    self._chains.add_to(scope_metrics)
            self._file.write(request)
        return MetricExportResult.SUCCESS

    def shutdown(self, timeout_millis: float = 30_000, **kwargs: Any) -> None:
        pass

    def force_flush(self, timeout_millis: float = 10_000) -> bool:
        return True


class _Chains:
    """The metric points of the chains that have changed since they were last written."""

    def __init__(self, totals: Totals) -> None:
        self._totals = totals
        self._start = time_ns()
        self._written: Dict[Chain, Tuple[int, int, int]] = {}

    def add_to(self, scope_metrics: ScopeMetrics) -> None:
        now = time_ns()
        changed = []
        for chain, tally in self._totals.by_chain().items():
            state = (tally.bridges, tally.time_ns, tally.suspended_ns)
            if self._written.get(chain) != state:
                self._written[chain] = state
                changed.append((chain, tally))
        if not changed:
            return
        self._add(scope_metrics, changed, now, "bridges", "{bridge}")
        self._add(scope_metrics, changed, now, "suspensions", "{bridge}")
        self._add(scope_metrics, changed, now, "time", "s")
        self._add(scope_metrics, changed, now, "suspended_time", "s")

    def _add(
        self,
        scope_metrics: ScopeMetrics,
        changed: Sequence[Tuple[Chain, Tally]],
        now: int,
        name: str,
        unit: str,
    ) -> None:
        metric = scope_metrics.metrics.add(name=f"greenback.chain.{name}", unit=unit)
        metric.sum.is_monotonic = True
        metric.sum.aggregation_temporality = AGGREGATION_TEMPORALITY_CUMULATIVE
        for chain, tally in changed:
            if name == "bridges":
                for outcome, count in (
                    ("ok", tally.ok),
                    ("error", tally.errors),
                    ("cancelled", tally.cancelled),
                ):
                    if count:
                        point = self._point(metric.sum.data_points.add(), chain, now)
                        point.attributes.add(key="greenback.outcome").value.string_value = outcome
                        point.as_int = count
                continue
            point = self._point(metric.sum.data_points.add(), chain, now)
            if name == "suspensions":
                point.as_int = tally.suspended
            elif name == "time":
                point.as_double = tally.time_ns / 1e9
            else:
                point.as_double = tally.suspended_ns / 1e9

    def _point(self, point: NumberDataPoint, chain: Chain, now: int) -> NumberDataPoint:
        point.start_time_unix_nano = self._start
        point.time_unix_nano = now
        site = chain[-1]
        attributes = point.attributes
        attributes.add(key="code.function.name").value.string_value = site.function
        if site.file:
            attributes.add(key="code.file.path").value.string_value = site.file
            attributes.add(key="code.line.number").value.int_value = site.line
        values = attributes.add(key="greenback.sync_chain").value.array_value
        values.SetInParent()
        if not site.is_async:
            for caller in chain:
                values.values.add(string_value=str(caller))
        return point


class Pipeline:
    """A tracer provider and a meter provider of our own, and the file behind them.

    Never global, and without regard to ``OTEL_*`` variables, but for the name of the service.
    """

    def __init__(self, path: str, limit: int, totals: Totals) -> None:
        self.file = LineFile(path, limit)
        resource = Resource(
            {
                "service.name": os.environ.get("OTEL_SERVICE_NAME") or _program(),
                "service.instance.id": str(uuid.uuid4()),
                "process.pid": os.getpid(),
                "telemetry.sdk.language": "python",
            }
        )
        self.tracer_provider = TracerProvider(
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
        )
        self.tracer_provider.add_span_processor(
            BatchSpanProcessor(
                _SpanWriter(self.file),
                max_queue_size=_QUEUE,
                max_export_batch_size=512,
                schedule_delay_millis=FLUSH_INTERVAL * 1000,
                export_timeout_millis=30_000,
            )
        )
        self.meter_provider = MeterProvider(
            [
                PeriodicExportingMetricReader(
                    _MetricWriter(self.file, totals), FLUSH_INTERVAL * 1000, 30_000
                )
            ],
            resource=resource,
            exemplar_filter=AlwaysOffExemplarFilter(),
            shutdown_on_exit=False,
        )

    def close(self) -> None:
        """Write what is left. Nothing is written after this."""
        self.tracer_provider.shutdown()
        self.meter_provider.shutdown()
        self.file.close()


def _program() -> str:
    name = os.path.basename(sys.argv[0]) if sys.argv and sys.argv[0] else ""
    return name if name not in ("", "-c", "-m") else "python"
