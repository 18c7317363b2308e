"""Errors say where the caller is, and what to write there instead."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import threading
import warnings
from typing import Any, Callable, Dict, List

import anyio
import pytest
import sniffio
import trio

import greenback
from greenback import await_

needs_task_group = pytest.mark.skipif(
    sys.version_info < (3, 11), reason="asyncio.TaskGroup is of Python 3.11"
)


async def immediate() -> int:
    return 5


class Context:
    async def __aenter__(self) -> None:
        pass

    async def __aexit__(self, *exc_info: object) -> None:
        pass


class Numbers:
    def __aiter__(self) -> Any:
        return self

    async def __anext__(self) -> int:
        raise StopAsyncIteration


def _with() -> None:
    with greenback.async_context(Context()):
        pass


def _for() -> None:
    for _ in greenback.async_iter(Numbers()):
        pass


#: The functions that bridge, by name.
BRIDGES: Dict[str, Callable[[], Any]] = {
    "await_": lambda: await_(immediate()),
    "async_context": _with,
    "async_iter": _for,
    "autoawait": lambda: greenback.autoawait(immediate)(),
}
#: The functions that need a task, by name.
OPENERS: Dict[str, Callable[[], Any]] = {
    "ensure_portal": lambda: greenback.ensure_portal(),
    "with_portal_run": lambda: greenback.with_portal_run(immediate),
    "with_portal_run_sync": lambda: greenback.with_portal_run_sync(int),
    "decorate_as_sync": lambda: greenback.decorate_as_sync(lambda fn: fn)(immediate)(),
}


def in_no_task() -> Dict[str, str]:
    """The texts of the errors where there is no task, by function; has_portal() agrees."""
    assert not greenback.has_portal()
    found = {name: said(call, NotFound) for name, call in BRIDGES.items()}
    for name, opener in OPENERS.items():
        found[name] = said(lambda: opener().send(None), NotFound)
    with pytest.raises(NotFound) as caught:
        greenback.portals_for_children().__enter__()
    found["portals_for_children"] = str(caught.value)
    return found


NotFound = sniffio.AsyncLibraryNotFoundError
NO_PORTAL = "you must create a greenback portal for this task"


def said(call: Callable[[], Any], kind: Any) -> str:
    """The text of a call's error."""
    with warnings.catch_warnings():
        # The coroutine passed to `call` is never awaited.
        warnings.filterwarnings("ignore", message=".* was never awaited")
        with pytest.raises(kind) as caught:
            call()
    assert caught.value.__context__ is None
    return str(caught.value)


