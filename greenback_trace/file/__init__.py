"""The trace file: the embedded pipeline, its lines, and the end of event loops."""
