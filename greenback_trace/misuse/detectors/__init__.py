"""The detectors: one module for each kind of misuse."""
