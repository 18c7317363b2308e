"""OpenTelemetry's context: the current span, and how one is taken out again."""

from __future__ import annotations

from contextvars import ContextVar
from typing import Any, Callable

from opentelemetry import context as otel_context
from opentelemetry import trace
from opentelemetry.context import Context
from opentelemetry.trace import Span

#: The key of the current span of a pipeline of our own.
OWN_SPAN = otel_context.create_key("greenback-span")
#: With this, an SDK asks for what it does to export not to be traced.
_SUPPRESSED = getattr(otel_context, "_SUPPRESS_INSTRUMENTATION_KEY", "suppress_instrumentation")


def own_span() -> Span:
    """The current span of a pipeline of our own; `opentelemetry.trace.INVALID_SPAN` if none is."""
    span = otel_context.get_value(OWN_SPAN)
    return span if isinstance(span, Span) else trace.INVALID_SPAN


def _reader_of_context() -> Callable[[], Context]:
    """What `opentelemetry.context.get_current` asks, two calls of Python functions further down."""
    runtime = getattr(otel_context, "_RUNTIME_CONTEXT", None)
    variable: Any = getattr(runtime, "_current_context", None)
    if isinstance(variable, ContextVar) and isinstance(variable.get(None), Context):
        return variable.get
    return otel_context.get_current


current_context = _reader_of_context()


def is_unsampled(view: Context) -> bool:
    """Whether nothing is to be traced within a context: also what an SDK does to export."""
    if view.get(_SUPPRESSED):
        return True
    context = trace.get_current_span(view).get_span_context()
    return context.is_valid and not context.trace_flags.sampled


def has_span(view: Context) -> bool:
    return trace.get_current_span(view).get_span_context().is_valid


def take_out(context: Context, span: Span, before: Context) -> None:
    """Take the span out of the context that it was made current by.

    What the bridge has attached is detached some day, and makes that one current again: a coroutine
    that enters a context manager is over long before another one leaves it.
    """
    for key, value in context.copy().items():
        if value is span:
            # To everybody else, a context does not change.
            dict.__setitem__(context, key, before.get(key))
