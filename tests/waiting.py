"""Waiting for what another thread or process does, of which it gives no sign."""

from __future__ import annotations

import time
from typing import Callable


def wait_until(is_so: Callable[[], object], seconds: float = 60) -> None:
    """Ask again and again, and fail after so many seconds."""
    end = time.monotonic() + seconds
    while not is_so():
        assert time.monotonic() < end, f"not so after {seconds} s"
        time.sleep(0.01)
