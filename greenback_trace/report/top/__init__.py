"""A running program -> what it does now."""
