"""Tasks of asyncio and Trio, told apart here and nowhere else; what bars a bridge where."""
