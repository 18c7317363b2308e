"""What stands under a task in place of its coroutine."""
