"""An exception goes through a bridge as through `await`, and leaves nothing behind.

Most tests run one program twice: once with ``await`` throughout, and once with bridges. A program
is a text in which ``ASYNC def`` becomes ``async def`` or ``def``, ``CALL(f())`` becomes
``await (f())`` or ``(f())``, and ``AWAIT(x)`` becomes ``await (x)`` or ``await_(x)``.
"""

from __future__ import annotations

import asyncio
import sys
from typing import Any, List

import greenlet
import pytest
import trio

from greenback import await_

from ..portals import in_task
from .programs import (
    PORTALS,
    Helpers,
    Plain,
    assert_same,
    chain,
    compiled,
    in_bestowed,
    without_own_frames,
)

if sys.version_info < (3, 11):
    try:
        from exceptiongroup import BaseExceptionGroup, ExceptionGroup
    except ImportError:
        ExceptionGroup = BaseExceptionGroup = None


FAMILIES = [
    lambda: Plain("x"),
    lambda: StopIteration(1),
    lambda: StopAsyncIteration(2),
    lambda: GeneratorExit("g"),
    lambda: KeyboardInterrupt("k"),
    lambda: SystemExit(3),
    lambda: asyncio.CancelledError("c"),
    lambda: greenlet.GreenletExit("gl"),
    lambda: RuntimeError("generator raised StopIteration"),
    lambda: BaseException("b"),
    lambda: MemoryError(),
    lambda: RecursionError("r"),
]


@pytest.fixture(params=FAMILIES, ids=lambda make: type(make()).__name__)
def family(request: pytest.FixtureRequest) -> Any:
    """A function that makes an exception of each family in turn."""
    return request.param


class TestFamilies:
    def test_raised_in_a_coroutine(self, backend: Any, portal: Any, family: Any) -> None:
        """The caller of await_() can catch every exception of a coroutine, as with ``await``."""
        assert_same(
            backend,
            portal,
            """
            ASYNC def program():
                for how in ("fail", "fail_later", "fail_while_handling"):
                    try:
                        AWAIT(getattr(h, how)(family()))
                    except BaseException as error:
                        log.append(chain(error))
                        log.append(without_own_frames(error))
                    AWAIT(h.checkpoint())
                return "done"
            """,
            family=family,
        )

    def test_leaves_the_portal(self, backend: Any, portal: Any, family: Any) -> None:
        """An exception that is not caught leaves the bridge and the portal."""
        for how in ("fail", "fail_later"):
            error, _, _ = assert_same(
                backend,
                portal,
                """
                ASYNC def program():
                    AWAIT(getattr(h, how)(family()))
                """,
                how=how,
                family=family,
            )
            assert error is not None

    @pytest.mark.parametrize(
        ("portal", "family"),
        [
            pytest.param(portal, family, id=f"{portal.__name__}-{type(family()).__name__}")
            for portal in PORTALS
            for family in FAMILIES
            # A plain function may raise StopIteration; a coroutine may not.
            if portal not in (in_task, in_bestowed) or type(family()) is not StopIteration
        ],
    )
    def test_raised_in_sync_code(self, backend: Any, portal: Any, family: Any) -> None:
        """An exception of a portal's sync code leaves the portal, as it leaves a coroutine."""
        for waits in (False, True):
            assert_same(
                backend,
                portal,
                """
                ASYNC def program():
                    if waits:
                        AWAIT(h.checkpoint())
                    raise family()
                """,
                waits=waits,
                family=family,
            )

    def test_same_object(self, backend: Any, portal: Any) -> None:
        """The exception that arrives is the object that was raised."""
        error = Plain("one")

        def through() -> None:
            with pytest.raises(Plain) as caught:
                await_(Helpers(backend).fail_later(error))
            assert caught.value is error
            raise error

        with pytest.raises(Plain) as caught:
            backend.run(portal, through)
        assert caught.value is error

    @pytest.mark.skipif(ExceptionGroup is None, reason="there are no exception groups here")
    def test_groups(self, backend: Any, portal: Any) -> None:
        """An exception group arrives whole, and can be split, also one of BaseExceptions."""
        assert_same(
            backend,
            portal,
            """
            ASYNC def program():
                for group in (
                    ExceptionGroup("g", [Plain(1), ExceptionGroup("in", [KeyError(2)])]),
                    BaseExceptionGroup("b", [KeyboardInterrupt(), Plain(1)]),
                ):
                    try:
                        AWAIT(h.fail_later(group))
                    except BaseException as error:
                        matching, rest = error.split(Plain)
                        log.append([type(error), repr(matching), repr(rest), error is group])
            """,
            ExceptionGroup=ExceptionGroup,
            BaseExceptionGroup=BaseExceptionGroup,
        )

    def test_exception_that_refuses_attributes(self, backend: Any, portal: Any) -> None:
        """An exception whose class forbids setting attributes, like a frozen dataclass, arrives."""

        class Frozen(Exception):
            def __setattr__(self, name: str, value: Any) -> None:
                raise TypeError(f"cannot set {name}")

        assert_same(
            backend,
            portal,
            """
            ASYNC def program():
                try:
                    AWAIT(h.fail_later(Frozen(1)))
                except Frozen as error:
                    log.append(repr(error))
                AWAIT(h.fail_later(Frozen(2)))
            """,
            Frozen=Frozen,
        )
        # The next portal works.
        assert_same(backend, portal, "ASYNC def program(): return AWAIT(h.checkpoint())")

    def test_exception_that_is_false(self, backend: Any, portal: Any) -> None:
        """An exception that is false as a boolean, or equal to everything, is raised, too."""

        class Odd(Exception):
            def __bool__(self) -> bool:
                return False

            def __eq__(self, other: object) -> bool:
                return True

            __hash__ = None  # type: ignore[assignment]

        for how in ("fail", "fail_later", "fail_while_handling"):
            assert_same(
                backend,
                portal,
                """
                ASYNC def program():
                    try:
                        AWAIT(getattr(h, how)(Odd(1)))
                    except Odd as error:
                        log.append(chain(error))
                    raise Odd(2)
                """,
                Odd=Odd,
                how=how,
            )


