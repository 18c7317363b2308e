"""The Python engine: what is kept, what runs in a worker, and the bridges between."""
