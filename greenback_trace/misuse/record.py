"""Misuses, counted and reported: to the log, the warnings filter, a span, and whoever asks.

What is counted here is counted in finalizers, signal handlers and the like, in the middle of
anything that the same thread was doing, this module's own code included. So there is no lock:
every step is a single operation of a built-in type.
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

#: Called with each misuse that is reported, in its thread and at its moment: the kind, the site,
#: what is done about it, and what describes it. Written by the pytest plugin.
observers: List[Callable[[str, str, str, Callable[[], Misuse]], None]] = []

#: Reports that wait to be logged, at most.
_POSTPONED = 100
#: Where locks can be held that are not reentrant.
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
        actions: What is done about each kind, as `greenback_trace.misuse.policy.actions_of` says.
        site_limit: Pairs of a kind and a site that are kept apart.
        docs: The address of the documentation, which reports link to.
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
        #: What could not be logged where it happened.
        self.postponed: Deque[Callable[[], None]] = deque(maxlen=_POSTPONED)
        self._has_failed = False

    def all(self) -> Tuple[Misuse, ...]:
        """The first of each kind at each site, with the number of them, the most frequent first."""
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
        """Count a misuse and tell of it; what is returned is to be raised.

        Args:
            finding: What was found.
            site: Where `greenback.await_` was called.
            frame: By whom.
            portal: The portal of the bridge.
            note: Notes the misuse on a span, and returns the ids of its trace and of itself.
        """
        action = self.actions[finding.kind]
        if action == OFF or is_allowed(finding.kind):
            return None
        if action == RAISE and finding.inconclusive:
            action = WARN
        entry = self._entry(finding.kind, site)
        count = entry.count_one()
        # What is called here is partly the application's: its bridges are nobody's misuse.
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
                # The stack of every single one would make advice dear.
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
        """Log what had to wait, where nothing that the application logs is under way."""
        while self.postponed:
            try:
                self.postponed.popleft()()
            except IndexError:  # another thread was faster
                return

    def tell_failure(self, what: str, error: Exception) -> None:
        """Log, once, that something of debug mode has failed: the program does not feel it.

        What a signal handler has raised is no failure, and raised again.
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
            # In a finalizer or a signal handler, in the middle of it.
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
        # A filter makes errors of warnings. To raise is what 'raise' is for: an exception that
        # Python would only print, in a finalizer, would change what the program does.
        return


def _is_within_logging(frame: Optional[types.FrameType]) -> bool:
    while frame is not None:
        if frame.f_globals.get("__name__", "").partition(".")[0] in _LOGGING:
            return True
        frame = frame.f_back
    return False