class TestThrownIn:
    """Exceptions that the event loop throws into a task that waits in a bridge."""

    SOURCES = {
        "plain": """
            ASYNC def program():
                AWAIT(forever())
            """,
        "in_except": """
            ASYNC def program():
                try:
                    raise KeyError("handled")
                except KeyError:
                    AWAIT(forever())
            """,
        "caught": """
            ASYNC def program():
                try:
                    AWAIT(forever())
                except BaseException as error:
                    log.append(chain(error))
                    raise Plain("instead")
            """,
        "caught_from": """
            ASYNC def program():
                try:
                    AWAIT(forever())
                except BaseException as error:
                    raise Plain("instead") from error
            """,
        "finally": """
            ASYNC def program():
                try:
                    AWAIT(forever())
                finally:
                    log.append(chain(sys.exc_info()[1]))
                    raise Plain("in finally")
            """,
        "handled_inside": """
            async def handles():
                try:
                    raise LookupError("inside")
                except LookupError:
                    await forever()

            ASYNC def program():
                try:
                    raise KeyError("handled")
                except KeyError:
                    AWAIT(handles())
            """,
    }

    @pytest.mark.parametrize("name", list(SOURCES))
    def test_asyncio_cancel(self, asyncio_backend: Any, portal: Any, name: str) -> None:
        """A cancellation has the same message, context and traceback as with ``await``."""
        results = []
        for bridged in (False, True):
            log: List[Any] = []

            async def forever() -> None:
                await asyncio.get_running_loop().create_future()

            program = compiled(
                self.SOURCES[name], bridged, {**globals(), "log": log, "forever": forever}
            )

            async def body() -> None:
                try:
                    await (portal(program) if bridged else program())
                except BaseException as error:
                    log.append(chain(error))
                    if name not in ("in_except", "handled_inside") or sys.version_info >= (3, 12):
                        # Older versions lose frames of exceptions chained to a handled one.
                        log.append(without_own_frames(error))
                    raise

            async def main() -> None:
                task = asyncio.get_running_loop().create_task(body())
                for _ in range(4):
                    await asyncio.sleep(0)
                if sys.version_info >= (3, 9):
                    task.cancel("message")
                else:
                    task.cancel()
                await asyncio.wait([task])
                log.append(task.cancelled())
                if not task.cancelled():
                    log.append(chain(task.exception()))

            asyncio_backend.run(main)
            results.append(log)
        assert results[1] == results[0]

    @pytest.mark.parametrize("name", list(SOURCES))
    def test_timeouts(self, backend: Any, portal: Any, name: str) -> None:
        """A timeout turns its cancellation into the same error as with ``await``."""
        results = []
        for bridged in (False, True):
            log: List[Any] = []

            async def forever() -> None:
                await backend.sleep(3600)

            program = compiled(
                self.SOURCES[name], bridged, {**globals(), "log": log, "forever": forever}
            )

            async def main() -> None:
                ways = [trio.fail_after] if backend.is_trio else [None]
                if not backend.is_trio and sys.version_info >= (3, 11):
                    ways.append(asyncio.timeout)
                for way in ways:
                    try:
                        if way is None:
                            await asyncio.wait_for(
                                portal(program) if bridged else program(),
                                0.02,
                            )
                        elif way is trio.fail_after:
                            with trio.fail_after(0.02):
                                await (portal(program) if bridged else program())
                        else:
                            async with way(0.02):
                                await (portal(program) if bridged else program())
                    except BaseException as error:
                        log.append(chain(error))

            backend.run(main)
            results.append(log)
        assert results[0]
        assert results[1] == results[0]

    def test_swallowed(self, asyncio_backend: Any, portal: Any) -> None:
        """After sync code has swallowed a cancellation, the next wait works."""

        async def main() -> str:
            def swallow() -> str:
                with pytest.raises(asyncio.CancelledError):
                    await_(asyncio.get_running_loop().create_future())
                assert sys.exc_info() == (None, None, None)
                with pytest.raises(Plain) as caught:
                    await_(Helpers(asyncio_backend).fail_later(Plain()))
                assert caught.value.__context__ is None
                return "went on"

            task = asyncio.get_running_loop().create_task(portal(swallow))
            for _ in range(3):
                await asyncio.sleep(0)
            task.cancel()
            return await task

        assert asyncio_backend.run(main) == "went on"