class TestNoTask:
    def test_no_loop(self) -> None:
        """If no loop runs, the errors say how to start one."""
        for name, text in in_no_task().items():
            assert text.startswith("no event loop is running here"), name
            assert "greenback.run(async_fn, *args)" in text

    def test_worker_thread(self, backend: Any) -> None:
        """In a thread without a loop, the errors name the thread, and ways to reach the loop."""

        async def main() -> Any:
            await greenback.ensure_portal()
            if backend.is_trio:
                return await trio.to_thread.run_sync(in_thread)
            return await asyncio.get_running_loop().run_in_executor(None, in_thread)

        def in_thread() -> Any:
            return threading.current_thread().name, in_no_task()

        thread, texts = backend.run(main)
        for name, text in texts.items():
            assert text.startswith("this is a worker thread: no event loop runs in '"), name
            assert repr(thread) in text
            assert "run_coroutine_threadsafe" in text
            assert "trio.from_thread.run" in text

    def test_anyio_thread(self, backend: Any) -> None:
        """In a thread of anyio's, with its task's context, the errors say the same."""

        async def main() -> Any:
            await greenback.ensure_portal()
            return await anyio.to_thread.run_sync(in_no_task)

        for text in backend.run(main).values():
            assert text.startswith("this is a worker thread: ")

    def test_run_in_a_worker_thread(self, backend: Any) -> None:
        """In a thread without a loop, `run` starts one for the thread, as the errors say."""

        async def main() -> Any:
            return await anyio.to_thread.run_sync(greenback.run, immediate)

        assert backend.run(main) == 5

    @pytest.mark.parametrize("has_portal", [False, True])
    def test_callback(self, asyncio_backend: Any, has_portal: bool) -> None:
        """In a callback of the loop, the errors say that nothing can wait there; so does `run`."""
        found: List[Dict[str, str]] = []

        def callback(*args: Any) -> None:
            try:
                texts = in_no_task()
                texts["run"] = said(lambda: greenback.run(immediate), NotFound)
            except BaseException as error:
                texts = {"failed": repr(error)}
            found.append(texts)

        async def main() -> None:
            if has_portal:
                await greenback.ensure_portal()
            loop = asyncio.get_running_loop()
            loop.call_soon(callback)
            loop.call_later(0, callback)
            loop.call_soon_threadsafe(callback)
            task = asyncio.ensure_future(immediate())
            task.add_done_callback(callback)
            while len(found) < 4:
                await asyncio.sleep(0)

        asyncio_backend.run(main)
        for texts in found:
            for name, text in texts.items():
                assert text.startswith("this is a callback of a running event loop"), (name, text)
                assert "asyncio.ensure_future(greenback.with_portal_run_sync(function))" in text

    @pytest.mark.parametrize("name", ["thread_local", "cvar"])
    def test_other_library(self, name: str) -> None:
        """If sniffio names another library, the errors name it, and where the name is set."""
        if name == "cvar":
            token = sniffio.current_async_library_cvar.set("curio")
        else:
            sniffio.thread_local.name = "curio"
        try:
            assert not greenback.has_portal()
            texts = [said(call, RuntimeError) for call in BRIDGES.values()]
            texts += [said(lambda: each().send(None), RuntimeError) for each in OPENERS.values()]
        finally:
            if name == "cvar":
                sniffio.current_async_library_cvar.reset(token)
            else:
                sniffio.thread_local.name = None
        for text in texts:
            assert text.startswith("greenback does not support curio: it bridges to asyncio and T")
            assert "current_async_library_cvar to 'curio'" in text


def no_portal_said() -> str:
    """The texts of all bridges' errors in a task without a portal."""
    assert not greenback.has_portal()
    calls = [*BRIDGES.values(), lambda: greenback.run(immediate)]
    (text,) = {said(call, RuntimeError) for call in calls}
    assert text.startswith(NO_PORTAL)
    assert "await greenback.ensure_portal()" in text
    return text


