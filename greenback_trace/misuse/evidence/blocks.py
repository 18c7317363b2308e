"""The ``with`` blocks and method calls that a function is executing, read from its bytecode.

Neither the source nor `executing` is needed. The bytecode of a code object is read once, and only
if it has a ``with`` statement or calls the method in question.
"""

from __future__ import annotations

import dis
import sys
from types import CodeType, FrameType
from typing import Any, Dict, FrozenSet, Iterator, List, NamedTuple, Optional, Sequence, Set, Tuple

from greenlet import getcurrent

from greenback._frames import is_worker

from ...count.sites import ASYNC, RUNTIME
from .instructions import instruction as current_instruction
from .instructions import instructions_of

#: The instruction that begins a ``with`` block. It looks up `__enter__` and calls it. From CPython
#: 3.14 on, it only looks up a special method, `__enter__` or another one, and a CALL follows.
_WITH = {
    dis.opmap[name] for name in ("SETUP_WITH", "BEFORE_WITH", "LOAD_SPECIAL") if name in dis.opmap
}
#: The number of instructions from the end of the expression to this one, included.
_ENTERED_AFTER = 5 if "LOAD_SPECIAL" in dis.opmap else 1
_LOADS_METHOD = ("LOAD_METHOD", "LOOKUP_METHOD", "LOAD_SUPER_METHOD")
_LOADS_METHOD_IF_FLAGGED = ("LOAD_ATTR", "LOAD_SUPER_ATTR") if sys.version_info >= (3, 12) else ()
_LOADS_LOCAL = (
    "LOAD_FAST",
    "LOAD_FAST_BORROW",
    "LOAD_FAST_BORROW_LOAD_FAST_BORROW",
    "LOAD_FAST_CHECK",
    "LOAD_FAST_LOAD_FAST",
    "STORE_FAST_LOAD_FAST",
)
_LOADS_FREE = ("LOAD_DEREF", "LOAD_CLASSDEREF", "LOAD_FROM_DICT_OR_DEREF")
_LOADS_GLOBAL = ("LOAD_GLOBAL", "LOAD_NAME", "LOAD_FROM_DICT_OR_GLOBALS")
_LOADS_CONSTANT = ("LOAD_CONST", "LOAD_COMMON_CONSTANT", "LOAD_SMALL_INT")
_NEVER_CONTINUES = (
    "RETURN_VALUE",
    "RETURN_CONST",
    "RAISE_VARARGS",
    "RERAISE",
    "JUMP_FORWARD",
    "JUMP_ABSOLUTE",
)
_HAS_TABLE = hasattr(CodeType, "co_exceptiontable")
_CODES_KEPT = 4_096


class With(NamedTuple):
    """A ``with`` statement, or one item of it."""

    #: The offset of the instruction that looks up `__enter__`.
    offset: int
    #: The offset of the first instruction of the block, which stores or drops the result of
    #: `__enter__`.
    start: int
    line: int
    #: Its expression, if that is a name with attributes and constant subscripts; else empty.
    expression: str


class Call(NamedTuple):
    """A place that looks up a method in order to call it a moment later."""

    code: CodeType
    offset: int
    #: The offset of the instruction that calls it.
    end: int
    line: int
    is_with: bool
    #: Whether the method is called without an argument.
    is_plain: bool
    #: Whether the same function also calls `release` on the same expression.
    is_paired: bool
    #: The object of the method: a name with attributes and constant subscripts; else empty.
    expression: str = ""


class _Looked:
    __slots__ = ("calls", "code", "inside", "is_outside", "withs")

    def __init__(self, code: CodeType) -> None:
        self.code = code  # kept, so that no other code gets its id
        #: Whether the function is neither async nor greenback's.
        self.is_outside = not (code.co_flags & ASYNC or code.co_filename.startswith(RUNTIME))
        self.withs: Dict[int, With] = {}
        self.calls: Optional[Dict[int, Call]] = None
        self.inside: Dict[int, Tuple[With, ...]] = {}


#: By the id of the code object. Any thread writes it; what two threads write at once is equal.
_looked: Dict[int, _Looked] = {}


def with_blocks(frame: Optional[FrameType], is_bare: bool = False) -> List[FrameType]:
    """Those of *frame* and its callers whose code has a ``with`` block, innermost first.

    The callers are all frames of the portal and, around it, the task's async functions.

    Args:
        frame: A frame of the greenlet that is running now; None for frames of other greenlets only.
        is_bare: No frame around the portal has such a block, so that these are not looked at. They
            wait for the portal, and stay the same while it lives. Looking at the frames of another
            greenlet takes as long as everything else.
    """
    # Called at every suspension in debug mode, hence one loop for everything.
    found: List[FrameType] = []
    here: Any = getcurrent()
    outer = frame
    is_around = False
    while True:
        while outer is not None:
            code = outer.f_code
            looked = _looked.get(id(code)) or _look(code)
            if is_around and looked.is_outside:
                return found  # it belongs to the event loop
            if looked.withs:
                found.append(outer)
            outer = outer.f_back
        is_around = is_around or is_worker(here)
        if is_around and is_bare:
            return found
        here = here.parent
        if here is None:
            return found
        outer = here.gr_frame


