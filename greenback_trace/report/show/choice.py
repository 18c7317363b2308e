"""Which sites a report shows, and in which order."""

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
#: What sites can be sorted by, the most first.
SORTS = tuple(_KEYS)


def choose(
    trace: Trace, *, functions: Sequence[str], paths: Sequence[str], sort: str
) -> List[SiteReport]:
    """The sites whose function and file match one of each, if there are any to match.

    A text matches what it is a part of; a pattern with ``*``, ``?`` or ``[`` all that it describes.

    Raises:
        NothingToReportError: No site is left.
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
    """A time as of ISO 8601, or so long ago, in nanoseconds since 1970.

    Raises:
        ValueError: It is neither.
    """
    ago = _AGO.fullmatch(text.strip())
    if ago is not None:
        return int((now.timestamp() - float(ago[1]) * _UNITS[ago[2]]) * 1e9)
    # Python 3.11 is the first that knows the letter.
    time = datetime.fromisoformat(re.sub("[zZ]$", "+00:00", text.strip()))
    whole = time.replace(microsecond=0).astimezone(timezone.utc)
    return int(whole.timestamp()) * 1_000_000_000 + time.microsecond * 1000


def _matches(pattern: str, name: str) -> bool:
    return fnmatchcase(name, pattern) if has_magic(pattern) else pattern in name
