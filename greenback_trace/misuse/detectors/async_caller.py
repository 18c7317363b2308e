"""Bridges in an ``async def``, which could use ``await``."""

from __future__ import annotations

import inspect
from types import FrameType
from typing import Optional

from ...count.sites import RUNTIME, outside_adapters
from ..evidence.names import name_of_code
from ..finding import Finding

KIND = "async_caller"
_ASYNC = inspect.CO_COROUTINE | inspect.CO_ASYNC_GENERATOR
#: Comprehensions are functions of their own before CPython 3.12. In an async function they can have
#: an ``await``.
_COMPREHENSIONS = ("<listcomp>", "<setcomp>", "<dictcomp>")


def find(frame: FrameType) -> Optional[Finding]:
    """The misuse of a bridge whose caller could have awaited; None if it could not.

    The caller is the code that called `greenback.await_` or one of greenback's adapters.

    Args:
        frame: The frame that called `greenback.await_`.
    """
    site = outside_adapters(frame)
    around: Optional[FrameType] = site
    if site.f_code.co_name in _COMPREHENSIONS:
        around = site.f_back
    if around is None or not around.f_code.co_flags & _ASYNC:
        return None
    return Finding(
        KIND,
        site,
        f"{name_of_code(around)}, which is an async def",
        ("the function that bridges is a coroutine function or an asynchronous generator",),
    )


def is_sync(frame: FrameType) -> bool:
    """Whether `find` finds nothing for the code of *frame*, wherever it is called from."""
    code = frame.f_code
    return (
        not code.co_flags & _ASYNC
        and code.co_name not in _COMPREHENSIONS
        and not code.co_filename.startswith(RUNTIME)
    )
