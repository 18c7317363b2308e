"""To who watches now: stacks, stalls, and the socket."""
