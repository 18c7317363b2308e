"""Makes finalizers run."""

from __future__ import annotations

import gc
import sys
from typing import Callable

IS_PYPY = sys.implementation.name == "pypy"
#: On PyPy a finalizer that is due runs in the next thread that runs. That is seldom another thread
#: than the one that called the collector, such as the one in which pytest-xdist waits. There is no
#: portal there, and the test sees nothing.
_ATTEMPTS = 20 if IS_PYPY else 1


def collect() -> None:
    """Collects young garbage, which takes PyPy several rounds."""
    if IS_PYPY:
        for _ in range(3):
            gc.collect()
    else:
        gc.collect(1)


def until(seen: Callable[[], object], attempt: Callable[[], object]) -> None:
    """Makes finalizers run until one has run in this thread."""
    for _ in range(_ATTEMPTS):
        attempt()
        if seen():
            break
