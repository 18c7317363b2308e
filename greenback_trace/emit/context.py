"""OpenTelemetry's context: reading it, and taking a span out of it."""

from __future__ import annotations

from contextvars import ContextVar
from typing import Any, Callable

from opentelemetry import context as otel_context
from opentelemetry import trace
from opentelemetry.context import Context
from opentelemetry.trace import Span

#: The key of the embedded pipeline's current span.
OWN_SPAN = otel_context.create_key("greenback-span")
#: An SDK sets this key while it exports, so that nothing traces its export.
_SUPPRESSED = getattr(otel_context, "_SUPPRESS_INSTRUMENTATION_KEY", "suppress_instrumentation")


def own_span() -> Span:
    """The current span of the embedded pipeline, or `opentelemetry.trace.INVALID_SPAN`."""
    span = otel_context.get_value(OWN_SPAN)
    return span if isinstance(span, Span) else trace.INVALID_SPAN


def _reader_of_context() -> Callable[[], Context]:
    """The method that `opentelemetry.context.get_current` calls, which saves two Python calls."""
    runtime = getattr(otel_context, "_RUNTIME_CONTEXT", None)
    variable: Any = getattr(runtime, "_current_context", None)
    if isinstance(variable, ContextVar) and isinstance(variable.get(None), Context):
        return variable.get
    return otel_context.get_current


current_context = _reader_of_context()


def is_unsampled(view: Context) -> bool:
    """Whether a context is not sampled, or belongs to the export of an SDK."""
    if view.get(_SUPPRESSED):
        return True
    context = trace.get_current_span(view).get_span_context()
    return context.is_valid and not context.trace_flags.sampled


def has_span(view: Context) -> bool:
    return trace.get_current_span(view).get_span_context().is_valid


def take_out(context: Context, span: Span, before: Context) -> None:
    """Take *span* out of *context*, in which it is current; *before* is the context before.

    Code in the bridge may have attached a context and detach it only later, in another bridge: a
    context manager that is entered in one coroutine and left in another. Then *context* becomes
    current again, and must not bring the ended span back.
    """
    for key, value in context.copy().items():
        if value is span:
            # A Context is immutable for everyone else: hence the method of the base class.
            dict.__setitem__(context, key, before.get(key))
