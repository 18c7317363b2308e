"""A program that runs -> what it does now."""
