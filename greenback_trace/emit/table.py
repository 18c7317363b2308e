"""The table of metrics: the name, the unit and the description of each, and how it is read."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Callable, Dict, Iterable, List, NamedTuple, Tuple

from ..count.counts import BOUNDS, PORTAL_BOUNDS, Tally, count_of
from ..count.totals import Totals
from ..live.stalls import seconds_stalled

if TYPE_CHECKING:
    from .metrics import Source

#: Each value of a metric, with its attributes.
Values = Iterable[Tuple[float, Dict[str, Any]]]

#: The kinds of metrics that are read when they are collected.
COUNTER, UP_DOWN_COUNTER, GAUGE = "counter", "up_down_counter", "gauge"


class Metric(NamedTuple):
    """A row of `METRICS`.

    Attributes:
        kind: One of `COUNTER`, `UP_DOWN_COUNTER` and `GAUGE`.
        read: Gives what it is now.
    """

    name: str
    unit: str
    kind: str
    description: str
    read: Callable[[Source, Totals], Values]


class ChainMetric(NamedTuple):
    """A row of `CHAIN_METRICS`: a counter.

    Attributes:
        read: Gives what the bridges of one chain have counted, besides whose they are.
    """

    name: str
    unit: str
    read: Callable[[Tally], Values]


class HistogramMetric(NamedTuple):
    """A row of `HISTOGRAMS`, in seconds.

    Attributes:
        of: What takes the time.
        bounds: In nanoseconds.
    """

    of: str
    description: str
    bounds: List[int]


def _bridges(tally: Tally) -> Values:
    for outcome, count in (
        ("ok", tally.ok),
        ("error", tally.errors),
        ("cancelled", tally.cancelled),
    ):
        if count:
            yield count, {"greenback.outcome": outcome}


def _suspensions(tally: Tally) -> Values:
    yield tally.suspended, {}


def _time(tally: Tally) -> Values:
    yield tally.time_ns / 1e9, {}


def _suspended_time(tally: Tally) -> Values:
    yield tally.suspended_ns / 1e9, {}


def _per_function(
    name: str, unit: str, description: str, values: Callable[[Tally], Values]
) -> Metric:
    def read(source: Source, totals: Totals) -> Values:
        for function, tally in source.functions.of(totals, name).items():
            for value, attributes in values(tally):
                yield value, {"code.function.name": function, **attributes}

    return Metric(name, unit, COUNTER, description, read)


def _active(source: Source, totals: Totals) -> Values:
    for library, count in totals.active().items():
        yield count, {"greenback.async_library": library}


def _switches(source: Source, totals: Totals) -> Values:
    for direction, durations in totals.switches().items():
        yield count_of(durations), {"greenback.switch.direction": direction}


def _portals(source: Source, totals: Totals) -> Values:
    for kind, tally in totals.by_kind().items():
        yield tally.opened, {"greenback.portal.kind": kind}


def _active_portals(source: Source, totals: Totals) -> Values:
    for kind, tally in totals.by_kind().items():
        yield tally.open, {"greenback.portal.kind": kind}


def _steps(source: Source, totals: Totals) -> Values:
    for library, steps in totals.by_library().items():
        yield steps.count, {"greenback.async_library": library}


def _step_time(source: Source, totals: Totals) -> Values:
    for library, steps in totals.by_library().items():
        yield steps.time_ns / 1e9, {"greenback.async_library": library}


def _stalled(source: Source, totals: Totals) -> Values:
    stalled = seconds_stalled(totals)
    for library in totals.by_library():
        yield stalled.get(library, 0.0), {"greenback.async_library": library}


def _slow_steps(source: Source, totals: Totals) -> Values:
    for function, count in totals.slow_steps().items():
        yield count, {"code.function.name": function}


def _misuses(source: Source, totals: Totals) -> Values:
    by_function = source.misuses
    if by_function is not None:
        for (kind, function), count in by_function():
            yield count, {"greenback.misuse.kind": kind, "code.function.name": function}


def _dropped(source: Source, totals: Totals) -> Values:
    items = {item: dict(reasons) for item, reasons in source.dropped().items()}
    if totals.sites.count_left_out():
        items["site"] = {"limit": totals.sites.count_left_out()}
    for item, reasons in items.items():
        for reason, count in reasons.items():
            if count:
                yield count, {"greenback.trace.item": item, "greenback.trace.drop.reason": reason}


#: What has been left out. Alone, it is no news that a file is told of.
DROPPED = "greenback.trace.item.dropped"

# fmt: off
#: What is read when it is collected, be it by an SDK or for a file.
METRICS = (
    _per_function("greenback.bridges", "{bridge}", "Calls of await_ that have finished.", _bridges),
    _per_function(
        "greenback.bridge.suspensions", "{bridge}", "Bridges that waited for the event loop.",
        _suspensions),
    _per_function("greenback.bridge.time", "s", "Total time in bridges.", _time),
    _per_function(
        "greenback.bridge.suspended_time", "s", "Time that bridges waited for the event loop.",
        _suspended_time),
    Metric(
        "greenback.bridge.active", "{bridge}", UP_DOWN_COUNTER, "Bridges that are under way.",
        _active),
    Metric(
        "greenback.switches", "{switch}", COUNTER, "Greenlet switches made by bridges.", _switches),
    Metric("greenback.portals", "{portal}", COUNTER, "Portals opened.", _portals),
    Metric(
        "greenback.portal.active", "{portal}", UP_DOWN_COUNTER, "Portals that are open.",
        _active_portals),
    Metric(
        "greenback.steps", "{step}", COUNTER, "Runs of portal tasks between two traps.", _steps),
    Metric(
        "greenback.step.time", "s", COUNTER, "Time that portal tasks held the event loop.",
        _step_time),
    Metric(
        "greenback.slow_steps", "{step}", COUNTER, "Steps that held the event loop for too long.",
        _slow_steps),
    Metric(
        "greenback.step.stalled", "s", GAUGE,
        "For how long a step has held the event loop that still runs.", _stalled),
    Metric("greenback.misuses", "{misuse}", COUNTER, "Bridges from unsafe places.", _misuses),
    Metric(DROPPED, "{item}", COUNTER, "What tracing has left out.", _dropped),
)
#: What an SDK gets a sample of. A file has them exactly.
HISTOGRAMS = (
    HistogramMetric("bridge", "How long bridges took; a sample.", BOUNDS),
    HistogramMetric("switch", "How long greenlet switches took; a sample.", BOUNDS),
    HistogramMetric("step", "How long steps held the event loop; a sample.", BOUNDS),
    HistogramMetric("portal", "How long portals were open; a sample.", PORTAL_BOUNDS),
)
#: What only a file has: there are too many chains for an SDK.
CHAIN_METRICS = (
    ChainMetric("greenback.chain.bridges", "{bridge}", _bridges),
    ChainMetric("greenback.chain.suspensions", "{bridge}", _suspensions),
    ChainMetric("greenback.chain.time", "s", _time),
    ChainMetric("greenback.chain.suspended_time", "s", _suspended_time),
)
# fmt: on
