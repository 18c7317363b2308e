"""Switching tracing on and off, and where it goes."""

from __future__ import annotations

import atexit
import importlib.util
import logging
import os
import sys
import threading
from typing import TYPE_CHECKING, Any, Callable, Dict, MutableMapping, Optional, Tuple
from weakref import WeakKeyDictionary

from greenback.instruments import is_primary, set_primary

from ._config import Config, ConfigError
from ._snapshot import Snapshot, take
from ._totals import Totals

if TYPE_CHECKING:
    from opentelemetry.metrics import MeterProvider
    from opentelemetry.trace import TracerProvider

    from greenback.instruments import Listener, Portal

    from ._counts import PortalTally
    from ._file import Pipeline
    from ._metrics import Measurements, Source
    from ._socket import Server
    from ._spans import Spans
    from ._watch import Watch
    from .misuse._listener import Debug
    from .misuse.report import Misuse

_SCHEMA_URL = "https://opentelemetry.io/schemas/1.37.0"
_DEFAULT_SPAN_RATE = 100.0

_lock = threading.RLock()
# Written under the lock, by any thread.
_session: Optional[_Session] = None
# The same, but kept when tracing is disabled.
_last_session: Optional[_Session] = None
# The instruments of a meter cannot be taken away, so they are used again.
_sources: MutableMapping[Any, Source] = WeakKeyDictionary()
# Nor can what was added to a tracer provider.
_watches: MutableMapping[Any, Watch] = WeakKeyDictionary()
_hooks_are_registered = False
#: Seconds that the end of an event loop waits for the file to be written, at most.
_FLUSH_PATIENCE = 1.0


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
    session = _last_session
    if session is None:
        return take(Totals(1))
    return take(session.totals, session.dropped(), session.misuses())


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
    global _session, _last_session
    is_to_file = config.file is not None and tracer_provider is None and meter_provider is None
    require_packages(is_to_file)
    if config.mode == "debug":
        _tell_of_missing("debug", "executing", "pure_eval")
    with _lock:
        disable()
        # Now, since importing structlog at the first slow step would make it slower still.
        from ._log import start_over

        start_over()
        _session = _last_session = _Session(
            config, is_to_file, tracer_provider, meter_provider, at_import
        )
        _register_hooks()
    _finish_with_multiprocessing()


def require_packages(is_to_file: bool) -> None:
    """Make sure that what tracing needs is installed.

    Raises:
        ImportError: A package is missing; the message names the extra that has it.
    """
    _require("trace", "opentelemetry.metrics", "structlog")
    if is_to_file:
        _require(
            "report",
            "google.protobuf",
            "opentelemetry.sdk.trace",
            "opentelemetry.exporter.otlp.proto.common",
        )


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


def _tell_of_missing(extra: str, *modules: str) -> None:
    try:
        _require(extra, *modules)
    except ImportError as error:
        _warn("greenback's debug mode sees less than it could: %s", error)


def _warn(message: str, *args: Any) -> None:
    logging.getLogger("greenback").warning(message, *args)


def _tell_slow_step(function: str, seconds: float) -> None:
    from ._log import slow_step

    slow_step(function, seconds)


def _tell_opened(portal: Portal) -> None:
    from ._log import portal_opened

    portal_opened(portal)


def _tell_closed(portal: Portal, tally: PortalTally) -> None:
    from ._log import portal_closed

    portal_closed(portal, tally)


def _register_hooks() -> None:
    global _hooks_are_registered
    if not _hooks_are_registered:
        _hooks_are_registered = True
        atexit.register(_at_exit)
        if hasattr(os, "register_at_fork"):
            os.register_at_fork(after_in_child=_after_fork)


def _finish_with_multiprocessing() -> None:
    """Finish with a process of multiprocessing, most of which end with `os._exit`."""
    process = sys.modules.get("multiprocessing.process")
    if process is not None and process.parent_process() is not None:
        from multiprocessing.util import Finalize

        # After the application's own, which may bridge.
        Finalize(None, _at_exit, exitpriority=-1_000)


def _at_exit() -> None:
    session = _session
    if session is None:
        return
    session.tell_of_open_portals()
    if session.is_silent():
        from ._log import summary

        summary(snapshot())
    session.close_socket()
    if session.is_to_file:
        disable()
        set_primary(_Gate(_tell_of_end, session.totals))
    # Else, whoever set up an SDK before tracing was enabled closes it after this: it still asks.


