"""Libraries that look at a loop's task factory, or at where tasks are made, inside a scope."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import subprocess
import sys
import textwrap
from typing import Any, List, Tuple

import anyio
import pytest

import greenback
from greenback import await_

PYPY = sys.implementation.name == "pypy"
needs_eager_tasks = pytest.mark.skipif(
    sys.version_info < (3, 12), reason="eager tasks are of Python 3.12"
)


async def immediate() -> int:
    return 5


def run_program(*parts: str) -> str:
    """The output of a program in a process of its own, for packages that patch the process."""
    done = subprocess.run(
        [sys.executable, "-c", "".join(map(textwrap.dedent, parts))],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@needs_eager_tasks
@pytest.mark.parametrize("which", ["asyncio's", "made"])
class TestAnyioOnEagerTasks:
    """anyio goes past an eager task factory, which it knows by its code."""

    @pytest.fixture(autouse=True)
    def takes_eager_factories(self, asyncio_backend: Any, which: str) -> None:
        """Skips a uvloop that passes eager factories an argument that they do not take yet."""

        async def main() -> None:
            loop = asyncio.get_running_loop()
            self.set_factory(which)
            coroutine = asyncio.sleep(0)
            try:
                await loop.create_task(coroutine)
            except TypeError as error:
                coroutine.close()
                problems.append(error)
            finally:
                loop.set_task_factory(None)

        problems: List[TypeError] = []
        asyncio_backend.run(main)
        if problems:
            pytest.skip(f"without greenback, too: {problems[0]}")

    @staticmethod
    def set_factory(which: str) -> None:
        factory = (
            asyncio.eager_task_factory  # type: ignore[attr-defined]
            if which == "asyncio's"
            else asyncio.create_eager_task_factory(asyncio.Task)  # type: ignore[attr-defined]
        )
        asyncio.get_running_loop().set_task_factory(factory)

    @staticmethod
    async def group() -> List[Any]:
        """The log of two tasks of a task group and their creator: has_portal(), and the order."""
        log: List[Any] = []

        async def child(name: str) -> None:
            log.append(name)
            log.append(greenback.has_portal())
            with anyio.CancelScope() as scope:
                await anyio.sleep(0)
                scope.cancel()
                await anyio.sleep(0)
            if greenback.has_portal():
                await_(anyio.sleep(0))

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(child, "first")
            tasks.start_soon(child, "second")
            log.append("creator")
        return log

    def test_stranger(self, asyncio_backend: Any, which: str) -> None:
        """Task groups of tasks outside of the scope work as without a scope."""

        async def holder(closed: asyncio.Event, *, task_status: Any) -> None:
            async with greenback.portals_for_tree():
                task_status.started()
                await closed.wait()

        async def main() -> None:
            self.set_factory(which)
            before = await self.group()
            closed = asyncio.Event()
            async with anyio.create_task_group() as tasks:
                await tasks.start(holder, closed)
                assert await self.group() == before
                closed.set()
            assert await self.group() == before
            assert True not in before

        asyncio_backend.run(main)

    def test_child(self, asyncio_backend: Any, which: str) -> None:
        """Inside a scope, a task group's tasks inherit, and run in the same order as outside."""

        async def main() -> None:
            self.set_factory(which)
            before = await self.group()
            async with greenback.portals_for_tree():
                inside = await self.group()
            assert inside == [True if each is False else each for each in before]
            assert await self.group() == before

        asyncio_backend.run(main)

    def test_child_that_fails(self, asyncio_backend: Any, which: str) -> None:
        """An exception of a child cancels its siblings, and leaves the group."""
        log: List[str] = []

        async def fails() -> None:
            await_(anyio.sleep(0))
            raise LookupError("here")

        async def waits() -> None:
            try:
                await_(anyio.sleep(60))
            finally:
                log.append("cancelled")

        async def main() -> None:
            self.set_factory(which)
            async with greenback.portals_for_tree():
                with pytest.raises(ExceptionGroup) as caught:  # type: ignore[name-defined] # noqa: F821
                    async with anyio.create_task_group() as tasks:
                        tasks.start_soon(waits)
                        tasks.start_soon(fails)
            assert [repr(error) for error in caught.value.exceptions] == ["LookupError('here')"]

        asyncio_backend.run(main)
        assert log == ["cancelled"]

    def test_child_that_cannot_be_made(self, asyncio_backend: Any, which: str) -> None:
        """If the loop makes no task, the group raises its own error, and nothing else."""

        class Refuses(asyncio.Task):  # type: ignore[type-arg]
            def __init__(self, *args: Any, **kwds: Any) -> None:
                raise LookupError("no task")

        async def main() -> None:
            loop = asyncio.get_running_loop()
            factory = asyncio.create_eager_task_factory(Refuses)  # type: ignore[attr-defined]
            loop.set_task_factory(factory)
            async with greenback.portals_for_tree():
                with pytest.raises(BaseException) as caught:
                    async with anyio.create_task_group() as tasks:
                        tasks.start_soon(anyio.sleep, 0)
            loop.set_task_factory(None)
            error = caught.value
            while isinstance(error, BaseExceptionGroup):  # type: ignore[name-defined] # noqa: F821
                (error,) = error.exceptions
            assert repr(error) == "LookupError('no task')"

        asyncio_backend.run(main)
        gc.collect()  # Python warns of a coroutine that was never awaited


