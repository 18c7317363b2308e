"""An OTLP receiver, by gRPC or HTTP, which adds up the metrics and spans that it gets.

PyPy, and CPython without the GIL, have no gRPC.
"""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, HTTPServer
from importlib.util import find_spec
from typing import Any, Callable, Dict, List, Set, Tuple

from opentelemetry.proto.collector.metrics.v1 import metrics_service_pb2
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2
from opentelemetry.proto.metrics.v1.metrics_pb2 import AggregationTemporality
from typing_extensions import Self

HAS_GRPC = find_spec("grpc") is not None

# The values of the attributes, in the order of their keys. Each instrument has one set of keys.
Attributes = Tuple[Any, ...]


class Receiver:
    """A context manager: a server on a free port of this machine, and all that it has received.

    It speaks gRPC if that is installed. It keeps the scope ``greenback`` only. Deltas of sums and
    histograms are added up; of cumulative ones, the latest value counts. Up-down counters have
    their last value.
    """

    def __init__(self) -> None:
        # Written by the only thread of the server.
        #: Values by the name of the instrument, then by attributes.
        self.sums: Dict[str, Dict[Attributes, float]] = {}
        #: The number of measurements, by name and attributes.
        self.measured: Dict[str, Dict[Attributes, int]] = {}
        self.spans: List[Any] = []
        self.temporalities: Dict[str, str] = {}
        self.exports = 0
        #: Counters that went backwards.
        self.faults: List[str] = []
        #: The times of all points, by name and attributes.
        self._sent: Dict[Tuple[str, Attributes], Set[Tuple[int, int]]] = {}

    def __enter__(self) -> Self:
        self.endpoint, self._stop = (_serve_grpc if HAS_GRPC else _serve_http)(self)
        return self

    def __exit__(self, *failure: object) -> None:
        self._stop()

    def exporters(self) -> Tuple[Any, Any]:
        """The SDK's exporters to this receiver, for metrics and for spans."""
        if HAS_GRPC:
            from opentelemetry.exporter.otlp.proto.grpc import metric_exporter, trace_exporter

            return (
                metric_exporter.OTLPMetricExporter(self.endpoint, insecure=True),
                trace_exporter.OTLPSpanExporter(self.endpoint, insecure=True),
            )
        from opentelemetry.exporter.otlp.proto.http import metric_exporter, trace_exporter

        return (
            metric_exporter.OTLPMetricExporter(f"http://{self.endpoint}{_METRICS}"),
            trace_exporter.OTLPSpanExporter(f"http://{self.endpoint}{_TRACES}"),
        )

    def take_metrics(self, request: Any) -> None:
        self.exports += 1
        for metric in _in_scope(request.resource_metrics, "scope_metrics", "metrics"):
            kind = metric.WhichOneof("data")
            if kind == "gauge":
                continue  # values of this moment: there is nothing to add up
            data = getattr(metric, kind)
            is_delta = (
                data.aggregation_temporality == AggregationTemporality.AGGREGATION_TEMPORALITY_DELTA
            )
            self.temporalities[metric.name] = "delta" if is_delta else "cumulative"
            for point in data.data_points:
                if kind == "sum":
                    series: Dict[Attributes, Any] = self.sums.setdefault(metric.name, {})
                    value = getattr(point, point.WhichOneof("value"))
                    only_grows = data.is_monotonic
                else:
                    series = self.measured.setdefault(metric.name, {})
                    value = point.count
                    only_grows = True
                attributes = _attributes(point)
                # If an answer is late, the request is sent again, maybe after newer figures.
                key = (metric.name, attributes)
                sent = (point.start_time_unix_nano, point.time_unix_nano)
                known = self._sent.setdefault(key, set())
                if sent in known if is_delta else any(sent <= each for each in known):
                    continue
                known.add(sent)
                self._take(metric.name, series, attributes, value, is_delta, only_grows)

    def _take(
        self,
        name: str,
        series: Dict[Attributes, Any],
        attributes: Attributes,
        value: float,
        is_delta: bool,
        only_grows: bool,
    ) -> None:
        before = series.get(attributes, 0)
        now = before + value if is_delta else value
        if only_grows and now < before:
            self.faults.append(f"{name}{attributes}: {before} -> {now}")
        series[attributes] = now

    def take_spans(self, request: Any) -> None:
        self.spans.extend(_in_scope(request.resource_spans, "scope_spans", "spans"))


def _in_scope(resources: Any, scopes: str, items: str) -> List[Any]:
    return [
        item
        for resource in resources
        for scope in getattr(resource, scopes)
        if scope.scope.name == "greenback"
        for item in getattr(scope, items)
    ]


def _attributes(point: Any) -> Attributes:
    pairs = sorted((pair.key, pair.value) for pair in point.attributes)
    return tuple(getattr(value, value.WhichOneof("value")) for _, value in pairs)


_METRICS, _TRACES = "/v1/metrics", "/v1/traces"


def _serve_grpc(receiver: Receiver) -> Tuple[str, Callable[[], object]]:
    import grpc
    from opentelemetry.proto.collector.metrics.v1 import metrics_service_pb2_grpc
    from opentelemetry.proto.collector.trace.v1 import trace_service_pb2_grpc

    class Metrics(metrics_service_pb2_grpc.MetricsServiceServicer):
        def Export(self, request: Any, context: Any) -> Any:
            receiver.take_metrics(request)
            return metrics_service_pb2.ExportMetricsServiceResponse()

    class Traces(trace_service_pb2_grpc.TraceServiceServicer):
        def Export(self, request: Any, context: Any) -> Any:
            receiver.take_spans(request)
            return trace_service_pb2.ExportTraceServiceResponse()

    server = grpc.server(ThreadPoolExecutor(1))
    metrics_service_pb2_grpc.add_MetricsServiceServicer_to_server(Metrics(), server)
    trace_service_pb2_grpc.add_TraceServiceServicer_to_server(Traces(), server)
    endpoint = f"127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}"
    server.start()
    return endpoint, lambda: server.stop(None).wait()


def _serve_http(receiver: Receiver) -> Tuple[str, Callable[[], object]]:
    services: Dict[str, Tuple[Any, Any, Callable[[Any], None]]] = {
        _METRICS: (
            metrics_service_pb2.ExportMetricsServiceRequest,
            metrics_service_pb2.ExportMetricsServiceResponse,
            receiver.take_metrics,
        ),
        _TRACES: (
            trace_service_pb2.ExportTraceServiceRequest,
            trace_service_pb2.ExportTraceServiceResponse,
            receiver.take_spans,
        ),
    }

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            request, response, take = services[self.path]
            take(request.FromString(self.rfile.read(int(self.headers["Content-Length"]))))
            self.send_response(200)
            self.end_headers()
            self.wfile.write(response().SerializeToString())

        def log_message(self, *args: Any) -> None:
            pass

    server = HTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()

    def stop() -> None:
        server.shutdown()
        thread.join()
        server.server_close()

    return f"127.0.0.1:{server.server_port}", stop
