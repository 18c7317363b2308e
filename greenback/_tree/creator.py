"""Frames that show the program's own line instead of greenback's.

asyncio's debug mode and aiomonitor read the stack to learn where a task was created. greenback's
task factory is in that stack. So the frame that calls the previous factory carries the function
name, file and line of the program's code that creates the task.
"""

from __future__ import annotations

import ast
import os
import sys
from types import CodeType, FrameType, FunctionType
from typing import Any, Callable, Dict, List, Optional, Tuple

from .._folder import FOLDER

#: How many lines of the program are remembered.
_LINES_KEPT = 1_024

# By the id of a code object and a line. The code object is kept, so that no other one gets its id.
# Any thread writes here; two threads write equal entries.
_made: Dict[Tuple[int, int], Tuple[CodeType, FunctionType]] = {}
# The globals of each `Template`, added when it is made.
_globals: List[Dict[str, Any]] = []


def is_creator(frame: FrameType) -> bool:
    """Whether a `Template` made the frame's function, so that it only looks like the program's."""
    return any(frame.f_globals is each for each in _globals)


class Template:
    """A function that can be made to look like any line of the program.

    Args:
        source: Defines the function, at the top level.
        names: The globals that it needs besides builtins.
        skipped: A directory whose code does not count as the program's, just as greenback's own.
    """

    __slots__ = ("_code", "_globals", "_skipped")

    def __init__(self, source: str, names: Dict[str, Any], skipped: str) -> None:
        self._skipped = (FOLDER, os.path.join(skipped, ""))
        tree = ast.parse(source)
        for node in ast.walk(tree):
            if hasattr(node, "lineno"):
                node.lineno = node.end_lineno = 1  # type: ignore[attr-defined]
                node.col_offset = node.end_col_offset = 0  # type: ignore[attr-defined]
        self._globals: Dict[str, Any] = {"__name__": __name__, "__package__": __package__, **names}
        before = set(self._globals)
        exec(compile(tree, __file__, "exec"), self._globals)
        (name,) = set(self._globals) - before - {"__builtins__"}
        self._code: CodeType = self._globals[name].__code__
        _globals.append(self._globals)

    def at_creator(self, frame: Optional[FrameType]) -> Callable[..., Any]:
        """The function, with the name, file and line of the program's innermost frame.

        Args:
            frame: The frame at which to begin, going outwards.
        """
        while frame is not None and frame.f_code.co_filename.startswith(self._skipped):
            frame = frame.f_back
        if frame is None:
            return FunctionType(self._code, self._globals)
        code, line = frame.f_code, frame.f_lineno
        found = _made.get((id(code), line))
        if found is None or found[0] is not code:
            # Any, since type checkers assume Python 3.8, where a code object has no qualified name.
            own: Any = code
            names = {"co_qualname": own.co_qualname} if sys.version_info >= (3, 11) else {}
            like_it = self._code.replace(
                co_name=code.co_name,
                co_filename=code.co_filename,
                co_firstlineno=line or code.co_firstlineno,
                **names,
            )
            if len(_made) >= _LINES_KEPT:
                _made.clear()
            found = _made[id(code), line] = (code, FunctionType(like_it, self._globals))
        return found[1]