def application_factory(loop: Any, coro: Any, **kwds: Any) -> Any:
    """Makes tasks."""
    return asyncio.Task(coro, loop=loop, **kwds)


application_factory.is_of_application = True  # type: ignore[attr-defined]


class TestAttributes:
    def test_function(self, asyncio_backend: Any) -> None:
        """Inside a scope, the loop's factory has all attributes of the loop's own factory."""

        async def main() -> None:
            loop = asyncio.get_running_loop()
            loop.set_task_factory(application_factory)
            async with greenback.portals_for_tree():
                factory: Any = loop.get_task_factory()
                assert factory is not application_factory
                names = ("__name__", "__qualname__", "__module__", "__doc__", "__code__")
                for name in (*names, "__defaults__", "__closure__", "is_of_application"):
                    assert getattr(factory, name) is getattr(application_factory, name), name
                assert not hasattr(factory, "is_of_somebody_else")

        asyncio_backend.run(main)

    def test_none(self, asyncio_backend: Any) -> None:
        """If the loop had no factory, the scope's has no attribute of a known factory."""

        async def main() -> None:
            async with greenback.portals_for_tree():
                factory = asyncio.get_running_loop().get_task_factory()
                assert callable(factory)
                for name in ("__code__", "__closure__", "_is_sentry_task_factory"):
                    assert not hasattr(factory, name)

        asyncio_backend.run(main)


def created(task: Any) -> List[Tuple[str, str, int]]:
    """The stack in which a task was created, in debug mode, outermost first from ``main`` on."""
    stack = [(frame.filename, frame.name, frame.lineno) for frame in task._source_traceback]
    outermost = next(i for i, (name, _, _) in enumerate(stack) if name == __file__)
    while stack[outermost][1] != "main":
        outermost += 1
    return stack[outermost:]


def create_task() -> Any:
    return asyncio.create_task(immediate())


def loop_create_task() -> Any:
    return asyncio.get_running_loop().create_task(immediate(), name="named")


def ensure_future() -> Any:
    return asyncio.ensure_future(immediate())


def in_gather() -> Any:
    before = asyncio.all_tasks()
    asyncio.gather(immediate())
    (task,) = asyncio.all_tasks() - before
    return task


class TestWhereTasksAreCreated:
    WAYS = (create_task, loop_create_task, ensure_future, in_gather)

    @staticmethod
    async def outside_and_inside(way: Any) -> List[Any]:
        """The tasks that one line creates in asyncio's debug mode outside and inside a scope."""
        tasks = []
        asyncio.get_running_loop().set_debug(True)
        async with contextlib.AsyncExitStack() as stack:
            for is_inside in (False, True):
                if is_inside:
                    await stack.enter_async_context(greenback.portals_for_tree())
                tasks.append(way())
                await asyncio.sleep(0)
        asyncio.get_running_loop().set_debug(False)
        assert [await task for task in tasks] == [5, 5]
        return tasks

    @pytest.mark.parametrize("way", WAYS, ids=lambda way: way.__name__)
    def test_stack(self, asyncio_backend: Any, way: Any) -> None:
        """In debug mode, a task has the stack of its creator, and no frame of greenback's."""

        async def main() -> None:
            outside, inside = await self.outside_and_inside(way)
            assert created(inside) == created(outside)
            assert any(name == way.__name__ for _, name, _ in created(inside))

        asyncio_backend.run(main)

    @pytest.mark.parametrize("way", WAYS, ids=lambda way: way.__name__)
    def test_repr(self, asyncio_backend: Any, way: Any) -> None:
        """A task's repr() names the same place of creation as without the scope."""

        async def main() -> None:
            outside, inside = await self.outside_and_inside(way)
            assert created_at(inside) == created_at(outside)

        def created_at(task: Any) -> str:
            before, found, place = repr(task).partition(" created at ")
            assert found, before
            return place

        asyncio_backend.run(main)

    def test_repr_names_the_line(self) -> None:
        """On asyncio, a task's repr() names the program's line as its place of creation."""

        async def main() -> None:
            _, inside = await self.outside_and_inside(loop_create_task)
            line = loop_create_task.__code__.co_firstlineno + 1
            assert f"created at {__file__}:{line}" in repr(inside)

        asyncio.run(main())

    @pytest.mark.parametrize(
        "which",
        ["application's", pytest.param("eager", marks=needs_eager_tasks)],
    )
    def test_with_a_factory(self, asyncio_backend: Any, which: str) -> None:
        """A loop's own factory is in the stack, right below the line of the program."""

        async def main() -> None:
            factory: Any = application_factory
            if which == "eager":
                factory = asyncio.eager_task_factory  # type: ignore[attr-defined]
            loop = asyncio.get_running_loop()
            loop.set_task_factory(factory)
            try:
                outside, inside = await self.outside_and_inside(create_task)
            finally:
                loop.set_task_factory(None)
            assert created(inside)[-1] == created(outside)[-1]
            assert not any(name.startswith(HERE) for name, _, _ in created(inside))
            line = create_task.__code__.co_firstlineno + 1
            assert created(inside)[-2] == (__file__, "create_task", line)

        if which == "eager" and repr(asyncio_backend) == "uvloop":
            pytest.skip("uvloop 0.23 passes eager_start, which eager factories may not take")
        asyncio_backend.run(main)

    def test_in_an_exception(self, asyncio_backend: Any) -> None:
        """An exception of a factory has the line that creates the task in its traceback."""

        def refuses(loop: Any, coro: Any, **kwds: Any) -> Any:
            raise LookupError("no task")

        async def main() -> None:
            loop = asyncio.get_running_loop()
            loop.set_task_factory(refuses)
            coroutine = immediate()
            async with greenback.portals_for_tree():
                with pytest.raises(LookupError) as caught:
                    loop.create_task(coroutine)
            loop.set_task_factory(None)
            assert await coroutine == 5
            assert not any(str(entry.path).startswith(HERE) for entry in caught.traceback)

        asyncio_backend.run(main)


