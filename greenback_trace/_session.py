"""One session of tracing: its listeners and outputs, from `enable` to `disable`."""

from __future__ import annotations

import logging
import os
import threading
from dataclasses import replace
from time import perf_counter_ns
from typing import TYPE_CHECKING, Any, Callable, Dict, Optional, Tuple

from greenback._listener.failures import raise_if_from_signal_handler, tell_failure
from greenback._listener.listener import is_primary, primary_failed, set_primary

from . import _providers
from ._config import Config
from .count import layout
from .count.counts import Ticks
from .count.totals import Observer, Totals

if TYPE_CHECKING:
    from greenback._listener.listener import Listener
    from greenback.instruments import Portal

    from .count.counts import PortalTally
    from .emit.metrics import Source
    from .emit.shutdown import Watch
    from .emit.spans import Spans
    from .file.loops import Loops
    from .file.pipeline import Pipeline
    from .live.socket import Server
    from .live.stalls import Stall
    from .misuse.listener import Debug
    from .misuse.watchdog import Held
    from .misuse.wording import Misuse

_DEFAULT_SPAN_RATE = 100.0

#: Held while tracing is switched on or off, and at the first portal.
lock = threading.RLock()
#: The end of an event loop waits at most this many seconds for the file to be written.
_FLUSH_PATIENCE = 1.0
#: Seconds. No step takes longer, and time-outs of locks still accept this.
_NEVER = 1e9


def after_fork() -> None:
    """Replace the lock in a forked child: another thread of the parent may have held it."""
    global lock
    lock = threading.RLock()


