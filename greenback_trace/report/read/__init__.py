"""Traces, or a Prometheus server -> numbers."""
