"""OpenTelemetry's providers: the global ones, their proxies, and what was registered with each.

The packages of OpenTelemetry are imported inside the functions: the program may lack them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Callable, MutableMapping, Optional, Tuple
from weakref import WeakKeyDictionary

if TYPE_CHECKING:
    from opentelemetry.trace import Tracer

    from .emit.metrics import Source
    from .emit.shutdown import Watch

_SCHEMA_URL = "https://opentelemetry.io/schemas/1.37.0"
# Both are written under the lock of _session.py, by any thread.
# A meter's instruments cannot be removed. So each meter provider keeps its source for good.
_sources: MutableMapping[Any, Source] = WeakKeyDictionary()
# A span processor cannot be removed from a tracer provider, either.
_watches: MutableMapping[Any, Watch] = WeakKeyDictionary()


def scope() -> Tuple[str, str, str]:
    """The name, the version and the schema URL of the instrumentation scope."""
    import greenback

    return "greenback", greenback.__version__, _SCHEMA_URL


def tracer_of(tracer_provider: Any) -> Tracer:
    """The tracer of a provider; None is the application's global one."""
    from opentelemetry import trace

    import greenback

    name, version, schema_url = scope()
    # Not of meters: Prometheus would have these attributes as labels of each series.
    attributes = {"greenback.engine": greenback.engine}
    return trace.get_tracer(name, version, tracer_provider, schema_url, attributes)


def source_of(meter_provider: Any) -> Source:
    """The source that the instruments of a meter provider read, which are created once.

    None is the application's global provider. Instruments that were created on the global proxy
    become those of the provider that the application sets: the two have the same source.
    """
    from opentelemetry import metrics

    from .emit.metrics import Source, register

    if meter_provider is None:
        meter_provider = metrics.get_meter_provider()
    source = _sources.get(meter_provider)
    proxy, provider = _global_meter_providers()
    if source is None and proxy is not None and meter_provider is provider:
        source = _sources.get(proxy)
    if source is None:
        source = Source()
        register(meter_provider.get_meter(*scope()), source)
    _sources[meter_provider] = source
    return source


def watch_shutdown(tracer_provider: Any, tell: Callable[[], None]) -> Optional[Watch]:
    """Call *tell* when the SDK's provider is shut down, until `Watch.at_shutdown` is None.

    None is the application's global provider. Returns None for a provider that is no SDK's.
    """
    from opentelemetry import trace

    provider: Any = tracer_provider or trace.get_tracer_provider()
    if not hasattr(provider, "add_span_processor"):
        return None
    watch = _watches.get(provider)
    if watch is None:
        from .emit.shutdown import Watch

        watch = _watches[provider] = Watch()
        provider.add_span_processor(watch)
    watch.at_shutdown = tell
    return watch


def sdk_is_set() -> bool:
    """Whether the application has set a global provider."""
    from opentelemetry import trace

    tracer_provider = getattr(trace, "_TRACER_PROVIDER", None)
    return tracer_provider is not None or _global_meter_providers()[1] is not None


def global_providers() -> Tuple[Any, ...]:
    """The variables that are None or unset until `sdk_is_set`: a dictionary and a name, twice."""
    from opentelemetry import trace
    from opentelemetry.metrics import _internal as metrics

    return vars(trace), "_TRACER_PROVIDER", vars(metrics), "_METER_PROVIDER"


def after_fork() -> None:
    """Forget the parent's counts, in a forked child whose SDK is yet to be set."""
    if _sources:
        proxy, provider = _global_meter_providers()
        source = None if proxy is None or provider is not None else _sources.get(proxy)
        if source is not None:
            source.forget()


def _global_meter_providers() -> Tuple[Any, Any]:
    """The proxy, and the provider that the application has set.

    OpenTelemetry's own function for the latter could create a provider.
    """
    from opentelemetry.metrics import _internal as metrics

    proxy = getattr(metrics, "_PROXY_METER_PROVIDER", None)
    return proxy, getattr(metrics, "_METER_PROVIDER", None)