def _tell_of_end() -> None:
    set_primary(None)
    logging.getLogger("greenback").info(
        "process %d still bridges while it ends, after its trace was completed: untraced",
        os.getpid(),
    )


def _after_fork() -> None:
    """In a forked child, where nobody holds our locks. Those of an SDK are left alone."""
    global _lock
    _lock = threading.RLock()
    _start_log_over()
    if _session is not None:
        _session.after_fork()


def _start_log_over() -> None:
    log = sys.modules.get("greenback_trace._log")  # which imports structlog, if it is needed
    if log is not None:
        log.start_over()


def _flush() -> None:
    session = _session
    if session is not None:
        session.flush()


def _sdk_is_set() -> bool:
    """Whether the application has set a global provider. Asking for one could create it."""
    from opentelemetry import trace
    from opentelemetry.metrics import _internal as metrics

    return any(
        getattr(module, name, None) is not None
        for module, name in ((trace, "_TRACER_PROVIDER"), (metrics, "_METER_PROVIDER"))
    )


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
        self._config = config
        self.is_to_file = is_to_file
        #: Providers of the application were given; otherwise its global ones are used.
        self._is_given = tracer_provider is not None or meter_provider is not None
        slow_ns = int(config.slow * 1e9)
        self.totals: Totals
        if is_to_file and config.spans == "none":
            from ._loops import WatchfulTotals

            self.totals = WatchfulTotals(config.sites, slow_ns)
        else:
            self.totals = Totals(config.sites, slow_ns)
        self.totals.on_slow_step = _tell_slow_step
        self.totals.on_opened = _tell_opened
        self.totals.on_closed = _tell_closed
        self._measurement_rate = config.measurement_rate
        self._measurements: Optional[Measurements] = None
        self._spans: Optional[Spans] = None
        self._watch: Optional[Watch] = None
        self._pipeline: Optional[Pipeline] = None
        #: The path of the socket that is to be opened yet, if any.
        self._socket = config.socket
        self._server: Optional[Server] = None
        self._source: Optional[Source] = None
        self._listener: Listener = self.totals
        if config.spans != "none":
            from ._spans import Spans

            kind = Spans
            if is_to_file:
                from ._loops import WatchfulSpans

                kind = WatchfulSpans
            rate = config.span_rate
            if rate is None:
                rate = 0.0 if is_to_file else _DEFAULT_SPAN_RATE
            self._spans = kind(self.totals, config.spans, rate, slow_ns, is_private=is_to_file)
            self._listener = self._spans
        self._debug: Optional[Debug] = None
        if config.mode == "debug":
            self._listener = self._debug = self._look_for_misuse(config)
        self._gate: Optional[_Gate] = None
        if at_import and not is_to_file:
            # The application may not have set its own yet, and asking for the global providers
            # could have OpenTelemetry create some.
            self._at_first_portal(lambda: self.connect(None, None))
            return
        if is_to_file:
            self._watch_loops()
            self._open_pipeline()
        else:
            self.connect(tracer_provider, meter_provider)
        if config.socket is None:
            set_primary(self._listener)
        else:
            self._at_first_portal(_nothing)

    def _look_for_misuse(self, config: Config) -> Debug:
        from .misuse._listener import Debug
        from .misuse._record import Misuses
        from .misuse.report import actions_of

        misuses = Misuses(actions_of(config.misuse), config.sites)
        return Debug(self._listener, self.totals, self._spans, misuses, config.slow)

    def misuses(self) -> Tuple[Misuse, ...]:
        """Those that were found: the first of each kind at each site, with their number."""
        return () if self._debug is None else self._debug.misuses.all()

    def _open_pipeline(self) -> None:
        from ._file import Pipeline

        assert self._config.file is not None
        self._pipeline = Pipeline(self._config.file, self._config.file_limit, self.totals)
        self.connect(self._pipeline.tracer_provider, self._pipeline.meter_provider)

    def _watch_loops(self) -> None:
        from ._loops import Loops

        watchful: Any = self.totals if self._spans is None else self._spans
        watchful.loops = Loops(self._start_pipeline, _flush)

    def _start_pipeline(self) -> None:
        with _lock:
            if self is _session and self._pipeline is not None:
                self._pipeline.start()

    def _at_first_portal(self, action: Callable[[], None]) -> None:
        def begin() -> None:
            self._open_socket()
            action()

        self._gate = _Gate(begin, self._listener)
        set_primary(self._gate)

    def _open_socket(self) -> None:
        path, self._socket = self._socket, None
        if path is None:
            return
        from ._now import describe
        from ._socket import Server

        self._server = Server(path, lambda: describe(self.totals, self.dropped(), self.misuses()))
        self._server.start()

    def close_socket(self) -> None:
        """Remove it, and open none any more."""
        self._socket = None
        if self._server is not None:
            self._server.close()

    def after_fork(self) -> None:
        """Start at zero, in a forked child. Takes no lock and calls no SDK."""
        if self._pipeline is not None:
            self._pipeline.abandon()
            self._pipeline = None
        if self._server is not None:
            self._server.abandon()
            self._server = None
            self._socket = self._config.socket
        if not self._is_called():
            return  # it has failed, and is removed
        was_pending = is_primary(self._gate) and self._source is None
        self._unwatch_provider()
        self.totals.after_fork()
        if self._debug is not None:
            self._debug.after_fork()
        self._measurements = self.totals.measurements = None
        if self._spans is not None:
            self._spans.after_fork()
        source = self._source
        if source is not None:
            source.was_read = False
        if self.is_to_file:
            # The child's own is opened when it does something.
            if self._spans is not None:
                self._spans.stop()
            self._watch_loops()
            self._at_first_portal(self._reopen)
        elif self._is_given or _sdk_is_set():
            if self._spans is not None:
                self._spans.stop()
            if source is not None:
                source.totals = self._source = None
            self._at_first_portal(self._tell_of_inheritance)
        elif was_pending:
            self._at_first_portal(self._connect_in_child)
        else:
            # The global providers are proxies still, and so is what was made of them.
            self._at_first_portal(_finish_with_multiprocessing)
            if source is not None:
                self._measure_from_now_on(source)

    def _is_called(self) -> bool:
        return is_primary(self._listener) or is_primary(self._gate)

    def _reopen(self) -> None:
        self._open_pipeline()
        self._start_pipeline()
        _finish_with_multiprocessing()

    def _connect_in_child(self) -> None:
        self.connect(None, None)
        _finish_with_multiprocessing()

    def _tell_of_inheritance(self) -> None:
        _finish_with_multiprocessing()
        _warn(
            "process %d was forked after its OpenTelemetry SDK was set up, so that greenback only "
            "counts in it: no spans and no metrics, but greenback_trace.snapshot() and a summary "
            "at exit. Set the SDK up after the fork, or use GREENBACK_TRACE_FILE",
            os.getpid(),
        )

    def _measure_from_now_on(self, source: Source) -> None:
        """Have histograms get their samples, if there are some: once somebody is there for them.

        It would cost each event something. A portal that is opened is when to look, and, for
        those that were there before, a collection.
        """
        if source.histograms is None:
            return
        if self._is_given or _sdk_is_set():
            self._measure(source.histograms)
            return

        def look() -> None:
            if self._source is source and (source.was_read or _sdk_is_set()):
                source.on_read = self.totals.on_portal = None
                if self._measurements is None:
                    self._measure(source.histograms)

        source.on_read = self.totals.on_portal = look

    def _watch_provider(self, provider: Any) -> None:
        if self._pipeline is not None or not hasattr(provider, "add_span_processor"):
            return  # it is ours, or not that of an SDK
        watch = _watches.get(provider)
        if watch is None:
            from ._watch import Watch

            watch = _watches[provider] = Watch()
            provider.add_span_processor(watch)
        watch.at_shutdown = self._on_shutdown
        self._watch = watch

    def _unwatch_provider(self) -> None:
        watch, self._watch = self._watch, None
        if watch is not None:
            watch.at_shutdown = None

    def _on_shutdown(self) -> None:
        """Make no more spans; the counts go on."""
        self._unwatch_provider()
        if self._spans is not None:
            self._spans.stop()
        if self._is_called():
            self._at_first_portal(self._tell_of_shutdown)

    def _tell_of_shutdown(self) -> None:
        # When the program ends, an SDK shuts itself down, and daemon threads go on.
        level = logging.WARNING if threading.main_thread().is_alive() else logging.INFO
        logging.getLogger("greenback").log(
            level,
            "greenback makes no more spans, because the TracerProvider was shut down while the "
            "program goes on; it still counts. Shut it down when the program ends",
        )

    def _measure(self, histograms: Any) -> None:
        from ._metrics import Measurements

        self._measurements = self.totals.measurements = Measurements(
            self.totals, histograms, self._measurement_rate
        )

    def connect(self, tracer_provider: Any, meter_provider: Any) -> None:
        """Send everything to these providers, or to the global ones where they are None."""
        from opentelemetry import metrics, trace

        from ._metrics import Source, register

        version = _version()
        if self._spans is not None:
            self._watch_provider(tracer_provider or trace.get_tracer_provider())
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
        source.misuses = None if self._debug is None else self._debug.misuses.by_function
        self._measure_from_now_on(source)

    def dropped(self) -> Dict[str, Dict[str, int]]:
        """What was left out, by what it was and why."""
        dropped: Dict[str, Dict[str, int]] = {}
        if self._spans is not None:
            for reason, count in (
                ("rate_limit", self._spans.count_dropped()),
                ("inside_sdk", self._spans.count_inside_sdk()),
            ):
                if count:
                    dropped.setdefault("span", {})[reason] = count
        if self._pipeline is not None:
            if self._pipeline.dropped_spans():
                dropped.setdefault("span", {})["queue_full"] = self._pipeline.dropped_spans()
            if self._pipeline.file.dropped:
                dropped["line"] = dict(self._pipeline.file.dropped)
        if self._measurements is not None and self._measurements.count_dropped():
            dropped["measurement"] = {"rate_limit": self._measurements.count_dropped()}
        return dropped

    def tell_of_open_portals(self) -> None:
        """Log those that are open when the program ends: nobody closes them."""
        for portal, tally in list(self.totals.portals.items()):
            _tell_closed(portal, tally)

    def is_silent(self) -> bool:
        """Whether there was something to tell, and nobody who listened."""
        return (
            not self.is_to_file
            and (self._spans is None or not self._spans.was_recorded)
            and (self._source is None or not self._is_heard())
            and bool(self.totals.by_kind())
        )

    def _is_heard(self) -> bool:
        """Whether an SDK has asked, or will do so when it is closed."""
        assert self._source is not None
        return self._source.was_read or self._is_given or _sdk_is_set()

    def flush(self) -> None:
        if self._pipeline is not None:
            self._pipeline.flush(_FLUSH_PATIENCE)

    def stop(self) -> None:
        if self._is_called():
            set_primary(None)
        self.totals.measurements = self.totals.on_portal = None
        if self._debug is not None:
            self._debug.stop()
        self._unwatch_provider()
        self.close_socket()
        if self._spans is not None:
            self._spans.stop()
        if self._pipeline is not None:
            self._pipeline.close()
        if self._source is not None:
            self._source.totals = self._source.on_read = None


