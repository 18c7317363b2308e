"""OTLP JSON lines -> their totals, in one pass.

Memory grows with the number of processes, sites and sync chains, not with the number of lines.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Callable, Dict, List, Optional, Sequence, Set, Tuple

from ...count.caller import Caller
from .checked import SITE_METRICS, NewerTraceError, Part, Point, Span, check
from .inputs import Input, NothingToReportError
from .observed import Calls, Place, SampledChain, Spans
from .otlp import NotOTLPError, decode
from .series import Name, SeriesStore, Value
from .trace import Chain, Numbers, PortalReport, SiteReport, Trace
from .values import Attributes
from .version1 import caller_of

#: Descriptions of broken lines to keep. All broken lines are counted.
_BROKEN = 1000

#: The numbers of each sync chain, for all sites.
_Chains = Dict[Tuple[Place, Calls], Numbers]
Progress = Callable[[int], None]
#: Called with each span of greenback, and the attributes of its resource.
OnSpan = Callable[[Span, Dict[str, Any]], None]


@dataclass(frozen=True)
class Selection:
    """The part of the files to count.

    Attributes:
        service: Count only processes of this ``service.name``; None for all.
        since: Count only what happened after this, in nanoseconds since 1970.
        until: Count only what happened up to this, in nanoseconds since 1970.
    """

    service: Optional[str] = None
    since: Optional[int] = None
    until: Optional[int] = None


_ALL = Selection()


def load(
    paths: Sequence[str],
    *,
    selection: Selection = _ALL,
    on_span: Optional[OnSpan] = None,
    progress: Optional[Progress] = None,
) -> Trace:
    """Read OTLP JSON lines, as ``GREENBACK_TRACE_FILE`` or a Collector writes them.

    Args:
        paths: Files, directories, patterns, ``-`` for standard input.
        selection: What to count.
        on_span: Called with each span. `load` keeps no spans.
        progress: Called with the number of bytes read, now and then.

    Raises:
        NothingToReportError: A file cannot be read, a newer greenback wrote it, or no file has
            anything of greenback in it.
    """
    return load_from(Input(paths), selection=selection, on_span=on_span, progress=progress)


def load_from(
    source: Input,
    *,
    selection: Selection = _ALL,
    on_span: Optional[OnSpan] = None,
    progress: Optional[Progress] = None,
) -> Trace:
    """`load` from an `Input`, whose size the caller can look at first."""
    loader = _Loader(selection, on_span)
    for name, number, line in source.lines(progress):
        try:
            if isinstance(line, str):
                raise NotOTLPError(line)
            request = decode(line)
            if request is not None:
                loader.add(check(request))
        except NotOTLPError as error:
            loader.count_broken(name, number, str(error))
        except NewerTraceError as error:
            raise NothingToReportError(f"{name}: {error}") from None
    trace = loader.finish()
    if not trace.processes or not (trace.sites or trace.portals):
        raise NothingToReportError(_why_nothing(source, loader))
    return trace


class _Loader:
    """Adds requests up to a trace."""

    def __init__(self, selection: Selection, on_span: Optional[OnSpan]) -> None:
        self.trace = Trace()
        self.selection = selection
        self._on_span = on_span
        #: The lines that are OTLP.
        self.lines = 0
        #: Services in these lines that are not selected, and whether there are such times.
        self.other_services: Set[str] = set()
        self.has_other_times = False
        self._spans = Spans()
        self._series = SeriesStore(selection.since, selection.until)
        #: Functions by the texts that stand for them in chains.
        self._callers: Dict[str, Caller] = {}
        #: Numbers of processes, by the attributes that tell a process from the others.
        self._processes: Dict[Tuple[Any, ...], int] = {}
        #: Services and engines of processes, by number.
        self._services: List[str] = []
        self._engines: List[Optional[str]] = []
        self._seen: Set[int] = set()
        #: Processes that have metrics, and processes that have metrics per chain.
        self._counted: Set[int] = set()
        self._with_chains: Set[int] = set()
        self._begin: Optional[int] = None
        self._end: Optional[int] = None

    def add(self, parts: Sequence[Part]) -> None:
        """Add the parts of one line."""
        for part in parts:
            process = self._process(part.resource)
            if process is not None:
                for caller in part.callers:
                    self._callers.setdefault(str(caller), caller)
                self._add_points(process, part.points)
                self._add_spans(process, part)
        self.lines += 1

    def count_broken(self, name: str, number: int, why: str) -> None:
        trace = self.trace
        trace.broken_lines += 1
        if len(trace.broken) < _BROKEN:
            trace.broken.append(f"{name}:{number}: {why}")

    def finish(self) -> Trace:
        spans, trace = self._spans, self.trace
        spans.finish()
        trace.spans = spans.count
        sites: Dict[Place, SiteReport] = {}
        chains: _Chains = {}
        for process, name, total, last in self._series.totals():
            if not total:
                continue
            if name.metric in SITE_METRICS:
                is_per_chain = SITE_METRICS[name.metric][1]
                # A process that has metrics per chain may repeat the same numbers per function.
                if is_per_chain == (process in self._with_chains):
                    _add_to_site(sites, chains, name, total[0])
            else:
                self._add_rest(name, total, last)
        for sample in spans.samples.values():
            trace.is_sampled = trace.is_sampled or bool(sample.chains)
            for key, sampled in sample.chains.items():
                _add_sampled(sites, chains, key, sampled)
            for kind, observed in sample.portals.items():
                portals = self._portals(kind)
                portals.opened += observed.spans
                portals.lifetimes.update(observed.durations)
        for (place, calls), numbers in chains.items():
            sites[place].chains[self._callers_of(calls)] = numbers
        for kind, observed in spans.portals.items():
            portals = self._portals(kind)
            portals.spans = observed.spans
            portals.slow_steps = observed.slow_steps
        _attach(spans.sites, sites)
        # With a selection of time, a kind may have no portals left.
        trace.portals = {
            kind: portals
            for kind, portals in trace.portals.items()
            if portals.opened or portals.active or portals.lifetimes.count or portals.spans
        }
        trace.sites = sorted(
            (site for site in sites.values() if site.bridges),
            key=lambda site: (-site.time, -site.bridges, site.function),
        )
        trace.processes = len(self._seen)
        for process in self._seen:
            service = self._services[process]
            trace.services[service] = trace.services.get(service, 0) + 1
            engine = self._engines[process]
            if engine is not None:
                trace.engines[engine] = trace.engines.get(engine, 0) + 1
        trace.begin, trace.end = self._begin, self._end
        return trace

    def _process(self, attributes: Attributes) -> Optional[int]:
        """The number of a process; None if it is not selected."""
        values = dict(attributes)
        # A process's traces and metrics may differ in other attributes, if a Collector added some.
        instance = values.get("service.instance.id")
        identity: Tuple[Any, ...] = tuple(sorted(attributes, key=lambda item: item[0]))
        if instance is not None:
            identity = values.get("service.namespace"), values.get("service.name"), instance
        process = self._processes.setdefault(identity, len(self._services))
        if process == len(self._services):
            self._services.append(str(values.get("service.name", "?")))
            self._engines.append(values.get("greenback.engine"))
        service = self._services[process]
        if self.selection.service is not None and self.selection.service != service:
            self.other_services.add(service)
            return None
        return process

    def _add_points(self, process: int, points: Sequence[Point]) -> None:
        series = self._series
        covered = -1
        for metric, attributes, bounds, start, time, value, is_delta in points:
            if covered != time:  # neighbouring points have the same time
                covered = time
                self._cover(process, start or time, time)
            if process not in self._counted:
                self._counted.add(process)
                self._spans.forget(process)
            if metric in SITE_METRICS and SITE_METRICS[metric][1]:
                self._with_chains.add(process)
            number = series.number(metric, attributes, bounds)
            series.add(process, number, start, time, value, is_delta)

    def _add_spans(self, process: int, part: Part) -> None:
        is_counted = process in self._counted
        on_span = self._on_span
        about = {} if on_span is None else dict(part.resource)
        for span in part.spans:
            if self._cover(process, span.begin, span.end):
                self._spans.add(span, process, is_counted)
                if on_span is not None:
                    on_span(span, about)

    def _cover(self, process: int, begin: int, end: int) -> bool:
        """Note the times of a point or span. Return whether its end is within the selection."""
        since, until = self.selection.since, self.selection.until
        if (since is not None and end <= since) or (until is not None and end > until):
            self.has_other_times = True
            return False
        if since is not None:
            begin = max(begin, since)
        if self._begin is None or begin < self._begin:
            self._begin = begin
        if self._end is None or end > self._end:
            self._end = end
        self._seen.add(process)
        return True

    def _add_rest(self, name: Name, total: Value, last: float) -> None:
        trace, metric, values = self.trace, name.metric, name.attributes
        function = values.get("code.function.name", "?")
        kind = values.get("greenback.portal.kind", "?")
        if metric == "greenback.portal.duration":
            self._portals(kind).lifetimes.add_histogram(name.bounds, total)
        elif metric == "greenback.bridge.duration":
            trace.bridge_durations.add_histogram(name.bounds, total)
        elif metric == "greenback.step.duration":
            trace.step_durations.add_histogram(name.bounds, total)
        elif metric == "greenback.portals":
            self._portals(kind).opened += total[0]
        elif metric == "greenback.portal.active":
            self._portals(kind).active += last
        elif metric == "greenback.steps":
            trace.steps += total[0]
        elif metric == "greenback.step.time":
            trace.step_time += total[0]
        elif not total[0]:
            return
        elif metric == "greenback.slow_steps":
            trace.slow_steps[function] = trace.slow_steps.get(function, 0) + total[0]
        elif metric == "greenback.misuses":
            misuse = values.get("greenback.misuse.kind", "?"), function
            trace.misuses[misuse] = trace.misuses.get(misuse, 0) + total[0]
        else:
            item = (
                values.get("greenback.trace.item", "?"),
                values.get("greenback.trace.drop.reason", "?"),
            )
            trace.dropped[item] = trace.dropped.get(item, 0) + total[0]

    def _callers_of(self, calls: Calls) -> Chain:
        """The functions that the texts of a chain stand for, once all lines are read."""
        callers = self._callers
        for text in calls:
            if text not in callers:
                callers[text] = caller_of(text)
        return tuple([callers[text] for text in calls])

    def _portals(self, kind: str) -> PortalReport:
        return self.trace.portals.setdefault(kind, PortalReport())


def _site(sites: Dict[Place, SiteReport], place: Place) -> SiteReport:
    site = sites.get(place)
    if site is None:
        site = sites[place] = SiteReport(function=place[0], file=place[1], line=place[2])
    return site


def _add_to_site(sites: Dict[Place, SiteReport], chains: _Chains, name: Name, value: float) -> None:
    what, is_per_chain = SITE_METRICS[name.metric]
    values = name.attributes
    place = (
        values.get("code.function.name", "?"),
        values.get("code.file.path", ""),
        values.get("code.line.number", 0),
    )
    numbers = Numbers()
    if what != "bridges":
        setattr(numbers, what, value)
    elif values.get("greenback.outcome") == "error":
        numbers.errors = value
    elif values.get("greenback.outcome") == "cancelled":
        numbers.cancelled = value
    else:
        numbers.ok = value
    _site(sites, place).add(numbers)
    if is_per_chain:
        calls = values.get("greenback.sync_chain", ())
        chains.setdefault((place, calls), Numbers()).add(numbers)


def _add_sampled(
    sites: Dict[Place, SiteReport],
    chains: _Chains,
    key: Tuple[Place, Calls],
    sampled: SampledChain,
) -> None:
    numbers = Numbers(
        ok=sampled.ok,
        errors=sampled.errors,
        suspended=sampled.suspended,
        time=sampled.time_ns / 1e9,
        suspended_time=sampled.suspended_time,
    )
    _site(sites, key[0]).add(numbers)
    chains.setdefault(key, Numbers()).add(numbers)


def _attach(observed: Dict[Place, Any], sites: Dict[Place, SiteReport]) -> None:
    """Add the observations of spans to the sites.

    Where metrics have no file and line, the observations go to the site of the function.
    """
    places: Dict[str, Set[Place]] = {}
    for place, each in observed.items():
        site = sites.get(place)
        if site is None:
            site = sites.get((place[0], "", 0))
            places.setdefault(place[0], set()).add(place)
        if site is not None:
            site.observed.update(each)
    for function, found in places.items():
        site = sites.get((function, "", 0))
        if site is not None and len(found) == 1:
            _, site.file, site.line = next(iter(found))


def _why_nothing(source: Input, loader: _Loader) -> str:
    files, trace = source.files, loader.trace
    names = ", ".join(files[:3]) + (f" and {len(files) - 3} more" if len(files) > 3 else "")
    advice = (
        "run the program with GREENBACK_TRACE=1 GREENBACK_TRACE_FILE=trace.jsonl, let it "
        "open a portal, and give it 5 seconds or a normal exit to write"
    )
    if not loader.lines and not trace.broken_lines:
        return f"{names}: empty. To have something in it, {advice}"
    if not loader.lines:
        return f"{names}: no line is OTLP JSON ({trace.broken[0]}). To get a trace, {advice}"
    lines = f"{loader.lines} {'line' if loader.lines == 1 else 'lines'}"
    if loader.has_other_times:
        return f"{names}: nothing of greenback at that time in {lines}. Change since or until"
    if loader.other_services:
        return (
            f"{names}: nothing of greenback from {loader.selection.service} in {lines}, but from "
            f"{', '.join(sorted(loader.other_services))}. Choose one of these services"
        )
    return f"{names}: no metrics and no spans of greenback in {lines}. To get some, {advice}"
