"""A stand-in for an OpenTelemetry Collector that exports metrics for Prometheus.

It takes OTLP over HTTP, and serves the text format by the rules of the specification ("OTLP Metric
points to Prometheus"): ``job`` and ``instance`` come from the resource, there are no labels of the
scope, and the bound of a histogram is written as by Go: ``1`` and not ``1.0``.
"""

from __future__ import annotations

import gzip
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Dict, Iterator, List, Mapping, Tuple

from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import (
    ExportMetricsServiceRequest,
    ExportMetricsServiceResponse,
)
from typing_extensions import Self


class Collector:
    """A context manager: a server on a free port of this machine."""

    def __enter__(self) -> Self:
        self._server = _Server(("127.0.0.1", 0), _Handler)
        self.address = f"127.0.0.1:{self._server.server_port}"
        self._thread = threading.Thread(target=self._server.serve_forever)
        self._thread.start()
        return self

    def __exit__(self, *failure: object) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()


class _Server(ThreadingHTTPServer):
    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        #: The last metrics of each process, by instance. Each entry is written as a whole.
        self.latest: Dict[str, List[str]] = {}


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: _Server

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        if self.headers["Content-Encoding"] == "gzip":
            body = gzip.decompress(body)
        for resource in ExportMetricsServiceRequest.FromString(body).resource_metrics:
            attributes = _labels(resource.resource.attributes)
            instance = attributes["service_instance_id"]
            self.server.latest[instance] = list(_lines(resource, attributes))
        self._answer(ExportMetricsServiceResponse().SerializeToString(), "application/x-protobuf")

    def do_GET(self) -> None:
        lines = [line for each in list(self.server.latest.values()) for line in each]
        self._answer("".join(f"{line}\n" for line in lines).encode(), "text/plain; version=0.0.4")

    def _answer(self, body: bytes, kind: str) -> None:
        self.send_response(200)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *args: object) -> None:
        pass


def _lines(resource: Any, attributes: Mapping[str, str]) -> Iterator[str]:
    target = {
        "job": attributes["service_name"],
        "instance": attributes["service_instance_id"],
    }
    yield _line("target_info", {**attributes, **target}, 1)
    for scope in resource.scope_metrics:
        for metric in scope.metrics:
            name = metric.name.replace(".", "_") + {"s": "_seconds"}.get(metric.unit, "")
            kind = metric.WhichOneof("data")
            data = getattr(metric, kind)
            for point in data.data_points:
                labels = {**_labels(point.attributes), **target}
                if kind == "histogram":
                    yield from _histogram(name, labels, point)
                else:
                    total = "_total" if kind == "sum" and data.is_monotonic else ""
                    yield _line(name + total, labels, getattr(point, point.WhichOneof("value")))


def _histogram(name: str, labels: Mapping[str, str], point: Any) -> Iterator[str]:
    so_far = 0
    for bound, count in zip((*point.explicit_bounds, float("inf")), point.bucket_counts):
        so_far += count
        le = "+Inf" if bound == float("inf") else f"{bound:g}"
        yield _line(f"{name}_bucket", {**labels, "le": le}, so_far)
    yield _line(f"{name}_count", labels, point.count)
    yield _line(f"{name}_sum", labels, point.sum)


def _labels(attributes: Any) -> Dict[str, str]:
    pairs: List[Tuple[str, Any]] = [
        (each.key.replace(".", "_"), getattr(each.value, each.value.WhichOneof("value")))
        for each in attributes
    ]
    return {
        key: str(value).lower() if isinstance(value, bool) else str(value) for key, value in pairs
    }


def _line(name: str, labels: Mapping[str, str], value: float) -> str:
    escaped = (
        key + '="' + each.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n") + '"'
        for key, each in labels.items()
    )
    return f"{name}{{{','.join(escaped)}}} {value}"
