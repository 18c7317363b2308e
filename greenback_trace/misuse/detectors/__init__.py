"""One module for each kind of misuse."""
