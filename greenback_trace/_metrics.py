"""Totals -> the observable instruments of OpenTelemetry.

The SDK asks when it collects; nothing here is called by a bridge.
"""

from __future__ import annotations

from typing import Any, Callable, Dict, Iterable, Iterator, Optional, Tuple

from opentelemetry.metrics import CallbackOptions, Meter, Observation

from ._totals import Totals

_Values = Iterable[Tuple[float, Dict[str, Any]]]


class Source:
    """What the callbacks of one meter read. They stay registered, so that they outlive tracing."""

    def __init__(self) -> None:
        #: None while tracing is disabled: then the callbacks report nothing.
        self.totals: Optional[Totals] = None
        #: The spans left out so far.
        self.dropped_spans: Callable[[], int] = int
        #: Whether anybody has ever collected.
        self.was_read = False

    def read(self, values: Callable[[Totals], _Values]) -> Iterator[Observation]:
        self.was_read = True
        if self.totals is not None:
            for value, attributes in values(self.totals):
                yield Observation(value, attributes)


def register(meter: Meter, source: Source) -> None:
    """Create the instruments on *meter*. Once for each meter: they cannot be taken away."""

    def counter(name: str, unit: str, what: str, values: Callable[[Totals], _Values]) -> None:
        meter.create_observable_counter(name, [_callback(source, values)], unit, what)

    def up_down(name: str, unit: str, what: str, values: Callable[[Totals], _Values]) -> None:
        meter.create_observable_up_down_counter(name, [_callback(source, values)], unit, what)

    counter("greenback.bridges", "{bridge}", "Calls of await_ that have finished.", _bridges)
    counter(
        "greenback.bridge.suspensions",
        "{bridge}",
        "Bridges that waited for the event loop.",
        _suspensions,
    )
    counter("greenback.bridge.time", "s", "Total time in bridges.", _time)
    counter(
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

    def dropped(totals: Totals) -> _Values:
        count = source.dropped_spans()
        if count:
            yield (
                count,
                {"greenback.trace.item": "span", "greenback.trace.drop.reason": "rate_limit"},
            )

    counter("greenback.trace.item.dropped", "{item}", "What tracing has left out.", dropped)


def _callback(
    source: Source, values: Callable[[Totals], _Values]
) -> Callable[[CallbackOptions], Iterable[Observation]]:
    return lambda options: source.read(values)


def _bridges(totals: Totals) -> _Values:
    for function, tally in totals.by_function().items():
        for outcome, count in (
            ("ok", tally.ok),
            ("error", tally.errors),
            ("cancelled", tally.cancelled),
        ):
            if count:
                yield count, {"code.function.name": function, "greenback.outcome": outcome}


def _suspensions(totals: Totals) -> _Values:
    for function, tally in totals.by_function().items():
        yield tally.suspended, {"code.function.name": function}


def _time(totals: Totals) -> _Values:
    for function, tally in totals.by_function().items():
        yield tally.time_ns / 1e9, {"code.function.name": function}


def _suspended_time(totals: Totals) -> _Values:
    for function, tally in totals.by_function().items():
        yield tally.suspended_ns / 1e9, {"code.function.name": function}


def _active(totals: Totals) -> _Values:
    for library, count in totals.active().items():
        yield count, {"greenback.async_library": library}


def _switches(totals: Totals) -> _Values:
    for direction, count in totals.switches().items():
        yield count, {"greenback.switch.direction": direction}


def _portals(totals: Totals) -> _Values:
    for kind, tally in totals.by_kind().items():
        yield tally.opened, {"greenback.portal.kind": kind}


def _active_portals(totals: Totals) -> _Values:
    for kind, tally in totals.by_kind().items():
        yield tally.opened - tally.closed, {"greenback.portal.kind": kind}


def _steps(totals: Totals) -> _Values:
    for library, steps in totals.by_library().items():
        yield steps.count, {"greenback.async_library": library}


def _step_time(totals: Totals) -> _Values:
    for library, steps in totals.by_library().items():
        yield steps.time_ns / 1e9, {"greenback.async_library": library}
