"""The types of greenback. mypy and pyright read this file; it is never run.

A call that a checker must refuse carries an ignore comment. Both checkers report an ignore comment
that suppresses nothing.
"""

# pyright: reportUnnecessaryTypeIgnoreComment=true

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager
from typing import Any, AsyncIterator, Callable, List, Optional, TypeVar

import trio
from typing_extensions import ParamSpec, assert_type

import greenback
from greenback.instruments import (
    Bridge,
    Instrument,
    Portal,
    add_instrument,
    remove_instrument,
)

P = ParamSpec("P")
T = TypeVar("T")


class Row:
    pass


class Later:
    def __await__(self) -> Any:
        raise NotImplementedError


async def fetch(key: int, *, table: str = "rows") -> Row:
    raise NotImplementedError


async def rows() -> AsyncIterator[Row]:
    yield Row()


@asynccontextmanager
async def transaction() -> AsyncIterator[Row]:
    yield Row()


def logged(fn: Callable[P, T]) -> Callable[P, T]:
    return fn


def repeated(fn: Callable[[int], T]) -> Callable[[List[int]], List[T]]:
    return lambda keys: [fn(key) for key in keys]


def load(key: int, *, table: str = "rows") -> Row:
    # A bridge has the type of its awaitable's result, for every kind of awaitable.
    assert_type(greenback.await_(fetch(key)), Row)
    assert_type(greenback.await_(asyncio.ensure_future(fetch(key))), Row)
    assert_type(greenback.await_(asyncio.gather(fetch(1), fetch(2))), "tuple[Row, Row]")
    greenback.await_(Later())
    greenback.await_(load)  # type: ignore[arg-type]
    greenback.await_(3)  # type: ignore[arg-type]
    return greenback.await_(fetch(key, table=table))


async def portals(task: asyncio.Task[Row], trio_task: trio.lowlevel.Task) -> None:
    await greenback.ensure_portal()
    greenback.bestow_portal(task)
    greenback.bestow_portal(trio_task)
    greenback.bestow_portal("task")  # type: ignore[arg-type]
    assert_type(greenback.has_portal(), bool)
    assert_type(greenback.has_portal(task), bool)
    assert_type(greenback.has_portal(trio_task), bool)
    assert_type(greenback.has_portal(None), bool)

    # Arguments are checked against the function, and its result is kept.
    assert_type(await greenback.with_portal_run(fetch, 1, table="t"), Row)
    assert_type(await greenback.with_portal_run_tree(fetch, 1, table="t"), Row)
    assert_type(await greenback.with_portal_run_sync(load, 1, table="t"), Row)
    await greenback.with_portal_run(fetch, "1")  # type: ignore[arg-type]
    await greenback.with_portal_run_tree(fetch, "1")  # type: ignore[arg-type]
    await greenback.with_portal_run_sync(load, "1")  # type: ignore[arg-type]
    await greenback.with_portal_run(load, 1)  # type: ignore[arg-type]

    async with greenback.portals_for_tree():
        pass
    with greenback.portals_for_children():
        pass
    trio.run(trio.sleep, 0, instruments=[greenback.AutoPortalInstrument()])


def run_from_anywhere() -> None:
    assert_type(greenback.run(fetch, 1), Row)
    assert_type(greenback.run(fetch, 1, backend="trio"), Row)
    greenback.run(load, 1)  # type: ignore[arg-type]


def adapters() -> None:
    fetch_now = greenback.autoawait(fetch)
    assert_type(fetch_now(1, table="t"), Row)
    fetch_now("1")  # type: ignore[arg-type]

    with greenback.async_context(transaction()) as row:
        assert_type(row, Row)
    for row in greenback.async_iter(rows()):
        assert_type(row, Row)
    assert_type(list(greenback.async_iter(rows())), List[Row])


@greenback.decorate_as_sync(logged)
async def fetch_logged(key: int) -> Row:
    return await fetch(key)


@greenback.decorate_as_sync(repeated)
async def fetch_all(key: int) -> Row:
    return await fetch(key)


async def a_decorator_has_the_types_that_it_has_for_sync_functions() -> None:
    assert_type(await fetch_logged(1), Row)
    await fetch_logged("1")  # type: ignore[arg-type]
    assert_type(await fetch_all([1, 2]), List[Row])
    await fetch_all(1)  # type: ignore[arg-type]


class Watcher(Instrument):
    def portal_opened(self, portal: Portal) -> None:
        assert_type(portal.kind, str)
        assert_type(portal.library.name, str)

    def bridge_finished(self, bridge: Bridge, error: Optional[BaseException]) -> None:
        assert_type(bridge.portal, Portal)


def which_engine_runs() -> None:
    assert_type(greenback.engine, str)


def instruments() -> None:
    watcher = Watcher()
    add_instrument(watcher)
    remove_instrument(watcher)
    add_instrument(3)  # type: ignore[arg-type]
