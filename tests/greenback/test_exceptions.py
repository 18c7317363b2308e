"""An exception goes through a bridge as through `await`, and leaves nothing behind.

Most tests run one program twice: once with ``await`` throughout, and once with bridges. A program
is a text in which ``ASYNC def`` becomes ``async def`` or ``def``, ``CALL(f())`` becomes
``await (f())`` or ``(f())``, and ``AWAIT(x)`` becomes ``await (x)`` or ``await_(x)``.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import gc
import os
import subprocess
import sys
import sysconfig
import traceback
import weakref
from typing import Any, Callable, Dict, List, Optional, Tuple

import greenlet
import pytest
import sniffio
import trio

import greenback
from greenback import await_

from .portals import in_run, in_run_sync, in_task
from .programs import compiled

PYPY = sys.implementation.name == "pypy"
#: From 3.11 on an exception that is raised again takes the traceback that it says it has.
SHIMS_SHOW = PYPY or sys.version_info < (3, 11)

if sys.version_info < (3, 11):
    try:
        from exceptiongroup import BaseExceptionGroup, ExceptionGroup
    except ImportError:
        ExceptionGroup = BaseExceptionGroup = None


async def in_bestowed(sync_fn: Callable[[], Any]) -> Any:
    is_trio = sniffio.current_async_library() == "trio"
    greenback.bestow_portal(trio.lowlevel.current_task() if is_trio else asyncio.current_task())
    await (trio.lowlevel.checkpoint() if is_trio else asyncio.sleep(0))
    return sync_fn()


#: Each way to call a sync function in a portal, with the frames of greenback that this shows.
PORTALS: Dict[Callable[..., Any], List[str]] = {
    in_run_sync: ["with_portal_run_sync"],
    in_run: ["with_portal_run"],
    in_task: [],
}


@pytest.fixture(params=list(PORTALS), ids=lambda portal: portal.__name__)
def portal(request: pytest.FixtureRequest) -> Any:
    """Each way to call a sync function in a portal in turn."""
    return request.param


class Plain(Exception):
    pass


class Helpers:
    """What programs may call; all of it is async, and awaited by means of AWAIT()."""

    def __init__(self, backend: Any) -> None:
        self.checkpoint = backend.checkpoint

    async def fail(self, error: BaseException) -> None:
        raise error

    async def fail_later(self, error: BaseException) -> None:
        await self.checkpoint()
        raise error

    async def fail_while_handling(self, error: BaseException) -> None:
        try:
            await self.checkpoint()
            raise LookupError("handled in the coroutine")
        except LookupError:
            await self.checkpoint()
            raise error

    async def fail_from(self, error: BaseException, cause: BaseException) -> None:
        await self.checkpoint()
        raise error from cause

    async def in_finally(self, error: BaseException, second: BaseException) -> None:
        try:
            await self.fail_later(error)
        finally:
            await self.fail_later(second)


def chain(error: Optional[BaseException], seen: Tuple[int, ...] = ()) -> Any:
    """An exception, its cause and its context, all the way, as something that can be compared."""
    if error is None:
        return None
    if id(error) in seen:
        return "again", seen.index(id(error))
    seen = (*seen, id(error))
    return (
        type(error).__name__,
        repr(error.args),
        error.__suppress_context__,
        chain(error.__cause__, seen),
        chain(error.__context__, seen),
    )


def frames(error: BaseException) -> List[Tuple[str, Any]]:
    """The functions in a traceback, with the lines of a program."""
    return [
        (frame.name, frame.lineno if frame.filename == "<program>" else None)
        for frame in traceback.extract_tb(error.__traceback__)
    ]


HERE = os.path.join(os.path.dirname(os.path.abspath(greenback.__file__)), "")


def own_frames(error: BaseException) -> List[str]:
    """The functions of greenback in a traceback."""
    return [
        frame.name
        for frame in traceback.extract_tb(error.__traceback__)
        if os.path.abspath(frame.filename).startswith(HERE)
    ]


def without_own_frames(error: BaseException) -> List[Tuple[str, Any]]:
    """What is in a traceback between the program's own outermost frame and the end."""
    found = [
        (frame.name, frame.lineno if frame.filename == "<program>" else None)
        for frame in traceback.extract_tb(error.__traceback__)
        if not os.path.abspath(frame.filename).startswith(HERE)
    ]
    first = next((i for i, frame in enumerate(found) if frame[0] == "program"), len(found))
    return found[first:]


