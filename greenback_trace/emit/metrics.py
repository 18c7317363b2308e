"""Totals -> the instruments of OpenTelemetry.

Counters are exact: the SDK asks for them when it collects, and the embedded pipeline when it
writes. Histograms of an SDK get a sample: `greenback_trace.emit.measurements`.
"""

from __future__ import annotations

import threading
from typing import Any, Callable, Dict, Iterable, List, Mapping, Optional, Set, Tuple

from opentelemetry.metrics import CallbackOptions, Histogram, Meter, Observation

from ..count.counts import Tally
from ..count.totals import Totals
from .table import COUNTER, GAUGE, HISTOGRAMS, METRICS, UP_DOWN_COUNTER, Metric, Values

# Attributes that can be looked up: those of one counter always come in the same order.
_Key = Tuple[Tuple[str, Any], ...]


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


def _added_up(before: Dict[_Key, float], values: Values) -> Dict[_Key, float]:
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
