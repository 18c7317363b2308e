"""Waiting for another thread or process that sends no signal."""

from __future__ import annotations

import time
from typing import Callable


def wait_until(is_so: Callable[[], object], seconds: float = 60) -> None:
    """Call *is_so* until it is true; fail after *seconds*."""
    end = time.monotonic() + seconds
    while not is_so():
        assert time.monotonic() < end, f"not so after {seconds} s"
        time.sleep(0.01)
