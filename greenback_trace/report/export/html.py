"""A trace -> one HTML page that needs nothing else, not even a network.

The charts are d3's and d3-flame-graph's, which the page carries; see static/README.md.
"""

from __future__ import annotations

import base64
import hashlib
import heapq
import json
import os
import pkgutil
import re
from collections import Counter
from datetime import datetime, timezone
from typing import Any, Dict, List, Optional, Sequence, Tuple, Union

from ..planning.edits import Edit
from ..planning.plan import Plan, Planned, Step
from ..planning.sources import Frame as PlanFrame
from ..read.trace import Numbers, SiteReport, Trace
from ..show.plan import changed, kinds, looked_at, missing, moves, unreadable
from ..show.wording import plural
from .flames import Frame, stacks
from .timeline import SLOW_STEP, STEP, Lane, Process, Slice

#: The slices that a page has at most: so many are still drawn while one waits for it.
_SLICES = 3000
#: The steps and the chains that stay that it has at most, and the edits of each step.
_STEPS = _STAYING = _EDITS = 100
_ADDED_STYLE = re.compile(r"\.textContent=`([^`]*)`")
_INSTALLED = re.compile(r"[/\\](site|dist)-packages[/\\]")
_STANDARD = re.compile(r"[/\\]lib[/\\](python|pypy)\d[^/\\]*[/\\]|^<frozen ", re.IGNORECASE)


def html(trace: Trace, lanes: Sequence[Lane], plan: Plan, by: str) -> str:
    """The page. The flame graph is weighted *by* time or bridges at first."""
    shown, note = _timeline(lanes)
    data = {
        "weight": by,
        "headline": _headline(trace),
        "flame": _flame(trace),
        "timelineNote": note,
        "lanes": shown,
        "sites": [_site(site) for site in trace.sites],
        "plan": _plan(plan),
    }
    parts = {
        "/*{style}*/": _asset("page.css"),
        "{licences}": _escaped(
            f"d3\n\n{_asset('LICENSE-d3')}\n\nd3-flame-graph\n\n{_asset('LICENSE-d3-flame-graph')}"
        ),
        # No name of a function may end the element that the data are in.
        "{data}": json.dumps(data, separators=(",", ":")).replace("<", "\\u003c"),
        "/*{d3}*/": _asset("d3.min.js"),
        "/*{flamegraph}*/": _asset("d3-flamegraph.min.js"),
        "/*{script}*/": _asset("page.js"),
    }
    scripts = [parts[f"/*{{{name}}}*/"] for name in ("d3", "flamegraph", "script")]
    # d3-flame-graph adds a style sheet of its own.
    added = _ADDED_STYLE.findall(parts["/*{flamegraph}*/"])
    parts["{policy}"] = _policy(scripts, [parts["/*{style}*/"], *added])
    # All at once, since what is put in may look like a place.
    return re.sub(
        "|".join(map(re.escape, parts)), lambda match: parts[match[0]], _asset("page.html")
    )


def _policy(scripts: Sequence[str], styles: Sequence[str]) -> str:
    """What the page may do: run and apply just these, and reach no network.

    Data are no script. Styles that a script sets on an element need no leave.
    """
    return (
        f"default-src 'none'; script-src {_hashes(scripts)}; style-src {_hashes(styles)}; "
        "img-src data:; base-uri 'none'; form-action 'none'"
    )


def _hashes(texts: Sequence[str]) -> str:
    digests = [hashlib.sha256(text.encode()).digest() for text in texts]
    return " ".join(f"'sha256-{base64.b64encode(each).decode()}'" for each in digests)


def _asset(name: str) -> str:
    content = pkgutil.get_data(__name__, f"static/{name}")
    assert content is not None
    return content.decode()


def _escaped(text: str) -> str:
    return text.replace("&", "&amp;").replace("<", "&lt;")


def _headline(trace: Trace) -> str:
    total = Numbers()
    for site in trace.sites:
        total.add(site)
    processes = "1 process" if trace.processes == 1 else f"{trace.processes:,} processes"
    return (
        f"{total.bridges:,.0f} bridges from {len(trace.sites):,} sites, {total.suspended:,.0f} "
        f"of them suspended: {total.time:,.3f} s in total, {total.suspended_time:,.3f} s of it "
        f"waiting. {processes}."
    )