def are_without(frame: FrameType, count: int) -> bool:
    """Whether *count* functions, from that of *frame* outwards, have no ``with`` block."""
    outer: Optional[FrameType] = frame
    for _ in range(count):
        if outer is None:
            return False
        code = outer.f_code
        if (_looked.get(id(code)) or _look(code)).withs:
            return False
        outer = outer.f_back
    return True


def inside(frame: FrameType) -> Sequence[With]:
    """The ``with`` blocks that *frame* is inside of, innermost first: entered and not left."""
    code = frame.f_code
    looked = _looked.get(id(code)) or _look(code)
    if not looked.withs:
        return ()
    offset = frame.f_lasti
    found = looked.inside.get(offset)
    if found is None:
        found = _inside_table(looked, offset) if _HAS_TABLE else _inside_blocks(looked, offset)
        looked.inside[offset] = found
    return found


def call_at(frame: FrameType, names: FrozenSet[str]) -> Optional[Call]:
    """The call that *frame* is about to make, if its instruction looks up one of *names* for it.

    Such a call is an expression like ``lock.acquire(...)``, or a ``with``, which looks up
    `__enter__`. None for others, like ``getattr(lock, "acquire")`` or ``callback = lock.acquire``.
    """
    code = frame.f_code
    looked = _looked.get(id(code)) or _look(code)
    calls = looked.calls
    if calls is None:
        calls = looked.calls = _calls(code, names)
    return calls.get(frame.f_lasti)


def call_around(frame: FrameType, names: FrozenSet[str]) -> Optional[Call]:
    """The call that *frame* is executing, if it is one that `call_at` finds.

    A call whose arguments are still being evaluated counts.
    """
    call_at(frame, names)
    offset = current_instruction(frame)[1]
    calls = _looked[id(frame.f_code)].calls or {}
    around = [call for call in calls.values() if call.offset <= offset <= call.end]
    return max(around, key=lambda call: call.offset, default=None)


def _look(code: CodeType) -> _Looked:
    looked = _Looked(code)
    if not _WITH.isdisjoint(code.co_code[::2]):
        instructions = list(_instructions(code))
        for index, (instruction, line) in enumerate(instructions):
            if _enters(instruction):
                expression = _expression_before(instructions, index + 1 - _ENTERED_AFTER)
                start = _end_of(_call_of(instructions, index))
                offset = instruction.offset
                looked.withs[offset] = With(offset, start, line, expression)
    if len(_looked) >= _CODES_KEPT:
        _looked.clear()
    _looked[id(code)] = looked
    return looked


def _instructions(code: CodeType) -> Iterator[Tuple[dis.Instruction, int]]:
    line = code.co_firstlineno
    starts = dict(dis.findlinestarts(code))
    for instruction in instructions_of(code):
        line = starts.get(instruction.offset, line) or line
        if instruction.opname not in ("EXTENDED_ARG", "CACHE", "NOP", "PRECALL"):
            yield instruction, line


def _enters(instruction: dis.Instruction) -> bool:
    return instruction.opcode in _WITH and (
        instruction.opname != "LOAD_SPECIAL" or instruction.argrepr == "__enter__"
    )


def _call_of(instructions: List[Tuple[dis.Instruction, int]], index: int) -> dis.Instruction:
    """The instruction that calls the `__enter__` which another one looks up."""
    return instructions[index + (instructions[index][0].opname == "LOAD_SPECIAL")][0]


def _end_of(instruction: dis.Instruction) -> int:
    """The offset after an instruction and its cache."""
    if sys.version_info >= (3, 13):
        return instruction.end_offset
    return instruction.offset + 2  # SETUP_WITH and BEFORE_WITH have no cache


def _expression_before(instructions: List[Tuple[dis.Instruction, int]], index: int) -> str:
    """The expression that ends before an instruction.

    Empty if it is not a name with attributes and constant subscripts.
    """
    tail = ""
    while index:
        index -= 1
        instruction = instructions[index][0]
        name, argument = instruction.opname, instruction.argval
        if name == "LOAD_ATTR":
            if _LOADS_METHOD_IF_FLAGGED and (instruction.arg or 0) & 1:
                break
            tail = f".{argument}{tail}"
        elif index and (
            name == "BINARY_SUBSCR" or (name == "BINARY_OP" and instruction.argrepr == "[]")
        ):
            index -= 1
            key = instructions[index][0]
            if key.opname not in _LOADS_CONSTANT or not isinstance(key.argval, (int, str)):
                break
            tail = f"[{key.argval!r}]{tail}"
        elif name in _LOADS_LOCAL or name in _LOADS_FREE or name in _LOADS_GLOBAL:
            first = argument[-1] if isinstance(argument, tuple) else argument
            return str(first) + tail
        else:
            break
    return ""


