"""Notice that the application shuts its tracer provider down.

An SDK tells only span processors of that. After it, the SDK's own processors drop each further
span, or log a warning for each.
"""

from __future__ import annotations

from typing import Callable, Optional

from opentelemetry.sdk.trace import SpanProcessor


class Watch(SpanProcessor):
    """A span processor that tells of the shutdown. It cannot be removed from its provider."""

    def __init__(self) -> None:
        #: Called at the shutdown. Written when tracing is enabled or disabled.
        self.at_shutdown: Optional[Callable[[], None]] = None

    def force_flush(self, timeout_millis: int = 30_000) -> bool:
        """Return True. The inherited method of older SDKs returns None, which means a failure."""
        return True

    def shutdown(self) -> None:
        tell = self.at_shutdown
        if tell is not None:
            tell()
