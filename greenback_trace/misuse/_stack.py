"""The frames that a running bridge was called from."""

from __future__ import annotations

from types import FrameType
from typing import Any, FrozenSet, List, Optional

from greenlet import getcurrent

from greenback._stackscope import _GREENLET_START
from greenback._state import Worker
from greenback._work import work

#: The ids of the code that a greenlet's frames end with: below is what runs greenlets, nothing of
#: the program's. Hashing a code object takes longer than all else that is done with a frame.
OUTERMOST: FrozenSet[int] = frozenset(
    id(code) for code in (work.__code__, _GREENLET_START) if code is not None
)


def frames_from(frame: FrameType) -> List[FrameType]:
    """The frames from *frame* out to the portal's outermost one, innermost first.

    Greenlets that the task's code has started itself are part of the stack: what they were
    started from comes after them.

    Args:
        frame: A frame of the greenlet that is running now.
    """
    frames: List[FrameType] = []
    here: Any = getcurrent()
    outer: Optional[FrameType] = frame
    while True:
        while outer is not None and id(outer.f_code) not in OUTERMOST:
            frames.append(outer)
            outer = outer.f_back
        if type(here) is Worker or here.parent is None:
            return frames
        here = here.parent
        outer = here.gr_frame
