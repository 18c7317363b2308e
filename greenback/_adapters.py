"""Async functions, context managers and iterables as sync ones, on top of `await_`."""

from __future__ import annotations

from functools import wraps
from typing import (
    TYPE_CHECKING,
    Any,
    AsyncContextManager,
    AsyncIterable,
    AsyncIterator,
    Awaitable,
    Callable,
    Generic,
    Optional,
    TypeVar,
)

from ._engine.chosen import await_
from ._portals import with_portal_run_sync

if TYPE_CHECKING:
    from types import TracebackType
    from typing import Type

    from typing_extensions import ParamSpec

    P = ParamSpec("P")
    Q = ParamSpec("Q")

T = TypeVar("T")
U = TypeVar("U")


def autoawait(fn: Callable[P, Awaitable[T]]) -> Callable[P, T]:
    """Turn an async function into a function that is called without ``await``.

    For magic methods, properties and other places that have no room for an ``await``::

        class Rate:
            @property
            @greenback.autoawait
            async def current(self): ...

    Args:
        fn: An async function, or any other function that returns an awaitable.

    Returns:
        A function with the same arguments. It returns and raises what ``await fn(...)`` would.
    """

    @wraps(fn)
    def bridged(*args: P.args, **kwds: P.kwargs) -> T:
        return await_(fn(*args, **kwds))

    return bridged


def decorate_as_sync(
    decorator: Callable[[Callable[P, T]], Callable[Q, U]],
) -> Callable[[Callable[P, Awaitable[T]]], Callable[Q, Awaitable[U]]]:
    """Apply a decorator for sync functions to an async function.

    ``@greenback.decorate_as_sync(functools.lru_cache())`` above an async function caches its
    results. ``functools.lru_cache()`` alone would cache the coroutines, which can be awaited once.

    The decorator gets a sync function that bridges to the async one, and returns another sync
    function. The result of all this is an async function that runs the latter in a portal. A call
    uses the portal of its task; if the task has none, the portal lasts for the call.

    Args:
        decorator: Takes a sync function and returns one.

    Returns:
        A decorator that takes an async function and returns one.
    """

    def decorate(fn: Callable[P, Awaitable[T]]) -> Callable[Q, Awaitable[U]]:
        decorated = decorator(autoawait(fn))

        @wraps(decorated)
        async def in_portal(*args: Q.args, **kwds: Q.kwargs) -> U:
            return await with_portal_run_sync(decorated, *args, **kwds)

        return in_portal

    return decorate


class async_context(Generic[T]):  # noqa: N801  (the name is the API)
    """``with async_context(cm) as value`` does what ``async with cm as value`` does.

    Args:
        cm: An asynchronous context manager.

    Raises:
        TypeError: *cm* is not an asynchronous context manager. It is raised on entering. Before
            Python 3.11 it is an `AttributeError`, as with ``async with``.
    """

    __slots__ = ("_aexit", "_cm")

    def __init__(self, cm: AsyncContextManager[T]) -> None:
        self._cm = cm

    def __enter__(self) -> T:
        kind = type(self._cm)
        try:
            aenter, self._aexit = kind.__aenter__, kind.__aexit__
        except AttributeError:
            pass
        else:
            return await_(aenter(self._cm))
        # Let the interpreter raise the error: its type and text differ by version.
        _async_with(self._cm).send(None)
        raise AssertionError("async with has entered what has no __aenter__ or no __aexit__")

    def __exit__(
        self,
        kind: Optional[Type[BaseException]],
        error: Optional[BaseException],
        traceback: Optional[TracebackType],
    ) -> Optional[bool]:
        return await_(self._aexit(self._cm, kind, error, traceback))


async def _async_with(cm: AsyncContextManager[Any]) -> None:
    async with cm:
        pass


class async_iter(Generic[T]):  # noqa: N801  (the name is the API)
    """``for x in async_iter(xs)`` does what ``async for x in xs`` does.

    For an asynchronous generator, the result is a generator: its ``send()``, ``throw()`` and
    ``close()`` do what ``asend()``, ``athrow()`` and ``aclose()`` do. So ``yield from`` works with
    it.

    Args:
        iterable: An asynchronous iterable.

    Raises:
        TypeError: *iterable* is not an asynchronous iterable, or its ``__aiter__()`` returns no
            asynchronous iterator.
    """

    __slots__ = ("_it",)

    _it: AsyncIterator[T]

    def __new__(cls, iterable: AsyncIterable[T]) -> async_iter[T]:
        try:
            aiter = type(iterable).__aiter__
        except AttributeError:
            raise TypeError(
                f"async_iter() needs an object with an __aiter__ method, got "
                f"{type(iterable).__name__}"
            ) from None
        it = aiter(iterable)
        if not hasattr(type(it), "__anext__"):
            raise TypeError(
                f"async_iter() got an object without an __anext__ method from __aiter__(): "
                f"{type(it).__name__}"
            )
        is_generator = all(hasattr(it, name) for name in ("asend", "athrow", "aclose"))
        kind: Any = async_generator if is_generator else cls
        self: async_iter[T] = super().__new__(kind)
        self._it = it
        return self

    def __iter__(self) -> async_iter[T]:
        return self

    def __next__(self) -> T:
        try:
            return await_(type(self._it).__anext__(self._it))
        except StopAsyncIteration as stop:
            args = stop.args
        raise StopIteration(*args)


class async_generator(async_iter[T]):  # noqa: N801  (beside async_iter)
    """The result of `async_iter` for an asynchronous generator."""

    __slots__ = ()

    _it: Any

    def send(self, value: Any) -> T:
        """Resume the generator with *value*, and return the next value that it yields."""
        try:
            return await_(self._it.asend(value))  # type: ignore[no-any-return]
        except StopAsyncIteration as stop:
            args = stop.args
        raise StopIteration(*args)

    def throw(self, *error: Any) -> T:
        """Raise an exception inside the generator, and return the next value that it yields."""
        try:
            return await_(self._it.athrow(*error))  # type: ignore[no-any-return]
        except StopAsyncIteration as stop:
            args = stop.args
        raise StopIteration(*args)

    def close(self) -> None:
        """Make the generator finish, as ``aclose()`` does."""
        await_(self._it.aclose())
