"""To a file: the embedded pipeline, and when it writes."""
