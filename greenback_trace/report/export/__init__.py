"""A trace -> the formats of other tools, and a page."""
