"""Two traces -> the sites and sync chains that are gone, new, faster, slower, fewer or more.

Lines move from one version of a source to the next, and the two versions may be in different
directories. So sites are matched by function and name of the file, and sync chains by the functions
and files in them.
"""

from __future__ import annotations

import re
from dataclasses import asdict, dataclass, field
from typing import Any, Dict, List, Optional, Set, Tuple

from ..read.inputs import STDIN, Input, NothingToReportError
from ..read.load import load_from
from ..read.progress import progress_of
from ..read.trace import Numbers, Trace

GONE, NEW, SLOWER, FASTER, FEWER, MORE = "gone", "new", "slower", "faster", "fewer", "more"
#: A time per bridge has changed if it differs by this factor and by these seconds, with so many
#: bridges in both traces. Less is noise: two runs of one program differ by tens of microseconds.
RATIO = 1.2
LEAST_SECONDS = 1e-4
LEAST_BRIDGES = 20

_SEPARATOR = re.compile(r"[/\\]")

#: A function, and the name of its file without the directory; empty if the trace has no file.
Place = Tuple[str, str]


@dataclass
class Change:
    """The numbers in each of the two traces; None for a trace without such a bridge."""

    before: Optional[Numbers]
    after: Optional[Numbers]
    #: Empty if nothing changed.
    verdicts: List[str]


@dataclass
class SiteChange(Change):
    """All bridges of one function."""

    function: str
    file: str


@dataclass
class ChainChange(Change):
    """The bridges of one sync chain, outermost function first.

    ``functions`` has only the site if the bridges were called directly from an async function.
    """

    functions: List[str]
    is_direct: bool


@dataclass
class Diff:
    """The difference between two traces.

    Attributes:
        before, after: The totals of each trace.
        portals: The number of portals opened in each trace.
        sites, chains: First what is gone, then what is new, then all others. Each group has the
            most bridges first.
        notes: Limits of the numbers, in words.
    """

    before: Numbers
    after: Numbers
    portals: Tuple[float, float]
    sites: List[SiteChange] = field(default_factory=list)
    chains: List[ChainChange] = field(default_factory=list)
    notes: List[str] = field(default_factory=list)

    def as_dict(self) -> Dict[str, Any]:
        """For JSON. Times are in seconds."""
        portals_before, portals_after = self.portals
        return {
            "before": dict(_numbers(self.before, portals_before), portals=portals_before),
            "after": dict(_numbers(self.after, portals_after), portals=portals_after),
            "sites": [
                {"function": site.function, "file": site.file, **self._change(site)}
                for site in self.sites
            ],
            "chains": [
                {"functions": chain.functions, "direct": chain.is_direct, **self._change(chain)}
                for chain in self.chains
            ],
            "notes": self.notes,
        }

    def _change(self, change: Change) -> Dict[str, Any]:
        before, after = self.portals
        return {
            "verdicts": change.verdicts,
            "before": None if change.before is None else _numbers(change.before, before),
            "after": None if change.after is None else _numbers(change.after, after),
        }


def diff(before: str, after: str) -> Diff:
    """Compare two traces. Each is a file, a directory, a pattern or ``-``.

    Raises:
        NothingToReportError: A trace cannot be read or has nothing in it. The message says which.
    """
    if before == after == STDIN:
        raise NothingToReportError(
            "A and B are both standard input, which can be read once. Name a file for one of them"
        )
    traces: List[Trace] = []
    errors: List[str] = []
    for which, path in (("A, the trace before", before), ("B, the trace after", after)):
        try:
            source = Input([path])
            with progress_of(source) as progress:
                traces.append(load_from(source, progress=progress))
        except NothingToReportError as error:
            errors.append(f"{which}: {error}")
    if errors:
        raise NothingToReportError(*errors)
    return compare(*traces)


