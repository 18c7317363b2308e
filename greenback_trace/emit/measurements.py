"""A sample of the events, for the histograms of an SDK.

Histograms have to be told of each event as it happens, which is too dear for all of them.
"""

from __future__ import annotations

import sys
from random import random
from time import perf_counter
from typing import Any, Callable, Dict, Optional

from opentelemetry.metrics import Histogram

from greenback._listener.failures import raise_if_from_signal_handler, tell_failure

from ..count.counts import Counts
from ..count.outcomes import ending_of
from ..count.snapshot import bridge_attributes
from .sdk import Call, inside, is_within, no_call, reference_to

#: More events than there will ever be.
_ALL = 1 << 60


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
