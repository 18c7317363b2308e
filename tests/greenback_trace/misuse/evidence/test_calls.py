from __future__ import annotations

import dis
import sys
import weakref
from typing import Any, Callable, List

import pytest

from greenback_trace.misuse.evidence import calls
from greenback_trace.misuse.evidence.calls import (
    how_called,
    is_call,
    is_inert,
    is_plainly_called,
    locals_of,
)

IS_PYPY = sys.implementation.name == "pypy"


class Callers:
    """Calls of a function, each of which has its own name for it."""

    @staticmethod
    def plain(target: Any) -> None:
        target()

    @staticmethod
    def with_arguments(target: Any) -> None:
        target(1, *[2], key=str(3))

    @staticmethod
    def starred(target: Any) -> None:
        target(*[1, 2], key=3)

    @staticmethod
    def conditional(target: Any) -> None:
        target(1 if target else 2, key=target or 3)

    @staticmethod
    def attribute(target: Any) -> None:
        class Holder:
            pass

        Holder.target = staticmethod(target)  # type: ignore[attr-defined]
        Holder.target()  # type: ignore[attr-defined]

    @staticmethod
    def local(target: Any) -> None:
        first, second = 1, 2
        target(first, second)
        target(first, key=second)

    @staticmethod
    def two_stars(target: Any) -> None:
        named = {"key": 1}
        target(**named)
        target(*[1], **named)

    @staticmethod
    def nested(target: Any) -> None:
        target([1, 2][0], str(int("1")), {"one": 1})

    @staticmethod
    def in_comprehension(target: Any) -> None:
        [target(number) for number in (1,)]

    @staticmethod
    def in_class(target: Any) -> None:
        class Body:
            target(1)

        assert Body


CALLERS: List[Any] = [getattr(Callers, name) for name in vars(Callers) if name[0] != "_"]


#: The instructions of all interpreters that call nothing, except by what they drop.
INERT = (
    "ASYNC_GEN_WRAP", "BEGIN_FINALLY", "BUILD_INTERPOLATION", "BUILD_LIST", "BUILD_SLICE",
    "BUILD_STRING", "BUILD_TEMPLATE", "BUILD_TUPLE", "CACHE", "CALL_FINALLY", "COPY",
    "COPY_FREE_VARS", "DELETE_DEREF", "DELETE_FAST", "DELETE_GLOBAL", "DUP_TOP", "DUP_TOP_TWO",
    "END_FINALLY", "END_FOR", "END_SEND", "EXIT_INIT_CHECK", "EXTENDED_ARG", "GEN_START",
    "INTERPRETER_EXIT", "IS_OP", "JUMP_ABSOLUTE", "JUMP_BACKWARD", "JUMP_BACKWARD_NO_INTERRUPT",
    "JUMP_FORWARD", "KW_NAMES", "LIST_APPEND", "LIST_TO_TUPLE", "LOAD_ASSERTION_ERROR",
    "LOAD_CLOSURE", "LOAD_COMMON_CONSTANT", "LOAD_CONST", "LOAD_DEREF", "LOAD_FAST",
    "LOAD_FAST_AND_CLEAR", "LOAD_FAST_BORROW", "LOAD_FAST_BORROW_LOAD_FAST_BORROW",
    "LOAD_FAST_CHECK", "LOAD_FAST_LOAD_FAST", "LOAD_GLOBAL", "LOAD_LOCALS", "LOAD_REVDB_VAR",
    "LOAD_SMALL_INT", "MAKE_CELL", "MAKE_FUNCTION", "NOP", "NOT_TAKEN", "POP_BLOCK", "POP_EXCEPT",
    "POP_FINALLY", "POP_ITER", "POP_TOP", "PUSH_EXC_INFO", "PUSH_NULL", "RERAISE", "RESERVED",
    "RESUME", "RETURN_CONST", "RETURN_GENERATOR", "RETURN_VALUE", "ROT_FOUR", "ROT_N",
    "ROT_THREE", "ROT_TWO", "SETUP_FINALLY", "SET_FUNCTION_ATTRIBUTE", "STORE_DEREF",
    "STORE_FAST", "STORE_FAST_LOAD_FAST", "STORE_FAST_STORE_FAST", "STORE_GLOBAL", "SWAP",
)  # fmt: skip
#: What the interpreter puts in place of other instructions. `co_code` shows those.
NEVER_SEEN = ("ENTER_EXECUTOR", "INSTRUMENTED_", "TRACE_RECORD")


class TestInstructions:
    def test_which_call_nothing(self) -> None:
        """Of each instruction of this interpreter it is known whether it may call something."""
        found = {
            name
            for name, number in dis.opmap.items()
            if number < 256 and is_inert(name) and not name.startswith(NEVER_SEEN)
        }
        expected = found.intersection(INERT)
        if sys.version_info >= (3, 15):
            expected.discard("LOAD_GLOBAL")  # what is imported lazily is imported by that
        assert found == expected
        assert {name for name in dis.opmap if name in INERT and is_call(name)} == set()


