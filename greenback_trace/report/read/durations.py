"""Durations -> percentiles, in memory that does not grow with their number."""

from __future__ import annotations

from math import ceil, log
from typing import Dict, List, Optional, Sequence, Tuple

#: Durations that differ by a smaller factor are counted together: a percentile is off by at most
#: 2.5 %.
_WIDTH = 1.05
_LOG_WIDTH = log(_WIDTH)


class Durations:
    """Counts of durations by length."""

    __slots__ = ("_exponents", "_ranges", "count")

    def __init__(self) -> None:
        self.count = 0.0
        #: Counts by exponent: the durations of up to ``_WIDTH ** exponent`` nanoseconds.
        self._exponents: Dict[int, int] = {}
        #: Counts by lower and upper bound, in seconds.
        self._ranges: Dict[Tuple[float, float], float] = {}

    def add(self, nanoseconds: int) -> None:
        exponent = ceil(log(nanoseconds) / _LOG_WIDTH) if nanoseconds > 1 else 0
        self._exponents[exponent] = self._exponents.get(exponent, 0) + 1
        self.count += 1

    def add_histogram(self, bounds: Sequence[float], counts: Sequence[float]) -> None:
        """Add the buckets of a histogram.

        Args:
            bounds: The bounds between the buckets, in seconds.
            counts: One count per bucket, so one more than bounds.
        """
        for low, high, count in zip((0.0, *bounds), (*bounds, float("inf")), counts):
            if count:
                self._ranges[low, high] = self._ranges.get((low, high), 0) + count
                self.count += count

    def update(self, other: Durations) -> None:
        for exponent, count in other._exponents.items():
            self._exponents[exponent] = self._exponents.get(exponent, 0) + count
        for bounds, number in other._ranges.items():
            self._ranges[bounds] = self._ranges.get(bounds, 0) + number
        self.count += other.count

    def quantile(self, share: float) -> Optional[float]:
        """The seconds that *share* of the durations do not exceed; None without durations.

        For a histogram the result assumes evenly filled buckets. Durations beyond the last bound
        count as the last bound.
        """
        left = share * self.count
        for low, high, count in self._sorted():
            if left <= count:
                return low if high == float("inf") else low + (high - low) * left / count
            left -= count
        return None

    def _sorted(self) -> List[Tuple[float, float, float]]:
        ranges = [(low, high, count) for (low, high), count in self._ranges.items()]
        ranges += [
            (_WIDTH ** (exponent - 1) / 1e9, _WIDTH**exponent / 1e9, count)
            for exponent, count in self._exponents.items()
        ]
        return sorted(ranges)
