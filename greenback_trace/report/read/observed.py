"""Spans of bridges and portals -> percentiles, awaitables and tasks of each site.

No metric has these. Spans can be a sample. Memory is bounded by the number of sites, not by the
number of spans.
"""

from __future__ import annotations

import re
from collections import OrderedDict
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Dict, Tuple

from .durations import Durations

if TYPE_CHECKING:
    from .checked import Span

#: Different names to keep for a site. All further names are counted under `OTHER`.
_NAMES = 50
OTHER = "(others)"
#: Portals to remember whose bridges came and whose own span is still to come, since it ends last.
_OPEN_PORTALS = 20_000
#: Sync chains to keep of all processes without exact numbers.
_CHAINS = 5_000
_NUMBER = re.compile(r"\d+")
#: Function, file, line.
Place = Tuple[str, str, int]
#: Sync functions, outermost first, by the texts that stand for them.
Calls = Tuple[str, ...]


@dataclass
class Observed:
    """What the spans of a site say.

    Attributes:
        spans: The number of spans.
        awaitables: The number of spans by awaitable.
        error_types: The number of spans by the type of the exception.
        tasks: The number of spans by the name of the task, with ``*`` for numbers in the name.
        portals: The number of different portals.
    """

    spans: int = 0
    durations: Durations = field(default_factory=Durations)
    awaitables: Dict[str, int] = field(default_factory=dict)
    error_types: Dict[str, int] = field(default_factory=dict)
    tasks: Dict[str, int] = field(default_factory=dict)
    portals: int = 0

    def update(self, other: Observed) -> None:
        self.spans += other.spans
        self.durations.update(other.durations)
        self.portals += other.portals
        for mine, others in (
            (self.awaitables, other.awaitables),
            (self.error_types, other.error_types),
            (self.tasks, other.tasks),
        ):
            for name, count in others.items():
                _count(mine, name, count)


@dataclass
class ObservedPortals:
    """What the spans of portals of one kind say."""

    spans: int = 0
    slow_steps: int = 0
    durations: Durations = field(default_factory=Durations)


@dataclass
class SampledChain:
    """The spans of a sync chain, counted because there are no exact numbers."""

    ok: int = 0
    errors: int = 0
    suspended: int = 0
    time_ns: int = 0
    suspended_time: float = 0


@dataclass
class Sample:
    """The spans of a process that has no metrics, or none so far."""

    chains: Dict[Tuple[Place, Calls], SampledChain] = field(default_factory=dict)
    portals: Dict[str, ObservedPortals] = field(default_factory=dict)


class Spans:
    """Adds spans up."""

    def __init__(self) -> None:
        self.count = 0
        self.sites: Dict[Place, Observed] = {}
        #: All portals, by kind.
        self.portals: Dict[str, ObservedPortals] = {}
        #: The samples of processes without metrics, by process.
        self.samples: Dict[int, Sample] = {}
        self._chains = 0
        #: By process and id of the portal's span: how often each site bridged in the portal.
        self._open: OrderedDict[Tuple[int, str], Dict[Place, int]] = OrderedDict()

    def add(self, span: Span, process: int, is_counted: bool) -> None:
        """Add a span. *is_counted* says whether the process has metrics."""
        self.count += 1
        attributes = span.attributes
        # The clock may have been set back meanwhile.
        taken = max(span.end - span.begin, 0)
        sample = None
        if not is_counted:
            sample = self.samples.get(process)
            if sample is None:
                sample = self.samples[process] = Sample()
        if span.name.startswith("portal "):
            kind = attributes.get("greenback.portal.kind", "?")
            slow_steps = attributes.get("greenback.portal.slow_steps", 0)
            _add_portal(self.portals, kind, taken, slow_steps)
            if sample is not None:
                _add_portal(sample.portals, kind, taken, slow_steps)
            sites = self._open.pop((process, span.id), None)
            if sites is not None:
                self._close(sites, attributes.get("greenback.task.name", ""))
            return
        place = (
            attributes.get("code.function.name", "?"),
            attributes.get("code.file.path", ""),
            attributes.get("code.line.number", 0),
        )
        self._add_bridge(span, taken, process, place, attributes)
        if sample is not None:
            self._add_chain(sample, place, taken, attributes)

    def forget(self, process: int) -> None:
        """Drop the sample of a process, because the process has metrics."""
        sample = self.samples.pop(process, None)
        if sample is not None:
            self._chains -= len(sample.chains)

    def finish(self) -> None:
        """Count the portals whose span never came."""
        while self._open:
            _, sites = self._open.popitem(last=False)
            self._close(sites, "")

    def _close(self, sites: Dict[Place, int], task: str) -> None:
        name = _NUMBER.sub("*", task)
        for place, count in sites.items():
            observed = self.sites[place]
            observed.portals += 1
            if name:
                _count(observed.tasks, name, count)

    def _add_bridge(
        self, span: Span, taken: int, process: int, place: Place, attributes: Dict[str, Any]
    ) -> None:
        observed = self.sites.get(place)
        if observed is None:
            observed = self.sites[place] = Observed()
        observed.spans += 1
        observed.durations.add(taken)
        _count(observed.awaitables, attributes.get("greenback.awaitable", "?"))
        if "error.type" in attributes:
            _count(observed.error_types, attributes["error.type"])
        if span.portal:
            key = process, span.portal
            sites = self._open.get(key)
            if sites is None:
                sites = self._open[key] = {}
                if len(self._open) > _OPEN_PORTALS:
                    _, oldest = self._open.popitem(last=False)
                    self._close(oldest, "")
            sites[place] = sites.get(place, 0) + 1

    def _add_chain(
        self, sample: Sample, place: Place, taken: int, attributes: Dict[str, Any]
    ) -> None:
        key = place, attributes.get("greenback.sync_chain", ())
        chain = sample.chains.get(key)
        if chain is None:
            if self._chains >= _CHAINS:
                key = place, (OTHER,)
            else:
                self._chains += 1
            chain = sample.chains.setdefault(key, SampledChain())
        if "error.type" in attributes:
            chain.errors += 1
        else:
            chain.ok += 1
        chain.suspended += attributes.get("greenback.suspended", False)
        chain.time_ns += taken
        chain.suspended_time += attributes.get("greenback.suspended_time", 0)


def _add_portal(
    portals: Dict[str, ObservedPortals], kind: str, taken: int, slow_steps: int
) -> None:
    observed = portals.get(kind)
    if observed is None:
        observed = portals[kind] = ObservedPortals()
    observed.spans += 1
    observed.slow_steps += slow_steps
    observed.durations.add(taken)


def _count(names: Dict[str, int], name: str, count: int = 1) -> None:
    if name not in names and len(names) >= _NAMES:
        name = OTHER
    names[name] = names.get(name, 0) + count
