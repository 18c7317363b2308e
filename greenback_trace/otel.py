"""The instrumentation that ``opentelemetry-instrument`` finds by its entry point."""

from __future__ import annotations

import os
from dataclasses import replace
from typing import Any, Collection

from opentelemetry.instrumentation.instrumentor import (  # type: ignore[attr-defined, unused-ignore]
    BaseInstrumentor,
)

from ._activate import disable, enable
from ._config import Config


class GreenbackInstrumentor(BaseInstrumentor):  # type: ignore[misc, unused-ignore]
    """``instrument()`` enables tracing, and ``uninstrument()`` disables it.

    ``instrument(tracer_provider=None, meter_provider=None)`` sends telemetry to these providers.
    Without any, telemetry goes to ``GREENBACK_TRACE_FILE`` or to the global providers. The settings
    are those of the environment, as for `greenback_trace.enable`, with two differences: an unset
    ``GREENBACK_TRACE`` means on, and with ``0`` or ``off``, ``instrument()`` does nothing.
    """

    def instrumentation_dependencies(self) -> Collection[str]:
        """No other packages: greenback is in the same distribution."""
        return ()

    def _instrument(self, **kwargs: Any) -> None:
        config = Config.from_env()
        if config.mode == "off":
            if os.environ.get("GREENBACK_TRACE", "").strip().lower() in ("0", "off"):
                return
            config = replace(config, mode="on")
        enable(
            config=config,
            tracer_provider=kwargs.get("tracer_provider"),
            meter_provider=kwargs.get("meter_provider"),
        )

    def _uninstrument(self, **kwargs: Any) -> None:
        disable()
