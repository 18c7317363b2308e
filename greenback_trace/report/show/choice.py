"""Chooses and sorts the sites of a report, and reads the times that a user gives."""

from __future__ import annotations

import re
from datetime import datetime, timezone
from fnmatch import fnmatchcase
from glob import has_magic
from typing import Callable, Dict, List, Sequence

from ..read.inputs import NothingToReportError
from ..read.trace import SiteReport, Trace

_AGO = re.compile(r"(\d+(?:\.\d+)?) ?([smhd])")
_UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86400}


def _quantile(share: float) -> Callable[[SiteReport], float]:
    return lambda site: site.observed.durations.quantile(share) or 0


_KEYS: Dict[str, Callable[[SiteReport], float]] = {
    "total": lambda site: site.time,
    "waiting": lambda site: site.suspended_time,
    "holding": lambda site: site.holding_time,
    "bridges": lambda site: site.bridges,
    "suspended": lambda site: site.suspended,
    "errors": lambda site: site.errors,
    "p50": _quantile(0.5),
    "p95": _quantile(0.95),
    "p99": _quantile(0.99),
}
#: Sites can be sorted by these, highest first.
SORTS = tuple(_KEYS)


def choose(
    trace: Trace, *, functions: Sequence[str], paths: Sequence[str], sort: str
) -> List[SiteReport]:
    """The sites that match one of *functions* and one of *paths*, sorted by *sort*.

    No *functions* match every function, and no *paths* every file. A text matches names that
    contain it. A pattern with ``*``, ``?`` or ``[`` has to match the whole name.

    Raises:
        NothingToReportError: No site matches.
    """
    chosen = [
        site
        for site in trace.sites
        if (not functions or any(_matches(each, site.function) for each in functions))
        and (not paths or any(_matches(each, site.file) for each in paths))
    ]
    if not chosen and trace.sites and (functions or paths):
        raise NothingToReportError(
            f"none of {len(trace.sites)} sites is in such a function and file. Choose another "
            "function or path; the site with the longest total time is "
            f"{trace.sites[0].function} in "
            f"{trace.sites[0].file or 'a file that the trace does not tell'}"
        )
    key = _KEYS[sort]
    return sorted(chosen, key=lambda site: -key(site))


def to_nanoseconds(text: str, now: datetime) -> int:
    """A time in ISO 8601, or an age such as ``30m`` before *now*, in nanoseconds since 1970.

    Raises:
        ValueError: *text* is neither a time nor an age.
    """
    ago = _AGO.fullmatch(text.strip())
    if ago is not None:
        return int((now.timestamp() - float(ago[1]) * _UNITS[ago[2]]) * 1e9)
    # Python reads the letter Z only since 3.11.
    time = datetime.fromisoformat(re.sub("[zZ]$", "+00:00", text.strip()))
    whole = time.replace(microsecond=0).astimezone(timezone.utc)
    return int(whole.timestamp()) * 1_000_000_000 + time.microsecond * 1000


def _matches(pattern: str, name: str) -> bool:
    return fnmatchcase(name, pattern) if has_magic(pattern) else pattern in name
