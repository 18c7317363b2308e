"""A trace and the sources -> which functions to make ``async def``."""
