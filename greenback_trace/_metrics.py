"""Totals -> the instruments of OpenTelemetry.

Counters are exact: the SDK asks for them when it collects. Histograms have to be told of each event
as it happens, which is too dear for all of them: they get a sample.
"""

from __future__ import annotations

import sys
import threading
from random import random
from time import perf_counter
from typing import Any, Callable, Dict, Iterable, List, Mapping, Optional, Set, Tuple

from opentelemetry.metrics import CallbackOptions, Histogram, Meter, Observation

from greenback._failures import raise_if_from_signal_handler, tell_failure

from ._counts import BOUNDS, PORTAL_BOUNDS, Counts, Tally, count_of
from ._sdk import Call, inside, is_within, no_call, reference_to
from ._snapshot import bridge_attributes
from ._stalls import seconds_stalled
from ._totals import Totals, ending_of

_Values = Iterable[Tuple[float, Dict[str, Any]]]
# Attributes that can be looked up: those of one counter always come in the same order.
_Key = Tuple[Tuple[str, Any], ...]
#: More events than there will ever be.
_ALL = 1 << 60


class Source:
    """What the callbacks of one meter read. They stay registered, so that they outlive tracing.

    To whoever collects it, a counter never falls: when tracing is enabled again, it goes on where
    it was, although the totals begin at zero.
    """

    def __init__(self) -> None:
        #: None while tracing is disabled: then the callbacks report nothing.
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
        #: How to read the counters, by name.
        self.counters: Dict[str, Callable[[Totals], _Values]] = {}
        #: What they were when tracing was disabled.
        self._before: Dict[str, Dict[_Key, float]] = {}

    def read(self, name: str, values: Callable[[Totals], _Values]) -> List[Observation]:
        self.was_read = True
        totals = self.totals
        if totals is None:
            return []
        on_read = self.on_read
        if on_read is not None:  # another thread may take it away now
            on_read()
        found = _added_up(self._before.get(name, {}), values(totals))
        if self.totals is not totals:
            return []  # it was disabled in between, so that something may be in there twice
        return [Observation(value, dict(key)) for key, value in found.items()]

    def leave(self) -> None:
        """Report nothing any more, but remember what was reported."""
        totals, self.totals, self.on_read = self.totals, None, None
        if totals is not None:
            self._before = {
                name: _added_up(self._before.get(name, {}), values(totals))
                for name, values in self.counters.items()
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
    """The totals by function, added up once for all instruments of a collection.

    An SDK asks for one instrument after the other, in one thread. Whoever asks again has begun
    another collection.
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


def register(meter: Meter, source: Source, is_private: bool) -> None:
    """Create the instruments on *meter*. Once for each meter: they cannot be taken away.

    Args:
        meter: Whose they are to be.
        source: What they report.
        is_private: The meter is that of the embedded pipeline, which writes the exact histograms.
    """

    def counter(name: str, unit: str, what: str, values: Callable[[Totals], _Values]) -> None:
        source.counters[name] = values
        meter.create_observable_counter(name, [_callback(source, name, values)], unit, what)

    def up_down(name: str, unit: str, what: str, values: Callable[[Totals], _Values]) -> None:
        meter.create_observable_up_down_counter(name, [_callback(source, name, values)], unit, what)

    functions = _Functions()

    def per_function(
        name: str, unit: str, what: str, values: Callable[[Dict[str, Tally]], _Values]
    ) -> None:
        counter(name, unit, what, lambda totals: values(functions.of(totals, name)))

    per_function("greenback.bridges", "{bridge}", "Calls of await_ that have finished.", _bridges)
    per_function(
        "greenback.bridge.suspensions",
        "{bridge}",
        "Bridges that waited for the event loop.",
        _suspensions,
    )
    per_function("greenback.bridge.time", "s", "Total time in bridges.", _time)
    per_function(
        "greenback.bridge.suspended_time",
        "s",
        "Time that bridges waited for the event loop.",
        _suspended_time,
    )
    up_down("greenback.bridge.active", "{bridge}", "Bridges that are under way.", _active)
    counter("greenback.switches", "{switch}", "Greenlet switches made by bridges.", _switches)
    counter("greenback.portals", "{portal}", "Portals opened.", _portals)
    up_down("greenback.portal.active", "{portal}", "Portals that are open.", _active_portals)
    counter("greenback.steps", "{step}", "Runs of portal tasks between two traps.", _steps)
    counter("greenback.step.time", "s", "Time that portal tasks held the event loop.", _step_time)

    counter(
        "greenback.slow_steps",
        "{step}",
        "Steps that held the event loop for too long.",
        _slow_steps,
    )

    name, what = (
        "greenback.step.stalled",
        "For how long a step has held the event loop that still runs.",
    )
    meter.create_observable_gauge(name, [_callback(source, name, _stalled)], "s", what)

    def misuses(totals: Totals) -> _Values:
        by_function = source.misuses
        if by_function is not None:
            for (kind, function), count in by_function():
                yield count, {"greenback.misuse.kind": kind, "code.function.name": function}

    counter("greenback.misuses", "{misuse}", "Bridges from unsafe places.", misuses)

    def dropped(totals: Totals) -> _Values:
        items = {item: dict(reasons) for item, reasons in source.dropped().items()}
        if totals.sites.count_left_out():
            items["site"] = {"limit": totals.sites.count_left_out()}
        for item, reasons in items.items():
            for reason, count in reasons.items():
                if count:
                    yield (
                        count,
                        {"greenback.trace.item": item, "greenback.trace.drop.reason": reason},
                    )

    counter("greenback.trace.item.dropped", "{item}", "What tracing has left out.", dropped)

    if not is_private:
        source.histograms = {
            name: meter.create_histogram(
                f"greenback.{name}.duration",
                "s",
                description,
                explicit_bucket_boundaries_advisory=[bound / 1e9 for bound in bounds],
            )
            for name, description, bounds in (
                ("bridge", "How long bridges took; a sample.", BOUNDS),
                ("switch", "How long greenlet switches took; a sample.", BOUNDS),
                ("step", "How long steps held the event loop; a sample.", BOUNDS),
                ("portal", "How long portals were open; a sample.", PORTAL_BOUNDS),
            )
        }


def _callback(
    source: Source, name: str, values: Callable[[Totals], _Values]
) -> Callable[[CallbackOptions], Iterable[Observation]]:
    return lambda options: source.read(name, values)


def _bridges(functions: Dict[str, Tally]) -> _Values:
    for function, tally in functions.items():
        for outcome, count in (
            ("ok", tally.ok),
            ("error", tally.errors),
            ("cancelled", tally.cancelled),
        ):
            if count:
                yield count, {"code.function.name": function, "greenback.outcome": outcome}


def _suspensions(functions: Dict[str, Tally]) -> _Values:
    for function, tally in functions.items():
        yield tally.suspended, {"code.function.name": function}


def _time(functions: Dict[str, Tally]) -> _Values:
    for function, tally in functions.items():
        yield tally.time_ns / 1e9, {"code.function.name": function}


def _suspended_time(functions: Dict[str, Tally]) -> _Values:
    for function, tally in functions.items():
        yield tally.suspended_ns / 1e9, {"code.function.name": function}


def _active(totals: Totals) -> _Values:
    for library, count in totals.active().items():
        yield count, {"greenback.async_library": library}


def _switches(totals: Totals) -> _Values:
    for direction, durations in totals.switches().items():
        yield count_of(durations), {"greenback.switch.direction": direction}


def _portals(totals: Totals) -> _Values:
    for kind, tally in totals.by_kind().items():
        yield tally.opened, {"greenback.portal.kind": kind}


def _active_portals(totals: Totals) -> _Values:
    for kind, tally in totals.by_kind().items():
        yield tally.open, {"greenback.portal.kind": kind}


def _steps(totals: Totals) -> _Values:
    for library, steps in totals.by_library().items():
        yield steps.count, {"greenback.async_library": library}


def _step_time(totals: Totals) -> _Values:
    for library, steps in totals.by_library().items():
        yield steps.time_ns / 1e9, {"greenback.async_library": library}


def _stalled(totals: Totals) -> _Values:
    stalled = seconds_stalled(totals)
    for library in totals.by_library():
        yield stalled.get(library, 0.0), {"greenback.async_library": library}


def _slow_steps(totals: Totals) -> _Values:
    for function, count in totals.slow_steps().items():
        yield count, {"code.function.name": function}