def run_both(backend: Any, portal: Any, source: str, **names: Any) -> List[Any]:
    """What a program does when awaited, and when bridged: its exception, value, and log."""
    results = []
    for bridged in (False, True):
        log: List[Any] = []
        program = compiled(
            source,
            bridged,
            {**globals(), **names, "h": Helpers(backend), "log": log, "backend": backend},
        )
        caught: List[BaseException] = []
        values: List[Any] = []

        async def main() -> None:
            try:
                if bridged:
                    values.append(await portal(program))
                else:
                    values.append(await program())
            except BaseException as error:
                caught.append(error)

        backend.run(main)
        results.append((caught[0] if caught else None, values, log))
    return results


def assert_same(backend: Any, portal: Any, source: str, **names: Any) -> Tuple[Any, Any, Any]:
    """The program does the same either way; chains and tracebacks included."""
    (error, values, log), (its_error, its_values, its_log) = run_both(
        backend, portal, source, **names
    )
    assert its_values == values
    assert its_log == log
    assert chain(its_error) == chain(error)
    if error is not None:
        assert without_own_frames(its_error) == without_own_frames(error)
    return its_error, its_values, its_log


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
        """Whatever a coroutine raises, the caller of await_ can catch as with await."""
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
        """Whatever goes through a bridge and is not caught arrives outside of the portal."""
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
        """Whatever sync code in a portal raises leaves it, as from a coroutine."""
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
        """The exception that arrives is the very one that was raised."""
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
        """A group arrives whole, and can be split; so can one of BaseExceptions."""
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
        # The portal that follows is none the worse for it.
        assert_same(backend, portal, "ASYNC def program(): return AWAIT(h.checkpoint())")

    def test_exception_that_is_false(self, backend: Any, portal: Any) -> None:
        """An exception that is false as a boolean, or equal to all, is raised all the same."""

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


CHAINS = {
    "in_except": """
        ASYNC def program():
            try:
                raise KeyError("handled")
            except KeyError:
                AWAIT(h.{how}(Plain("x")))
        """,
    "in_except_after_a_bridge": """
        ASYNC def program():
            try:
                AWAIT(h.fail_later(KeyError("handled")))
            except KeyError:
                AWAIT(h.checkpoint())
                AWAIT(h.{how}(Plain("x")))
        """,
    "in_finally": """
        ASYNC def program():
            try:
                raise KeyError("on its way")
            finally:
                AWAIT(h.{how}(Plain("x")))
        """,
    "finally_without_error": """
        ASYNC def program():
            try:
                AWAIT(h.{how}(Plain("x")))
            finally:
                log.append(chain(sys.exc_info()[1]))
                AWAIT(h.checkpoint())
                log.append(chain(sys.exc_info()[1]))
        """,
    "nested_excepts": """
        ASYNC def program():
            try:
                raise KeyError(1)
            except KeyError:
                try:
                    AWAIT(h.{how}(Plain("x")))
                except Plain:
                    AWAIT(h.fail_later(ValueError("y")))
        """,
    "raise_again": """
        ASYNC def program():
            try:
                AWAIT(h.{how}(Plain("x")))
            except Plain:
                AWAIT(h.checkpoint())
                try:
                    AWAIT(h.{how}(ValueError("y")))
                except ValueError:
                    AWAIT(h.checkpoint())
                raise
        """,
    "raise_from": """
        ASYNC def program():
            try:
                AWAIT(h.{how}(Plain("x")))
            except Plain as error:
                raise ValueError("y") from error
        """,
    "raise_from_none": """
        ASYNC def program():
            try:
                AWAIT(h.{how}(Plain("x")))
            except Plain as error:
                AWAIT(h.fail_from(ValueError("y"), None))
        """,
    "same_error_twice": """
        ASYNC def program():
            error = Plain("x")
            try:
                AWAIT(h.{how}(error))
            except Plain:
                AWAIT(h.{how}(error))
        """,
    "after_an_except_block": """
        ASYNC def program():
            try:
                AWAIT(h.{how}(KeyError("over")))
            except KeyError:
                AWAIT(h.checkpoint())
            AWAIT(h.{how}(Plain("x")))
        """,
    "finally_in_the_coroutine": """
        ASYNC def program():
            try:
                raise KeyError(1)
            except KeyError:
                AWAIT(h.in_finally(Plain("x"), ValueError("y")))
        """,
    "two_levels": """
        ASYNC def inner():
            try:
                AWAIT(h.{how}(KeyError(1)))
            except KeyError:
                AWAIT(h.{how}(Plain("x")))

        async def between():
            try:
                raise LookupError(0)
            except LookupError:
                (inner() if BRIDGED else await inner())

        ASYNC def program():
            try:
                raise OSError("outermost")
            except OSError:
                AWAIT(between())
        """,
    "generator": """
        ASYNC def program():
            def numbers():
                try:
                    yield 1
                except KeyError as error:
                    raise ValueError("in the generator")
            it = numbers()
            next(it)
            try:
                AWAIT(h.{how}(Plain("x")))
            except Plain:
                it.throw(KeyError("thrown"))
        """,
}


