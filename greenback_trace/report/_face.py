"""What ``greenback-trace report`` and ``plan`` do, for programs and notebooks.

The modules that do it are imported when they are first needed: they take a tenth of a second.
"""

from __future__ import annotations

import os
from datetime import datetime
from typing import TYPE_CHECKING, List, Optional, Sequence, Union

from .read.trace import SiteReport, Trace

if TYPE_CHECKING:
    from .planning.plan import Plan

#: Nanoseconds since 1970, as `Trace.begin` has them, or what ``--since`` takes.
Moment = Union[int, str, datetime]


def load(
    *paths: Union[str, os.PathLike[str]],
    service: Optional[str] = None,
    since: Optional[Moment] = None,
    until: Optional[Moment] = None,
    show_progress: bool = False,
) -> Trace:
    """Read traces, and add them up.

    Args:
        paths: Files, directories, patterns like ``"/var/log/trace-*.jsonl"``, or ``"-"`` for
            standard input.
        service: Only processes of this service.
        since: Only what was counted after this: a `datetime.datetime`, a time as in
            ``"2026-11-23T14:30"``, an age as in ``"30m"``, or nanoseconds since 1970. A time
            without a zone is local.
        until: Only what was counted up to this.
        show_progress: Show a bar on standard error, if that is a terminal and there is much to
            read. This needs the extra ``report``.

    Raises:
        NothingToReportError: A file cannot be read, or none has anything of greenback in it.
        ValueError: There is no path, or *since* or *until* is no time.
    """
    from .read.inputs import Input
    from .read.load import Selection, load_from

    if not paths:
        raise ValueError("load() has no path; pass the file that GREENBACK_TRACE_FILE has named")
    selection = Selection(service, _nanoseconds("since", since), _nanoseconds("until", until))
    source = Input([os.fspath(path) for path in paths])
    if not show_progress:
        return load_from(source, selection=selection)
    from .read.progress import progress_of

    with progress_of(source) as progress:
        return load_from(source, selection=selection, progress=progress)


def hot_spots(
    trace: Trace,
    *,
    sort: str = "total",
    functions: Union[str, Sequence[str]] = (),
    paths: Union[str, Sequence[str]] = (),
    top: Optional[int] = None,
) -> List[SiteReport]:
    """The sites of a trace, those with the most of something first.

    Args:
        trace: What `load` has returned.
        sort: ``"total"``, ``"waiting"``, ``"holding"``, ``"bridges"``, ``"suspended"``,
            ``"errors"``, ``"p50"``, ``"p95"`` or ``"p99"``.
        functions: Only sites whose function has one of these in its name; with ``*``, ``?`` or
            ``[``, the whole name has to match.
        paths: The same for the file.
        top: How many sites; all without it.

    Raises:
        NothingToReportError: No site has such a function and file.
        ValueError: *sort* is none of these.
    """
    from .show.choice import SORTS, choose

    _check("sort", sort, SORTS)
    return choose(trace, functions=_several(functions), paths=_several(paths), sort=sort)[:top]


def plan(
    trace: Trace,
    *,
    weight: str = "bridges",
    roots: Sequence[Union[str, os.PathLike[str]]] = (),
) -> Plan:
    """Which functions to make ``async def``, in which order.

    Args:
        trace: What `load` has returned.
        weight: What the first steps remove most of: ``"bridges"``, ``"time"`` or ``"overhead"``.
        roots: Where your own code is. Without any, that is all which is neither in
            ``site-packages`` nor of the standard library.

    Raises:
        NothingToReportError: The trace has no sync chains.
        FileNotFoundError: One of *roots* is not there.
        ValueError: *weight* is none of these.
    """
    from .planning.plan import WEIGHTS, make_plan

    _check("weight", weight, WEIGHTS)
    names = [os.fspath(each) for each in ([roots] if isinstance(roots, str) else roots)]
    for name in names:
        os.stat(name)
    return make_plan(trace, weight, names)


def _nanoseconds(name: str, moment: Optional[Moment]) -> Optional[int]:
    from .show.choice import to_nanoseconds

    if moment is None or isinstance(moment, int):
        return moment
    text = moment if isinstance(moment, str) else moment.isoformat()
    try:
        return to_nanoseconds(text, datetime.now())
    except ValueError:
        raise ValueError(
            f"{name}={moment!r} is no time. Pass a datetime, '2026-11-23T14:30', or '30m' for "
            "30 minutes ago; there are s, m, h and d"
        ) from None


def _check(name: str, value: str, allowed: Sequence[str]) -> None:
    if value not in allowed:
        raise ValueError(f"{name}={value!r} is none of {', '.join(allowed)}")


def _several(names: Union[str, Sequence[str]]) -> Sequence[str]:
    return [names] if isinstance(names, str) else names
