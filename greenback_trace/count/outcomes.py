"""How bridges end."""

from __future__ import annotations

import builtins
import sys
from typing import Any, Optional

from .counts import Ending
from .names import full_name


def ending_of(error: Optional[BaseException], suspended: bool) -> Ending:
    if error is None:
        return "ok", suspended, None
    if is_cancellation(error):
        return "cancelled", suspended, None
    return "error", suspended, full_name(type(error))


def is_cancellation(error: BaseException) -> bool:
    """Whether *error* is a cancellation of asyncio or Trio, or a group of nothing else."""
    asyncio = sys.modules.get("asyncio")
    # Not isinstance(), which asks what it is given for its class; nor is the error asked below.
    kind = type(error)
    if asyncio is not None and issubclass(kind, asyncio.CancelledError):
        return True
    trio = sys.modules.get("trio")
    if trio is None:
        return False
    if issubclass(kind, trio.Cancelled):
        return True
    group: Any = _group_type()
    if group is None or not issubclass(kind, group):
        return False
    members = vars(group)["exceptions"].__get__(error)  # Trio's nurseries put even one into a group
    return all(map(is_cancellation, members))


def _group_type() -> Any:
    module = builtins if sys.version_info >= (3, 11) else sys.modules.get("exceptiongroup")
    return getattr(module, "BaseExceptionGroup", None)