class TestChains:
    @pytest.mark.parametrize("name", list(CHAINS))
    def test_bridge(self, backend: Any, portal: Any, name: str) -> None:
        """Causes, contexts and tracebacks are those of await, wherever the bridge stands."""
        for how in ("fail", "fail_later", "fail_while_handling"):
            source = CHAINS[name].replace("{how}", how)
            results = run_chain(backend, portal, source, around=None)
            assert results[1] == results[0]

    @pytest.mark.parametrize("opener", [in_run_sync, in_run], ids=lambda fn: fn.__name__)
    @pytest.mark.parametrize("name", list(CHAINS))
    def test_portal(self, backend: Any, opener: Any, name: str) -> None:
        """So they are when the portal itself is opened in an `except` or `finally` block."""
        for around in ("except", "finally", "nested"):
            for how in ("fail", "fail_later"):
                source = CHAINS[name].replace("{how}", how)
                results = run_chain(backend, opener, source, around=around)
                assert results[1] == results[0]

    @pytest.mark.parametrize("opener", [in_task, in_bestowed], ids=lambda fn: fn.__name__)
    @pytest.mark.parametrize("name", list(CHAINS))
    def test_task_portal(self, backend: Any, opener: Any, name: str) -> None:
        """A task's portal that is opened in an `except` block changes no chain."""
        source = CHAINS[name].replace("{how}", "fail_later")
        results = run_chain(backend, opener, source, around="except")
        assert results[1] == results[0]

    def test_two_tasks(self, backend: Any) -> None:
        """Tasks that wait in bridges inside `except` blocks do not see each other's exceptions."""
        seen: List[Any] = []

        async def main() -> None:
            def work(name: str) -> None:
                assert sys.exc_info() == (None, None, None)
                for turn in range(3):
                    try:
                        raise KeyError(name, turn)
                    except KeyError as mine:
                        await_(backend.checkpoint())
                        assert sys.exc_info()[1] is mine
                        with pytest.raises(Plain) as caught:
                            await_(Helpers(backend).fail_later(Plain()))
                        assert caught.value.__context__ is mine
                        assert mine.__context__ is None
                    await_(backend.checkpoint())
                    assert sys.exc_info() == (None, None, None)
                    seen.append(name)

            def in_portal(name: str) -> Any:
                return functools.partial(greenback.with_portal_run_sync, work, name)

            await backend.together(in_portal("a"), in_portal("b"), in_portal("c"))

        backend.run(main)
        assert sorted(seen) == ["a"] * 3 + ["b"] * 3 + ["c"] * 3


def run_chain(backend: Any, portal: Any, source: str, around: Optional[str]) -> List[Any]:
    """What a program leaves in the log and raises, run in a portal inside some block."""
    results = []
    for bridged in (False, True):
        log: List[Any] = []
        program = compiled(
            source,
            bridged,
            {
                **globals(),
                "h": Helpers(backend),
                "log": log,
                "backend": backend,
                "BRIDGED": bridged,
            },
        )

        def start() -> Any:
            return portal(program) if bridged else program()

        async def main() -> None:
            try:
                if around is None:
                    await start()
                elif around == "except":
                    try:
                        raise OSError("around")
                    except OSError:
                        await start()
                elif around == "nested":
                    try:
                        raise OSError("around")
                    except OSError:
                        try:
                            await Helpers(backend).fail_later(LookupError("around"))
                        except LookupError:
                            await start()
                else:
                    try:
                        raise OSError("around")
                    finally:
                        await start()
            except BaseException as error:
                log.append(chain(error))
                log.append(without_own_frames(error))
                context = error.__context__
                while context is not None:
                    log.append([f for f in without_own_frames(context) if f[1] is not None])
                    context = context.__context__
            log.append(sys.exc_info())

        backend.run(main)
        assert log
        results.append(log)
    return results


