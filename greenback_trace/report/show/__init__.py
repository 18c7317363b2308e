"""Numbers -> tables for a terminal, or JSON."""
