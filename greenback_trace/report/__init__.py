"""Exported traces -> what a person wants to know of them."""
