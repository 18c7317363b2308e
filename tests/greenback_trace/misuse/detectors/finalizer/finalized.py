"""Objects with finalizers, and ways to drop them."""

from __future__ import annotations

from typing import Any, Callable

import pytest

from ...garbage import IS_PYPY

KIND = "finalizer"


refcounted = pytest.mark.skipif(IS_PYPY, reason="nothing is freed when it is dropped on PyPy")


# Each drops the last reference to an object that *make* makes


def by_del(make: Callable[[], Any]) -> None:
    made = make()
    del made


def by_assignment(make: Callable[[], Any]) -> None:
    made = make()
    made = None  # noqa: F841


def by_return(make: Callable[[], Any]) -> None:
    def use() -> None:
        made = make()
        assert made is not None

    use()


def by_subscript(make: Callable[[], Any]) -> None:
    table = {"made": make()}
    del table["made"]


def by_clear(make: Callable[[], Any]) -> None:
    made = [make()]
    made.clear()
