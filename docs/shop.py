"""The program behind the picture in traces.rst: fetches prices, and prints a bill.

    GREENBACK_TRACE=1 python docs/shop.py trace.jsonl

It sets up an OpenTelemetry SDK as an application does. All spans, its own, httpx's and greenback's,
go into the file as OTLP JSON lines.
"""

from __future__ import annotations

import asyncio
import base64
import http.server
import json
import sys
import threading
import time

import httpx
from google.protobuf.json_format import MessageToDict
from opentelemetry import trace
from opentelemetry.exporter.otlp.proto.common.trace_encoder import encode_spans
from opentelemetry.instrumentation.httpx import HTTPXClientInstrumentor
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter, SpanExportResult

import greenback

PRICES = {"tea": 3, "cake": 4}


class PriceServer(http.server.BaseHTTPRequestHandler):
    """Answers after 4 ms with a price, or 404."""

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def do_GET(self) -> None:
        time.sleep(0.004)
        price = PRICES.get(self.path[1:])
        body = str(price).encode()
        self.send_response(404 if price is None else 200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *args: object) -> None:
        pass


class Prices:
    """A mapping that asks a server, but only once for each item."""

    def __init__(self, client: httpx.AsyncClient) -> None:
        self._client = client
        self._known: dict[str, int] = {}

    def __getitem__(self, item: str) -> int:
        return greenback.await_(self._find(item))

    async def _find(self, item: str) -> int:
        if item not in self._known:
            response = await self._client.get(f"/{item}")
            if response.status_code != 200:
                raise KeyError(item)
            self._known[item] = int(response.text)
        return self._known[item]


def bill(items: list[str], prices: Prices) -> str:
    return "\n".join(line(item, prices) for item in items)


def line(item: str, prices: Prices) -> str:
    try:
        return f"{item:10}{prices[item]:5}"
    except KeyError:
        return f"{item:10}  n/a"


async def main(url: str) -> str:
    items = ["tea", "cake", "tea", "milk"]
    async with httpx.AsyncClient(base_url=url) as client:
        # Twice, because httpx imports half of its modules at the first request.
        for _ in range(2):
            with trace.get_tracer("shop").start_as_current_span("GET /bill"):
                printed = await greenback.with_portal_run_sync(bill, items, Prices(client))
    return printed


class JSONLines(SpanExporter):
    def __init__(self, path: str) -> None:
        self._path = path

    def export(self, spans) -> SpanExportResult:
        fields = MessageToDict(encode_spans(spans), use_integers_for_enums=True)
        with open(self._path, "a", encoding="utf-8") as file:
            file.write(json.dumps(with_hex_ids(fields)) + "\n")
        return SpanExportResult.SUCCESS


def with_hex_ids(value):
    """Rewrite ids: OTLP has hexadecimal ids where protobuf's own JSON has base64."""
    if isinstance(value, list):
        return [with_hex_ids(each) for each in value]
    if not isinstance(value, dict):
        return value
    return {
        name: base64.b64decode(each).hex()
        if name in ("traceId", "spanId", "parentSpanId")
        else with_hex_ids(each)
        for name, each in value.items()
    }


if __name__ == "__main__":
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), PriceServer)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    provider = TracerProvider(resource=Resource({"service.name": "shop"}))
    provider.add_span_processor(BatchSpanProcessor(JSONLines(sys.argv[1])))
    trace.set_tracer_provider(provider)
    HTTPXClientInstrumentor().instrument()
    print(asyncio.run(main(f"http://127.0.0.1:{server.server_port}")))
    provider.shutdown()
