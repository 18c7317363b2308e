"""What frames, bytecode and source tell about how a function was called, and about its locks."""
