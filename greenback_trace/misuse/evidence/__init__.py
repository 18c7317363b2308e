"""What frames, bytecode and sources say of how a function was called."""
