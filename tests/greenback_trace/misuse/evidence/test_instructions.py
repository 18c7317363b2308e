"""What the instruction of a frame says of the function that it is in the middle of."""

from __future__ import annotations

import dis
import sys
from typing import Any, List

import pytest

from greenback_trace.misuse.evidence.instructions import is_call, is_inert, is_plainly_called

from .callers import CALLERS, Callers

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
