"""The instruction that a frame is at, and what it may call."""

from __future__ import annotations

import dis
import sys
from types import CodeType, FrameType
from typing import Any, Iterator, List, Optional, Tuple

#: Its bytecode is not that of CPython 3.11, which both `dis` and `executing` take it for.
IS_PYPY_11 = sys.implementation.name == "pypy" and sys.version_info >= (3, 11)
#: Entries of the inline cache, which `f_lasti` can point at (CPython 3.11 and later).
_CACHE = dis.opmap.get("CACHE", -1)
#: How the names of instructions begin that may run code of the program, other than calls.
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
    _RUNS_CODE = (*_RUNS_CODE, "LOAD_GLOBAL")  # which may be an import that is lazy (PEP 810)
#: What is no call, by its name: a jump (3.8), and operators.
_NO_CALLS = ("CALL_FINALLY", "CALL_INTRINSIC_1", "CALL_INTRINSIC_2")
#: Up to CPython 3.10, a frame that is suspended in a `yield from` or `await` is not at this
#: instruction, but at the one before it.
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
    while instructions[offset] == dis.EXTENDED_ARG:  # where the frame is, before 3.11
        offset += 2
    if instructions[offset + 2 : offset + 3] == _YIELD_FROM:
        # The frame stays there while an exception is thrown through it, into the inner frame.
        offset += 2
    return dis.opname[instructions[offset]], offset


def instructions_of(code: CodeType) -> Iterator[dis.Instruction]:
    """Those of `dis`, with the names that they are about."""
    for each in dis.get_instructions(code):
        if IS_PYPY_11 and each.opcode in dis.hasfree and each.arg is not None:
            # Such a variable's number is one among its like there, and not among all variables.
            name = (*code.co_cellvars, *code.co_freevars)[each.arg]
            yield each._replace(argval=name, argrepr=name)
        else:
            yield each


def is_call(name: str) -> bool:
    return name.startswith(("CALL", "PRECALL")) and name not in _NO_CALLS


def is_inert(name: str) -> bool:
    """Whether the instruction calls nothing of the program's, except by what it drops."""
    return not is_call(name) and not name.startswith(_RUNS_CODE)


def is_plainly_called(frame: FrameType, caller: FrameType) -> bool:
    """Whether the caller's instruction calls something of this frame's name.

    Nothing is looked at but bytecode, so that this can be asked of every frame.
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
    # Of `__init__` and its like, the class is what is called.
    return is_special or _name_in(loaded_before(caller.f_code, offset)) == mine


def _argument_at(code: CodeType, offset: int) -> Any:
    for each in instructions_of(code):
        if each.offset == offset:
            return each.argval
    return None


def loaded_before(code: CodeType, offset: int) -> Optional[dis.Instruction]:
    """The last instruction before the arguments of the call at *offset*: what loads the function.

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
        before.pop()  # which follows the function from 3.13 on
    return None if items or not before else before[-1]


def _name_in(loads: Optional[dis.Instruction]) -> Any:
    if loads is None:
        return None
    value = loads.argval
    return value[-1] if isinstance(value, tuple) and value else value
