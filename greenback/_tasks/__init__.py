"""asyncio and Trio: their tasks and loops, and the errors where no bridge can start."""
