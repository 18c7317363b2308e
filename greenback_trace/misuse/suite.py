"""The tests of a suite that runs in debug mode: which of them misuse, and so fail.

A module of its own, since pytest imports `greenback_trace.pytest_plugin` wherever greenback is
installed, and what is used here needs pytest 8.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Callable, Dict, Generator, List, Tuple

import pytest

from ..count.counts import Ticks

if TYPE_CHECKING:
    from .._config import Config
    from .wording import Misuse

    _Summary = Dict[str, Any]

_NAME = "greenback misuse"
_OUTSIDE = "(outside of any test)"
#: Tests that the summary names for each site.
_TESTS_SHOWN = 5
#: The attribute of a report, and of what a worker of pytest-xdist sends, that has the misuses.
_KEY = "greenback_misuses"


class _Found:
    """The misuses of one kind at one site in one phase of a test."""

    def __init__(self, misuse: Misuse, action: str) -> None:
        self.misuse = misuse
        #: Advice fails a test only if somebody has named it, and what is not certain never does.
        self.fails = action != "log" and not misuse.inconclusive
        self._ticks = Ticks()
        self.count_one = self._ticks.add

    @property
    def times(self) -> int:
        return self._ticks.read()

    def text(self) -> str:
        text = self.misuse.format()
        return text if self.times == 1 else f"{text}  ({self.times} times)\n"

    def summary(self, test: str) -> _Summary:
        """Plain values, which pytest-xdist can send."""
        misuse = self.misuse
        return {
            "test": test,
            "times": self.times,
            "kind": misuse.kind,
            "severity": misuse.severity,
            "inconclusive": misuse.inconclusive,
            "site": misuse.site,
            "subject": misuse.subject,
            "instead": misuse.instead,
        }


class Suite:
    """A plugin of pytest."""

    def __init__(self, trace: Config) -> None:
        self._trace = trace
        self._session: Any = None
        #: Since the last phase began, by kind and site. Added to by any thread.
        self._found: Dict[Tuple[str, str], _Found] = {}
        #: For the next report, and for the end.
        self._summaries: List[_Summary] = []
        self._all: List[_Summary] = []

    # Around each phase of a test

    @pytest.hookimpl(wrapper=True, tryfirst=True)
    def pytest_runtest_setup(self, item: pytest.Item) -> Generator[None, Any, Any]:
        return (yield from self._watch(item, "setup"))

    @pytest.hookimpl(wrapper=True, tryfirst=True)
    def pytest_runtest_call(self, item: pytest.Item) -> Generator[None, Any, Any]:
        return (yield from self._watch(item, "call"))

    @pytest.hookimpl(wrapper=True, tryfirst=True)
    def pytest_runtest_teardown(self, item: pytest.Item) -> Generator[None, Any, Any]:
        return (yield from self._watch(item, "teardown"))

    def _watch(self, item: pytest.Item, when: str) -> Generator[None, Any, Any]:
        self._ensure_enabled()
        self._all += self._take(_OUTSIDE)[1]
        try:
            result = yield
        except BaseException:
            text, self._summaries = self._take(item.nodeid)
            if text:
                item.add_report_section(when, _NAME, text)
            raise
        text, self._summaries = self._take(item.nodeid)
        if text:
            pytest.fail(text, pytrace=False)
        return result

    def _ensure_enabled(self) -> None:
        """Also after a test that has enabled or disabled tracing itself."""
        from .. import _activate
        from .record import observers

        if self._session is None or _activate._current is not self._session:
            _activate.enable(config=self._trace)
            self._session = _activate._current
        if self._observe not in observers:
            observers.append(self._observe)

    def _observe(self, kind: str, site: str, action: str, describe: Callable[[], Misuse]) -> None:
        found = self._found.get((kind, site))
        if found is None:
            found = self._found.setdefault((kind, site), _Found(describe(), action))
        found.count_one()

    def _take(self, test: str) -> Tuple[str, List[_Summary]]:
        """What fails the test, as text, and the summaries of everything."""
        found, self._found = self._found, {}
        all_of_them = list(found.values())  # another thread may be about to add one
        return (
            "\n".join(each.text() for each in all_of_them if each.fails),
            [each.summary(test) for each in all_of_them],
        )

    # From the process that runs a test to the one that tells of it, which may be the same

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_makereport(self) -> Generator[None, Any, Any]:
        report = yield
        setattr(report, _KEY, self._summaries)
        self._summaries = []
        return report

    def pytest_runtest_logreport(self, report: Any) -> None:
        self._all += getattr(report, _KEY, ())

    def pytest_sessionfinish(self, session: pytest.Session) -> None:
        self._all += self._take(_OUTSIDE)[1]
        output = getattr(session.config, "workeroutput", None)
        if output is not None:
            output[_KEY] = [each for each in self._all if each["test"] == _OUTSIDE]

    @pytest.hookimpl(optionalhook=True)
    def pytest_testnodedown(self, node: Any) -> None:
        self._all += getattr(node, "workeroutput", {}).get(_KEY, ())

    def pytest_unconfigure(self) -> None:
        if self._session is None:
            return
        from .. import _activate
        from .record import observers

        observers.remove(self._observe)
        if _activate._current is self._session:
            _activate.disable()

    # The end

    def pytest_terminal_summary(self, terminalreporter: Any) -> None:
        terminalreporter.section(_NAME)
        if not self._all:
            terminalreporter.line("none")
        by_site: Dict[Tuple[str, str], List[_Summary]] = {}
        for summary in self._all:
            by_site.setdefault((summary["kind"], summary["site"]), []).append(summary)
        for (kind, site), summaries in by_site.items():
            one = summaries[0]
            times = sum(summary["times"] for summary in summaries)
            tests = list(dict.fromkeys(summary["test"] for summary in summaries))
            doubt = ", inconclusive" if all(each["inconclusive"] for each in summaries) else ""
            terminalreporter.line(f"{kind} ({one['severity']}{doubt}) at {site}: {times}")
            terminalreporter.line(f"  {one['subject']}")
            terminalreporter.line(f"  instead: {one['instead']}")
            for test in tests[:_TESTS_SHOWN]:
                terminalreporter.line(f"  in {test}")
            if len(tests) > _TESTS_SHOWN:
                terminalreporter.line(f"  and in {len(tests) - _TESTS_SHOWN} more")
