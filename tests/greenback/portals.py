"""Ways to call a sync function in a portal, for the tests."""

from __future__ import annotations

from typing import Any, Callable

import greenback


async def in_run_sync(sync_fn: Callable[[], Any]) -> Any:
    return await greenback.with_portal_run_sync(sync_fn)


async def in_run(sync_fn: Callable[[], Any]) -> Any:
    async def inside() -> Any:
        return sync_fn()

    return await greenback.with_portal_run(inside)


async def in_task(sync_fn: Callable[[], Any]) -> Any:
    await greenback.ensure_portal()
    return sync_fn()
