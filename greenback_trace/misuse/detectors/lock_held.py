"""Bridges that suspend while their task holds a lock of `threading`.

The task holds a lock if one of its frames is inside a ``with`` of it. The lock was noted when the
block was entered, or the expression is evaluated again. The task also holds the locks of its
confirmed claims: of ``acquire()``, and of a ``with`` in a suspended generator.
"""

from __future__ import annotations

import threading
from types import CodeType, FrameType
from typing import List, Optional, Sequence

from greenback._frames import frame_around_portal, frames_from

from ...count.sites import ASYNC, RUNTIME
from ..evidence.blocks import With, inside, with_blocks
from ..evidence.locks import claims
from ..evidence.locks.claims import Book, Claim, RLockType
from ..evidence.locks.lookup import lock_of
from ..evidence.prompt import inside_prompt
from ..finding import Finding

_KIND = "lock_held"


def held(frame: FrameType, task: object) -> Optional[Finding]:
    """The lock that *task* holds; None if it holds none, or if that is uncertain.

    Args:
        frame: The innermost frame of the portal. The detector looks at it and its callers, and at
            the async functions around the portal.
        task: The running task, whose bridge is about to suspend.
    """
    found = _held(frame, task, None)
    if found is not None:
        asked = inside_prompt(frame)
        if asked is not None:  # locks that the program or the debugger holds meanwhile do not count
            return _held(frame, task, asked)
    return found


def _held(
    frame: FrameType, task: object, among: Optional[Sequence[FrameType]]
) -> Optional[Finding]:
    """The same, but only locks acquired in one of the frames *among*, unless that is None."""
    for outer in with_blocks(frame):
        if among is not None and outer not in among:
            continue
        for block in inside(outer):
            found = _by_with(outer, block)
            if found is not None:
                return found
    for book, claim in claims.confirmed(task):
        if among is None:
            return _by_acquire(book, claim, [*frames_from(frame), *_around_portal()])
        if _frame_of(claim, among) is not None:
            return _by_acquire(book, claim, among)
    return None


def _around_portal() -> List[FrameType]:
    """The frames of the task's async functions around the portal, innermost first."""
    frames: List[FrameType] = []
    frame = frame_around_portal()
    while frame is not None:
        code = frame.f_code
        # The first function that is neither async nor greenback's belongs to the event loop.
        if code.co_flags & ASYNC:
            frames.append(frame)
        elif not code.co_filename.startswith(RUNTIME):
            break
        frame = frame.f_back
    return frames


def _by_with(frame: FrameType, block: With) -> Optional[Finding]:
    noted = claims.entered(frame, block)
    if noted is not None:
        book, name = noted
        if not claims.is_locked(book):
            return None
        made = book.made
        how = "it was noted when the block was entered"
    else:
        name = _evaluated_again(frame, block)
        if not name:
            return None
        made = ""
        how = f"{block.expression!r} evaluates to it"
    place = f"{frame.f_code.co_filename}:{block.line}"
    how = f"{frame.f_code.co_name} is inside the 'with' block at {place}, and {how}."
    return _finding(frame, name, made, place, how)


def _evaluated_again(frame: FrameType, block: With) -> str:
    """The type of the lock that the expression of a ``with`` refers to, if it is held; or empty."""
    found = lock_of(frame, block.expression)
    if found is None or issubclass(type(found.lock), threading.Semaphore):
        return ""
    is_held = found.lock._is_owned() if type(found.lock) is RLockType else found.lock.locked()
    return found.name if is_held else ""


def _frame_of(claim: Claim, frames: Sequence[FrameType]) -> Optional[FrameType]:
    """Which of the frames made a claim."""
    code: CodeType = claim.call.code
    return next((each for each in frames if id(each) == claim.frame and each.f_code is code), None)


def _by_acquire(book: Book, claim: Claim, frames: Sequence[FrameType]) -> Finding:
    code: CodeType = claim.call.code
    place = f"{code.co_filename}:{claim.call.line}"
    where = f"in {code.co_name} at {place}"
    if claim.call.is_with:
        where = f"by the 'with' block at {place} of the generator {code.co_name}"
    return _finding(
        _frame_of(claim, frames) or frames[0],
        claim.name,
        book.made,
        place,
        f"This task has acquired it {where}, and nobody has since.",
    )


def _finding(frame: FrameType, name: str, made: str, place: str, how: str) -> Finding:
    origin = f" (made at {made})" if made else ""
    return Finding(
        _KIND, frame, f"{name}{origin}, acquired at {place}", (how, "It is locked now."), False
    )