HERE = greenback.__file__[: -len("__init__.py")]

SENTRY = """
import asyncio
import greenback
import sentry_sdk
from sentry_sdk.integrations.asyncio import enable_asyncio_integration
from sentry_sdk.transport import Transport

events = []
class InMemory(Transport):
    def capture_envelope(self, envelope):
        events.append(envelope.get_event())

sentry_sdk.init(dsn="https://key@localhost/1", transport=InMemory, default_integrations=False)

async def child():
    greenback.await_(asyncio.sleep(0))
    sentry_sdk.set_tag("of", "child")
    raise LookupError("here")

async def task():
    task = asyncio.create_task(child())
    await asyncio.wait([task])
    assert repr(task.exception()) == "LookupError('here')", task.exception()
    (event,) = events
    events.clear()
    frames = event["exception"]["values"][-1]["stacktrace"]["frames"]
    assert event["tags"] == {"of": "child"}
    print(task.get_name(), frames[-1]["function"])
"""


NAME = "child (Sentry-wrapped)"
#: With asyncio, CPython 3.13.0 names unnamed tasks None as soon as the loop has a task factory.
NAME_ON_ASYNCIO = "None" if sys.version_info[:3] == (3, 13, 0) else NAME


class TestSentry:
    """Sentry's integration wraps the loop's factory, and recognises its own by an attribute."""

    @pytest.mark.parametrize("loop", ["asyncio", "uvloop"])
    def test_before_the_scope(self, loop: str) -> None:
        """Inside a scope, an error is sent once, with the same name, even if enabled twice."""
        name = NAME_ON_ASYNCIO
        if loop == "uvloop":
            pytest.importorskip("uvloop")
            name = NAME
        program = f"""
            async def main():
                enable_asyncio_integration()
                async with greenback.portals_for_tree():
                    await task()
                    enable_asyncio_integration()
                    await task()
            loop = __import__({loop!r}).new_event_loop()
            loop.run_until_complete(main())
            loop.close()
        """
        assert run_program(SENTRY, program) == f"{name} child\n" * 2

    def test_inside_the_scope(self) -> None:
        """Sentry may be enabled while a scope is open, and stays when the scope is left."""
        program = """
            async def main():
                async with greenback.portals_for_tree():
                    enable_asyncio_integration()
                    await task()
                    enable_asyncio_integration()
                    await task()
                    async with greenback.portals_for_tree():
                        enable_asyncio_integration()
                        await task()
                async with greenback.portals_for_tree():
                    enable_asyncio_integration()
                    await task()
            asyncio.run(main())
        """
        assert run_program(SENTRY, program) == f"{NAME_ON_ASYNCIO} child\n" * 4


@pytest.mark.skipif(PYPY, reason="aiomonitor needs aiohttp, which is not installed on PyPy")
class TestAiomonitor:
    def test_created_location(self) -> None:
        """aiomonitor shows the function of a task, and the line that created the task."""
        program = """
            import asyncio
            import aiomonitor
            import greenback

            async def child(gate):
                greenback.has_portal() and greenback.await_(gate.wait())
                await gate.wait()

            def create(gate):
                return asyncio.create_task(child(gate))

            async def shown(monitor):
                gate = asyncio.Event()
                task = create(gate)
                await asyncio.sleep(0)
                (row,) = [
                    row for row in monitor.format_running_task_list("", False)
                    if row.task_id == str(id(task))
                ]
                gate.set()
                await task
                return row.coro, row.created_location

            async def main():
                loop = asyncio.get_running_loop()
                with aiomonitor.start_monitor(
                    loop, hook_task_factory=True, console_enabled=False, port=0, webui_port=0
                ) as monitor:
                    outside = await shown(monitor)
                    async with greenback.portals_for_tree():
                        inside = await shown(monitor)
                print(*outside)
                print(*inside)

            asyncio.run(main())
        """
        outside, inside = run_program(program).splitlines()
        assert inside == outside
        line = program[: program.index("return asyncio")].count("\n") + 1
        assert inside == f"child() <string>:{line}"
