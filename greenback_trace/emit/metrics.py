"""Totals -> the instruments of OpenTelemetry, and the tables of what they are.

Counters are exact: the SDK asks for them when it collects, and the embedded pipeline when it
writes. Histograms of an SDK have to be told of each event as it happens, which is too dear for all
of them: they get a sample.
"""

from __future__ import annotations

import sys
import threading
from random import random
from time import perf_counter
from typing import Any, Callable, Dict, Iterable, List, Mapping, NamedTuple, Optional, Set, Tuple

from opentelemetry.metrics import CallbackOptions, Histogram, Meter, Observation

from greenback._listener.failures import raise_if_from_signal_handler, tell_failure

from ..count.counts import BOUNDS, PORTAL_BOUNDS, Counts, Tally, count_of
from ..count.snapshot import bridge_attributes
from ..count.totals import Totals, ending_of
from ..live.stalls import seconds_stalled
from .sdk import Call, inside, is_within, no_call, reference_to

#: Each value of a metric, with its attributes.
_Values = Iterable[Tuple[float, Dict[str, Any]]]
# Attributes that can be looked up: those of one counter always come in the same order.
_Key = Tuple[Tuple[str, Any], ...]
#: More events than there will ever be.
_ALL = 1 << 60

#: The kinds of metrics that are read when they are collected.
COUNTER, UP_DOWN_COUNTER, GAUGE = "counter", "up_down_counter", "gauge"


class Metric(NamedTuple):
    """A row of `METRICS`.

    Attributes:
        kind: One of `COUNTER`, `UP_DOWN_COUNTER` and `GAUGE`.
        read: Gives what it is now.
    """

    name: str
    unit: str
    kind: str
    description: str
    read: Callable[[Source, Totals], _Values]


class ChainMetric(NamedTuple):
    """A row of `CHAIN_METRICS`: a counter.

    Attributes:
        read: Gives what the bridges of one chain have counted, besides whose they are.
    """

    name: str
    unit: str
    read: Callable[[Tally], _Values]


class HistogramMetric(NamedTuple):
    """A row of `HISTOGRAMS`, in seconds.

    Attributes:
        of: What takes the time.
        bounds: In nanoseconds.
    """

    of: str
    description: str
    bounds: List[int]


class Source:
    """What the metrics of one meter, or of one file, are read from.

    The callbacks of a meter stay registered, so that it outlives tracing. To whoever collects it, a
    counter never falls: when tracing is enabled again, it goes on where it was, although the totals
    begin at zero.
    """

    def __init__(self) -> None:
        #: None while tracing is disabled: then there are no values.
        self.totals: Optional[Totals] = None
        #: What was left out so far, by what it was and why, besides sites.
        self.dropped: Callable[[], Mapping[str, Mapping[str, int]]] = dict
        #: The number of misuses by kind and function. None where nobody looks for them.
        self.misuses: Optional[Callable[[], Iterable[Tuple[Tuple[str, str], int]]]] = None
        #: Whether anybody has ever collected.
        self.was_read = False
        #: Called when somebody collects.
        self.on_read: Optional[Callable[[], None]] = None
        #: By name. None where nobody is to be called: the embedded pipeline has exact ones.
        self.histograms: Optional[Dict[str, Histogram]] = None
        self.functions = _Functions()
        #: What the counters were when tracing was disabled.
        self._before: Dict[str, Dict[_Key, float]] = {}

    def read(self, metric: Metric) -> List[Tuple[float, Dict[str, Any]]]:
        """The values of a metric, with their attributes."""
        self.was_read = True
        totals = self.totals
        if totals is None:
            return []
        on_read = self.on_read
        if on_read is not None:  # another thread may take it away now
            on_read()
        found = _added_up(self._before.get(metric.name, {}), metric.read(self, totals))
        if self.totals is not totals:
            return []  # it was disabled in between, so that something may be in there twice
        return [(value, dict(key)) for key, value in found.items()]

    def leave(self) -> None:
        """Report nothing any more, but remember what was reported."""
        totals, self.totals, self.on_read = self.totals, None, None
        if totals is not None:
            self._before = {
                metric.name: _added_up(self._before.get(metric.name, {}), metric.read(self, totals))
                for metric in METRICS
                if metric.kind == COUNTER
            }

    def forget(self) -> None:
        """Start at zero, in a forked child whose SDK is yet to be set."""
        self._before = {}


