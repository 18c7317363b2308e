"""The content of a trace file as OTLP: the resource, the metrics, and the JSON of a line.

One line is one OTLP request, of spans or of metrics. The metrics are those of an SDK, with exact
histograms, and these cumulative sums per sync chain. A chain's point is written again only after a
change:

================================== ============ ====================================================
``greenback.chain.bridges``        ``{bridge}`` bridges that have finished, by ``greenback.outcome``
``greenback.chain.suspensions``    ``{bridge}`` those of them that suspended
``greenback.chain.time``           ``s``        their total time
``greenback.chain.suspended_time`` ``s``        the part of it spent waiting on the event loop
================================== ============ ====================================================

Their attributes are ``code.function.name``, ``code.file.path``, ``code.line.number`` and
``greenback.sync_chain`` (as on spans). The first line with a function in a chain also has the parts
of its text: a point of the gauge ``greenback.chain.functions`` with the attributes
``greenback.function.module``, ``greenback.function.qualname``, ``code.file.path`` and
``code.line.number``. So readers need not parse the text.
"""

from __future__ import annotations

import base64
import json
import os
import sys
import uuid
from time import time_ns
from typing import TYPE_CHECKING, Any, Dict, Optional, Sequence, Set, Tuple

from google.protobuf.json_format import MessageToDict
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

import greenback

from ..count.snapshot import durations
from ..count.totals import Totals
from ..emit.metrics import Source
from ..emit.table import CHAIN_METRICS, COUNTER, DROPPED, GAUGE, METRICS

if TYPE_CHECKING:
    from ..count.caller import Caller
    from ..count.counts import Chain

#: The version of the format: ``greenback.trace.version`` of the resource. Files of version 1 do not
#: have this attribute, and have functions of chains only as texts.
VERSION = 2
_IDS = ("traceId", "spanId", "parentSpanId")


def resource() -> Resource:
    """The resource for this process. Each call makes a new ``service.instance.id``."""
    return Resource(
        {
            "service.name": os.environ.get("OTEL_SERVICE_NAME") or _program(),
            "service.instance.id": str(uuid.uuid4()),
            "process.pid": os.getpid(),
            "telemetry.sdk.language": "python",
            "greenback.engine": greenback.engine,
            "greenback.trace.version": VERSION,
        }
    )


def line_of(message: Any) -> bytes:
    """A protobuf message as a line of OTLP JSON, with its line break."""
    fields = MessageToDict(message, use_integers_for_enums=True)
    _ids_to_hex(fields)
    return json.dumps(fields, separators=(",", ":")).encode() + b"\n"


class Metrics:
    """All metrics, histograms and chains, as OTLP requests."""

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
        """All metrics. None if nothing has changed: the file of an idle program does not grow."""
        if not self._totals.by_kind():
            return None  # no portal was ever opened
        found = {metric.name: self._source.read(metric) for metric in METRICS}
        # A dropped line alone is no reason to write a further one.
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
        """The functions in the chains of the first spans; None after the first metrics.

        If the process is killed before its first metrics, the file has spans only. Readers need the
        functions for them.
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
        """Add the parts of each function and line that was in no chain before."""
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


def _set(point: NumberDataPoint, value: float) -> None:
    if isinstance(value, int):
        point.as_int = value
    else:
        point.as_double = value


def _put(holder: Any, attributes: Any) -> None:
    """Add *attributes* to the attributes of an OTLP message."""
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


def _place(caller: Caller) -> Dict[str, Any]:
    if not caller.file:
        return {}
    return {"code.file.path": caller.file, "code.line.number": caller.line}


def _program() -> str:
    name = os.path.basename(sys.argv[0]) if sys.argv and sys.argv[0] else ""
    return name if name not in ("", "-c", "-m") else "python"


def _ids_to_hex(fields: Any) -> None:
    """Rewrite ids in hexadecimal, as OTLP wants. The JSON form of protobuf has base64."""
    if isinstance(fields, dict):
        for name, value in fields.items():
            if name in _IDS and isinstance(value, str):
                fields[name] = base64.b64decode(value).hex()
            else:
                _ids_to_hex(value)
    elif isinstance(fields, list):
        for value in fields:
            _ids_to_hex(value)
