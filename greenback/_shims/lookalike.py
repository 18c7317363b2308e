"""Coroutines that look from outside like the one that a task was made for.

``python -m asyncio ps`` and other tools of Python 3.14 read the memory of a process: the coroutine
object in a task, and its frame. They call nothing, so what stands in a task with a portal must be
a coroutine object, whose frame has the name, the file and the line of the task's own.

A coroutine of ours gets there by a code object with the own one's name and file. Lines are fixed in
a code object, and the own coroutine waits now here, now there; so the code has one ``await`` for
each line of it, and goes on at another when the line has changed. The line of a coroutine that is
suspended is that of the RESUME instruction after its ``await``. Only these have the lines: no line
ever begins with them, so that debuggers and coverage see nothing of the program's run in here but
the line of its ``def``, which all the rest has.
"""

from __future__ import annotations

import dis
import sys
from types import CodeType, CoroutineType, FrameType, FunctionType
from typing import Any, Callable, Dict, Iterator, List, NamedTuple, Optional

from .._engine.state import Raised
from .._engine.work import MOVED, context_of, hide_this_frame, set_context

#: Whether there are tools that need them, and the instructions are those that this is made for.
AVAILABLE = sys.implementation.name == "cpython" and sys.version_info >= (3, 14)
#: Functions with more lines than this get none.
_MOST_LINES = 4_096
_CODES_KEPT = 1_024

_TEMPLATE = """
async def lookalike(steps):
    while True:
        try:
            while True:
                at = steps.shown.at
{awaits}
                if result is not MOVED:
                    break
            break
        except BaseException as error:
            if steps.take(error):
                continue
            steps = None  # what a signal handler raised has its frame, and so this one
            hide_this_frame(error)
            raise
    if type(result) is not Raised:
        return result
    error = result.error
    del steps, result
    context = context_of(error)
    try:
        raise error
    except BaseException:
        set_context(error, context)
        hide_this_frame(error)
        raise
    finally:
        del error, context
"""
_GLOBALS = {
    "__name__": __name__,
    "__package__": __package__,
    "MOVED": MOVED,
    "Raised": Raised,
    "context_of": context_of,
    "set_context": set_context,
    "hide_this_frame": hide_this_frame,
}


class _Template(NamedTuple):
    code: CodeType
    #: How many code units the beginning has, up to the first RESUME; and then, in turns, how many
    #: come before the RESUME of an await, and how many that has.
    units: List[int]


class Lookalike:
    """What a code object's coroutines are replaced by.

    Attributes:
        function: Called with an awaitable, makes the coroutine: it awaits that again for as long
            as the answer is `MOVED`.
        places: For each line of the code, which of the function's awaits has that line.
    """

    __slots__ = ("function", "of", "places")

    def __init__(self, of: CodeType, function: FunctionType, places: Dict[int, int]) -> None:
        self.of = of  # such that no other code gets its id
        self.function = function
        self.places = places


class Shown:
    """Where a lookalike shows its task to wait.

    Attributes:
        at: The number of the await.
        trap: What the task waits for, on its way from one await to another.
    """

    __slots__ = ("_instruction", "_places", "at", "trap")

    def __init__(self, lookalike: Lookalike) -> None:
        self.at = 0
        self.trap: Any = None
        self._places = lookalike.places
        self._instruction = -1  # the last one that was looked up

    def must_move(self, coroutine: Any) -> bool:
        """Look where the task's own coroutine is; whether that is at another line than before."""
        frame = coroutine.cr_frame
        if frame is None or frame.f_lasti == self._instruction:
            return False
        self._instruction = frame.f_lasti
        at = self._places.get(frame.f_lineno, self.at)
        if at == self.at:
            return False
        self.at = at
        return True


# By the id of the code. Written by whichever thread comes first: what two write is equal.
_lookalikes: Dict[int, Lookalike] = {}
# Called with the function of each one.
_observers: List[Callable[[FunctionType], Any]] = []
# By the number of awaits, a power of two.
_templates: Dict[int, _Template] = {}