def _added_up(before: Dict[_Key, float], values: _Values) -> Dict[_Key, float]:
    totals = before.copy()
    for value, attributes in values:
        key = tuple(attributes.items())
        totals[key] = totals.get(key, 0) + value
    return totals


class _Functions(threading.local):
    """The totals by function, added up once for all metrics of a collection.

    An SDK asks for one metric after the other, in one thread. Whoever asks again has begun another
    collection.
    """

    def __init__(self) -> None:
        self._totals: Optional[Totals] = None
        self._by_function: Dict[str, Tally] = {}
        self._asked: Set[str] = set()

    def of(self, totals: Totals, name: str) -> Dict[str, Tally]:
        if totals is not self._totals or name in self._asked:
            self._totals, self._by_function = totals, totals.by_function()
            self._asked.clear()
        self._asked.add(name)
        return self._by_function


class Measurements:
    """Passes on to an SDK's histograms one event in so many: a call takes the SDK 3 to 7 us.

    Which ones is left to chance, since what a program does is often periodic. How many are left
    out follows from how many there were, which is known exactly. Each thread counts down for
    itself (`Counts.skip`) to the next one; the methods are called when it has come to 0.

    Args:
        histograms: Those of one meter.
        rate: Calls per second at most; 0 for no limit.
    """

    __slots__ = (
        "_every",
        "_has_failed",
        "_histograms",
        "_in_window",
        "_rate",
        "_seen",
        "_since",
        "_turn",
    )

    def __init__(self, histograms: Dict[str, Histogram], rate: float) -> None:
        self._histograms = histograms
        self._rate = rate
        #: Whose turn it is, by None: that thread's call. One operation takes it, and it is over
        #: when the call is, so that nothing a signal handler raises can leave it taken.
        self._turn: Dict[None, Callable[[], Optional[Call]]] = {}
        self._has_failed = False
        # These are written by whoever has the turn.
        self._every = 1.0
        self._seen = 0
        self._in_window = 0
        self._since = perf_counter()

    def bridge(
        self,
        counts: Counts,
        library: str,
        error: Optional[BaseException],
        suspended: bool,
        spent: int,
    ) -> None:
        attributes = bridge_attributes(library, ending_of(error, suspended))
        self._measure(counts, "bridge", spent, attributes)

    def switch(self, counts: Counts, direction: str, spent: int) -> None:
        self._measure(counts, "switch", spent, {"greenback.switch.direction": direction})

    def step(self, counts: Counts, library: str, spent: int) -> None:
        self._measure(counts, "step", spent, {"greenback.async_library": library})

    def switch_and_step(self, counts: Counts, switched: int, library: str, spent: int) -> None:
        """A step that has ended by a switch to the loop: two events, at least one of them due."""
        if counts.skip > 0:
            counts.skip -= 1
        else:
            self.switch(counts, "to_loop", switched)
        if counts.skip > 0:
            counts.skip -= 1
        else:
            self.step(counts, library, spent)

    def portal(self, counts: Counts, kind: str, spent: int) -> None:
        self._measure(counts, "portal", spent, {"greenback.portal.kind": kind})

    def skip_some(self, counts: Counts) -> None:
        """Draw how many events of a thread are to pass before its next one."""
        passed = counts.skipped_from - counts.skip
        every = self._every
        if self._has_failed:
            counts.skip = counts.skipped_from = _ALL
        else:
            counts.skip = counts.skipped_from = int(random() * 2 * every) if every > 1 else 0
        counts.unmeasured += passed

    def _measure(self, counts: Counts, name: str, spent: int, attributes: Dict[str, Any]) -> None:
        if self._has_failed:
            counts.skipped_from += 1
            self.skip_some(counts)
            return
        if inside.call() is not None or is_within(sys._getframe(1)):
            counts.skipped_from += 1
            return
        call = Call()
        mine = reference_to(call)
        inside.call = mine
        try:
            turn = self._turn.setdefault(None, mine)
            if turn is not mine and turn() is None:
                # A signal handler has kept somebody from giving it back.
                self._turn.pop(None, None)
                turn = self._turn.setdefault(None, mine)
            if turn is not mine:  # another thread is here
                counts.skipped_from += 1
            elif self._may_call(counts):
                self._histograms[name].record(spent / 1e9, attributes)
            else:
                counts.unmeasured += 1
        except Exception as error:
            raise_if_from_signal_handler(error)
            self._has_failed = True
            counts.unmeasured += 1
            tell_failure(
                "greenback's histograms get no more measurements: recording one raised %s",
                error=error,
            )
        finally:
            inside.call = no_call
            if self._turn.get(None) is mine:
                self._turn.pop(None, None)

    def _may_call(self, counts: Counts) -> bool:
        if not self._rate:
            return True
        # This one, those let pass, and those that came in the middle of another one.
        self._seen += counts.skipped_from - counts.skip + 1
        elapsed = perf_counter() - self._since
        if elapsed >= 1:
            self._every = self._seen / elapsed / self._rate
            self._since += elapsed
            self._seen = self._in_window = 0
        may = self._in_window < max(self._rate, 1)
        if may:
            self._in_window += 1
        else:  # more than in the second before, which 'every' was made for
            self._every = max(self._every, self._seen / max(elapsed, 0.001) / self._rate)
        self.skip_some(counts)
        return may


