"""Switching tracing on and off, and where it goes."""

from __future__ import annotations

import atexit
import importlib.util
import logging
import os
import threading
from typing import TYPE_CHECKING, Any, Dict, MutableMapping, Optional
from weakref import WeakKeyDictionary

from greenback.instruments import (
    Instrument,
    add_instrument,
    is_primary,
    remove_instrument,
    set_primary,
)

from ._config import Config, ConfigError
from ._snapshot import Snapshot, take
from ._totals import Totals

if TYPE_CHECKING:
    from opentelemetry.metrics import MeterProvider
    from opentelemetry.trace import TracerProvider

    from greenback.instruments import Listener, Portal

    from ._file import Pipeline
    from ._metrics import Measurements, Source
    from ._spans import Spans

_SCHEMA_URL = "https://opentelemetry.io/schemas/1.37.0"
_DEFAULT_SPAN_RATE = 100.0

_lock = threading.RLock()
# Written under the lock, by any thread.
_session: Optional[_Session] = None
_last_totals: Optional[Totals] = None
# The instruments of a meter cannot be taken away, so they are used again.
_sources: MutableMapping[Any, Source] = WeakKeyDictionary()
_exit_is_registered = False


def enable(
    *,
    config: Optional[Config] = None,
    tracer_provider: Optional[TracerProvider] = None,
    meter_provider: Optional[MeterProvider] = None,
) -> None:
    """Trace from now on, in every thread. Counts start at zero, also if tracing was enabled.

    Telemetry goes to the providers that are given; else to `Config.file`, if that is set; else to
    the global ones of OpenTelemetry, whenever the application sets them.

    Args:
        config: What to trace. By default, what the environment says, where ``GREENBACK_TRACE``
            itself plays no part unless it is ``debug``.
        tracer_provider: Where spans go.
        meter_provider: Where metrics go.

    Raises:
        ConfigError: ``config.mode`` is ``"off"``.
        ImportError: A package is missing; the message names the extra that has it.
    """
    if config is None:
        config = Config.from_env()
    elif config.mode == "off":
        raise ConfigError(
            "enable() was given a Config with mode='off'; to switch tracing off, call disable()"
        )
    _enable(config, tracer_provider, meter_provider, at_import=False)


def disable() -> None:
    """Stop tracing. A file is completed and closed; registered metrics report nothing from now on.

    Does nothing if tracing is not enabled. `snapshot` keeps the last totals.
    """
    global _session
    with _lock:
        session, _session = _session, None
        if session is not None:
            session.stop()


def is_enabled() -> bool:
    """Whether tracing is enabled."""
    return _session is not None


def snapshot() -> Snapshot:
    """The exact totals since tracing was enabled, or of the last time that it was."""
    totals = _last_totals
    session = _session
    return take(
        Totals(1) if totals is None else totals, None if session is None else session.dropped()
    )


def from_environment() -> None:
    """Enable tracing if ``GREENBACK_TRACE`` says so. Never raises: the program comes first."""
    try:
        config = Config.from_env()
        if config.mode != "off":
            _enable(config, None, None, at_import=True)
    except ImportError as error:
        _warn("GREENBACK_TRACE is set, but the program runs untraced: %s", error)
    except Exception as error:
        _warn("GREENBACK_TRACE is set, but the program runs untraced: enabling it raised %r", error)


def _enable(config: Config, tracer_provider: Any, meter_provider: Any, at_import: bool) -> None:
    global _session, _last_totals, _exit_is_registered
    is_to_file = config.file is not None and tracer_provider is None and meter_provider is None
    _require("trace", "opentelemetry.metrics", "structlog")
    if is_to_file:
        _require(
            "report",
            "google.protobuf",
            "opentelemetry.sdk.trace",
            "opentelemetry.exporter.otlp.proto.common",
        )
    if config.mode == "debug":
        _warn(
            "GREENBACK_TRACE=debug: this version does not detect misuse yet, and traces as for 'on'"
        )
    with _lock:
        disable()
        _session = _Session(config, is_to_file, tracer_provider, meter_provider, at_import)
        _last_totals = _session.totals
        if not _exit_is_registered:
            _exit_is_registered = True
            atexit.register(_at_exit)


def _require(extra: str, *modules: str) -> None:
    for module in modules:
        try:
            found = importlib.util.find_spec(module) is not None
        except ModuleNotFoundError:  # a package that it is in
            found = False
        if not found:
            raise ImportError(
                f"{module.partition('.')[0]} is not installed, or not all of it ({module}); "
                f"run: pip install 'greenback[{extra}]'"
            )