@pytest.mark.skipif(sys.version_info < (3, 12), reason="eager tasks are of Python 3.12")
class TestEagerTasks:
    """A task that takes its first step inside `create_task`, where something may be handled."""

    @staticmethod
    async def in_except(create: Any) -> Any:
        try:
            raise KeyError("outer")
        except KeyError:
            return create()

    @staticmethod
    async def in_finally(create: Any) -> Any:
        task = None
        with contextlib.suppress(KeyError):
            try:
                raise KeyError("outer")
            finally:
                task = create()
        return task

    @staticmethod
    async def in_nested(create: Any) -> Any:
        try:
            raise OSError("outermost")
        except OSError:
            try:
                raise KeyError("outer")
            except KeyError:
                return create()

    @staticmethod
    async def in_a_generator(create: Any) -> Any:
        def generator() -> Any:
            try:
                raise KeyError("outer")
            except KeyError:
                yield create()

        try:
            raise OSError("outermost")
        except OSError:
            (task,) = generator()
            return task

    @staticmethod
    async def in_a_task(create: Any) -> Any:
        """Made by another eager task, which handles something itself."""
        tasks: List[Any] = []

        async def creator() -> None:
            try:
                raise LookupError("of the creator")
            except LookupError:
                tasks.append(create())

        try:
            raise KeyError("outer")
        except KeyError:
            await asyncio.create_task(creator())
        return tasks[0]

    @staticmethod
    async def outside(create: Any) -> Any:
        return create()

    PLACES = ["in_except", "in_finally", "in_nested", "in_a_generator", "in_a_task", "outside"]

    @staticmethod
    async def raises(log: List[Any]) -> None:
        log.append(repr(sys.exc_info()[1]))
        raise ValueError("inner")

    @staticmethod
    async def raises_later(log: List[Any]) -> None:
        log.append(repr(sys.exc_info()[1]))
        await asyncio.sleep(0)
        log.append(repr(sys.exc_info()[1]))
        raise ValueError("inner")

    @staticmethod
    async def handles(log: List[Any]) -> None:
        try:
            raise LookupError("handled")
        except LookupError as error:
            log.append(chain(error))
            await asyncio.sleep(0)
            log.append(repr(sys.exc_info()[1]))
        log.append(repr(sys.exc_info()[1]))
        try:
            await asyncio.sleep(0)
            raise LookupError("handled later")
        except LookupError as error:
            log.append(chain(error))
            raise ValueError("inner") from error

    WORK = ["raises", "raises_later", "handles"]

    @pytest.mark.parametrize("work", WORK)
    @pytest.mark.parametrize("place", PLACES)
    def test_chain(self, asyncio_backend: Any, place: str, work: str) -> None:
        """It sees what is being handled, and exceptions have their chains, as without a portal."""
        found = []

        def factory(loop: Any, coro: Any, **kwds: Any) -> Any:
            kwds.pop("eager_start", None)  # which uvloop passes
            return asyncio.eager_task_factory(loop, coro, **kwds)  # type: ignore[attr-defined]

        async def program(log: List[Any]) -> None:
            create = functools.partial(self.create, work, log)
            task = await getattr(self, place)(create)
            await asyncio.wait([task])
            log.append(chain(task.exception()))
            log.append(repr(sys.exc_info()[1]))

        async def main() -> None:
            asyncio.get_running_loop().set_task_factory(factory)
            for has_scope in (False, True):
                log: List[Any] = [None]
                if has_scope:
                    await greenback.with_portal_run_tree(program, log)
                else:
                    await program(log)
                assert log.pop(0) is has_scope
                found.append(log)

        asyncio_backend.run(main)
        plain, inherited = found
        assert inherited == plain
        if place != "in_a_task":
            assert ("KeyError" in str(plain)) == (place != "outside")

    def create(self, work: str, log: List[Any]) -> Any:
        async def task() -> None:
            log[0] = greenback.has_portal()
            await getattr(self, work)(log)

        return asyncio.create_task(task())


class TestMemoryErrors:
    @pytest.mark.skipif(PYPY, reason="only CPython can be told to fail")
    @pytest.mark.skipif(
        bool(sysconfig.get_config_var("Py_GIL_DISABLED")), reason="allocates without asking"
    )
    @pytest.mark.parametrize("name", [in_run_sync, in_run, in_task], ids=lambda each: each.__name__)
    def test_at_each_allocation(self, name: Any) -> None:
        """Where memory runs out in a bridge, that is a MemoryError, and the next bridge works."""
        pytest.importorskip("_testcapi", reason="this CPython has no tests")
        # Untraced: an instrument that runs out of memory is removed, and that is told.
        environ = {key: each for key, each in os.environ.items() if key != "GREENBACK_TRACE"}
        done = subprocess.run(
            [sys.executable, "-c", OUT_OF_MEMORY.replace("PORTAL", name.__name__)],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            env=environ,
            text=True,
            timeout=60,
        )
        assert done.returncode == 0, done.stdout
        assert done.stdout == "['MemoryError']\n"


