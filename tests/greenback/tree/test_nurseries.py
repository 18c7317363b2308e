"""Portals that children in Trio's nurseries inherit."""

from __future__ import annotations

import gc
from typing import Any, List, Tuple

import trio
import trio.testing

import greenback

from .children import can_bridge


class TestTrioNurseries:
    def test_nursery_from_outside(self) -> None:
        """A task of a nursery that was open before the scope does not inherit."""
        found: List[Tuple[str, bool]] = []

        async def say(name: str) -> None:
            found.append((name, can_bridge(trio.lowlevel.checkpoint)))

        async def main() -> None:
            async with trio.open_nursery() as outer:
                with greenback.portals_for_children():
                    outer.start_soon(say, "outer")
                    async with trio.open_nursery() as inner:
                        inner.start_soon(say, "inner")
                        outer.start_soon(say, "outer again")
                        async with trio.open_nursery() as innermost:
                            innermost.start_soon(say, "innermost")
                outer.start_soon(say, "afterwards")

        trio.run(main)
        assert dict(found) == {
            "outer": False,
            "outer again": False,
            "inner": True,
            "innermost": True,
            "afterwards": False,
        }

    def test_child_starts_a_task_outside(self) -> None:
        """The nursery decides who inherits, not the task that calls start_soon()."""
        found: List[bool] = []

        async def say() -> None:
            found.append(can_bridge(trio.lowlevel.checkpoint))

        async def starts(nursery: trio.Nursery) -> None:
            assert greenback.has_portal()
            nursery.start_soon(say)

        async def main() -> None:
            async with trio.open_nursery() as outer:
                with greenback.portals_for_children():
                    async with trio.open_nursery() as inner:
                        inner.start_soon(starts, outer)

        trio.run(main)
        assert found == [False]

    def test_nursery_start(self) -> None:
        """A task started with start() inherits, before and after task_status.started()."""
        found: List[bool] = []

        async def service(task_status: Any = trio.TASK_STATUS_IGNORED) -> None:
            found.append(can_bridge(trio.lowlevel.checkpoint))
            task_status.started()
            found.append(can_bridge(trio.lowlevel.checkpoint))

        async def main() -> None:
            async with greenback.portals_for_tree():
                async with trio.open_nursery() as nursery:
                    await nursery.start(service)

        trio.run(main)
        assert found == [True, True]

    def test_system_tasks(self) -> None:
        """A system task inherits no portal."""
        found: List[bool] = []

        async def say() -> None:
            found.append(can_bridge(trio.lowlevel.checkpoint))

        async def main() -> None:
            async with greenback.portals_for_tree():
                trio.lowlevel.spawn_system_task(say)
                while not found:
                    await trio.lowlevel.checkpoint()

        trio.run(main)
        assert found == [False]

    def test_child_that_is_cancelled_before_its_first_step(self) -> None:
        """A child that is cancelled before its first step does not run, and causes no warning."""
        ran: List[int] = []

        async def never() -> None:
            await trio.lowlevel.checkpoint()
            ran.append(1)

        async def main() -> None:
            async with greenback.portals_for_tree():
                async with trio.open_nursery() as nursery:
                    nursery.cancel_scope.cancel()
                    nursery.start_soon(never)

        trio.run(main)
        gc.collect()
        assert ran == []