class TestIsPlainlyCalled:
    @pytest.mark.parametrize("call", CALLERS, ids=lambda call: call.__name__)
    def test_same_name(self, call: Any) -> None:
        """A call by the function's own name is recognised, whatever its arguments."""
        seen: List[bool] = []

        def target(*arguments: Any, **named: Any) -> None:
            frame = sys._getframe()
            seen.append(is_plainly_called(frame, frame.f_back))  # type: ignore[arg-type]

        call(target)
        # Branches among the arguments hide it, which then takes a longer look.
        assert set(seen) == {True} or call is Callers.conditional

    @pytest.mark.parametrize("call", CALLERS, ids=lambda call: call.__name__)
    def test_other_name(self, call: Any) -> None:
        """A call by another name is not."""
        seen: List[bool] = []

        def other(*arguments: Any, **named: Any) -> None:
            frame = sys._getframe()
            seen.append(is_plainly_called(frame, frame.f_back))  # type: ignore[arg-type]

        call(other)
        assert set(seen) == {False}


class TestHowCalled:
    @pytest.mark.parametrize(
        "call",
        # The frame of a class does not show the variables of the function around it.
        [call for call in CALLERS if call not in (Callers.attribute, Callers.in_class)],
        ids=lambda call: call.__name__,
    )
    def test_other_name(self, call: Any) -> None:
        """A call by another name is told by what the name stands for."""
        seen: List[Any] = []

        def other(*arguments: Any, **named: Any) -> None:
            frame = sys._getframe()
            seen.append(how_called(frame, frame.f_back))  # type: ignore[arg-type]

        call(other)
        assert seen[0].explicit
        assert "target()" in seen[0].evidence

    @pytest.mark.skipif(IS_PYPY, reason="nothing is freed when it is dropped on PyPy")
    def test_without_the_extra(
        self, backend: Any, looking: Any, bridge: Any, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Without greenback[debug], what bytecode alone shows is certain, and the rest is not."""
        monkeypatch.setattr(calls, "Source", None)

        class Thing:
            def __del__(self) -> None:
                bridge()

        def certain() -> None:
            thing = Thing()
            del thing

        def uncertain() -> None:
            things = [Thing()]
            things.clear()

        looking.only(backend, certain, "finalizer")
        (found,) = looking.in_portal(backend, uncertain)
        assert found.inconclusive
        assert any("greenback[debug]" in each for each in found.evidence)

    @pytest.mark.skipif(IS_PYPY, reason="nothing is freed when it is dropped on PyPy")
    def test_without_source(self, backend: Any, looking: Any, bridge: Any) -> None:
        """So it is where there is no source."""
        names: Any = {"bridge": bridge}
        source = (
            "class Thing:\n    def __del__(self): bridge()\n"
            "def certain():\n    thing = Thing()\n    del thing\n"
            "def uncertain():\n    things = [Thing()]\n    things.clear()\n"
        )
        exec(source, names)
        looking.only(backend, names["certain"], "finalizer")
        (found,) = looking.in_portal(backend, names["uncertain"])
        assert found.inconclusive


class TestLocals:
    @pytest.mark.skipif(IS_PYPY, reason="nothing is freed when it is dropped on PyPy")
    def test_keeps_nothing_alive(self) -> None:
        """Looking at the variables of a function does not keep their values alive."""

        class Thing:
            pass

        def function() -> bool:
            thing = Thing()
            reference = weakref.ref(thing)
            assert locals_of(sys._getframe())["thing"] is thing
            del thing
            return reference() is None

        assert function()

    def test_leaves_dictionaries_of_the_program(self) -> None:
        """A dictionary that the function has of its own variables stays as it is."""
        number = 1
        mine = locals()
        assert locals_of(sys._getframe())["number"] == number
        assert mine["number"] == 1

    def test_of_module(self) -> None:
        """The variables of a module are the module's."""
        names: Any = {"locals_of": locals_of, "sys": sys}
        exec("found = dict(locals_of(sys._getframe()))\nnumber = 1", names)
        assert names["found"]["sys"] is sys
        assert names["number"] == 1

    @pytest.mark.skipif(IS_PYPY, reason="nothing is freed when it is dropped on PyPy")
    def test_in_a_bridge(self, backend: Any, looking: Any, bridge: Callable[[], None]) -> None:
        """A suspicious frame, and its caller, free what they drop after the bridge."""
        freed: List[bool] = []

        class Thing:
            pass

        class Bridges:
            def __del__(self) -> None:
                thing = Thing()
                reference = weakref.ref(thing)
                bridge()
                del thing
                freed.append(reference() is None)

        def run() -> None:
            thing = Thing()
            reference = weakref.ref(thing)
            things = [Bridges()]
            things.clear()
            del thing
            freed.append(reference() is None)

        looking.only(backend, run, "finalizer")
        assert freed == [True, True]