OUT_OF_MEMORY = """
import asyncio, itertools, _testcapi
import greenback

async def immediate():
    return 5

def work():
    kinds = set()
    for number, width in itertools.product(range(60), range(1, 8)):
        coroutine = immediate()
        try:
            _testcapi.set_nomemory(number, number + width)
            try:
                greenback.await_(coroutine)
            finally:
                _testcapi.remove_mem_hooks()
        except BaseException as error:
            kinds.add(type(error).__name__)
            del error
        coroutine.close()
        assert greenback.await_(immediate()) == 5
    return sorted(kinds)

async def in_run_sync():
    return await greenback.with_portal_run_sync(work)

async def in_run():
    async def inside():
        return work()
    return await greenback.with_portal_run(inside)

async def in_task():
    await greenback.ensure_portal()
    return work()

print(asyncio.run(PORTAL()))
"""


class TestThrownIn:
    """What the event loop throws into a task that waits in a bridge."""

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
        """A cancellation has the message, context and traceback that it has with await."""
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
                        # Older ones lose frames of what they chain to a handled exception.
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
        """What wait_for(), asyncio.timeout() and trio.fail_after() make of it is the same."""
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
        """A cancellation that sync code swallows is gone, and the next wait is not disturbed."""

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


class TestExcInfo:
    def test_inside(self, backend: Any, portal: Any) -> None:
        """sys.exc_info() tells of the innermost `except` block on both sides of a bridge."""
        assert_same(
            backend,
            portal,
            """
            async def look():
                log.append(chain(sys.exc_info()[1]))
                await h.checkpoint()
                log.append(chain(sys.exc_info()[1]))
                try:
                    raise LookupError("inner")
                except LookupError:
                    await h.checkpoint()
                    log.append(chain(sys.exc_info()[1]))
                await h.checkpoint()
                log.append(chain(sys.exc_info()[1]))

            ASYNC def program():
                AWAIT(look())
                try:
                    raise KeyError("outer")
                except KeyError:
                    log.append(chain(sys.exc_info()[1]))
                    AWAIT(look())
                    log.append(chain(sys.exc_info()[1]))
                log.append(chain(sys.exc_info()[1]))
                AWAIT(look())
            """,
        )

    @pytest.mark.skipif(
        sys.implementation.name == "pypy",
        reason="PyPy keeps the traceback that it had when the handler was entered",
    )
    @pytest.mark.parametrize("opener", [in_run_sync, in_run], ids=lambda fn: fn.__name__)
    def test_portal_function_in_an_except_block(self, backend: Any, opener: Any) -> None:
        """A portal function called in an `except` block shows that exception inside, unchanged."""

        async def main() -> None:
            for waits in (False, True):
                error = KeyError("around")
                try:
                    raise error
                except KeyError:
                    context, shown = error.__context__, frames(error)

                    def look() -> None:
                        assert sys.exc_info()[1] is error
                        if waits:
                            await_(backend.checkpoint())
                            assert sys.exc_info()[1] is error

                    await opener(look)
                    assert sys.exc_info()[1] is error
                    assert error.__context__ is context
                    assert frames(error) == shown
                assert sys.exc_info() == (None, None, None)

        backend.run(main)


