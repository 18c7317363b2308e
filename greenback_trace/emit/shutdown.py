"""When the application shuts its tracer provider down, of which an SDK tells span processors only.

Its own ones do the same for each further span: nothing, or log a warning.
"""

from __future__ import annotations

from typing import Callable, Optional

from opentelemetry.sdk.trace import SpanProcessor


class Watch(SpanProcessor):
    """Added to a provider once, since it cannot be taken away."""

    def __init__(self) -> None:
        #: Whom to tell. Written by whoever enables tracing, or disables it.
        self.at_shutdown: Optional[Callable[[], None]] = None

    def force_flush(self, timeout_millis: int = 30_000) -> bool:
        """Have nothing to flush. That of older SDKs returns None, which is taken for a failure."""
        return True

    def shutdown(self) -> None:
        tell = self.at_shutdown
        if tell is not None:
            tell()
