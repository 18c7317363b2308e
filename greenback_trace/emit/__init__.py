"""Telemetry for OpenTelemetry and structlog: metrics, spans and log events."""
