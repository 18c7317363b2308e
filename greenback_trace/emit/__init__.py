"""To OpenTelemetry and structlog: metrics, spans, events of the log."""