def _flame(trace: Trace) -> Dict[str, Any]:
    root = _node(Frame("all", ""))
    for stack in stacks(trace):
        node = root
        _add(node, stack.numbers)
        for frame in stack.frames:
            node = node["children"].setdefault(frame, _node(frame))
            _add(node, stack.numbers)
    return _without_keys(root)


def _node(frame: Frame) -> Dict[str, Any]:
    return {
        "name": frame.function,
        "file": frame.file,
        "origin": _origin(frame.file),
        "time": 0,
        "waiting": 0,
        "bridges": 0,
        "children": {},
    }


def _add(node: Dict[str, Any], numbers: Numbers) -> None:
    node["time"] += numbers.time
    node["waiting"] += numbers.suspended_time
    node["bridges"] += numbers.bridges


def _without_keys(node: Dict[str, Any]) -> Dict[str, Any]:
    # A chain has 32 functions at most.
    return {**node, "children": [_without_keys(child) for child in node["children"].values()]}


def _origin(file: str) -> str:
    if not file:
        return ""
    if _INSTALLED.search(file):
        return "installed"
    return "standard" if _STANDARD.search(file) else "own"


def _site(site: SiteReport) -> Dict[str, Any]:
    return {
        "function": site.function,
        "place": f"{site.file}:{site.line}" if site.file else "",
        "bridges": site.bridges,
        "suspended": site.suspended,
        "errors": site.errors,
        "cancelled": site.cancelled,
        "time": site.time,
        "waiting": site.suspended_time,
    }


def _plan(plan: Plan) -> Dict[str, Any]:
    steps, stays = plan.steps[:_STEPS], plan.blocked[:_STAYING]
    # Paths are long, and have most of it in common.
    files = {each.file for step in steps for each in (*step.edits, *step.breaks)}
    files |= {each.file for step in steps for each in step.functions}
    files |= {chain.verdict.frame.file for chain in stays if chain.verdict.frame is not None}
    directories = {os.path.dirname(file) for file in files if os.path.isabs(file)}
    base = os.path.commonpath(directories) if directories else ""
    if base == os.path.dirname(base):
        base = ""
    where = f" Files are below {base}." if base else ""
    if plan.project.files:
        where += f" {looked_at(plan)}"
    if plan.project.missing:
        where += f" {missing(plan)}"
    if plan.unreadable:
        where += f" {unreadable(plan)}"
    if plan.changed:
        where += f" {changed(plan)}"
    return {
        "summary": f"Ordered by {plan.weight}. {kinds(plan)}{where}",
        "steps": [_step(step, base) for step in steps],
        "stays": [_stays(chain, base) for chain in stays],
        "note": _left_out(plan),
    }


def _stays(chain: Planned, base: str) -> Dict[str, Any]:
    verdict = chain.verdict
    return {
        "bridges": chain.numbers.bridges,
        "time": chain.numbers.time,
        "by": verdict.by,
        "function": "" if verdict.frame is None else verdict.frame.function,
        "place": "" if verdict.frame is None else _place(verdict.frame, base),
        "idiom": verdict.idiom,
    }


def _left_out(plan: Plan) -> str:
    steps, chains = len(plan.steps) - _STEPS, len(plan.blocked) - _STAYING
    found = [f"{steps:,} more {plural(steps, 'step')}"] if steps > 0 else []
    found += [f"{chains:,} more {plural(chains, 'chain')} of what stays"] if chains > 0 else []
    return f"And {' and '.join(found)}: greenback-trace plan has all." if found else ""


def _step(step: Step, base: str) -> Dict[str, Any]:
    return {
        "functions": [
            {"function": each.function, "place": _place(each, base)} for each in step.functions
        ],
        "bridges": step.removed.bridges,
        "time": step.removed.time,
        "share": step.share,
        "left": step.bridges_left,
        "edits": _edits(step.edits, base),
        "breaks": _edits(step.breaks, base),
        "moves": moves(step)[:_EDITS],
    }


def _edits(edits: List[Edit], base: str) -> Dict[str, Any]:
    return {
        "count": len(edits),
        "shown": [
            {"place": _place(edit, base), "what": edit.what, "guess": not edit.certain}
            for edit in edits[:_EDITS]
        ],
    }


def _place(at: Union[PlanFrame, Edit], base: str) -> str:
    if not at.file:
        return ""
    inside = base and at.file.startswith(base + os.sep)
    return f"{at.file[len(base) + 1 :] if inside else at.file}:{at.line}"


