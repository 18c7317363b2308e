"""The program at this moment: stacks, stalls, and the socket."""
