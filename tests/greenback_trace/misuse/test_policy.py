"""What is done about a misuse: settings, exceptions to them, and what is raised."""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import gc
import json
import pickle
import sys
from typing import Any, List, Tuple

import pytest

import greenback_trace
from greenback_trace import Config, MisuseError, MisuseWarning, allow
from greenback_trace.misuse.finding import SEVERITY
from greenback_trace.misuse.policy import actions_of, is_allowed

from .described import described, in_portal


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

    def test_are_named_as_documented(self) -> None:
        """Tracebacks and pickles name the exceptions by the package that exports them."""
        for kind in (MisuseError, MisuseWarning):
            assert f"{kind.__module__}.{kind.__qualname__}" == f"greenback_trace.{kind.__name__}"
            assert getattr(greenback_trace, kind.__name__) is kind


class TestSnapshot:
    def test_without_debug_mode(self) -> None:
        """A snapshot without debug mode has no misuses, and is plain data."""
        greenback_trace.enable(config=Config(spans="none"))
        snapshot = greenback_trace.snapshot()
        assert snapshot.misuses == ()
        assert json.loads(json.dumps(snapshot.as_dict()))["misuses"] == []