def _loads_method(instruction: dis.Instruction) -> bool:
    """Whether an instruction looks up an attribute in order to call it."""
    return instruction.opname in _LOADS_METHOD or (
        instruction.opname in _LOADS_METHOD_IF_FLAGGED and bool((instruction.arg or 0) & 1)
    )


def _calls(code: CodeType, names: FrozenSet[str]) -> Dict[int, Call]:
    calls: Dict[int, Call] = {}
    instructions = list(_instructions(code))
    released: Set[str] = {
        _expression_before(instructions, index)
        for index, (instruction, _) in enumerate(instructions)
        if instruction.argval == "release" and _loads_method(instruction)
    }
    for index, (instruction, line) in enumerate(instructions):
        is_with = _enters(instruction)
        if is_with:
            call, is_plain, is_paired = _call_of(instructions, index), True, True
            expression = _expression_before(instructions, index + 1 - _ENTERED_AFTER)
        elif instruction.argval in names and _loads_method(instruction):
            after = (other for other, _ in instructions[index + 1 :])
            called = next((other for other in after if other.opname.startswith("CALL")), None)
            if called is None:
                continue
            call = called
            is_plain = call is instructions[index + 1][0] and call.arg == 0
            expression = _expression_before(instructions, index)
            is_paired = expression != "" and expression in released
        else:
            continue
        start, end = instruction.offset, call.offset
        found = Call(code, start, end, line, is_with, is_plain, is_paired, expression)
        # A frame at the instruction may be at an offset in the cache after it (from 3.11 on), or at
        # an EXTENDED_ARG before it (up to 3.10).
        while start and code.co_code[start - 2] == dis.EXTENDED_ARG:
            start -= 2
        following = instructions[index + 1][0].offset if index + 1 < len(instructions) else 0
        for offset in range(start, max(following, instruction.offset + 1)):
            calls[offset] = found
    return calls


# From 3.11 on, a table says which handler covers which instructions


def _inside_table(looked: _Looked, offset: int) -> Tuple[With, ...]:
    table = _exception_table(looked.code)
    handlers: Set[int] = set()
    target = _handler(table, offset)
    while target >= 0 and target not in handlers:
        handlers.add(target)
        # A handler that covers this one also covers the block that leads to this one.
        target = _handler(table, target)
    found = (block for block in looked.withs.values() if _handler(table, block.start) in handlers)
    return tuple(sorted(found, reverse=True))


def _handler(table: List[Tuple[int, int, int]], offset: int) -> int:
    """The offset of the handler that covers an instruction; -1 if none does."""
    return next((handler for start, end, handler in table if start <= offset < end), -1)


def _exception_table(code: Any) -> List[Tuple[int, int, int]]:
    """(start, end, handler) in bytes.

    The format is described in CPython's ``Objects/exception_handling_notes.txt``.
    """
    data: Iterator[int] = iter(code.co_exceptiontable)

    def number() -> int:
        byte = next(data)
        value = byte & 63
        while byte & 64:
            byte = next(data)
            value = value << 6 | (byte & 63)
        return value

    entries = []
    try:
        while True:
            start = number() * 2
            end = start + number() * 2
            entries.append((start, end, number() * 2))
            number()
    except StopIteration:
        return entries


# Up to 3.10, instructions push and pop blocks, which are followed along every path


def _inside_blocks(looked: _Looked, offset: int) -> Tuple[With, ...]:
    instructions = [instruction for instruction, _ in _instructions(looked.code)]
    # The offset of an instruction that is left out leads to the one after it: jumps lead to an
    # EXTENDED_ARG, and a frame can be at one.
    index_of: Dict[int, int] = {}
    for index, instruction in enumerate(instructions):
        before = instruction.offset
        while before >= 0 and before not in index_of:
            index_of[before] = index
            before -= 2
    sought = index_of.get(offset)
    seen: Set[Tuple[int, Tuple[int, ...]]] = set()
    at_offset: List[Tuple[int, ...]] = []
    todo: List[Tuple[int, Tuple[int, ...]]] = [(0, ())]
    while todo:
        state = todo.pop()
        if state in seen or state[0] >= len(instructions):
            continue
        seen.add(state)
        index, blocks = state
        instruction = instructions[index]
        name = instruction.opname
        if index == sought:
            at_offset.append(blocks)
        pushes = name.startswith("SETUP_") and name != "SETUP_ANNOTATIONS"
        if instruction.opcode in dis.hasjrel or instruction.opcode in dis.hasjabs:
            todo.append((index_of[instruction.argval], blocks))
        if pushes:
            blocks = (*blocks, instruction.offset)
        elif name == "POP_BLOCK":
            blocks = blocks[:-1]
        if name not in _NEVER_CONTINUES:
            todo.append((index + 1, blocks))
    if not at_offset:
        return ()
    found = set(at_offset[0]).intersection(*at_offset[1:])
    return tuple(sorted((looked.withs[at] for at in found if at in looked.withs), reverse=True))
