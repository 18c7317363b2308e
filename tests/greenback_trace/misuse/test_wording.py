"""The words of a report."""

from __future__ import annotations

import asyncio
import gc
import sys
import threading
import weakref
from typing import Any, List, Optional

import pytest

import greenback
import greenback_trace
from greenback._engine.state import current_portal
from greenback_trace import Config, Misuse
from greenback_trace.count.sites import site_of
from greenback_trace.misuse.finding import SEVERITY, Finding
from greenback_trace.misuse.wording import describe

from .described import described, in_portal


class TestDescribe:
    def test_says_everything(self, backend: Any) -> None:
        """A report has kind, severity, places, task, thread, span, count, evidence and advice."""
        misuse = in_portal(backend, lambda: described(sys._getframe()))
        assert (misuse.kind, misuse.severity, misuse.count) == ("lock_held", "warning", 3)
        assert misuse.site == misuse.offender
        assert misuse.site.startswith(misuse.function + " (")
        assert __file__ in misuse.site
        assert misuse.subject == "threading.Lock acquired at app.py:12"
        assert misuse.evidence == ("It is locked.",)
        assert isinstance(misuse.task, str)
        assert misuse.thread == threading.current_thread().name
        assert (misuse.trace_id, misuse.span_id) == ("a" * 32, "b" * 16)
        assert "async_context" in misuse.instead
        assert misuse.link == "greenback-trace explain lock-held"

    def test_stack_through_the_portal(self, backend: Any) -> None:
        """The stack has the task's functions in order, async and sync, and none of greenback."""

        def inner() -> Misuse:
            return described(sys._getframe())

        async def between() -> Misuse:
            return inner()

        def sync() -> Misuse:
            return greenback.await_(between())

        async def outer() -> Misuse:
            await greenback.ensure_portal()
            return sync()

        stack = backend.run(outer).stack
        names = [entry.splitlines()[0].rpartition(", in ")[2] for entry in stack]
        assert names == ["outer", "sync", "  --- bridge: greenback.await_ ---", "between", "inner"]
        assert "return inner()" in stack[3]

    def test_a_very_deep_stack(self) -> None:
        """Of a deep stack, the report has both ends, and says how many entries it left out."""

        def down(depth: int) -> Misuse:
            return down(depth - 1) if depth else described(sys._getframe())

        async def main() -> Misuse:
            return down(300)

        stack = asyncio.run(greenback.with_portal_run(main)).stack
        assert len(stack) == 201
        assert stack[0].rstrip().endswith("return down(300)")
        assert stack[100] == "  (102 more)\n"
        assert "described(sys._getframe())" in stack[-1]

    def test_keeps_nothing_alive(self, backend: Any) -> None:
        """A report keeps no frame alive, and so no local variable of the program."""

        class Local:
            pass

        seen: Optional[Any] = None

        def work() -> Misuse:
            nonlocal seen
            local = Local()
            seen = weakref.ref(local)
            return described(sys._getframe())

        misuse = in_portal(backend, work)
        for _ in range(3):
            gc.collect()
        assert seen is not None
        assert seen() is None
        assert misuse.stack

    def test_inconclusive(self, backend: Any) -> None:
        """An inconclusive report says so in its short and its full text."""
        misuse = in_portal(backend, lambda: described(sys._getframe(), inconclusive=True))
        assert "inconclusive" in str(misuse)
        assert "inconclusive" in misuse.format().splitlines()[0]

    def test_format(self, backend: Any) -> None:
        """The full text has every part of the report."""
        misuse = in_portal(backend, lambda: described(sys._getframe()))
        text = misuse.format()
        for part in (
            misuse.kind,
            misuse.subject,
            misuse.site,
            *misuse.evidence,
            misuse.instead,
            misuse.link,
            str(misuse.task),
            misuse.thread,
            str(misuse.trace_id),
            "".join(misuse.stack),
        ):
            assert part in text

    def test_every_kind_is_worded_and_explained(self) -> None:
        """The report of each kind says what to do, and its link leads to a heading of the docs."""
        from pathlib import Path

        page = Path(__file__).parents[3] / "docs" / "safe.rst"
        text = page.read_text(encoding="utf-8")

        async def main() -> List[Misuse]:
            portal: Any = current_portal()[2]
            frame = sys._getframe()
            return [
                describe(
                    Finding(kind, frame, "it", ()), site_of(frame), frame, portal, 1, None, "/"
                )
                for kind in SEVERITY
            ]

        for misuse in asyncio.run(greenback.with_portal_run(main)):
            page_of_link, _, anchor = misuse.link.partition("#")
            assert page_of_link == "/safe.html"
            assert f".. _{anchor}:" in text
            assert misuse.instead in str(misuse)


class TestLink:
    def misuse(self, docs: Optional[str]) -> Misuse:
        """The report of debug mode about one misuse, with links to *docs*."""

        async def fetch() -> None:
            pass

        async def main() -> None:
            await greenback.ensure_portal()
            greenback.await_(fetch())

        greenback_trace.enable(config=Config(mode="debug", spans="none", docs=docs))
        asyncio.run(main())
        [misuse] = greenback_trace.snapshot().misuses
        return misuse

    @pytest.mark.parametrize(
        ("docs", "link"),
        [
            (None, "greenback-trace explain async-caller"),
            ("https://docs.example.org/gb", "https://docs.example.org/gb/safe.html#async-caller"),
            ("https://docs.example.org/gb/", "https://docs.example.org/gb/safe.html#async-caller"),
            ("/srv/docs", "/srv/docs/safe.html#async-caller"),
        ],
    )
    def test_leads_to_the_docs_that_are_set(
        self, docs: Optional[str], link: str, capsys: pytest.CaptureFixture[str]
    ) -> None:
        """A report links to the documentation that is set, or says how to print the section."""
        misuse = self.misuse(docs)
        assert misuse.link == link
        assert str(misuse).endswith(f" See {link}")
        assert f"see:      {link}\n" in misuse.format()

    def test_is_in_the_log(self) -> None:
        """The event in the log has the same link."""
        import structlog

        try:
            with structlog.testing.capture_logs() as events:
                misuse = self.misuse("https://docs.example.org")
        finally:
            structlog.reset_defaults()  # it would count as configured
        [event] = [event for event in events if event["event"] == "greenback.misuse"]
        assert event["link"] == misuse.link
