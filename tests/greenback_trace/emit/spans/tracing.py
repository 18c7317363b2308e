"""Tracing into memory, with the real SDK."""

from __future__ import annotations

from typing import Any, Dict, List

from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.sdk.trace.sampling import ALWAYS_ON, Sampler

import greenback
import greenback_trace
from greenback_trace import Config


class Tracing:
    """Tracing into memory."""

    def __init__(self, sampler: Sampler = ALWAYS_ON) -> None:
        self.exporter = InMemorySpanExporter()
        self.provider = TracerProvider(sampler=sampler, shutdown_on_exit=False)
        self.provider.add_span_processor(SimpleSpanProcessor(self.exporter))
        self.tracer = self.provider.get_tracer("application")

    def enable(self, **settings: Any) -> None:
        greenback_trace.enable(
            config=Config(**{"span_rate": 0, **settings}), tracer_provider=self.provider
        )

    def spans(self) -> List[ReadableSpan]:
        return list(self.exporter.get_finished_spans())

    def named(self, name: str) -> ReadableSpan:
        (found,) = [span for span in self.spans() if span.name.endswith(name)]
        return found

    def bridges(self) -> List[ReadableSpan]:
        return [span for span in self.spans() if span.name.startswith("await_ ")]


def attributes(span: ReadableSpan) -> Dict[str, Any]:
    return dict(span.attributes or {})


def last_part(name: str) -> str:
    """The last part of a name. Before Python 3.11, a nested function has no other part."""
    return name.replace(" ", ".").rpartition(".")[2]


async def nop() -> None:
    pass


async def fail() -> None:
    raise LookupError("private")


def bridge_to_nop() -> None:
    greenback.await_(nop())
