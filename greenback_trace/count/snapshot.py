"""The exact totals at one moment, as `greenback_trace.snapshot` gives them."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Dict, Iterator, List, Mapping, Optional, Tuple

from ..misuse.wording import Misuse
from .counts import BOUNDS, PORTAL_BOUNDS, Histogram, count_of

if TYPE_CHECKING:
    from .caller import Caller
    from .totals import Totals


@dataclass(frozen=True)
class BridgeTotals:
    """Bridges that have finished, counted. Times are in seconds.

    Attributes:
        ok: Those that returned a value.
        errors: Those that raised.
        cancelled: Those that raised because their task, or their scope, was cancelled.
        suspended: Those that had to wait for the event loop at least once.
        time: What all of them took, from call to return.
        suspended_time: The part of it that they waited for the event loop.
    """

    ok: int
    errors: int
    cancelled: int
    suspended: int
    time: float
    suspended_time: float

    @property
    def bridges(self) -> int:
        """All of them."""
        return self.ok + self.errors + self.cancelled


@dataclass(frozen=True)
class SiteTotals(BridgeTotals):
    """The bridges of one site.

    Attributes:
        function: ``module.qualname`` of the calling function; ``_OTHER`` beyond the limit.
        qualname: Its second part alone.
        file: Its file.
        line: The line of the call.
    """

    function: str
    qualname: str
    file: str
    line: int


@dataclass(frozen=True)
class ChainTotals(SiteTotals):
    """The bridges that came to one site through one sync chain.

    Attributes:
        chain: ``module.qualname (file:line)`` of the sync functions between the nearest async
            function and the site, outermost first and with the site's own. At most 32.
    """

    chain: Tuple[str, ...]


@dataclass(frozen=True)
class PortalTotals(BridgeTotals):
    """The portals of one kind, and the bridges that finished in them.

    Attributes:
        opened: Portals opened, and those that were found open when tracing was enabled.
        closed: Portals closed.
    """

    opened: int
    closed: int

    @property
    def active(self) -> int:
        """Portals that are open now."""
        return self.opened - self.closed


@dataclass(frozen=True)
class StepTotals:
    """The steps of the portal tasks of one library; ``time`` is in seconds."""

    steps: int
    time: float


@dataclass(frozen=True)
class DurationTotals:
    """How long something took, as an exact histogram. Times are in seconds.

    Attributes:
        name: The name of the metric, ``greenback.bridge.duration`` for example.
        attributes: The attributes that the metric has.
        bounds: The upper ends of the buckets, inclusive; the last bucket has none.
        counts: How many fell into each bucket; one more than there are bounds.
        sum: What all of them took.
    """

    name: str
    attributes: Dict[str, Any]
    bounds: Tuple[float, ...]
    counts: Tuple[int, ...]
    sum: float

    @property
    def count(self) -> int:
        """How many there were."""
        return sum(self.counts)


@dataclass(frozen=True)
class Snapshot:
    """Everything counted since tracing was enabled.

    Attributes:
        portals: By the kind of the portal.
        sites: By total time, the longest first.
        chains: By total time, the longest first.
        steps: By the name of the async library.
        active: Bridges that are under way, by the name of the async library.
        switches: Greenlet switches of bridges, by direction: ``to_loop`` and ``to_task``.
        slow_steps: Steps that held the event loop for too long, by the function that held it.
        durations: How long bridges, switches, steps and portals took.
        dropped: What tracing has left out, by what it was (``span``, ``measurement``, ``site`` or
            ``line``) and why.
        misuses: What debug mode has found: the first misuse of each kind at each site, with their
            number in ``count``. The most frequent first.
    """

    portals: Dict[str, PortalTotals]
    sites: Tuple[SiteTotals, ...]
    chains: Tuple[ChainTotals, ...]
    steps: Dict[str, StepTotals]
    active: Dict[str, int]
    switches: Dict[str, int]
    slow_steps: Dict[str, int]
    durations: Tuple[DurationTotals, ...]
    dropped: Dict[str, Dict[str, int]]
    misuses: Tuple[Misuse, ...]

    def as_dict(self) -> Dict[str, Any]:
        """The same as dictionaries, lists and plain values, fit for `json.dumps`."""
        result = asdict(self)
        result["sites"] = list(result["sites"])
        result["chains"] = [dict(chain, chain=list(chain["chain"])) for chain in result["chains"]]
        result["durations"] = [
            dict(each, bounds=list(each["bounds"]), counts=list(each["counts"]))
            for each in result["durations"]
        ]
        result["misuses"] = [
            dict(each, evidence=list(each["evidence"]), stack=list(each["stack"]))
            for each in result["misuses"]
        ]
        return result


def take(
    totals: Totals,
    dropped: Optional[Mapping[str, Mapping[str, int]]] = None,
    misuses: Tuple[Misuse, ...] = (),
    is_brief: bool = False,
) -> Snapshot:
    """The snapshot of *totals*, and of what was left out besides what they know of themselves.

    A brief one has neither chains nor durations: with thousands of chains it takes milliseconds,
    where the whole takes tenths of a second.
    """
    chains = [
        ChainTotals(
            **tally.public(),
            **_site(chain[-1]),
            chain=() if chain[-1].is_async else tuple(map(str, chain)),
        )
        for chain, tally in ({} if is_brief else totals.by_chain()).items()
    ]
    sites = [
        SiteTotals(**tally.public(), **_site(site)) for site, tally in totals.by_site().items()
    ]
    left_out = {item: dict(reasons) for item, reasons in (dropped or {}).items()}
    if totals.sites.count_left_out():
        left_out["site"] = {"limit": totals.sites.count_left_out()}
    return Snapshot(
        portals={
            name: PortalTotals(**kind.public(), opened=kind.opened, closed=kind.opened - kind.open)
            for name, kind in totals.by_kind().items()
        },
        sites=tuple(sorted(sites, key=_time, reverse=True)),
        chains=tuple(sorted(chains, key=_time, reverse=True)),
        steps={
            name: StepTotals(library.count, library.time_ns / 1e9)
            for name, library in totals.by_library().items()
        },
        active=totals.active(),
        switches={name: count_of(each) for name, each in totals.switches().items()},
        slow_steps=totals.slow_steps(),
        durations=() if is_brief else tuple(durations(totals)),
        dropped=left_out,
        misuses=misuses,
    )


def durations(totals: Totals) -> Iterator[DurationTotals]:
    """All histograms that are not empty."""
    for name, library in totals.by_library().items():
        for ending, each in library.durations.items():
            yield from _durations("bridge", bridge_attributes(name, ending), BOUNDS, each)
        yield from _durations("step", {"greenback.async_library": name}, BOUNDS, library.steps)
    for direction, each in totals.switches().items():
        yield from _durations("switch", {"greenback.switch.direction": direction}, BOUNDS, each)
    for name, kind in totals.by_kind().items():
        attributes = {"greenback.portal.kind": name}
        yield from _durations("portal", attributes, PORTAL_BOUNDS, kind.durations)


def bridge_attributes(library: str, ending: Tuple[str, bool, Optional[str]]) -> Dict[str, Any]:
    outcome, suspended, error_type = ending
    attributes = {
        "greenback.async_library": library,
        "greenback.outcome": outcome,
        "greenback.suspended": suspended,
    }
    if error_type is not None:
        attributes["error.type"] = error_type
    return attributes


def _durations(
    name: str, attributes: Dict[str, Any], bounds: List[int], counted: Histogram
) -> Iterator[DurationTotals]:
    if any(counted[1:]):
        yield DurationTotals(
            name=f"greenback.{name}.duration",
            attributes=attributes,
            bounds=tuple(bound / 1e9 for bound in bounds),
            counts=tuple(counted[1:]),
            sum=counted[0] / 1e9,
        )


def _site(site: Caller) -> Dict[str, Any]:
    return {
        "function": site.function,
        "qualname": site.qualname,
        "file": site.file,
        "line": site.line,
    }


def _time(totals: SiteTotals) -> float:
    return totals.time