class TestTracebacks:
    SOURCE = """
        async def fails():
            if WAITS:
                await backend.checkpoint()
            raise Plain

        async def passes_on():
            inner()

        ASYNC def inner():
            AWAIT(fails())

        ASYNC def program():
            AWAIT(passes_on())
        """

    @pytest.mark.parametrize("waits", [False, True])
    def test_bridges(self, backend: Any, portal: Any, waits: bool) -> None:
        """One frame of greenback is shown per bridge, await_, and one per portal function."""
        program = compiled(self.SOURCE, True, {**globals(), "backend": backend, "WAITS": waits})
        caught: List[BaseException] = []

        async def main() -> None:
            try:
                await portal(program)
            except Plain as error:
                caught.append(error)

        backend.run(main)
        assert own_frames(caught[0]) == [*PORTALS[portal], "await_", "await_"]
        names = [frame[0] for frame in frames(caught[0])]
        first = names.index("program")
        assert names[first:] == ["program", "await_", "passes_on", "inner", "await_", "fails"]

    @pytest.mark.parametrize("waits", [False, True])
    def test_sync_error(self, backend: Any, portal: Any, waits: bool) -> None:
        """An error of the portal's sync code itself shows no worker and no shim."""

        def fails() -> None:
            if waits:
                await_(backend.checkpoint())
            raise Plain

        caught: List[BaseException] = []

        async def main() -> None:
            try:
                await portal(fails)
            except Plain as error:
                caught.append(error)

        backend.run(main)
        assert own_frames(caught[0]) == PORTALS[portal]
        assert frames(caught[0])[-1][0] == "fails"

    @pytest.mark.parametrize("opener", [in_run_sync, in_run], ids=lambda fn: fn.__name__)
    @pytest.mark.parametrize("waits", [False, True])
    def test_in_an_except_block(self, backend: Any, opener: Any, waits: bool) -> None:
        """A portal function in an `except` block shows one frame, like any other."""

        def fails() -> None:
            if waits:
                await_(backend.checkpoint())
            raise Plain

        async def main() -> None:
            try:
                raise KeyError
            except KeyError:
                try:
                    await opener(fails)
                except Plain as error:
                    assert own_frames(error) == PORTALS[opener]

        backend.run(main)

    @pytest.mark.parametrize("waits", [False, True])
    @pytest.mark.parametrize("kind", ["ensured", "bestowed", "inherited"])
    def test_out_of_a_task(self, backend: Any, kind: str, waits: bool) -> None:
        """What leaves a task with a portal shows no shim (before 3.11 and on PyPy, one)."""
        caught: List[BaseException] = []
        tasks: List[Any] = []

        async def fails() -> None:
            if kind == "ensured":
                await greenback.ensure_portal()
            elif kind == "bestowed":
                greenback.bestow_portal(backend.current_task())
                await backend.checkpoint()
            if waits:
                await_(backend.checkpoint())
            await Helpers(backend).fail(Plain())

        async def main() -> None:
            try:
                if backend.is_trio:
                    async with trio.open_nursery() as nursery:
                        nursery.start_soon(fails)
                else:
                    task = asyncio.get_running_loop().create_task(fails())
                    tasks.append(task)
                    await task
            except BaseException as error:
                if isinstance(error, Plain):
                    caught.append(error)
                else:
                    caught.extend(error.exceptions)  # type: ignore[attr-defined]

        async def outer() -> None:
            if kind == "inherited":
                with greenback.portals_for_children():
                    await main()
            else:
                await main()

        backend.run(outer)
        own = own_frames(caught[0])
        if SHIMS_SHOW:
            assert len(own) <= 1
            assert "await_" not in own
        else:
            assert own == []
        assert [frame[0] for frame in frames(caught[0])][-2:] == ["fails", "fail"]

    def test_thrown_in(self, asyncio_backend: Any, portal: Any) -> None:
        """A cancellation that goes through shows one frame of greenback per bridge, as well."""
        shown: List[str] = []

        def waits() -> None:
            await_(forever())

        async def forever() -> None:
            await asyncio.get_running_loop().create_future()

        async def body() -> None:
            try:
                await portal(waits)
            except BaseException as error:
                shown.extend(own_frames(error))
                raise

        async def main() -> None:
            task = asyncio.get_running_loop().create_task(body())
            for _ in range(3):
                await asyncio.sleep(0)
            task.cancel()
            await asyncio.wait([task])

        asyncio_backend.run(main)
        assert shown == [*PORTALS[portal], "await_"]

    def test_caught_in_the_bridge(self, backend: Any, portal: Any) -> None:
        """Where await_ was called, the traceback begins with that frame, then await_."""

        def catches() -> None:
            for how in ("fail", "fail_later"):
                try:
                    await_(getattr(Helpers(backend), how)(Plain()))
                except Plain as error:
                    assert [frame[0] for frame in frames(error)] == ["catches", "await_", how]

        backend.run(portal, catches)

    def test_adapters(self, backend: Any) -> None:
        """An adapter shows its one frame above the bridge's."""

        class Context:
            async def __aenter__(self) -> None:
                raise Plain

            async def __aexit__(self, *error: object) -> None:
                pass

        async def generator() -> Any:
            await backend.checkpoint()
            raise Plain
            yield

        @greenback.autoawait
        async def awaited() -> None:
            raise Plain

        def enter() -> None:
            with greenback.async_context(Context()):
                pass

        def use() -> None:
            calls = {
                "bridged": awaited,
                "__enter__": enter,
                "__next__": lambda: next(greenback.async_iter(generator())),
            }
            for name, call in calls.items():
                with pytest.raises(Plain) as caught:
                    call()
                assert own_frames(caught.value) == [name, "await_"]

        backend.run(greenback.with_portal_run_sync, use)

    def test_portal_inside_a_portal(self, backend: Any) -> None:
        """A portal function that uses the task's portal shows one frame, too."""

        async def main() -> None:
            await greenback.ensure_portal()
            with pytest.raises(Plain) as caught:
                await greenback.with_portal_run(Helpers(backend).fail, Plain())
            assert own_frames(caught.value) == ["with_portal_run"]
            with pytest.raises(Plain) as caught:
                await_(greenback.with_portal_run_sync(await_, Helpers(backend).fail_later(Plain())))
            assert own_frames(caught.value) == ["await_", "with_portal_run_sync", "await_"]

        backend.run(main)

    def test_not_awaitable(self, backend: Any, portal: Any) -> None:
        """The TypeError for what cannot be awaited is raised by await_, and nothing below it."""

        def use() -> None:
            with pytest.raises(TypeError) as caught:
                await_(42)  # type: ignore[arg-type]
            assert own_frames(caught.value) == ["await_"]

        backend.run(portal, use)

    def test_no_portal(self, backend: Any) -> None:
        """So is the error that there is no portal."""

        async def main() -> None:
            with pytest.raises(RuntimeError) as caught:
                await_(backend.checkpoint())
            assert own_frames(caught.value) == ["await_"]

        backend.run(main)


