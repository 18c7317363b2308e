"""Settings, exceptions to them, and the words of a report."""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import gc
import json
import pickle
import sys
import threading
import weakref
from typing import Any, List, Optional, Tuple

import pytest

import greenback
import greenback_trace
from greenback._engine.state import current_portal
from greenback_trace import Config, Misuse, MisuseError, MisuseWarning, allow
from greenback_trace.count.sites import site_of
from greenback_trace.misuse.finding import SEVERITY, Finding
from greenback_trace.misuse.policy import actions_of, describe, is_allowed


class TestActionsOf:
    def test_one_word_goes_for_everything_but_advice(self) -> None:
        """'raise' raises for errors and warnings, and only logs advice."""
        actions = actions_of("raise")
        assert set(actions) == set(SEVERITY)
        assert actions.pop("async_caller") == "log"
        assert set(actions.values()) == {"raise"}

    def test_a_kind_that_is_named(self) -> None:
        """A kind has the action that is said for it, advice included."""
        actions = actions_of(" warn , import=off, async_caller = raise")
        assert actions["import"] == "off"
        assert actions["async_caller"] == "raise"
        assert actions["finalizer"] == "warn"

    def test_kinds_alone(self) -> None:
        """Where only kinds are named, the others have the default."""
        assert actions_of("lock_held=raise") == {**actions_of("warn"), "lock_held": "raise"}

    def test_off(self) -> None:
        """'off' is off for advice, too."""
        assert set(actions_of("off").values()) == {"off"}

    @pytest.mark.parametrize(
        "text", ["", "loud", "warn,locks=raise", "warn,import", "warn,import=loud", "warn,raise"]
    )
    def test_a_typo(self, text: str) -> None:
        """What is no setting is refused as a whole."""
        with pytest.raises(ValueError):
            actions_of(text)


class TestAllow:
    def test_one_kind_inside_the_block(self) -> None:
        """Exactly the named kind is allowed, from the beginning of the block to its end."""
        with allow("import", reason="a test"):
            assert is_allowed("import")
            assert not is_allowed("lock_held")
            with allow("lock_held", reason="a test"):
                assert is_allowed("import")
                assert is_allowed("lock_held")
            assert not is_allowed("lock_held")
        assert not is_allowed("import")

    def test_after_an_exception(self) -> None:
        """The block ends where an exception leaves it, and the exception goes on."""
        with pytest.raises(KeyError), allow("import", reason="a test"):
            raise KeyError
        assert not is_allowed("import")

    def test_by_an_exit_stack(self) -> None:
        """It can be entered by whatever enters context managers."""
        with contextlib.ExitStack() as stack:
            stack.enter_context(allow("import", reason="a test"))
            assert is_allowed("import")
        assert not is_allowed("import")

    def test_tasks(self) -> None:
        """It goes for the task and for those that it starts inside, and not for any other."""
        inside_of: List[Tuple[str, bool]] = []

        async def look(name: str) -> None:
            inside_of.append((name, is_allowed("import")))

        async def main() -> None:
            entered, looked = asyncio.Event(), asyncio.Event()

            async def other() -> None:
                await entered.wait()
                await look("other")
                looked.set()

            task = asyncio.ensure_future(other())
            await asyncio.sleep(0)
            with allow("import", reason="a test"):
                entered.set()
                await asyncio.ensure_future(look("child"))
                await looked.wait()
                await look("itself")
            await task
            await look("later")

        asyncio.run(main())
        assert dict(inside_of) == {"child": True, "itself": True, "later": False, "other": False}

    @pytest.mark.skipif(
        sys.implementation.name == "pypy" or sys.version_info >= (3, 12),
        reason="garbage is collected between two instructions",
    )
    def test_in_a_collection_of_garbage(self) -> None:
        """Where setting a context variable could crash the interpreter, none is set."""
        seen = []

        class Litter:
            def __init__(self) -> None:
                self.itself = self

            def __del__(self) -> None:
                with allow("finalizer", reason="a test"):
                    seen.append(is_allowed("finalizer"))
                seen.append(is_allowed("finalizer"))

        def block() -> None:
            Litter()
            gc.collect()

        greenback_trace.enable(config=Config(mode="debug", spans="none"))
        context = contextvars.copy_context()
        before = len(context)
        context.run(block)
        assert seen == [True, False]
        assert len(context) == before

    def test_an_unknown_kind(self) -> None:
        """A typo in the kind is an error that names all of them."""
        with pytest.raises(ValueError, match=r"allow\('locks'\).*lock_held"):
            allow("locks", reason="a test")

    def test_no_reason(self) -> None:
        """A block that nobody gives a reason for is refused."""
        with pytest.raises(ValueError, match="no reason"):
            allow("lock_held", reason=" ")


def in_portal(backend: Any, function: Any) -> Any:
    return backend.run(greenback.with_portal_run_sync, function)


def described(frame: Any, inconclusive: bool = False) -> Misuse:
    finding = Finding(
        "lock_held", frame, "threading.Lock acquired at app.py:12", ("It is locked.",), inconclusive
    )
    portal: Any = current_portal()[2]
    return describe(finding, site_of(frame), frame, portal, 3, ("a" * 32, "b" * 16))


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
        """Of thousands of frames the report has both ends, and says how many it left out."""

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
        """A report that is kept keeps no frame, and so no local variable of the program."""

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
        """A report that is not certain says so, in short and in full."""
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
        """What debug mode reports of one misuse, with links to *docs*."""

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

        with structlog.testing.capture_logs() as events:
            misuse = self.misuse("https://docs.example.org")
        [event] = [event for event in events if event["event"] == "greenback.misuse"]
        assert event["link"] == misuse.link


class TestExceptions:
    def test_types(self) -> None:
        """Who catches RuntimeError gets the error; filters of RuntimeWarning see the warning."""
        assert issubclass(MisuseError, RuntimeError)
        assert issubclass(MisuseWarning, RuntimeWarning)

    def test_carry_the_report(self, backend: Any) -> None:
        """The exception reads like the report in short, and has it, in another process too."""
        misuse = in_portal(backend, lambda: described(sys._getframe()))
        for kind in (MisuseError, MisuseWarning):
            error = pickle.loads(pickle.dumps(kind(misuse)))
            assert error.misuse == misuse
            assert str(error) == str(misuse)


class TestSnapshot:
    def test_without_debug_mode(self) -> None:
        """A snapshot without debug mode has no misuses, and is plain data."""
        greenback_trace.enable(config=Config(spans="none"))
        snapshot = greenback_trace.snapshot()
        assert snapshot.misuses == ()
        assert json.loads(json.dumps(snapshot.as_dict()))["misuses"] == []
