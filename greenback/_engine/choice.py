"""Which engine: the one in C, or the one in Python."""

from __future__ import annotations

import importlib
import os
import warnings
from typing import Any

#: The parts of which each engine has its own. `GREENBACK_PURE` can name some of them: then these
#: are the ones in Python, and the others are the ones in C. That is for tests, and for finding out
#: which part a bug is in.
PARTS = ("await_", "begin", "drive", "work")

#: The module of the engine in C; None if all parts are those in Python.
compiled: Any = None

_pure = {part.strip() for part in os.environ.get("GREENBACK_PURE", "").split(",")} - {"", "0"}

if _pure <= set(PARTS) and _pure != set(PARTS):
    try:
        # `from . import _compiled` would raise another error where there is none.
        compiled = importlib.import_module("greenback._engine._compiled")
    except ModuleNotFoundError:
        pass  # it was installed without a C compiler, or for a Python that the engine does not know
    except ImportError as error:
        warnings.warn(
            f"greenback runs its engine in Python, since the one in C cannot be loaded: {error}",
            RuntimeWarning,
            stacklevel=2,
        )


def has_compiled(part: str) -> bool:
    """Whether the part that runs is the one in C."""
    return compiled is not None and part not in _pure


#: ``"c"`` or ``"python"``; public, as `greenback.engine`.
engine: str = "python" if compiled is None else "c"
