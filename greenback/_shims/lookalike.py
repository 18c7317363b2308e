"""Lookalikes: shims that look from outside like the task's own coroutine.

``python -m asyncio ps`` and other tools of Python 3.14 read the memory of a process: the coroutine
object in a task, and its frame. They call nothing. So a task with a portal must hold a coroutine
object whose frame has the name, the file and the line of the task's own coroutine.

A lookalike's code object has the name and the file of the own code object. Its lines are fixed,
while the own coroutine waits at one line after another. So a lookalike has one ``await`` for each
line of the own code, and moves to another ``await`` when the line has changed. A suspended
coroutine shows the line of the RESUME instruction after its ``await``. Only these RESUMEs have the
lines of the own code; all other instructions have the line of its ``def``. No line ever begins with
a RESUME, so debuggers and coverage see nothing but the line of the ``def`` run in a lookalike.
"""

from __future__ import annotations

import dis
import sys
from types import CodeType, CoroutineType, FrameType, FunctionType
from typing import Any, Callable, Dict, Iterator, List, NamedTuple, Optional

from .._engine.state import Raised
from .._engine.work import MOVED, context_of, hide_this_frame, set_context

#: Whether such tools exist for this Python, and its instructions are the ones expected here.
AVAILABLE = sys.implementation.name == "cpython" and sys.version_info >= (3, 14)
#: A function with more lines than this gets no lookalike.
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
    #: Lengths in code units: first of the code up to and with the first RESUME; then, in turns, of
    #: the code before the RESUME of the next await, and of that RESUME.
    units: List[int]


class Lookalike:
    """The lookalikes of one code object's coroutines.

    Attributes:
        function: Takes an awaitable and returns a lookalike, which awaits it again for as long as
            the result is `MOVED`.
        places: For each line of the code, the number of the function's await with that line.
    """

    __slots__ = ("function", "of", "places")

    def __init__(self, of: CodeType, function: FunctionType, places: Dict[int, int]) -> None:
        self.of = of  # kept, so that no other code object gets the same id
        self.function = function
        self.places = places


class Shown:
    """Where a lookalike shows its task to wait.

    Attributes:
        at: The number of the await.
        trap: The trap of the task, while the lookalike moves from one await to another.
    """

    __slots__ = ("_instruction", "_places", "at", "trap")

    def __init__(self, lookalike: Lookalike) -> None:
        self.at = 0
        self.trap: Any = None
        self._places = lookalike.places
        self._instruction = -1  # the instruction that was looked up last

    def must_move(self, coroutine: Any) -> bool:
        """Look up the line of the task's own coroutine. Returns whether it has changed."""
        frame = coroutine.cr_frame
        if frame is None or frame.f_lasti == self._instruction:
            return False
        self._instruction = frame.f_lasti
        at = self._places.get(frame.f_lineno, self.at)
        if at == self.at:
            return False
        self.at = at
        return True


# By the id of the code. Any thread writes here; two threads write equal entries.
_lookalikes: Dict[int, Lookalike] = {}
# Called with the function of each lookalike. `for_each_lookalike` writes here, from any thread.
_observers: List[Callable[[FunctionType], Any]] = []
# By the number of awaits, a power of two. Any thread writes here; two threads write equal entries.
_templates: Dict[int, _Template] = {}


def lookalike_of(code: CodeType) -> Optional[Lookalike]:
    """The lookalike for coroutines that have *code*; None if there can be none."""
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
    """Call *observer* with the function of each lookalike, now and when more are made."""
    _observers.append(observer)
    for each in list(_lookalikes.values()):
        observer(each.function)


def is_of_lookalike(frame: FrameType) -> bool:
    """Whether *frame* is a lookalike's, and not the program's."""
    return frame.f_globals is _GLOBALS


def steps_of(coroutine: Any) -> Any:
    """The `Steps` that a lookalike awaits; None if *coroutine* is no lookalike, or is over."""
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
    # Any, since type checkers assume Python 3.8, where a code object has no qualified name.
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
    """Source that reaches the await number ``at`` by halving, from *start* up to before *stop*."""
    space = " " * indent
    if stop - start == 1:
        yield f"{space}result = await steps"
        return
    middle = (start + stop) // 2
    yield f"{space}if at < {middle}:"
    yield from _awaits(start, middle, indent + 1)
    yield f"{space}else:"
    yield from _awaits(middle, stop, indent + 1)


#: The kind of an entry without columns in a table of lines.
_LINE_ALONE = 13


def _line_table(units: List[int], first: int, lines: List[int]) -> bytes:
    """A table that gives the RESUME after the nth await the nth line, and all else the first line.

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