def register(meter: Meter, source: Source) -> None:
    """Create the instruments on *meter*. Once for each meter: they cannot be taken away.

    Args:
        meter: Whose they are to be.
        source: What they report.
    """
    create = {
        COUNTER: meter.create_observable_counter,
        UP_DOWN_COUNTER: meter.create_observable_up_down_counter,
        GAUGE: meter.create_observable_gauge,
    }
    for metric in METRICS:
        create[metric.kind](
            metric.name, [_callback(source, metric)], metric.unit, metric.description
        )
    source.histograms = {
        metric.of: meter.create_histogram(
            f"greenback.{metric.of}.duration",
            "s",
            metric.description,
            explicit_bucket_boundaries_advisory=[bound / 1e9 for bound in metric.bounds],
        )
        for metric in HISTOGRAMS
    }


def _callback(source: Source, metric: Metric) -> Callable[[CallbackOptions], Iterable[Observation]]:
    return lambda options: [
        Observation(value, attributes) for value, attributes in source.read(metric)
    ]


def _bridges(tally: Tally) -> _Values:
    for outcome, count in (
        ("ok", tally.ok),
        ("error", tally.errors),
        ("cancelled", tally.cancelled),
    ):
        if count:
            yield count, {"greenback.outcome": outcome}


def _suspensions(tally: Tally) -> _Values:
    yield tally.suspended, {}


def _time(tally: Tally) -> _Values:
    yield tally.time_ns / 1e9, {}


def _suspended_time(tally: Tally) -> _Values:
    yield tally.suspended_ns / 1e9, {}


def _per_function(
    name: str, unit: str, description: str, values: Callable[[Tally], _Values]
) -> Metric:
    def read(source: Source, totals: Totals) -> _Values:
        for function, tally in source.functions.of(totals, name).items():
            for value, attributes in values(tally):
                yield value, {"code.function.name": function, **attributes}

    return Metric(name, unit, COUNTER, description, read)


def _active(source: Source, totals: Totals) -> _Values:
    for library, count in totals.active().items():
        yield count, {"greenback.async_library": library}


def _switches(source: Source, totals: Totals) -> _Values:
    for direction, durations in totals.switches().items():
        yield count_of(durations), {"greenback.switch.direction": direction}


def _portals(source: Source, totals: Totals) -> _Values:
    for kind, tally in totals.by_kind().items():
        yield tally.opened, {"greenback.portal.kind": kind}


def _active_portals(source: Source, totals: Totals) -> _Values:
    for kind, tally in totals.by_kind().items():
        yield tally.open, {"greenback.portal.kind": kind}


