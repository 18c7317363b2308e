"""Tracing as an instrumentation of OpenTelemetry, as ``opentelemetry-instrument`` finds it."""

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
    """Enables tracing with ``instrument()``, and disables it with ``uninstrument()``.

    ``instrument(tracer_provider=None, meter_provider=None)`` sends everything to these providers;
    to the global ones, or to ``GREENBACK_TRACE_FILE``, where neither is given. The environment
    says what is traced, as for `greenback_trace.enable`, except that ``GREENBACK_TRACE`` is on
    when it is unset, and that nothing is done when it is ``0`` or ``off``.
    """

    def instrumentation_dependencies(self) -> Collection[str]:
        """None: greenback comes in one distribution with this."""
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