class Thing:
    """Something that can be seen to die."""


@pytest.fixture
def no_gc() -> Any:
    """Garbage is freed by its reference count or not at all; where there are none, collected."""
    gc.collect()
    gc.disable()
    yield
    gc.enable()


class Failures:
    """Coroutines whose frames do not refer to what they raise: that would be a cycle in itself."""

    def __init__(self, backend: Any) -> None:
        self.checkpoint = backend.checkpoint

    async def at_once(self) -> None:
        raise Plain

    async def later(self) -> None:
        await self.checkpoint()
        raise Plain

    async def while_handling(self) -> None:
        try:
            await self.checkpoint()
            raise LookupError
        except LookupError:
            await self.checkpoint()
            raise Plain


def is_dead(reference: Any) -> bool:
    if PYPY:  # no reference counts
        for _ in range(3):
            if reference() is None:
                break
            gc.collect()
    return reference() is None


@pytest.mark.usefixtures("no_gc")
class TestNoCycles:
    """An object in a frame that an exception has left dies with the exception."""

    @pytest.mark.parametrize(
        "how", ["sync", "at_once", "later", "while_handling", "not_awaitable", "handled"]
    )
    def test_failures(self, backend: Any, portal: Any, how: str) -> None:
        """Nothing keeps a frame alive after its exception was handled, wherever that was."""
        references: List[Any] = []

        def fails() -> None:
            thing = Thing()
            references.append(weakref.ref(thing))
            if how == "sync":
                raise Plain
            if how == "not_awaitable":
                await_(42)  # type: ignore[arg-type]
            await_(getattr(Failures(backend), "later" if how == "handled" else how)())

        def inside() -> None:
            try:
                fails()
            except (Plain, TypeError):
                pass
            assert is_dead(references.pop())
            fails()

        async def main() -> None:
            if how == "handled":
                try:
                    raise KeyError
                except KeyError:
                    try:
                        await portal(inside)
                    except Plain:
                        pass
            else:
                try:
                    await portal(inside)
                except (Plain, TypeError):
                    pass
            assert is_dead(references.pop())

        backend.run(main)

    @pytest.mark.parametrize("waits", [False, True])
    @pytest.mark.parametrize("kind", ["ensure", "run", "run_sync", "inherited", "bestowed"])
    def test_failed_tasks(self, asyncio_backend: Any, kind: str, waits: bool) -> None:
        """A task that has failed dies, with its frames and its exception, when it is dropped."""
        references: List[Any] = []

        def fails() -> None:
            thing = Thing()
            references.append(weakref.ref(thing))
            failures = Failures(asyncio_backend)
            await_(failures.later() if waits else failures.at_once())

        async def body() -> None:
            if kind == "ensure":
                await greenback.ensure_portal()
                fails()
            elif kind in ("inherited", "bestowed"):
                await asyncio.sleep(0)
                fails()
            elif kind == "run":

                async def inside() -> None:
                    fails()

                await greenback.with_portal_run(inside)
            else:
                await greenback.with_portal_run_sync(fails)

        async def main() -> None:
            if kind == "inherited":
                with greenback.portals_for_children():
                    task = asyncio.get_running_loop().create_task(body())
            else:
                task = asyncio.get_running_loop().create_task(body())
            if kind == "bestowed":
                greenback.bestow_portal(task)
            await asyncio.wait([task])
            assert type(task.exception()) is Plain
            references.append(weakref.ref(task))
            del task
            await asyncio.sleep(0)
            assert [is_dead(reference) for reference in references] == [True, True]

        asyncio_backend.run(main)

    @pytest.mark.parametrize("done", [False, True])
    def test_failed_future(self, asyncio_backend: Any, portal: Any, done: bool) -> None:
        """A future that failed, and is a local variable where it is bridged to, dies."""
        references: List[Any] = []

        def fails() -> None:
            loop = asyncio.get_running_loop()
            future = loop.create_future()
            references.append(weakref.ref(future))
            if done:
                future.set_exception(Plain())
            else:
                loop.call_soon(set_exception, references[-1])
            try:
                await_(future)
            finally:
                # As await leaves it: an exception that a future holds, and whose traceback has
                # the frame that holds the future, is a cycle of the caller's own making.
                del future

        def set_exception(reference: Any) -> None:
            reference().set_exception(Plain())

        async def main() -> None:
            try:
                await portal(fails)
            except Plain:
                pass
            await asyncio.sleep(0)
            assert is_dead(references.pop())

        asyncio_backend.run(main)

    def test_cancelled(self, asyncio_backend: Any, portal: Any) -> None:
        """A task that was cancelled in a bridge dies, and what was in its frames."""
        references: List[Any] = []

        def waits() -> None:
            thing = Thing()
            references.append(weakref.ref(thing))
            await_(asyncio.sleep(3600))

        async def main() -> None:
            task = asyncio.get_running_loop().create_task(portal(waits))
            for _ in range(3):
                await asyncio.sleep(0)
            assert len(references) == 1
            task.cancel()
            await asyncio.wait([task])
            assert task.cancelled()
            references.append(weakref.ref(task))
            del task
            await asyncio.sleep(0)
            assert [is_dead(reference) for reference in references] == [True, True]

        asyncio_backend.run(main)

    def test_cancelled_on_trio(self, portal: Any) -> None:
        """What a cancel scope has unwound through a bridge dies."""
        references: List[Any] = []
        scope = trio.CancelScope()

        def waits() -> None:
            thing = Thing()
            references.append(weakref.ref(thing))
            scope.cancel()
            await_(trio.sleep(3600))

        async def main() -> None:
            with scope:
                await portal(waits)
            assert scope.cancelled_caught
            await trio.lowlevel.checkpoint()
            assert is_dead(references.pop())

        trio.run(main)

    @pytest.mark.parametrize("handled", [False, True])
    def test_no_portal(self, backend: Any, handled: bool) -> None:
        """The error that there is no portal keeps neither its callers nor the coroutine."""
        references: List[Any] = []

        def fails() -> None:
            thing = Thing()
            coroutine = backend.checkpoint()
            references.extend((weakref.ref(thing), weakref.ref(coroutine)))
            await_(coroutine)

        def check() -> None:
            if handled:
                try:
                    raise KeyError
                except KeyError:
                    with_error_handled()
            else:
                with_error_handled()
            assert [is_dead(reference) for reference in references] == [True, True]
            references.clear()

        def with_error_handled() -> None:
            try:
                fails()
            except RuntimeError:
                pass

        async def main() -> None:
            check()
            greenback.bestow_portal(backend.current_task())
            check()  # not resumed yet
            await backend.checkpoint()

        check()  # no library
        backend.run(main)

    def test_value(self, backend: Any, portal: Any) -> None:
        """What a bridge and a portal returned dies when the caller drops it."""

        async def give() -> Thing:
            await backend.checkpoint()
            return Thing()

        async def main() -> None:
            def use() -> Thing:
                reference = weakref.ref(await_(give()))
                assert is_dead(reference)
                return Thing()

            reference = weakref.ref(await portal(use))
            assert is_dead(reference)

        backend.run(main)

    def test_finished_coroutine(self, backend: Any, portal: Any) -> None:
        """A coroutine that a bridge has run dies as soon as the bridge is over."""

        def use() -> None:
            coroutine = backend.checkpoint()
            reference = weakref.ref(coroutine)
            await_(coroutine)
            del coroutine
            assert is_dead(reference)

        backend.run(portal, use)
