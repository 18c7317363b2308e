"""Write the stack of each task of the loop that runs in this thread to stderr."""

import sys

from greenback_trace import format_task


def show_tasks(*_):
    tasks = []
    if "asyncio" in sys.modules:
        import asyncio

        try:
            tasks += asyncio.all_tasks()
        except RuntimeError:
            pass  # no loop of asyncio runs in this thread
    if "trio" in sys.modules:
        import trio

        try:
            found = [trio.lowlevel.current_root_task()]
        except RuntimeError:
            found = []  # and none of Trio
        while found:
            task = found.pop()
            tasks.append(task)
            for nursery in task.child_nurseries:
                found += nursery.child_tasks
    for task in tasks:
        print(format_task(task), file=sys.stderr, flush=True)


if __name__ != "show_tasks":  # it is run, by sys.remote_exec() for instance, and not imported
    show_tasks()
