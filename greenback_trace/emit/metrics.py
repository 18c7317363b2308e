"""The instruments of OpenTelemetry, and the source of their values.

Counters are exact: the SDK reads them when it collects, and the embedded pipeline when it writes.
The histograms of an SDK get a sample: see measurements.py.
"""

from __future__ import annotations

import threading
from typing import Any, Callable, Dict, Iterable, List, Mapping, Optional, Set, Tuple

from opentelemetry.metrics import CallbackOptions, Histogram, Meter, Observation

from ..count.counts import Tally
from ..count.totals import Totals
from .table import COUNTER, GAUGE, HISTOGRAMS, METRICS, UP_DOWN_COUNTER, Metric, Values

# Attributes as a dictionary key. Those of one counter always have the same order.
_Key = Tuple[Tuple[str, Any], ...]


class Source:
    """The values of the metrics of one meter, or of one file.

    The callbacks of a meter stay registered. So a source outlives the session, and its counters
    never fall: when tracing is enabled again, they go on where they were, although the totals start
    at zero.
    """

    def __init__(self) -> None:
        #: None while tracing is disabled. Then the metrics have no values.
        self.totals: Optional[Totals] = None
        #: The number of items left out, by item and reason, without sites.
        self.dropped: Callable[[], Mapping[str, Mapping[str, int]]] = dict
        #: The number of misuses by kind and function. None without debug mode.
        self.misuses: Optional[Callable[[], Iterable[Tuple[Tuple[str, str], int]]]] = None
        #: Whether the metrics were ever collected in this session.
        self.was_read = False
        #: Called at each collection.
        self.on_read: Optional[Callable[[], None]] = None
        #: The SDK's histograms by name. None for the embedded pipeline, which has exact ones.
        self.histograms: Optional[Dict[str, Histogram]] = None
        self.functions = _Functions()
        #: The values of the counters when tracing was disabled.
        self._before: Dict[str, Dict[_Key, float]] = {}

    def read(self, metric: Metric) -> List[Tuple[float, Dict[str, Any]]]:
        """The values of a metric, with their attributes."""
        self.was_read = True
        totals = self.totals
        if totals is None:
            return []
        on_read = self.on_read
        if on_read is not None:  # another thread can set the attribute to None
            on_read()
        found = _added_up(self._before.get(metric.name, {}), metric.read(self, totals))
        if self.totals is not totals:
            return []  # tracing was disabled meanwhile: some values may be counted twice
        return [(value, dict(key)) for key, value in found.items()]

    def leave(self) -> None:
        """Report nothing more, and remember the values reported so far."""
        totals, self.totals, self.on_read = self.totals, None, None
        if totals is not None:
            self._before = {
                metric.name: _added_up(self._before.get(metric.name, {}), metric.read(self, totals))
                for metric in METRICS
                if metric.kind == COUNTER
            }

    def forget(self) -> None:
        """Start at zero in a forked child that has not set its SDK yet."""
        self._before = {}


def register(meter: Meter, source: Source) -> None:
    """Create the instruments of *meter*. Call this once per meter: they cannot be removed.

    Args:
        meter: The meter that gets the instruments.
        source: The source of their values.
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
    """The totals by function, added up once per collection.

    An SDK reads the metrics one after the other, in one thread. When it reads a metric for the
    second time, another collection has begun.
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
