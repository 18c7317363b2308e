"""Random programs do the same when their sync functions bridge as when all of them are awaited."""

from __future__ import annotations

import asyncio
from typing import Any, Callable, List, Optional

import pytest
import trio
import trio.testing
from hypothesis import example, given, settings
from hypothesis import strategies as st

import greenback
from tests.sampling import is_small

from .random_programs import (
    COMMON,
    PARTNER_STEPS,
    PORTALS,
    Custom,
    blocks,
    check,
    described,
    interpreted,
)

FAILS = ("call", False, "coroutine", (("checkpoint",), ("raise", "Custom", 1)))


class TestEquivalence:
    def test_bridged_as_awaited(self, backend: Any) -> None:
        """A program whose sync functions bridge behaves as if those functions were async."""

        @given(
            program=blocks(),
            portal=st.sampled_from(PORTALS),
            cancel_at=st.one_of(st.none(), st.integers(0, PARTNER_STEPS - 1)),
        )
        # An exception raised while another one is handled, after a real suspension.
        @example(
            program=(("try", (("raise", "KeyError", 0),), "Exception", (FAILS,), (), ()),),
            portal="run_sync",
            cancel_at=None,
        )
        # A bridge is cancelled, and the program waits while it cleans up.
        @example(
            program=(
                (
                    "try",
                    (("cancel",), ("call", False, "object", (("checkpoint",),))),
                    "Custom",
                    (),
                    (),
                    (("handled",), ("checkpoint",), ("get",)),
                ),
            ),
            portal="sync in task",
            cancel_at=None,
        )
        @settings(COMMON, max_examples=20 if backend.name == "uvloop" or is_small() else 90)
        def bridged_as_awaited(program: Any, portal: str, cancel_at: Optional[int]) -> None:
            check(backend, program, portal, cancel_at)

        bridged_as_awaited()


class TestCancelledWhileHandling:
    @pytest.mark.parametrize("replaced", [False, True])
    def test_context(self, backend: Any, replaced: bool) -> None:
        """An exception that leaves a cancelled bridge in an ``except`` block has the same context
        as one that leaves a cancelled ``await`` there."""

        async def waits() -> None:
            try:
                await backend.sleep(3600)
            except BaseException:
                if replaced:
                    raise Custom(2) from None
                raise

        async def awaited() -> None:
            try:
                raise Custom(1)
            except Custom:
                await waits()

        def bridged() -> None:
            try:
                raise Custom(1)
            except Custom:
                greenback.await_(waits())

        raised: List[Any] = []

        async def noted(async_fn: Callable[..., Any], *args: Any) -> None:
            try:
                await async_fn(*args)
            except (backend.cancelled, Custom) as error:
                raised.append(described(error))

        async def main() -> None:
            for fn in ((awaited,), (greenback.with_portal_run_sync, bridged)):
                if backend.is_trio:
                    async with trio.open_nursery() as nursery:
                        nursery.start_soon(noted, *fn)
                        await trio.testing.wait_all_tasks_blocked()
                        nursery.cancel_scope.cancel()
                else:
                    task = asyncio.ensure_future(noted(*fn))
                    await asyncio.sleep(0)
                    task.cancel()
                    await asyncio.wait([task])

        backend.run(main)
        first, second = raised
        assert second == first
        assert first[0] == ("Custom" if replaced else backend.cancelled.__name__)


class TestTheProperty:
    """The comparison above notices a difference."""

    def test_suspensions_are_seen(self, asyncio_backend: Any) -> None:
        """If only one of two programs has a checkpoint, the logs differ."""
        without = (("call", True, "coroutine", (("log", 1),)),)
        with_one = (("call", True, "coroutine", (("checkpoint",), ("log", 1))),)
        assert [
            interpreted(asyncio_backend, program, "task", None, bridged=True).log
            for program in (without, with_one)
        ] == [
            [[1], ("returned", None), ("result", None), [0, 0], *partner_steps(0)],
            [
                ("partner", 0),
                "resumed",
                [1],
                ("returned", None),
                ("result", None),
                [0, 0],
                *partner_steps(1),
            ],
        ]

    def test_context_chains_are_seen(self) -> None:
        """Two exceptions that differ only in their context are described differently."""
        plain, chained = Custom(1), Custom(1)
        chained.__context__ = KeyError(2)
        assert described(plain) != described(chained)
        assert described(chained) == (
            "Custom",
            (1,),
            False,
            None,
            ("KeyError", (2,), False, None, None),
        )


def partner_steps(first: int, last: int = PARTNER_STEPS) -> List[Any]:
    return [("partner", step) for step in range(first, last)]
