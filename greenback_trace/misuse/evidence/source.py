"""The smallest part of a source file that tells which call a frame is executing.

`executing` parses whole files. A megabyte takes seconds, on the event loop and mostly with the GIL.
One function is enough for the answer, so `Part` hands it less, with the original line numbers:

1. a file of at most `LIMIT` characters as a whole;
2. else the top-level statement around the function;
3. else the function inside the headers around it, since these decide its name and scope;
4. else nothing: the call is then unknown.
"""

from __future__ import annotations

import dis
import linecache
import re
from types import CodeType, FrameType
from typing import TYPE_CHECKING, Any, Iterator, List, Sequence, Tuple

if TYPE_CHECKING:
    from executing import Source
else:
    try:
        from executing import Source
    except ImportError:  # without greenback[debug]
        Source = object

#: Characters that are parsed at once. They take up to 50 ms, once for each function.
LIMIT = 10_000
#: Starts of lines that continue a statement at its own indentation.
_GOES_ON = (")", "]", "}", "else", "elif", "except", "finally", "case")
_HEADER = re.compile(r"\s*(async\s+def|def|class)\b")


class Part(Source):
    """Like `executing.Source`, of a part of a file."""

    @classmethod
    def for_frame(cls, frame: FrameType, use_cache: bool = True) -> Source:
        """The part that *frame* is in; an empty one if it is too long."""
        whole: Any = super().for_frame
        code = frame.f_code
        lines = linecache.getlines(code.co_filename, frame.f_globals)
        if sum(map(len, lines)) <= LIMIT:
            return whole(frame)  # type: ignore[no-any-return]
        last = max([frame.f_lineno or 0, *_lines_of(code)])
        first = code.co_firstlineno
        if code.co_name == "<module>":
            first = last = frame.f_lineno or first
        for start, end, headers in _parts(lines, first, last):
            wanted = [*headers, *range(start, end)]
            if sum(len(lines[number]) for number in wanted) > LIMIT:
                continue
            part = ["\n"] * end
            for number in wanted:
                part[number] = lines[number]
            source: Source = cls._for_filename_and_lines(code.co_filename, tuple(part))
            if source.tree is not None:
                return source
        return cls._for_filename_and_lines(code.co_filename, ())


def _lines_of(code: CodeType) -> Iterator[int]:
    """The line numbers of a code object, those of the functions in it included."""
    yield from (line for _, line in dis.findlinestarts(code) if line)
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _lines_of(constant)


def _parts(lines: Sequence[str], first: int, last: int) -> Iterator[Tuple[int, int, List[int]]]:
    """The parts to try: the first line, the line after the last, and the headers before them.

    Lines are given as indices, from 0 on.

    Args:
        lines: The lines of the file.
        first: The number of the line in which the code begins.
        last: The number of the last line that certainly belongs to the code.
    """
    here = min(first, len(lines)) - 1
    start = here
    while start > 0 and not _begins(lines[start], 0):
        start -= 1
    yield start, _end(lines, last, 0), []
    headers = []
    indent = _indent(lines[here])
    for number in range(here - 1, -1, -1):
        if _HEADER.match(lines[number]) and _indent(lines[number]) < indent:
            indent = _indent(lines[number])
            headers.append(number)
            if not indent:
                break
    yield here, _end(lines, last, _indent(lines[here])), headers[::-1]


def _end(lines: Sequence[str], last: int, indent: int) -> int:
    """The index of the next line that begins a statement at *indent* or further out."""
    end = last
    while end < len(lines) and not _begins(lines[end], indent):
        end += 1
    return end


def _begins(line: str, indent: int) -> bool:
    text = line.strip()
    return bool(
        text and text[0] != "#" and _indent(line) <= indent and not text.startswith(_GOES_ON)
    )


def _indent(line: str) -> int:
    return len(line) - len(line.lstrip())
