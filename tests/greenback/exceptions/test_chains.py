"""Contexts and causes of exceptions that pass through bridges."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import os
import subprocess
import sys
import sysconfig
from typing import Any, List, Optional

import pytest

import greenback
from greenback import await_

from ..portals import in_run, in_run_sync, in_task
from .programs import PYPY, Helpers, Plain, chain, compiled, in_bestowed, without_own_frames

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
        """Causes, contexts and tracebacks are those of ``await``, wherever the bridge is."""
        for how in ("fail", "fail_later", "fail_while_handling"):
            source = CHAINS[name].replace("{how}", how)
            results = run_chain(backend, portal, source, around=None)
            assert results[1] == results[0]

    @pytest.mark.parametrize("opener", [in_run_sync, in_run], ids=lambda fn: fn.__name__)
    @pytest.mark.parametrize("name", list(CHAINS))
    def test_portal(self, backend: Any, opener: Any, name: str) -> None:
        """If an except or finally block opens the portal, chains are those of ``await``, too."""
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
    """The log and the exception of a program, run in a portal inside a block."""
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
    """Tasks that take their first step inside `create_task`, whose caller handles an exception."""

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
        """A task made by another eager task, which handles an exception itself."""
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
        """An eager task sees its creator's handled exception, and chains as without a portal."""
        found = []

        def factory(loop: Any, coro: Any, **kwds: Any) -> Any:
            kwds.pop("eager_start", None)  # uvloop passes this
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
        """If memory runs out in a bridge, it raises MemoryError, and the next bridge works."""
        pytest.importorskip("_testcapi", reason="this CPython has no tests")
        # Untraced: an instrument that runs out of memory is removed, and that is logged.
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
    return [5] * 1_000

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
        assert greenback.await_(immediate()) == [5] * 1_000
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