def _steps(source: Source, totals: Totals) -> _Values:
    for library, steps in totals.by_library().items():
        yield steps.count, {"greenback.async_library": library}


def _step_time(source: Source, totals: Totals) -> _Values:
    for library, steps in totals.by_library().items():
        yield steps.time_ns / 1e9, {"greenback.async_library": library}


def _stalled(source: Source, totals: Totals) -> _Values:
    stalled = seconds_stalled(totals)
    for library in totals.by_library():
        yield stalled.get(library, 0.0), {"greenback.async_library": library}


def _slow_steps(source: Source, totals: Totals) -> _Values:
    for function, count in totals.slow_steps().items():
        yield count, {"code.function.name": function}


def _misuses(source: Source, totals: Totals) -> _Values:
    by_function = source.misuses
    if by_function is not None:
        for (kind, function), count in by_function():
            yield count, {"greenback.misuse.kind": kind, "code.function.name": function}


def _dropped(source: Source, totals: Totals) -> _Values:
    items = {item: dict(reasons) for item, reasons in source.dropped().items()}
    if totals.sites.count_left_out():
        items["site"] = {"limit": totals.sites.count_left_out()}
    for item, reasons in items.items():
        for reason, count in reasons.items():
            if count:
                yield count, {"greenback.trace.item": item, "greenback.trace.drop.reason": reason}


#: What has been left out. Alone, it is no news that a file is told of.
DROPPED = "greenback.trace.item.dropped"

# fmt: off
#: What is read when it is collected, be it by an SDK or for a file.
METRICS = (
    _per_function("greenback.bridges", "{bridge}", "Calls of await_ that have finished.", _bridges),
    _per_function(
        "greenback.bridge.suspensions", "{bridge}", "Bridges that waited for the event loop.",
        _suspensions),
    _per_function("greenback.bridge.time", "s", "Total time in bridges.", _time),
    _per_function(
        "greenback.bridge.suspended_time", "s", "Time that bridges waited for the event loop.",
        _suspended_time),
    Metric(
        "greenback.bridge.active", "{bridge}", UP_DOWN_COUNTER, "Bridges that are under way.",
        _active),
    Metric(
        "greenback.switches", "{switch}", COUNTER, "Greenlet switches made by bridges.", _switches),
    Metric("greenback.portals", "{portal}", COUNTER, "Portals opened.", _portals),
    Metric(
        "greenback.portal.active", "{portal}", UP_DOWN_COUNTER, "Portals that are open.",
        _active_portals),
    Metric(
        "greenback.steps", "{step}", COUNTER, "Runs of portal tasks between two traps.", _steps),
    Metric(
        "greenback.step.time", "s", COUNTER, "Time that portal tasks held the event loop.",
        _step_time),
    Metric(
        "greenback.slow_steps", "{step}", COUNTER, "Steps that held the event loop for too long.",
        _slow_steps),
    Metric(
        "greenback.step.stalled", "s", GAUGE,
        "For how long a step has held the event loop that still runs.", _stalled),
    Metric("greenback.misuses", "{misuse}", COUNTER, "Bridges from unsafe places.", _misuses),
    Metric(DROPPED, "{item}", COUNTER, "What tracing has left out.", _dropped),
)
#: What an SDK gets a sample of. A file has them exactly.
HISTOGRAMS = (
    HistogramMetric("bridge", "How long bridges took; a sample.", BOUNDS),
    HistogramMetric("switch", "How long greenlet switches took; a sample.", BOUNDS),
    HistogramMetric("step", "How long steps held the event loop; a sample.", BOUNDS),
    HistogramMetric("portal", "How long portals were open; a sample.", PORTAL_BOUNDS),
)
#: What only a file has: there are too many chains for an SDK.
CHAIN_METRICS = (
    ChainMetric("greenback.chain.bridges", "{bridge}", _bridges),
    ChainMetric("greenback.chain.suspensions", "{bridge}", _suspensions),
    ChainMetric("greenback.chain.time", "s", _time),
    ChainMetric("greenback.chain.suspended_time", "s", _suspended_time),
)
# fmt: on
