"""Shims: the coroutines that stand in tasks in place of the tasks' own."""
