"""The limit of spans per second."""

from __future__ import annotations

import threading
from time import perf_counter_ns

_SECOND = 1_000_000_000


class Budget:
    """At most *rate* spans per second, in all threads together. A rate of 0 is no limit.

    Times are those of `time.perf_counter_ns`. The callers have read that clock already.
    """

    __slots__ = ("_left", "_lock", "_rate", "_since", "empty_until")

    def __init__(self, rate: float) -> None:
        self._rate = rate
        # Reentrant: a signal handler or a finalizer that runs under the lock can bridge.
        self._lock = threading.RLock()
        # These are written under the lock.
        self._left = rate
        self._since = perf_counter_ns()
        #: The budget is empty until this time.
        self.empty_until = 0

    def has_some(self, now: int) -> bool:
        """Whether `take` can succeed at the time *now*."""
        if not self._rate or self._left >= 1:
            return True
        with self._lock:
            passed = now - self._since
            if self._left >= 1:
                return True  # another thread has filled the budget up
            if passed < _SECOND:
                self.empty_until = self._since + _SECOND
                return False
            # With a rate below 1, the parts of several seconds add up to one span.
            self._left = min(self._left + passed / _SECOND * self._rate, max(self._rate, 1.0))
            self._since = now
            return self._left >= 1

    def take(self) -> bool:
        """Take one span from the budget. False if another thread has taken the last one."""
        if not self._rate:
            return True
        with self._lock:
            if self._left < 1:
                return False
            self._left -= 1
            return True
