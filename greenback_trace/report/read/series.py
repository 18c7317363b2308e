"""Points of metrics -> the total of each series.

Each point of a cumulative counter has the whole count so far, so the last point is the total. Files
are read in any order, so the last point is the one with the latest time. Deltas are added up.

Each process, metric and set of attributes makes a series. A large fleet has millions, so little is
kept of each.
"""

from __future__ import annotations

from typing import Any, Dict, Iterator, List, NamedTuple, Optional, Sequence, Tuple

#: One number, or one per bucket of a histogram.
Value = Tuple[float, ...]
_PROCESS_BITS = 32


class Name(NamedTuple):
    """The name of a series: the same for all processes.

    Attributes:
        bounds: The bounds between the buckets of a histogram.
    """

    metric: str
    attributes: Dict[str, Any]
    bounds: Tuple[float, ...]


class _Run:
    """The count of a series since its process began to count."""

    __slots__ = ("base", "base_time", "earlier", "start", "time", "value")

    def __init__(self, start: int, earlier: Optional[_Run]) -> None:
        self.start = start
        self.time = -1
        self.value: Value = ()
        #: The count at the beginning of the window, and its time.
        self.base_time = -1
        self.base: Value = ()
        #: The run before this one, if the process started anew under the same name.
        self.earlier = earlier


class SeriesStore:
    """The series of all processes.

    Args:
        since: Count only what happened after this, in nanoseconds since 1970.
        until: Count only what happened up to this, in nanoseconds since 1970.
    """

    def __init__(self, since: Optional[int], until: Optional[int]) -> None:
        self._since = since
        self._until = until
        self._names: List[Name] = []
        self._numbers: Dict[Tuple[Any, ...], int] = {}
        # Both by process and number of the name, in one integer.
        self._runs: Dict[int, _Run] = {}
        self._added: Dict[int, Value] = {}

    def number(
        self, metric: str, attributes: Sequence[Tuple[str, Any]], bounds: Tuple[float, ...] = ()
    ) -> int:
        """The number of a name: always the same number for the same name."""
        key = (metric, bounds, *attributes)
        number = self._numbers.get(key)
        if number is None:
            # A process may write the attributes in another order the next time.
            known = (metric, bounds, *sorted(attributes, key=lambda item: item[0]))
            number = self._numbers.setdefault(known, len(self._names))
            if number == len(self._names):
                self._names.append(Name(metric, dict(attributes), bounds))
            self._numbers[key] = number
        return number

    def add(
        self, process: int, number: int, start: int, time: int, value: Value, is_delta: bool
    ) -> None:
        """Add a point, which has the count from *start* to *time*."""
        if self._until is not None and time > self._until:
            return
        is_before = self._since is not None and time <= self._since
        key = process << _PROCESS_BITS | number
        if is_delta:
            if not is_before:
                self._added[key] = _plus(self._added.get(key, ()), value)
            return
        first = run = self._runs.get(key)
        while run is not None and run.start != start:
            run = run.earlier
        if run is None:
            run = self._runs[key] = _Run(start, first)
        if is_before and time >= run.base_time:
            run.base_time, run.base = time, value
        if time >= run.time:
            run.time, run.value = time, value

    def totals(self) -> Iterator[Tuple[int, Name, Value, float]]:
        """The process, the name, the total and the last value of each series.

        The last value is for metrics that also go down.
        """
        for key, first in self._runs.items():
            total: Value = self._added.get(key, ())
            last: Optional[_Run] = None
            run: Optional[_Run] = first
            while run is not None:
                total = _plus(total, _minus(run.value, run.base))
                if last is None or run.time > last.time:
                    last = run
                run = run.earlier
            assert last is not None
            yield (*self._named(key), total, last.value[0] if last.value else 0)
        for key, total in self._added.items():
            if key not in self._runs:
                yield (*self._named(key), total, sum(total[:1]))

    def _named(self, key: int) -> Tuple[int, Name]:
        return key >> _PROCESS_BITS, self._names[key & ((1 << _PROCESS_BITS) - 1)]


def _plus(one: Value, other: Value) -> Value:
    return tuple([a + b for a, b in zip(one, other)]) if one else other


def _minus(one: Value, other: Value) -> Value:
    return tuple([a - b for a, b in zip(one, other)]) if other else one