def lookalike_of(code: CodeType) -> Optional[Lookalike]:
    """What takes the place of coroutines that have *code*; None if nothing can."""
    found = _lookalikes.get(id(code))
    if found is None and AVAILABLE:
        found = _make(code)
        if found is not None:
            if len(_lookalikes) >= _CODES_KEPT:
                _lookalikes.clear()
            _lookalikes[id(code)] = found
            for observer in _observers:
                observer(found.function)
    return found


def for_each_lookalike(observer: Callable[[FunctionType], Any]) -> None:
    """Call *observer* with the function of each lookalike that there is or will be."""
    _observers.append(observer)
    for each in list(_lookalikes.values()):
        observer(each.function)


def is_of_lookalike(frame: FrameType) -> bool:
    """Whether a frame with the name of one of the program's functions is of ours."""
    return frame.f_globals is _GLOBALS


def steps_of(coroutine: Any) -> Any:
    """What a lookalike awaits in turns; None if *coroutine* is none, or is over."""
    frame = coroutine.cr_frame if type(coroutine) is CoroutineType else None
    if frame is None or not is_of_lookalike(frame):
        return None
    return frame.f_locals.get("steps")  # the parameter's name in `_TEMPLATE`


def _make(code: CodeType) -> Optional[Lookalike]:
    lines = sorted({line or code.co_firstlineno for _, _, line in code.co_lines()})
    if len(lines) > _MOST_LINES:
        return None
    size = 1 << (len(lines) - 1).bit_length()
    template = _templates.get(size)
    if template is None:
        template = _templates[size] = _template(size)
    # For type checkers that look at Python 3.8, where code has no qualified name.
    own: Any = code
    made: Any = template.code
    replaced = made.replace(
        co_name=code.co_name,
        co_qualname=own.co_qualname,
        co_filename=code.co_filename,
        co_firstlineno=code.co_firstlineno,
        co_linetable=_line_table(template.units, code.co_firstlineno, lines),
    )
    places = {line: place for place, line in enumerate(lines)}
    return Lookalike(code, FunctionType(replaced, _GLOBALS), places)


def _template(size: int) -> _Template:
    awaits = "\n".join(_awaits(0, size, 16))
    namespace: Dict[str, Any] = {}
    exec(_TEMPLATE.format(awaits=awaits), namespace)
    code: CodeType = namespace["lookalike"].__code__
    ends = []
    is_end = False
    for instruction in dis.get_instructions(code):
        if is_end:
            ends.append(instruction.offset)
        is_end = instruction.opname == "RESUME"
        if is_end and ends:
            ends.append(instruction.offset)
    ends.append(len(code.co_code))
    units = [(end - start) // 2 for start, end in zip([0, *ends], ends)]
    return _Template(code, units)


def _awaits(start: int, stop: int, indent: int) -> Iterator[str]:
    """Go to the await number ``at`` by halves."""
    space = " " * indent
    if stop - start == 1:
        yield f"{space}result = await steps"
        return
    middle = (start + stop) // 2
    yield f"{space}if at < {middle}:"
    yield from _awaits(start, middle, indent + 1)
    yield f"{space}else:"
    yield from _awaits(middle, stop, indent + 1)


#: The kind of an entry in a table of lines that has no columns.
_LINE_ALONE = 13


def _line_table(units: List[int], first: int, lines: List[int]) -> bytes:
    """The table by which the RESUME after the nth await has the nth line, and all else the first.

    The format is described in CPython's ``InternalDocs/code_objects.md``.
    """
    table = bytearray()
    previous = first
    wanted = iter([first, *lines])
    for index, left in enumerate(units):
        line = first if index % 2 else next(wanted, first)
        while left > 0:
            length = min(left, 8)
            left -= length
            table.append(0x80 | _LINE_ALONE << 3 | length - 1)
            table += _signed(line - previous)
            previous = line
    return bytes(table)


def _signed(number: int) -> bytes:
    number = -number << 1 | 1 if number < 0 else number << 1
    digits = bytearray()
    while number > 63:
        digits.append(64 | number & 63)
        number >>= 6
    digits.append(number)
    return bytes(digits)
