"""Replacing the coroutine of an asyncio task that is written in C.

Such a task has no way to set its coroutine. It keeps the coroutine in one word of its memory. The
place of this word depends on the version and the build of the interpreter, and no interpreter tells
it. There is no list of versions here. Instead, `self_test` runs once per process, before the first
write into a task of the program: it finds the word in tasks of its own, and tries on them all that
will be done to the program's tasks. Each later write is checked before and after, too.
"""

from __future__ import annotations

import contextvars
import gc
import os
import sys
import threading
import types
import weakref
from collections import deque
from typing import Any, Callable, Coroutine, Deque, Generator, List, Optional, Tuple, Union

from .._engine.choice import compiled


class LayoutError(Exception):
    """A task's coroutine cannot be replaced safely. Says why. Nothing has been changed."""


class Layout:
    """Where tasks that are written in C keep their coroutine: ``offset``, in bytes."""

    __slots__ = ("_decref", "_incref", "_task_type", "_word", "offset")

    def __init__(self, task_type: Any, task: Any, coroutine: Coroutine[Any, Any, Any]) -> None:
        self._task_type = task_type
        if compiled is not None:
            self.offset = _only(compiled.find_references(task, task_type, coroutine))
            return
        import _ctypes
        import ctypes

        # These cost a tenth of a call into ctypes.pythonapi. Besides, all modules share the
        # argument types of functions there.
        self._incref: Callable[[Any], None] = _ctypes.Py_INCREF
        self._decref: Callable[[Any], None] = _ctypes.Py_DECREF
        self._word = ctypes.c_size_t
        size = ctypes.sizeof(self._word)
        # Only the part of asyncio.Task itself: a subclass may have a slot of its own that refers
        # to the same coroutine.
        words = (self._word * (task_type.__basicsize__ // size)).from_address(id(task))
        found = [index for index, value in enumerate(words) if value == id(coroutine)]
        self.offset = _only(found) * size

    def replace(
        self, task: Any, old: Coroutine[Any, Any, Any], new: Coroutine[Any, Any, Any]
    ) -> None:
        """Replace *old* by *new*, if the word holds *old*, and check the result by get_coro().

        The task owns a reference to its coroutine, so this also moves the reference counts.

        Raises:
            LayoutError: The task has another layout.
        """
        if compiled is not None:
            if not compiled.replace_reference(task, self.offset, old, new):
                raise LayoutError("its coroutine is not where other tasks have theirs")
            if self._task_type.get_coro(task) is not new:
                compiled.replace_reference(task, self.offset, new, old)
                raise LayoutError("it did not take the new coroutine")
            return
        field = self._word.from_address(id(task) + self.offset)
        before, after = id(old), id(new)
        self._incref(new)
        given_up = new
        try:
            # Between the check and the write nothing is called. So no signal handler runs there,
            # and with a GIL no other thread, which might replace the coroutine as well and give up
            # the same reference.
            if field.value != before:
                raise LayoutError("its coroutine is not where other tasks have theirs")
            field.value = after
            given_up = old
            if self._task_type.get_coro(task) is not new and field.value == after:
                field.value = before
                given_up = new
                raise LayoutError("it did not take the new coroutine")
        finally:
            self._decref(given_up)


def _only(places: List[int]) -> int:
    if len(places) != 1:
        raise LayoutError(f"a task's coroutine was found in {len(places)} places of it")
    return places[0]


_TRIES = 3
# The result of the self-test, or why it failed. `_test_in_thread` writes it once, under the lock.
_found: Union[Layout, LayoutError, None] = None
# Reentrant: a signal handler that needs the self-test may interrupt a caller that waits for it.
_lock = threading.RLock()


def layout_of(task_type: Any) -> Layout:
    """Where the tasks of the type `_asyncio.Task` keep their coroutine.

    Raises:
        LayoutError: The self-test failed, or could not be run.
    """
    if _found is None:
        with _lock:
            _test_in_thread(task_type)
    if isinstance(_found, Layout):
        return _found
    assert _found is not None
    raise LayoutError(str(_found))


def _test_in_thread(task_type: Any) -> None:
    """Run the self-test in a new thread, in which no loop and no task of the program is running."""
    global _found
    if _found is not None:
        return
    found: List[Union[Layout, LayoutError]] = []

    def run() -> None:
        # A profiler or tracer that was set for all threads may keep objects that it sees. The
        # self-test counts references.
        sys.setprofile(None)
        sys.settrace(None)
        # Several tries: another thread that calls gc.get_objects() meanwhile holds references, too.
        for _ in range(_TRIES):
            try:
                found[:] = [self_test(task_type)]
                return
            except LayoutError as error:
                found[:] = [error.with_traceback(None)]
            except Exception as error:  # a bug in the test must not pass for a verified layout
                found[:] = [LayoutError(f"the self-test of {_build()} raised {error!r}")]

    thread = threading.Thread(target=run, name="greenback self-test", daemon=True)
    try:
        thread.start()
    except RuntimeError as error:  # too many threads, or the interpreter is shutting down
        raise LayoutError(f"its layout is verified in a thread, and none could be started: {error}")  # noqa: B904
    thread.join()
    (_found,) = found
    if compiled is not None and isinstance(_found, Layout):
        compiled.set_task_layout(task_type, _found.offset)


def _after_fork() -> None:
    """Make a new lock in the child of a fork: a thread of the parent may have held the old one."""
    global _lock
    _lock = threading.RLock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)


def _build() -> str:
    flags = getattr(sys, "abiflags", "")  # debug and free-threaded builds; not on Windows
    return f"{sys.implementation.name} {sys.version_info[0]}.{sys.version_info[1]}{flags}"


def self_test(task_type: Any) -> Layout:
    """Find the word in which tasks keep their coroutine, and replace it in tasks made for the test.

    Must be called in a thread that runs no event loop.

    Args:
        task_type: `_asyncio.Task`.

    Raises:
        LayoutError: Something was not as expected; says what. Only the test's own tasks have been
            written to.
    """
    import asyncio

    loop = _Loop()
    asyncio._set_running_loop(loop)  # type: ignore[arg-type]
    try:
        layout = None
        for moment in (_NEW, _WAITING, _RUNNING):
            layout = _try(task_type, loop, layout, moment)
    except ImportError as error:
        raise LayoutError(f"its memory cannot be written to without {error.name}") from None
    finally:
        asyncio._set_running_loop(None)
    assert layout is not None
    return layout


# The moments at which the coroutine of a task is replaced.
_NEW = "a task before its first step"
_WAITING = "a task that waits"
_RUNNING = "a task that is running"  # as by `ensure_portal`, which its coroutine calls


def _try(task_type: Any, loop: _Loop, layout: Optional[Layout], moment: str) -> Layout:
    """Replace the coroutine of one task, step the task to its end, and check all that is visible.

    Most of what is visible are the references that a task owns, so they are counted.
    """

    def check(holds: bool, otherwise: str) -> None:
        if not holds:
            raise LayoutError(
                f"the layout of tasks in {_build()} could not be verified: with {moment}, "
                + otherwise
            )

    log: List[str] = []
    tasks: List[Any] = []

    async def replaced() -> str:
        log.append("old")
        if tasks:
            assert layout is not None
            layout.replace(tasks.pop(), old, new)
        await _yield()
        log.append("old again")
        return "old"

    async def replacing() -> str:
        log.append("new")
        await _yield()
        log.append("new again")
        return "new"

    old, new = replaced(), replacing()
    old_alone, new_alone = sys.getrefcount(old), sys.getrefcount(new)
    try:
        task = task_type(old, loop=loop, name="greenback self-test")  # unnamed ones are numbered
        task._log_destroy_pending = False  # if a check fails, the task is dropped before its end
        check(
            sys.getrefcount(old) == old_alone + 1, "it does not own one reference to its coroutine"
        )
        if layout is None:
            layout = Layout(task_type, task, old)
        if moment is _RUNNING:
            tasks.append(task)
        if moment is not _NEW:
            loop.step()
        if moment is not _RUNNING:
            layout.replace(task, old, new)
        check(task_type.get_coro(task) is new, "get_coro() gives another one")
        seen = [each is new for each in gc.get_referents(task) if each is old or each is new]
        check(seen == [True], "the garbage collector finds another one")
        check(sys.getrefcount(old) == old_alone, "the old one's reference count is off")
        check(sys.getrefcount(new) == new_alone + 1, "the new one's reference count is off")
        loop.step()
        loop.step()
        began = [] if moment is _NEW else ["old"]
        check(log == [*began, "new", "new again"], f"its steps were {log}")
        check(task.done() and task.result() == "new", "the new one's result was lost")
        check(not loop.has_more(), "it is to be stepped after its end")
        reference = weakref.ref(task)
        del task
        check(reference() is None, "it is not freed")
        check(sys.getrefcount(old) == old_alone, "the old one's reference count is off in the end")
        check(sys.getrefcount(new) == new_alone, "the new one's reference count is off in the end")
    finally:
        old.close()
        new.close()
    return layout


@types.coroutine
def _yield() -> Generator[None, None, None]:
    yield


class _Loop:
    """The part of an event loop that a task needs. A real one would open files."""

    def __init__(self) -> None:
        self._due: Deque[Tuple[contextvars.Context, Callable[..., Any], Tuple[Any, ...]]] = deque()

    def call_soon(
        self,
        callback: Callable[..., Any],
        *args: Any,
        context: Optional[contextvars.Context] = None,
    ) -> None:
        self._due.append((context or contextvars.copy_context(), callback, args))

    def step(self) -> None:
        context, callback, args = self._due.popleft()
        context.run(callback, *args)

    def has_more(self) -> bool:
        return bool(self._due)

    def get_debug(self) -> bool:
        return False

    def is_running(self) -> bool:
        return True

    def call_exception_handler(self, context: Any) -> None:
        """Does nothing: the checks find a failure by the task's behaviour."""
