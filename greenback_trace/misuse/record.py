"""Misuses, counted and reported: to the log, the warnings filter, a span and observers.

Misuses are counted in finalizers, signal handlers and the like, which run in the middle of anything
that the same thread does, this module's own code included. So there is no lock: every step is a
single operation of a built-in type.
"""

from __future__ import annotations

import types
import warnings
from collections import deque
from dataclasses import replace
from typing import TYPE_CHECKING, Callable, Deque, Dict, Iterator, List, Optional, Tuple

from greenback._listener.failures import raise_if_from_signal_handler, tell_failure

from ..count.counts import Ticks
from ..count.sites import OTHER, Site
from ..emit import log
from .finding import SEVERITY, Finding
from .policy import OFF, RAISE, WARN, MisuseWarning, is_allowed
from .wording import Misuse, describe

if TYPE_CHECKING:
    from greenback.instruments import Portal

#: Called for each reported misuse, in its thread and at its moment, with the kind, the site, the
#: action, and a function that describes it. Written by the pytest plugin.
observers: List[Callable[[str, str, str, Callable[[], Misuse]], None]] = []

#: The most reports that wait to be logged.
_POSTPONED = 100
#: Packages whose code may hold locks that are not reentrant.
_LOGGING = ("structlog", "logging")


class _Entry:
    """The misuses of one kind at one site."""

    __slots__ = ("first", "kind", "site", "ticks")

    def __init__(self, kind: str, site: Site) -> None:
        self.kind = kind
        self.site = site
        self.first: Optional[Misuse] = None
        self.ticks = Ticks()

    def count_one(self) -> int:
        return self.ticks.add() + 1

    @property
    def count(self) -> int:
        return self.ticks.read()


class Misuses:
    """The misuses since tracing was enabled.

    Args:
        actions: The action for each kind, from `greenback_trace.misuse.policy.actions_of`.
        site_limit: The most pairs of a kind and a site that are counted separately.
        docs: The address of the documentation, to which reports link.
    """

    def __init__(
        self, actions: Dict[str, str], site_limit: int, docs: Optional[str] = None
    ) -> None:
        self.actions = actions
        self._docs = docs
        self._site_limit = site_limit
        self.after_fork()

    def after_fork(self) -> None:
        """Start at zero."""
        self._entries: Dict[Tuple[str, Site], _Entry] = {}
        #: Reports that could not be logged where the misuse happened.
        self.postponed: Deque[Callable[[], None]] = deque(maxlen=_POSTPONED)
        self._has_failed = False

    def all(self) -> Tuple[Misuse, ...]:
        """The first misuse of each kind at each site, with their number, most frequent first."""
        found = [
            replace(entry.first, count=entry.count)
            for entry in list(self._entries.values())
            if entry.first is not None
        ]
        return tuple(sorted(found, key=lambda misuse: -misuse.count))

    def by_function(self) -> Iterator[Tuple[Tuple[str, str], int]]:
        """The number of misuses by kind and function of the site."""
        totals: Dict[Tuple[str, str], int] = {}
        for entry in list(self._entries.values()):
            key = entry.kind, entry.site.function
            totals[key] = totals.get(key, 0) + entry.count
        yield from totals.items()

    def report(
        self,
        finding: Finding,
        site: Site,
        frame: types.FrameType,
        portal: Portal,
        note: Callable[[Finding, Site], Optional[Tuple[str, str]]],
    ) -> Optional[Misuse]:
        """Count a misuse and report it. Returns the one that the caller is to raise, if any.

        Args:
            finding: The finding of a detector.
            site: The site of the bridge.
            frame: The frame that called `greenback.await_`.
            portal: The portal of the bridge.
            note: Notes the misuse on a span, and returns the ids of the trace and of the span.
        """
        action = self.actions[finding.kind]
        if action == OFF or is_allowed(finding.kind):
            return None
        if action == RAISE and finding.inconclusive:
            action = WARN
        entry = self._entry(finding.kind, site)
        count = entry.count_one()
        # Some functions called here are the application's. Their bridges are not looked at.
        hushed = portal.hushed
        portal.hushed = True
        misuse: Optional[Misuse] = None
        try:
            span = note(finding, entry.site)

            def full() -> Misuse:
                return describe(finding, entry.site, frame, portal, count, span, self._docs)

            if entry.first is None or action == RAISE:
                misuse = full()
                if entry.first is None:
                    entry.first = misuse
            else:
                # Taking the stack each time would make advice expensive.
                misuse = replace(entry.first, count=count)
            for observer in tuple(observers):
                observer(misuse.kind, misuse.site, action, full)
            self._tell(finding, misuse, full, frame)
            if action == WARN:
                _warn(misuse, finding.frame)
        except Exception as error:
            self.tell_failure("reporting a misuse", error)
        finally:
            portal.hushed = hushed
        return misuse if action == RAISE else None

    def log_postponed(self) -> None:
        """Log the postponed reports, where the application is not in the middle of logging."""
        while self.postponed:
            try:
                self.postponed.popleft()()
            except IndexError:  # another thread was faster
                return

    def tell_failure(self, what: str, error: Exception) -> None:
        """Log, once, that debug mode has failed at something. The program goes on.

        An exception of a signal handler is no failure of debug mode: it is raised again.
        """
        raise_if_from_signal_handler(error)
        if not self._has_failed:
            self._has_failed = True
            tell_failure("greenback's debug mode misses something: %s raised %s", what, error=error)

    def _entry(self, kind: str, site: Site) -> _Entry:
        entry = self._entries.get((kind, site))
        if entry is None:
            if len(self._entries) >= self._site_limit:
                site = OTHER
            entry = self._entries.setdefault((kind, site), _Entry(kind, site))
        return entry

    def _tell(
        self,
        finding: Finding,
        misuse: Misuse,
        full: Callable[[], Misuse],
        frame: types.FrameType,
    ) -> None:
        level = "info" if SEVERITY[finding.kind] == "advice" else "warning"
        if _is_within_logging(frame):
            # A finalizer or a signal handler runs in the middle of logging.
            self.postponed.append(
                lambda: log.misuse(level, misuse.kind, misuse.site, lambda: misuse)
            )
        else:
            log.misuse(level, misuse.kind, misuse.site, full)


def _warn(misuse: Misuse, frame: types.FrameType) -> None:
    """Show a `MisuseWarning` at the line that *frame* is at."""
    try:
        warnings.warn_explicit(
            MisuseWarning(misuse),
            MisuseWarning,
            frame.f_code.co_filename,
            frame.f_lineno or frame.f_code.co_firstlineno,
            module=frame.f_globals.get("__name__") or "<unknown>",
            registry=frame.f_globals.setdefault("__warningregistry__", {}),
        )
    except MisuseWarning:
        # A filter turns warnings into errors. An exception here would change what the program does,
        # and in a finalizer Python would only print it. The action for exceptions is 'raise'.
        return


def _is_within_logging(frame: Optional[types.FrameType]) -> bool:
    while frame is not None:
        if frame.f_globals.get("__name__", "").partition(".")[0] in _LOGGING:
            return True
        frame = frame.f_back
    return False