class Session(Observer):
    """One session of tracing, from `enable` to `disable`.

    Args:
        config: The settings.
        is_to_file: Telemetry goes to the file of *config*, not to the two providers.
        tracer_provider: The provider for spans; None for the application's global one.
        meter_provider: The provider for metrics; None for the application's global one.
        at_import: greenback is being imported: the application may set its providers later.
        at_loop_end: Called when an event loop with portals ends, if telemetry goes to a file.
        at_start_of_child: Called in a forked child at its first portal.
    """

    def __init__(
        self,
        config: Config,
        is_to_file: bool,
        tracer_provider: Any,
        meter_provider: Any,
        at_import: bool,
        at_loop_end: Callable[[], None],
        at_start_of_child: Callable[[], None],
    ) -> None:
        config = self._config = replace(config, slow=min(config.slow, _NEVER))
        self._at_loop_end = at_loop_end
        self._at_start_of_child = at_start_of_child
        self._is_stopped = False
        self.is_to_file = is_to_file
        #: `enable` was given a provider. Otherwise the global ones are used.
        self._is_given = tracer_provider is not None or meter_provider is not None
        slow_ns = int(config.slow * 1e9)
        self.totals = Totals(config.sites, slow_ns, self, gives_outermost=config.mode == "debug")
        from .live.stalls import Stalls

        self._stalls = Stalls(self.totals, _tell_stall)
        #: Called once, at the first portal. Taken away under the lock.
        self._at_first_portal: Optional[Callable[[], None]] = None
        #: Called for each portal until the histograms get their samples.
        self._look_for_sdk: Optional[Callable[[], None]] = None
        self._loops: Optional[Loops] = None
        self._spans: Optional[Spans] = None
        self._watch: Optional[Watch] = None
        self._pipeline: Optional[Pipeline] = None
        #: The path of the socket, until it is opened.
        self._socket = config.socket
        self._server: Optional[Server] = None
        self._source: Optional[Source] = None
        self._listener: Listener = self.totals
        if config.spans != "none":
            from .emit.spans import Spans

            rate = config.span_rate
            if rate is None:
                rate = 0.0 if is_to_file else _DEFAULT_SPAN_RATE
            self._spans = Spans(self.totals, config.spans, rate, slow_ns, is_private=is_to_file)
            self._listener = self._spans
        self._debug: Optional[Debug] = None
        if config.mode == "debug":
            self._listener = self._debug = self._look_for_misuse(config)
        self._gate: Optional[Gate] = None
        if at_import and not is_to_file:
            # The application may not have set its providers yet. To ask OpenTelemetry for the
            # global ones now could create some.
            self._at_first_portal = lambda: self.connect(None, None)
        else:
            if is_to_file:
                self._watch_loops()
                self._open_pipeline()
            else:
                self.connect(tracer_provider, meter_provider)
            if config.socket is not None:
                self._at_first_portal = self._open_socket
        set_primary(self._listener)

    def _look_for_misuse(self, config: Config) -> Debug:
        from .misuse.listener import Debug
        from .misuse.policy import actions_of
        from .misuse.record import Misuses

        misuses = Misuses(actions_of(config.misuse), config.sites, config.docs)
        return Debug(self._listener, self.totals, self._spans, misuses, config.slow)

    def misuses(self) -> Tuple[Misuse, ...]:
        """The misuses found: the first of each kind at each site, with their number."""
        return () if self._debug is None else self._debug.misuses.all()

    # Observer: called by the totals

    def portal_opened(self, portal: Portal) -> None:
        from .emit.log import portal_opened

        if self._at_first_portal is not None:
            self._begin()
        # Another thread can set these two to None at any moment.
        loops, look = self._loops, self._look_for_sdk
        if loops is not None:
            loops.see(portal)
        if look is not None:
            look()
        self._stalls.watch(portal)
        portal_opened(portal)
        if layout.compiled is not None and loops is None:
            self._be_quiet()

    def portal_closed(self, portal: Portal, tally: PortalTally) -> None:
        from .emit.log import portal_closed

        portal_closed(portal, tally)

    def slow_step(self, function: str, seconds: float, held: Optional[Held]) -> None:
        from .emit.log import slow_step

        slow_step(function, seconds, held)

    def failed(self, error: Exception) -> None:
        try:
            primary_failed(self._listener, error)
        finally:
            del error  # its traceback can refer to this frame

    def _be_quiet(self) -> None:
        """Have C code leave out the calls of `portal_opened` and `portal_closed`, for a second."""
        from .emit.log import silent_seconds

        totals = self.totals
        totals.unset = None if self._look_for_sdk is None else _providers.global_providers()
        totals.quiet_until = perf_counter_ns() + int(silent_seconds() * 1e9)
        # After that: the thread can have gone to sleep meanwhile.
        if self._at_first_portal is not None or not self._stalls.is_awake():
            totals.quiet_until = 0

    def _begin(self) -> None:
        """Do what waits for the first portal."""
        with lock:
            action, self._at_first_portal = self._at_first_portal, None
            if action is None or not self._is_called():
                return
            try:
                self._open_socket()
                action()
            except Exception as error:  # the program must not fail because of tracing
                tell_failure(
                    "greenback only counts from now on: connecting to OpenTelemetry raised %s",
                    error=error,
                )
                raise_if_from_signal_handler(error)

    def _open_pipeline(self) -> None:
        from .file.pipeline import Pipeline

        assert self._config.file is not None
        self._pipeline = Pipeline(
            self._config.file, self._config.file_limit, self.totals, _providers.scope()
        )
        self.connect(self._pipeline.tracer_provider, None)

    def _watch_loops(self) -> None:
        from .file.loops import Loops

        self._loops = Loops(self._start_pipeline, self._at_loop_end)

    def _start_pipeline(self) -> None:
        with lock:
            if not self._is_stopped and self._pipeline is not None:
                self._pipeline.start()

    def _open_socket(self) -> None:
        path, self._socket = self._socket, None
        if path is None:
            return
        from .live.describe import describe
        from .live.socket import Server

        self._server = Server(path, lambda: describe(self.totals, self.dropped(), self.misuses()))
        self._server.start()

    def close_socket(self) -> None:
        """Remove the socket, or open none any more."""
        with lock:  # the socket is opened under the lock, too
            self._socket = None
            if self._server is not None:
                self._server.close()

    def after_fork(self) -> None:
        """Start at zero in a forked child. Takes no lock and calls no SDK."""
        if self._pipeline is not None:
            self._pipeline.abandon()
            self._pipeline = None
        if self._server is not None:
            self._server.abandon()
            self._server = None
            self._socket = self._config.socket
        if not self._is_called():
            return  # tracing has failed, and the runtime no longer calls it
        was_pending = self._at_first_portal is not None and self._source is None
        self._unwatch_provider()
        self.totals.after_fork()
        self._stalls.after_fork()
        if self._debug is not None:
            self._debug.after_fork()
        self.totals.pass_on(None)
        self._look_for_sdk = None
        if self._spans is not None:
            self._spans.after_fork()
        source = self._source
        if source is not None:
            source.was_read = False
        if self.is_to_file:
            # The child opens a file of its own at its first portal.
            if self._spans is not None:
                self._spans.stop()
            self._watch_loops()
            self._at_first_portal = self._reopen
        elif self._is_given or _providers.sdk_is_set():
            if self._spans is not None:
                self._spans.stop()
            if source is not None:
                source.totals = self._source = None
            self._at_first_portal = self._tell_of_inheritance
        elif was_pending:
            self._at_first_portal = self._connect_in_child
        else:
            # The global providers are still proxies, and so are the tracer and the instruments.
            self._at_first_portal = self._at_start_of_child
            if source is not None:
                self._measure_from_now_on(source)
        set_primary(self._listener)

    def _is_called(self) -> bool:
        return is_primary(self._listener) or is_primary(self._gate)

    def _reopen(self) -> None:
        self._open_pipeline()
        self._start_pipeline()
        self._at_start_of_child()

    def _connect_in_child(self) -> None:
        self.connect(None, None)
        self._at_start_of_child()

    def _tell_of_inheritance(self) -> None:
        self._at_start_of_child()
        warn(
            "process %d was forked after its OpenTelemetry SDK was set up, so that greenback only "
            "counts in it: no spans and no metrics, but greenback_trace.snapshot() and a summary "
            "at exit. Set the SDK up after the fork, or use GREENBACK_TRACE_FILE",
            os.getpid(),
        )

    def _measure_from_now_on(self, source: Source) -> None:
        """Pass samples on to the histograms of *source*, as soon as an SDK reads them.

        A sample costs time with each event. So each new portal looks for an SDK; for portals that
        are open already, each collection does.
        """
        if source.histograms is None:
            return
        if self._is_given or _providers.sdk_is_set():
            self._measure(source.histograms)
            return
        # Several threads can look at once. A thread that collects holds locks of the SDK: so this
        # takes no lock.
        found = Ticks()

        def look() -> None:
            has_reader = source.was_read or _providers.sdk_is_set()
            if self._source is source and has_reader and not found.add():
                self._measure(source.histograms)
                self._look_for_sdk = None
                if source.on_read is look:
                    source.on_read = None

        source.on_read = self._look_for_sdk = look

    def _watch_provider(self, provider: Any) -> None:
        if self._pipeline is None:  # the session itself closes the embedded pipeline
            watch = _providers.watch_shutdown(provider, self._on_shutdown)
            if watch is not None:
                self._watch = watch

    def _watch_global_provider(self) -> None:
        """Watch the provider that the application has set meanwhile."""
        with lock:
            if not self._is_stopped:
                self._watch_provider(None)

    def _unwatch_provider(self) -> None:
        watch, self._watch = self._watch, None
        if watch is not None:
            watch.at_shutdown = None

    def _on_shutdown(self) -> None:
        """Make no more spans; counting goes on."""
        # Under the lock: a `disable` in the middle of this would be undone by set_primary().
        with lock:
            self._unwatch_provider()
            if self._spans is not None:
                self._spans.stop()
            if self._is_called():
                self._gate = Gate(self._tell_of_shutdown, self._listener)
                set_primary(self._gate)

    def _tell_of_shutdown(self) -> None:
        # An SDK shuts itself down when the program ends. Daemon threads go on after that.
        level = logging.WARNING if threading.main_thread().is_alive() else logging.INFO
        logging.getLogger("greenback").log(
            level,
            "greenback makes no more spans, because the TracerProvider was shut down while the "
            "program goes on; it still counts. Shut it down when the program ends",
        )

    def _measure(self, histograms: Any) -> None:
        from .emit.measurements import Measurements

        self.totals.pass_on(Measurements(histograms, self._config.measurement_rate))

    def connect(self, tracer_provider: Any, meter_provider: Any) -> None:
        """Send telemetry to these providers; None stands for the global one."""
        if self._spans is not None:
            self._watch_provider(tracer_provider)
            self._spans.start(_providers.tracer_of(tracer_provider), self._watch_global_provider)
        if self._pipeline is not None:
            source = self._pipeline.source
        else:
            source = _providers.source_of(meter_provider)
        self._source = source
        source.was_read = False
        source.totals = self.totals
        source.dropped = self.dropped
        source.misuses = None if self._debug is None else self._debug.misuses.by_function
        self._measure_from_now_on(source)

    def dropped(self) -> Dict[str, Dict[str, int]]:
        """The number of items left out, by item and reason."""
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
        unmeasured = self.totals.unmeasured()
        if unmeasured:
            dropped["measurement"] = {"rate_limit": unmeasured}
        return dropped

    def tell_of_open_portals(self) -> None:
        """Log the portals that are still open when the program ends: nothing closes them."""
        for portal, tally in self.totals.portals.copy().items():
            self.portal_closed(portal, tally)

    def is_silent(self) -> bool:
        """Whether portals were opened, but neither an SDK nor a file has got anything."""
        return (
            not self.is_to_file
            and (self._spans is None or not self._spans.was_recorded)
            and (self._source is None or not self._is_heard())
            and bool(self.totals.by_kind())
        )

    def _is_heard(self) -> bool:
        """Whether an SDK has collected the metrics, or will do so when it is shut down."""
        assert self._source is not None
        return self._source.was_read or self._is_given or _providers.sdk_is_set()

    def flush(self) -> None:
        if self._pipeline is not None:
            self._pipeline.flush(_FLUSH_PATIENCE)

    def stop(self) -> None:
        """Report nothing more. The caller holds the lock."""
        self._is_stopped = True
        if self._is_called():
            set_primary(None)
        self.totals.pass_on(None)
        self._at_first_portal = self._look_for_sdk = self._loops = None
        self._stalls.stop()
        if self._debug is not None:
            self._debug.stop()
        self._unwatch_provider()
        self.close_socket()
        if self._spans is not None:
            self._spans.stop()
        if self._pipeline is not None:
            self._pipeline.close()
        if self._source is not None:
            self._source.leave()


class Gate:
    """A listener for the time after a shutdown, in case that the program goes on all the same.

    At the next portal or bridge, it calls an action once and gives way to another listener.

    Args:
        action: Called once.
        listener: The other listener.
    """

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
        with lock:
            action, self._action = self._action, None
            if action is None or not is_primary(self):
                return
            set_primary(self._listener)
            try:
                action()
            except Exception as error:  # the program must not fail because of tracing
                raise_if_from_signal_handler(error)
                tell_failure("greenback could not log an end: that raised %s", error=error)


def _tell_stall(function: str, is_first: bool, describe: Callable[[], Stall]) -> None:
    from .emit.log import stalled

    stalled(function, is_first, describe)


def warn(message: str, *args: Any) -> None:
    logging.getLogger("greenback").warning(message, *args)