class TestNoPortal:
    def test_alone(self, backend: Any) -> None:
        """In a task that no other task waits for, the errors say how to open a portal."""

        async def main() -> str:
            return no_portal_said()

        assert "which waits for this one" not in backend.run(main)

    def test_another_task_has_one(self, backend: Any) -> None:
        """The errors name no task that has a portal but does not wait for this one."""
        texts: List[str] = []
        opened: List[Any] = []

        async def has_one() -> None:
            await greenback.ensure_portal()
            opened.append(1)
            while not texts:
                await backend.checkpoint()

        async def has_none() -> None:
            while not opened:
                await backend.checkpoint()
            texts.append(no_portal_said())

        async def main() -> None:
            await backend.together(has_one, has_none)

        backend.run(main)
        assert "which waits for this one" not in texts[0]

    async def child(self) -> str:
        await asyncio.sleep(0)  # so that the parent waits for this task
        return no_portal_said()

    async def by_gather(self) -> str:
        found = await asyncio.gather(asyncio.sleep(0.001), self.child())
        return str(found[1])

    async def by_wait_for(self) -> str:
        return await asyncio.wait_for(asyncio.ensure_future(self.child()), 60)

    async def by_create_task(self) -> str:
        task = asyncio.get_running_loop().create_task(self.child())
        return await task

    async def by_wait(self) -> str:
        tasks = {asyncio.ensure_future(self.child())}
        done, _ = await asyncio.wait(tasks)
        return done.pop().result()

    async def by_task_group(self) -> str:
        async with asyncio.TaskGroup() as tasks:  # type: ignore[attr-defined]
            task = tasks.create_task(self.child())
        return str(task.result())

    WAYS = [
        "by_gather",
        "by_wait_for",
        "by_create_task",
        "by_wait",
        pytest.param("by_task_group", marks=needs_task_group),
    ]

    @pytest.mark.parametrize("opener", ["ensure_portal", "with_portal_run", "bridge"])
    @pytest.mark.parametrize("way", WAYS)
    def test_parent_has_one(self, asyncio_backend: Any, way: str, opener: str) -> None:
        """If a task with a portal waits for this one, the errors name that task."""

        async def main() -> str:
            task = asyncio.current_task()
            assert task is not None
            task.set_name("parent")
            return await in_portal(opener, getattr(self, way))

        assert_names_parent(asyncio_backend.run(main))

    @pytest.mark.parametrize("opener", ["ensure_portal", "with_portal_run", "bridge"])
    def test_parent_in_anyio(self, backend: Any, opener: str) -> None:
        """The errors name the waiting task in anyio's task groups, too, also on Trio."""
        found: List[str] = []

        async def child() -> None:
            await anyio.sleep(0)
            found.append(no_portal_said())

        async def parent() -> None:
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(child)

        self.run_named(backend, opener, parent)
        assert_names_parent(*found)

    @pytest.mark.parametrize("opener", ["ensure_portal", "with_portal_run", "bridge"])
    def test_grandparent_in_trio(self, opener: str) -> None:
        """On Trio, the errors name any task above this one that has a portal."""
        found: List[str] = []

        async def grandchild() -> None:
            found.append(no_portal_said())

        async def child() -> None:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(grandchild)

        async def parent() -> None:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(child)

        self.run_named(None, opener, parent)
        assert_names_parent(*found)

    @staticmethod
    def run_named(backend: Any, opener: str, parent: Callable[[], Any]) -> None:
        async def main() -> None:
            if backend is None or backend.is_trio:
                trio.lowlevel.current_task().name = "parent"
            else:
                asyncio.current_task().set_name("parent")  # type: ignore[union-attr]
            await in_portal(opener, parent)

        if backend is None:
            trio.run(main)
        else:
            backend.run(main)


async def in_portal(opener: str, async_fn: Callable[[], Any]) -> Any:
    if opener == "ensure_portal":
        await greenback.ensure_portal()
        return await async_fn()
    if opener == "with_portal_run":
        return await greenback.with_portal_run(async_fn)
    return await greenback.with_portal_run_sync(lambda: await_(async_fn()))


def assert_names_parent(*texts: str) -> None:
    (text,) = texts
    assert "the task 'parent', which waits for this one, has a portal" in text
    assert "async with greenback.portals_for_tree()" in text


class TestPlaywright:
    """Playwright's sync API runs an asyncio loop in a greenlet of its own."""

    PROGRAM = """
import greenback
from playwright.sync_api import sync_playwright

async def immediate():
    return 5

with sync_playwright():
    print(greenback.has_portal())
    for call in (lambda: greenback.await_(immediate()), lambda: greenback.run(immediate)):
        try:
            call()
        except Exception as error:
            print(type(error).__name__, error)
print(greenback.run(immediate))
"""

    @pytest.mark.skipif(sys.version_info < (3, 9), reason="before, a task runs in it")
    def test_inside(self) -> None:
        """Inside Playwright's sync API, the errors say so, and name its async API."""
        pytest.importorskip("playwright.sync_api", reason="the browser group is not installed")
        done = subprocess.run(
            [sys.executable, "-W", "ignore", "-c", self.PROGRAM],
            capture_output=True,
            text=True,
            timeout=60,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        has_portal, by_await, by_run, afterwards = done.stdout.splitlines()
        assert has_portal == "False"
        assert by_await.startswith("AsyncLibraryNotFoundError this is inside Playwright's sync API")
        assert "use 'playwright.async_api'" in by_await
        assert by_run == by_await
        assert afterwards == "5"
