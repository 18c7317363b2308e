"""Writes the stack of each task of this thread's running event loop to stderr."""

import sys

from greenback_trace import format_task


def show_tasks(*_):
    tasks = []
    if "asyncio" in sys.modules:
        import asyncio

        try:
            tasks += asyncio.all_tasks()
        except RuntimeError:
            pass  # this thread runs no loop of asyncio
    if "trio" in sys.modules:
        import trio

        try:
            found = [trio.lowlevel.current_root_task()]
        except RuntimeError:
            found = []  # this thread runs no loop of Trio either
        while found:
            task = found.pop()
            tasks.append(task)
            for nursery in task.child_nurseries:
                found += nursery.child_tasks
    for task in tasks:
        print(format_task(task), file=sys.stderr, flush=True)


if __name__ != "show_tasks":  # run as a script, by sys.remote_exec() for instance, not imported
    show_tasks()