def compare(before: Trace, after: Trace) -> Diff:
    """Compare two loaded traces."""
    portals = _portals(before), _portals(after)
    made = Diff(before.total, after.total, portals, notes=_notes(before, after))
    fileless = {site.function for trace in (before, after) for site in trace.sites if not site.file}
    sites = _by_site(before, fileless), _by_site(after, fileless)
    for place in {**sites[0], **sites[1]}:
        one, other = sites[0].get(place), sites[1].get(place)
        verdicts = _verdicts(one, other, portals)
        made.sites.append(SiteChange(one, other, verdicts, *place))
    # If one trace has no chains at all, all chains would wrongly be gone or new.
    if _has_chains(before) and _has_chains(after):
        chains = _by_chain(before), _by_chain(after)
        for key in {**chains[0], **chains[1]}:
            one, other = chains[0].get(key), chains[1].get(key)
            verdicts = _verdicts(one, other, portals)
            functions = [function for function, _ in key]
            if functions[0] == "":
                made.chains.append(ChainChange(one, other, verdicts, functions[1:], True))
            else:
                made.chains.append(ChainChange(one, other, verdicts, functions, False))
    made.sites.sort(key=lambda site: (*_rank(site), site.function, site.file))
    made.chains.sort(key=lambda chain: (*_rank(chain), chain.functions))
    return made


def per_bridge(numbers: Numbers) -> float:
    """Seconds per bridge; 0 without bridges."""
    return numbers.time / numbers.bridges if numbers.bridges else 0


def _verdicts(
    before: Optional[Numbers], after: Optional[Numbers], portals: Tuple[float, float]
) -> List[str]:
    if before is None:
        return [NEW]
    if after is None:
        return [GONE]
    verdicts: List[str] = []
    taken = per_bridge(before), per_bridge(after)
    if (
        min(before.bridges, after.bridges) >= LEAST_BRIDGES
        and max(taken) > min(taken) * RATIO
        and max(taken) - min(taken) > LEAST_SECONDS
    ):
        verdicts.append(SLOWER if taken[1] > taken[0] else FASTER)
    one, other, ratio = before.bridges, after.bridges, 1.0
    if all(portals) and portals[0] != portals[1]:
        one, other, ratio = one / portals[0], other / portals[1], RATIO
    if other > one * ratio:
        verdicts.append(MORE)
    elif one > other * ratio:
        verdicts.append(FEWER)
    return verdicts


def _by_site(trace: Trace, fileless: Set[str]) -> Dict[Place, Numbers]:
    found: Dict[Place, Numbers] = {}
    for site in trace.sites:
        if site.bridges:
            file = "" if site.function in fileless else _name(site.file)
            found.setdefault((site.function, file), Numbers()).add(site)
    return found


def _by_chain(trace: Trace) -> Dict[Tuple[Place, ...], Numbers]:
    found: Dict[Tuple[Place, ...], Numbers] = {}
    for site in trace.sites:
        for chain, numbers in site.chains.items():
            if numbers.bridges:
                key = tuple([(caller.function, _name(caller.file)) for caller in chain])
                # An empty chain means that the site itself is an async function.
                key = key or (("", ""), (site.function, _name(site.file)))
                found.setdefault(key, Numbers()).add(numbers)
    return found


def _name(path: str) -> str:
    """The last part of a path, which may be of another operating system."""
    return _SEPARATOR.split(path)[-1]


def _has_chains(trace: Trace) -> bool:
    return not trace.sites or any(site.chains for site in trace.sites)


def _portals(trace: Trace) -> float:
    return sum(portals.opened for portals in trace.portals.values())


def _rank(change: Change) -> Tuple[int, float]:
    group = 0 if change.after is None else 1 if change.before is None else 2
    most = max(each.bridges for each in (change.before, change.after) if each is not None)
    return group, -most


def _numbers(numbers: Numbers, portals: float) -> Dict[str, Any]:
    return {
        "bridges": numbers.bridges,
        "bridges_per_portal": numbers.bridges / portals if portals else None,
        "time_per_bridge": per_bridge(numbers),
        **asdict(numbers),
    }


def _notes(before: Trace, after: Trace) -> List[str]:
    notes: List[str] = []
    for name, trace in (("A", before), ("B", after)):
        if trace.is_sampled:
            notes.append(
                f"{name} has processes without metrics: their numbers are those of spans, which "
                "may be a sample"
            )
        if trace.sites and not any(site.chains for site in trace.sites):
            notes.append(
                f"{name} has no sync chains, so that chains are not compared. They are in a file "
                "that GREENBACK_TRACE_FILE names"
            )
        count = trace.broken_lines
        if count:
            notes.append(
                f"{name} has {count} {'line' if count == 1 else 'lines'} that could not be read: "
                f"{trace.broken[0]}"
            )
    return notes
