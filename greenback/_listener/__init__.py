"""The seam: the listener that the runtime calls, instruments, and failures in either."""
