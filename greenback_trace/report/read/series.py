"""Points of metrics -> what each series has counted.

A counter is written again and again with all that it has counted so far, so the last point counts.
It is the last by its time, not by its place: files are read in any order. A delta is added up.

There is a series for each process, metric and set of attributes, millions in a large fleet: little
is kept of each.
"""

from __future__ import annotations

from typing import Any, Dict, Iterator, List, NamedTuple, Optional, Sequence, Tuple

#: What is counted: one number, or those in the buckets of a histogram.
Value = Tuple[float, ...]
_PROCESS_BITS = 32


class Name(NamedTuple):
    """What the series of different processes have in common.

    Attributes:
        bounds: Those of a histogram's buckets.
    """

    metric: str
    attributes: Dict[str, Any]
    bounds: Tuple[float, ...]


class _Run:
    """What a series has counted since its process began to count."""

    __slots__ = ("base", "base_time", "earlier", "start", "time", "value")

    def __init__(self, start: int, earlier: Optional[_Run]) -> None:
        self.start = start
        self.time = -1
        self.value: Value = ()
        #: What it had counted when the window begins.
        self.base_time = -1
        self.base: Value = ()
        #: One that began at another time: the process has started anew under the same name.
        self.earlier = earlier


class SeriesStore:
    """The series of all processes.

    Args:
        since: Only what was counted after this, in nanoseconds since 1970.
        until: And up to this.
    """

    def __init__(self, since: Optional[int], until: Optional[int]) -> None:
        self._since = since
        self._until = until
        self._names: List[Name] = []
        self._numbers: Dict[Tuple[Any, ...], int] = {}
        # By process and number of the name.
        self._runs: Dict[int, _Run] = {}
        self._added: Dict[int, Value] = {}

    def number(
        self, metric: str, attributes: Sequence[Tuple[str, Any]], bounds: Tuple[float, ...] = ()
    ) -> int:
        """The number of a name, which it keeps."""
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
        """Add a point, which counts from *start* to *time*."""
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
        """Of each series: its process, its name, what it has counted, and the last value.

        The last value is for what does not only grow.
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
