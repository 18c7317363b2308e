"""Portals that child tasks inherit, and the task factory that gives them theirs."""
