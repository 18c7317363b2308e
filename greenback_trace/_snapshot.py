"""The exact totals at one moment, as `greenback_trace.snapshot` gives them."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Dict, Tuple


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
class Snapshot:
    """Everything counted since tracing was enabled.

    Attributes:
        portals: By the kind of the portal.
        sites: By total time, the longest first.
        chains: By total time, the longest first.
        steps: By the name of the async library.
        active: Bridges that are under way, by the name of the async library.
        switches: Greenlet switches of bridges, by direction: ``to_loop`` and ``to_task``.
    """

    portals: Dict[str, PortalTotals]
    sites: Tuple[SiteTotals, ...]
    chains: Tuple[ChainTotals, ...]
    steps: Dict[str, StepTotals]
    active: Dict[str, int]
    switches: Dict[str, int]

    def as_dict(self) -> Dict[str, Any]:
        """The same as dictionaries, lists and plain values, fit for `json.dumps`."""
        result = asdict(self)
        result["sites"] = list(result["sites"])
        result["chains"] = [dict(chain, chain=list(chain["chain"])) for chain in result["chains"]]
        return result
