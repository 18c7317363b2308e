"""A trace -> the formats of other tools, or an HTML page."""
