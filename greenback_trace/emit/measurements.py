"""Samples for the histograms of an SDK.

A histogram has to be called with each event. A call takes the SDK 3 to 7 us, too long for all of
them.
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

#: More events than any program has.
_ALL = 1 << 60


class Measurements:
    """Passes a random sample of the events on to an SDK's histograms.

    The sample is random because programs are often periodic. Each thread counts down
    (`Counts.skip`) to its next event in the sample, and calls a method of this class at 0. The
    number of events left out is known: the number of all events is counted exactly.

    Args:
        histograms: The histograms of one meter, by name.
        rate: Record at most this many events per second; 0 is no limit.
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
        #: The turn: under the key None, the `Call` of the thread that records. One operation takes
        #: it. It ends with the call: so an exception of a signal handler cannot leave it taken.
        self._turn: Dict[None, Callable[[], Optional[Call]]] = {}
        self._has_failed = False
        # The rest is written by the thread that has the turn.
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
        """A step that a switch to the loop has ended: two events, at least one in the sample."""
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
        """Draw how many events this thread skips before the next one in the sample."""
        every = self._every
        if self._has_failed:
            drawn = _ALL
        else:
            drawn = int(random() * 2 * every) if every > 1 else 0
        # No call from here on: a bridge in the middle of one would add to a number that is lost.
        passed = counts.skipped_from - counts.skip
        counts.skip = counts.skipped_from = drawn
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
                # The call is over: a signal handler kept its thread from giving the turn back.
                self._turn.pop(None, None)
                turn = self._turn.setdefault(None, mine)
            if turn is not mine:  # another thread records
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
        # This event, the skipped ones, and those that came in the middle of another one.
        self._seen += counts.skipped_from - counts.skip + 1
        elapsed = perf_counter() - self._since
        if elapsed >= 1:
            self._every = self._seen / elapsed / self._rate
            self._since += elapsed
            self._seen = self._in_window = 0
        may = self._in_window < max(self._rate, 1)
        if may:
            self._in_window += 1
        else:  # more events than in the second before, from which _every was computed
            self._every = max(self._every, self._seen / max(elapsed, 0.001) / self._rate)
        self.skip_some(counts)
        return may