def _timeline(lanes: Sequence[Lane]) -> Tuple[List[Dict[str, Any]], str]:
    """The lanes with the longest of their slices, and what to say of them."""
    if not lanes:
        return [], (
            "The trace has no spans, which the timeline is made of: "
            "GREENBACK_TRACE_SPANS=none was set, or the files have metrics only."
        )
    # None is shorter than what is below it: with a slice, all that it is within are there.
    ranked = [
        (each.end - each.start, -depth, -number, lane_number, each)
        for lane_number, lane in enumerate(lanes)
        for number, (depth, each) in enumerate(_with_depth(lane))
    ]
    longest = heapq.nlargest(_SLICES, ranked, key=lambda item: item[:4])
    origin = min(lane.slices[0].start for lane in lanes)
    shown: Dict[int, List[Dict[str, Any]]] = {}
    for _, depth, _, lane_number, each in sorted(longest, key=lambda item: (item[3], -item[2])):
        shown.setdefault(lane_number, []).append(_slice(each, -depth, origin))
    note = (
        "Each lane is a task, from its span. Ctrl and the wheel or a pinch enlarge, dragging "
        f"moves. It begins at {_moment(origin)}."
    )
    names = _process_names([lanes[number] for number in shown])
    # The lanes of a process are together, in the order in which the first ones begin.
    places = {process: place for place, process in enumerate(names)}
    if len(names) > 1:
        note += " Lanes are below the name of their process."
    if len(longest) < len(ranked):
        note += f" Shown are the {len(longest):,} longest of {len(ranked):,} slices."
    return [
        {
            "name": lanes[number].name,
            "process": names[lanes[number].process],
            "slices": slices,
        }
        for number, slices in sorted(shown.items(), key=lambda item: places[lanes[item[0]].process])
    ], note


def _process_names(lanes: Sequence[Lane]) -> Dict[Process, str]:
    """By which each is told from the others; with the instance, where the rest is the same."""
    processes = list(dict.fromkeys(lane.process for lane in lanes))
    short = {
        each: f"{each.service} ({each.pid})" if each.pid else each.service for each in processes
    }
    count = Counter(short.values())
    return {
        each: name if count[name] == 1 else f"{name}, instance {each.instance or '?'}"
        for each, name in short.items()
    }


def _with_depth(lane: Lane) -> List[Tuple[int, Slice]]:
    """The slices of a lane, each before those below it."""
    result = []
    left = [(0, each) for each in reversed(lane.slices)]
    while left:
        depth, each = left.pop()
        result.append((depth, each))
        left += [(depth + 1, below) for below in reversed(each.below)]
    return result


def _slice(each: Slice, depth: int, origin: int) -> Dict[str, Any]:
    return {
        "kind": _kind(each),
        "name": each.name,
        "depth": depth,
        "start": (each.start - origin) / 1e3,
        "length": (each.end - each.start) / 1e3,
        "more": _more(each),
    }


def _kind(each: Slice) -> str:
    if each.name == SLOW_STEP:
        return "slow"
    if each.span is None or each.kind != "bridge":
        return each.kind
    if each.span.failed:
        return "failed"
    return "waits" if each.span.attributes.get("greenback.suspended") else "bridge"


def _more(each: Slice) -> List[str]:
    if each.kind == STEP or each.span is None:
        return []
    attributes = each.span.attributes
    found: List[Optional[str]] = [
        _said(attributes, "code.file.path", "{}:" + str(attributes.get("code.line.number", "?"))),
        _said(attributes, "greenback.awaitable", "awaits {}"),
        _said(attributes, "greenback.suspended_time", "waited {:.6f} s"),
        _said(attributes, "greenback.slow_step_time", "in a slow step of {:.3f} s"),
        _said(attributes, "error.type", "failed with {}"),
        _said(attributes, "greenback.portal.bridges", "{:,} bridges"),
        _said(attributes, "greenback.portal.slow_steps", "{:,} slow steps"),
    ]
    return [each for each in found if each is not None]


def _said(attributes: Dict[str, Any], name: str, how: str) -> Optional[str]:
    value = attributes.get(name)
    return how.format(value) if value else None


def _moment(nanoseconds: int) -> str:
    moment = datetime.fromtimestamp(nanoseconds / 1e9, tz=timezone.utc)
    return moment.strftime("%Y-%m-%d %H:%M:%S UTC")
