"""``greenback-trace report`` and ``plan`` as functions, for programs and notebooks.

The functions import the modules that do the work when first called: importing them takes a tenth of
a second.
"""

from __future__ import annotations

import os
from datetime import datetime
from typing import TYPE_CHECKING, List, Optional, Sequence, Union

from .read.trace import SiteReport, Trace

if TYPE_CHECKING:
    from .planning.plan import Plan

#: Nanoseconds since 1970 like `Trace.begin`, a datetime, or a text as for ``--since``.
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
        service: Count only processes of this service.
        since: Count only what happened after this time: a `datetime.datetime`, a time like
            ``"2026-11-23T14:30"``, an age like ``"30m"``, or nanoseconds since 1970. A time
            without a zone is local.
        until: Count only what happened up to this time.
        show_progress: Show a bar on standard error, if that is a terminal and there is much to
            read. This needs the extra ``report``.

    Raises:
        NothingToReportError: A file cannot be read, or no file has anything of greenback in it.
        ValueError: No path is given, or *since* or *until* is not a time.
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
    """The sites of a trace, highest first by *sort*.

    Args:
        trace: A trace from `load`.
        sort: ``"total"``, ``"waiting"``, ``"holding"``, ``"bridges"``, ``"suspended"``,
            ``"errors"``, ``"p50"``, ``"p95"`` or ``"p99"``.
        functions: Only sites whose function's name contains one of these texts. A pattern with
            ``*``, ``?`` or ``[`` has to match the whole name.
        paths: The same for the path of the file.
        top: The number of sites to return; None for all.

    Raises:
        NothingToReportError: No site matches *functions* and *paths*.
        ValueError: *sort* is none of the names above.
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
        trace: A trace from `load`.
        weight: Order steps by how much of this they remove: ``"bridges"``, ``"time"`` or
            ``"overhead"``.
        roots: The directories or files of your own code. Without any, your own code is everything
            outside ``site-packages`` and the standard library.

    Raises:
        NothingToReportError: The trace has no sync chains.
        FileNotFoundError: One of *roots* does not exist.
        ValueError: *weight* is none of the names above.
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