def _nothing() -> None:
    return None


class _Gate:
    """A listener that does something once, before the other one is told of the first portal."""

    __slots__ = (
        "_action",
        "_listener",
        "close_portal",
        "enter_portal",
        "finish_bridge",
        "finish_step",
        "resume_bridge",
        "start_step",
        "suspend_bridge",
    )

    def __init__(self, action: Callable[[], None], listener: Listener) -> None:
        self._action: Optional[Callable[[], None]] = action
        self._listener = listener
        self.enter_portal = listener.enter_portal
        self.close_portal = listener.close_portal
        self.suspend_bridge = listener.suspend_bridge
        self.resume_bridge = listener.resume_bridge
        self.finish_bridge = listener.finish_bridge
        self.start_step = listener.start_step
        self.finish_step = listener.finish_step

    def open_portal(self, portal: Portal) -> None:
        self._open()
        self._listener.open_portal(portal)

    def start_bridge(self, portal: Portal, awaitable: Any, frame: Any) -> Any:
        self._open()
        return self._listener.start_bridge(portal, awaitable, frame)

    def _open(self) -> None:
        with _lock:
            action, self._action = self._action, None
            if action is None or not is_primary(self):
                return
            set_primary(self._listener)
            try:
                action()
            except Exception as error:  # nothing of this is felt by the program
                logging.getLogger("greenback").error(
                    "greenback only counts from now on: connecting to OpenTelemetry raised %r",
                    error,
                    exc_info=error,
                )


def _version() -> str:
    import greenback

    return greenback.__version__