def _warn(message: str, *args: Any) -> None:
    logging.getLogger("greenback").warning(message, *args)


def _tell_slow_step(function: str, seconds: float) -> None:
    from ._log import slow_step

    slow_step(function, seconds)


def _at_exit() -> None:
    session = _session
    if session is None or session.process != os.getpid():
        return  # what a forked child knows is its parent's to tell
    if session.is_silent():
        from ._log import summary

        summary(snapshot())
    disable()


class _Session:
    """Tracing from when it is enabled until it is disabled."""

    def __init__(
        self,
        config: Config,
        is_to_file: bool,
        tracer_provider: Any,
        meter_provider: Any,
        at_import: bool,
    ) -> None:
        self.process = os.getpid()
        slow_ns = int(config.slow * 1e9)
        self.totals = Totals(config.sites, slow_ns)
        self.totals.on_slow_step = _tell_slow_step
        self._measurement_rate = config.measurement_rate
        self._measurements: Optional[Measurements] = None
        self._spans: Optional[Spans] = None
        self._pipeline: Optional[Pipeline] = None
        self._source: Optional[Source] = None
        if is_to_file:
            from ._file import Pipeline

            assert config.file is not None
            self._pipeline = Pipeline(config.file, config.file_limit, self.totals)
            tracer_provider = self._pipeline.tracer_provider
            meter_provider = self._pipeline.meter_provider
        self._listener: Listener = self.totals
        if config.spans != "none":
            from ._spans import Spans

            rate = config.span_rate
            if rate is None:
                rate = 0.0 if is_to_file else _DEFAULT_SPAN_RATE
            self._spans = Spans(self.totals, config.spans, rate, slow_ns, is_private=is_to_file)
            self._listener = self._spans
        self._connector: Optional[_Connector] = None
        if at_import and not is_to_file:
            self._connector = _Connector(self)
            add_instrument(self._connector)
        else:
            self.connect(tracer_provider, meter_provider)
        set_primary(self._listener)

    def connect(self, tracer_provider: Any, meter_provider: Any) -> None:
        """Send everything to these providers, or to the global ones where they are None."""
        from opentelemetry import metrics, trace

        from ._metrics import Measurements, Source, register

        version = _version()
        if self._spans is not None:
            self._spans.start(
                trace.get_tracer("greenback", version, tracer_provider, schema_url=_SCHEMA_URL)
            )
        if meter_provider is None:
            meter_provider = metrics.get_meter_provider()
        source = _sources.get(meter_provider)
        if source is None:
            source = _sources[meter_provider] = Source()
            meter = meter_provider.get_meter("greenback", version, _SCHEMA_URL)
            register(meter, source, is_private=self._pipeline is not None)
        self._source = source
        source.was_read = False
        source.totals = self.totals
        source.dropped = self.dropped
        if source.histograms is not None:
            self._measurements = self.totals.measurements = Measurements(
                self.totals, source.histograms, self._measurement_rate
            )

    def dropped(self) -> Dict[str, Dict[str, int]]:
        """What was left out, by what it was and why."""
        dropped: Dict[str, Dict[str, int]] = {}
        if self._spans is not None and self._spans.count_dropped():
            dropped["span"] = {"rate_limit": self._spans.count_dropped()}
        if self._measurements is not None and self._measurements.count_dropped():
            dropped["measurement"] = {"rate_limit": self._measurements.count_dropped()}
        return dropped

    def is_silent(self) -> bool:
        """Whether there was something to tell, and nobody who listened."""
        return (
            self._pipeline is None
            and (self._spans is None or not self._spans.was_recorded)
            and (self._source is None or not self._source.was_read)
            and bool(self.totals.by_kind())
        )

    def stop(self) -> None:
        if is_primary(self._listener):
            set_primary(None)
        if self._connector is not None:
            try:
                remove_instrument(self._connector)
            except KeyError:
                pass  # its work was done
        self.totals.measurements = None
        if self._spans is not None:
            self._spans.stop()
        if self._pipeline is not None:
            self._pipeline.close()
        if self._source is not None:
            self._source.totals = None


class _Connector(Instrument):
    """Asks for the global providers when the first portal opens.

    Asking for them while greenback is imported could have OpenTelemetry create some, before the
    application has set its own.
    """

    __slots__ = ("_session",)

    def __init__(self, session: _Session) -> None:
        self._session: Optional[_Session] = session

    def portal_opened(self, portal: Portal) -> None:
        with _lock:
            session, self._session = self._session, None
            if session is not None:
                session.connect(None, None)
                remove_instrument(self)


def _version() -> str:
    import greenback

    return greenback.__version__
