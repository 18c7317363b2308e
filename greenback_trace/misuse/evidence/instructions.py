"""The instruction that a frame is at, and whether it may call code of the program."""

from __future__ import annotations

import dis
import sys
from types import CodeType, FrameType
from typing import Any, Iterator, List, Optional, Tuple

#: The bytecode of PyPy 3.11 differs from CPython's. `dis` and `executing` take it for the same.
IS_PYPY_11 = sys.implementation.name == "pypy" and sys.version_info >= (3, 11)
#: An entry of the inline cache. `f_lasti` can point at one (CPython 3.11 and later).
_CACHE = dis.opmap.get("CACHE", -1)
#: Instructions other than calls whose names begin like this may run code of the program.
_RUNS_CODE = (
    "BEFORE_",
    "BINARY_",
    "BUILD_CONST_KEY_MAP",
    "BUILD_LIST_FROM_ARG",
    "BUILD_LIST_UNPACK",
    "BUILD_MAP",
    "BUILD_SET",
    "BUILD_TUPLE_UNPACK",
    "CALL_INTRINSIC",
    "CHECK_",
    "CLEANUP_THROW",
    "COMPARE_",
    "CONTAINS_",
    "CONVERT_",
    "COPY_DICT",
    "DELETE_ATTR",
    "DELETE_NAME",
    "DELETE_SUBSCR",
    "DICT_",
    "END_ASYNC",
    "FORMAT_",
    "FOR_ITER",
    "GET_",
    "IMPORT_",
    "INPLACE_",
    "JUMP_IF",
    "LIST_EXTEND",
    "LOAD_ATTR",
    "LOAD_BUILD",
    "LOAD_CLASSDEREF",
    "LOAD_FROM_DICT",
    "LOAD_METHOD",
    "LOAD_NAME",
    "LOAD_SPECIAL",
    "LOAD_SUPER",
    "LOOKUP_METHOD",
    "MAP_ADD",
    "MATCH_",
    "POP_JUMP",
    "PREP_",
    "PRINT_",
    "RAISE_",
    "SEND",
    "SETUP_ANNOTATIONS",
    "SETUP_ASYNC_WITH",
    "SETUP_WITH",
    "SET_ADD",
    "SET_UPDATE",
    "STORE_ATTR",
    "STORE_NAME",
    "STORE_SLICE",
    "STORE_SUBSCR",
    "TO_BOOL",
    "UNARY_",
    "UNPACK_",
    "WITH_",
    "YIELD_",
)
if sys.version_info >= (3, 15):
    _RUNS_CODE = (*_RUNS_CODE, "LOAD_GLOBAL")  # may import lazily (PEP 810)
#: Instructions with CALL in their name that are no calls: a jump (3.8), and operators.
_NO_CALLS = ("CALL_FINALLY", "CALL_INTRINSIC_1", "CALL_INTRINSIC_2")
#: The instruction of `yield from` and `await`. Up to CPython 3.10, a frame that is suspended there
#: is at the instruction before it.
_YIELD_FROM: Optional[bytes] = None
if sys.implementation.name == "cpython" and sys.version_info < (3, 11):
    _YIELD_FROM = bytes([dis.opmap["YIELD_FROM"]])


def instruction(frame: FrameType) -> Tuple[str, int]:
    """The name and the offset of the instruction that *frame* is at."""
    offset = frame.f_lasti
    if offset < 0:
        return "", offset
    instructions = frame.f_code.co_code
    while instructions[offset] == _CACHE and offset:
        offset -= 2
    while instructions[offset] == dis.EXTENDED_ARG:  # before 3.11, the frame is at this one
        offset += 2
    if instructions[offset + 2 : offset + 3] == _YIELD_FROM:
        # The frame stays there also while an exception is thrown through it into the inner frame.
        offset += 2
    return dis.opname[instructions[offset]], offset


def instructions_of(code: CodeType) -> Iterator[dis.Instruction]:
    """The instructions of `dis`, with the right names of variables on PyPy, too."""
    for each in dis.get_instructions(code):
        if IS_PYPY_11 and each.opcode in dis.hasfree and each.arg is not None:
            # PyPy numbers such a variable among its like, not among all variables.
            name = (*code.co_cellvars, *code.co_freevars)[each.arg]
            yield each._replace(argval=name, argrepr=name)
        else:
            yield each


def is_call(name: str) -> bool:
    return name.startswith(("CALL", "PRECALL")) and name not in _NO_CALLS


def is_inert(name: str) -> bool:
    """Whether the instruction calls no code of the program, except by objects that it drops."""
    return not is_call(name) and not name.startswith(_RUNS_CODE)


def is_plainly_called(frame: FrameType, caller: FrameType) -> bool:
    """Whether the caller's instruction calls a function of this frame's name.

    Only bytecode is looked at, so that this can be asked of every frame.
    """
    name, offset = instruction(caller)
    mine = frame.f_code.co_name
    is_special = (
        mine.startswith("__") and mine.endswith("__") and mine not in ("__del__", "__call__")
    )
    if not is_call(name):
        if is_inert(name):
            return False
        return is_special or _argument_at(caller.f_code, offset) == mine
    # For `__init__` and its like, the code calls the class.
    return is_special or _name_in(loaded_before(caller.f_code, offset)) == mine


def _argument_at(code: CodeType, offset: int) -> Any:
    for each in instructions_of(code):
        if each.offset == offset:
            return each.argval
    return None


def loaded_before(code: CodeType, offset: int) -> Optional[dis.Instruction]:
    """The instruction that loads the function of the call at *offset*, just before its arguments.

    None where branches in the arguments hide it.
    """
    before: List[dis.Instruction] = []
    for each in instructions_of(code):
        if each.offset == offset:
            break
        if each.opname not in ("CACHE", "EXTENDED_ARG", "KW_NAMES"):
            before.append(each)
    else:
        return None
    if before and before[-1].opname == "PRECALL":
        before.pop()  # the first half of this call (3.11)
    items = each.arg or 0
    if each.opname.endswith("_KW"):
        items += 1
    elif each.opname.endswith("_EX"):
        # From 3.14 on, there always are keyword arguments: a dictionary, or NULL.
        items = 2 if each.arg is None else 1 + (items & 1)
    while items > 0 and before:
        last = before.pop()
        try:
            items -= dis.stack_effect(last.opcode, last.arg, jump=False)
        except ValueError:
            return None
    if before and before[-1].opname == "PUSH_NULL":
        before.pop()  # from 3.13 on, it follows the function
    return None if items or not before else before[-1]


def _name_in(loads: Optional[dis.Instruction]) -> Any:
    if loads is None:
        return None
    value = loads.argval
    return value[-1] if isinstance(value, tuple) and value else value
