"""Raising an exception at each instruction of a package in turn, as a signal handler might."""

from __future__ import annotations

import dis
import os
import platform
import sys
from types import FrameType, ModuleType
from typing import Any, Callable, Dict, FrozenSet, Optional, Tuple

from typing_extensions import Self

from greenback._shims.lookalike import is_of_lookalike

#: PyPy calls trace functions for lines only.
_EVENT = "line" if platform.python_implementation() == "PyPy" else "opcode"
#: Instructions at which the interpreter runs no signal handlers, so nothing can be raised: at a
#: suspended `await`, where any coroutine would lose the exception; between two instructions that
#: only move values; and, up to Python 3.10, where a `try` or `with` begins.
_SAFE: FrozenSet[str] = frozenset(
    {
        "BEFORE_ASYNC_WITH",
        "END_SEND",
        "JUMP_BACKWARD_NO_INTERRUPT",
        "JUMP_FORWARD",
        "NOP",
        "NOT_TAKEN",
        "POP_EXCEPT",
        "PUSH_EXC_INFO",
        "RESUME",
        "RETURN_CONST",
        "RETURN_VALUE",
        "SEND",
        "SETUP_FINALLY",
        "SETUP_WITH",
        "YIELD_FROM",
        "YIELD_VALUE",
    }
)


class Interruption(BaseException):
    """Like `KeyboardInterrupt`, but event loops leave it to the task."""


def raise_interruption() -> None:
    raise Interruption


class Interrupt:
    """A context manager that raises once, at one of the instructions of some packages.

    Instructions between `begin` and `end` count.

    Args:
        number: The number of the instruction, from 1 on.
        packages: The packages.
        spared: Names of functions in which nothing is raised.
        handler: The function that raises. By default, it raises `Interruption`.
        repeats: How often the same instruction counts at most; by default each time.
    """

    def __init__(
        self,
        number: int,
        *packages: ModuleType,
        spared: Tuple[str, ...] = (),
        handler: Callable[[], object] = raise_interruption,
        repeats: Optional[int] = None,
    ) -> None:
        self._repeats = repeats
        self._met: Dict[Tuple[int, int], int] = {}
        self._handler = handler
        self._left = number
        self._directories = tuple(
            os.path.join(os.path.dirname(str(package.__file__)), "") for package in packages
        )
        self._spared = spared
        self._is_on = False
        #: The place where it raised: the function, the line and the instruction.
        self.where: Optional[Tuple[str, int, str]] = None

    def __enter__(self) -> Self:
        self._before = sys.gettrace()
        sys.settrace(self._trace)
        return self

    def __exit__(self, *exc_info: object) -> None:
        sys.settrace(self._before)

    def begin(self) -> None:
        self._is_on = self.where is None

    def end(self) -> None:
        self._is_on = False

    def _trace(self, frame: FrameType, event: str, argument: Any) -> Optional[Callable[..., Any]]:
        code = frame.f_code
        is_ours = code.co_filename.startswith(self._directories) or is_of_lookalike(frame)
        if not is_ours or code.co_name in self._spared:
            return None
        frame.f_trace_opcodes = _EVENT == "opcode"
        return self._trace_inside

    def _trace_inside(
        self, frame: FrameType, event: str, argument: Any
    ) -> Optional[Callable[..., Any]]:
        if event == _EVENT and self._is_on:
            name = dis.opname[frame.f_code.co_code[frame.f_lasti]] if event == "opcode" else ""
            if name not in _SAFE and self._counts(frame):
                self._left -= 1
                if self._left == 0:
                    self.where = frame.f_code.co_name, frame.f_lineno, name
                    self._is_on = False
                    self._handler()
        return self._trace_inside

    def _counts(self, frame: FrameType) -> bool:
        if self._repeats is None:
            return True
        place = id(frame.f_code), frame.f_lasti
        met = self._met[place] = self._met.get(place, 0) + 1
        return met <= self._repeats
