"""Portals that child tasks inherit, and the task factory that opens them on asyncio."""
