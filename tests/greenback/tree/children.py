"""Child tasks that tell whether they have a portal."""

from __future__ import annotations

import asyncio
from typing import Any, Callable

import greenback
from greenback import await_


def can_bridge(checkpoint: Callable[[], Any]) -> bool:
    """Whether a suspending bridge works here; asserts that has_portal() agrees."""
    expected = greenback.has_portal()
    try:
        await_(checkpoint())
    except RuntimeError as error:
        assert "create a greenback portal" in str(error)
        works = False
    else:
        works = True
    assert works == expected
    return works


async def child() -> bool:
    """An asyncio task that tells whether it has inherited a portal."""
    return can_bridge(lambda: asyncio.sleep(0))


def factory_of_loop() -> Any:
    return asyncio.get_running_loop().get_task_factory()


class MyTask(asyncio.Task):  # type: ignore[type-arg]
    """A subclass of tasks that an application's factory makes."""
