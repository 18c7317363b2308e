"""What finalizers need in order to run."""

from __future__ import annotations

import gc
import sys
from typing import Callable

IS_PYPY = sys.implementation.name == "pypy"
#: On PyPy a finalizer runs in whichever thread comes first when it is due: seldom another one than
#: that which has called the collector, as the one that pytest-xdist waits in. Then there is no
#: portal, and what is to be seen is not seen.
_ATTEMPTS = 20 if IS_PYPY else 1


def collect() -> None:
    """What is unreachable and young, which takes PyPy several rounds."""
    if IS_PYPY:
        for _ in range(3):
            gc.collect()
    else:
        gc.collect(1)


def until(seen: Callable[[], object], attempt: Callable[[], object]) -> None:
    """Have finalizers run until one has done so here."""
    for _ in range(_ATTEMPTS):
        attempt()
        if seen():
            break
