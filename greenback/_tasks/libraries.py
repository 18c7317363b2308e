"""The differences between asyncio and Trio: one class for each, with the same methods.

The rest of the runtime gets a `Library` from `current` or `library_of`, and does not ask which one
it is. This module imports neither asyncio nor Trio before the program itself has done so.
"""

from __future__ import annotations

import sys
import types
import weakref
from typing import (
    TYPE_CHECKING,
    Any,
    Awaitable,
    Callable,
    Coroutine,
    Dict,
    Generator,
    Optional,
    Set,
    Tuple,
    Union,
)

import sniffio

from .._engine.choice import compiled
from .._folder import FOLDER
from .c_tasks import LayoutError, layout_of
from .where import nothing_running, other_library

if TYPE_CHECKING:
    import asyncio

    import trio

    Task = Union[asyncio.Task[Any], trio.lowlevel.Task]

# Trio sets `sniffio.thread_local.name` while its loop runs in a thread; asyncio does not change it.
# The hot path reads the same attribute.
sniffio_thread = sniffio.thread_local


class Library:
    """The interface. One object per library, and per loop of another library around it."""

    name: str
    #: The value of `sniffio.thread_local.name` when this object was looked up. While a task of this
    #: library runs in the same surroundings, the value is the same.
    mark: Optional[str]
    #: Whether the library can hold Ctrl-C back from some code and let it through to other code.
    holds_back_ctrl_c = False

    def current_task(self) -> Optional[Task]:
        """The running task, or None if no task of this library is running right now."""
        raise NotImplementedError

    def is_running(self, task: Task) -> bool:
        """Whether *task* is the running task."""
        try:
            return self.current_task() is task
        except RuntimeError:
            return False  # no loop is running in this thread

    def loop(self) -> Any:
        """The object that runs the current task. It can be compared and weakly referenced."""
        raise NotImplementedError

    def loop_of(self, task: Any) -> Any:
        """The result of `loop` in the steps of *task*."""
        raise NotImplementedError

    def is_closed(self, loop: Any) -> bool:
        raise NotImplementedError

    def is_done(self, task: Task) -> bool:
        raise NotImplementedError

    def coroutine_of(self, task: Task) -> Coroutine[Any, Any, Any]:
        raise NotImplementedError

    def replace_coroutine(
        self, task: Task, old: Coroutine[Any, Any, Any], new: Coroutine[Any, Any, Any]
    ) -> None:
        """Make the loop step *new* in place of *old*, from the next step of *task* on.

        Raises:
            RuntimeError: This cannot be done safely. Nothing has been changed.
        """
        raise NotImplementedError

    def checkpoint(self) -> Awaitable[None]:
        """An awaitable that lets other tasks run, and notices a cancellation."""
        raise NotImplementedError

    def shielded_checkpoint(self) -> Awaitable[None]:
        """The same, but it notices no cancellation if the library can hold that back."""
        raise NotImplementedError

    def is_protected_from_ctrl_c(self, task: Optional[Task] = None) -> bool:
        """Whether Ctrl-C is held back from the code of *task*, by default from the calling code."""
        return True

    def interruptible(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """A copy of *function* below which Ctrl-C is let through."""
        return function

    def uninterruptible(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """*function*, guarded so that Ctrl-C is not let through in its own frame."""
        return function


@types.coroutine
def _yield_none() -> Generator[None, None, None]:
    yield


class Asyncio(Library):
    name = "asyncio"

    def __init__(self, mark: Optional[str]) -> None:
        import asyncio

        self.mark = mark
        self._asyncio = asyncio
        self._c_task: Optional[type] = None
        try:
            import _asyncio

            self._c_task = _asyncio.Task
        except ImportError:
            pass  # PyPy: tasks are plain Python objects there
        if sys.version_info >= (3, 12) and self._c_task is not None:
            # It is in C there, and costs a tenth of the Python function before 3.12.
            self.current_task = asyncio.current_task  # type: ignore[method-assign,assignment]
        self._running_loop = self.loop = asyncio._get_running_loop  # type: ignore[method-assign]
        self._current_tasks: Dict[Any, Any] = getattr(asyncio.tasks, "_current_tasks", {})
        if compiled is not None and sys.version_info < (3, 14):
            # It reads the same dictionary, in less time.
            compiled.set_asyncio(self._running_loop, self._current_tasks)
            self.current_task = compiled.current_task  # type: ignore[method-assign]

    def current_task(self) -> Optional[Task]:
        return self._current_tasks.get(self._running_loop())

    def loop(self) -> Any:
        return self._running_loop()

    def loop_of(self, task: Any) -> Any:
        return task.get_loop()

    def is_closed(self, loop: Any) -> bool:
        return bool(loop.is_closed())

    def is_done(self, task: Any) -> bool:
        return bool(task.done())

    def coroutine_of(self, task: Any) -> Coroutine[Any, Any, Any]:
        if self._c_task is not None and isinstance(task, self._c_task):
            return self._c_task.get_coro(task)  # type: ignore[attr-defined,no-any-return]
        return task.get_coro()  # type: ignore[no-any-return]

    def replace_coroutine(
        self, task: Any, old: Coroutine[Any, Any, Any], new: Coroutine[Any, Any, Any]
    ) -> None:
        if self._c_task is not None and isinstance(task, self._c_task):
            loop = self.loop_of(task)
            if not _has_gil() and loop.is_running() and loop is not self._running_loop():
                # The loop's thread may be stepping the task at this moment.
                raise _cannot_replace(task, "its event loop is running in another thread")
            try:
                layout_of(self._c_task).replace(task, old, new)
            except LayoutError as error:
                raise _cannot_replace(task, str(error)) from None
            return
        if self._c_task is not None and sys.version_info >= (3, 14):
            raise RuntimeError(
                f"greenback cannot put a portal under {task!r}: it is written in Python, and from "
                "Python 3.14 on asyncio.current_task() does not name such a task while it runs; "
                "use asyncio.Task"
            )
        try:
            holds_it = task._coro is old
            if holds_it:
                task._coro = new
        except AttributeError:
            holds_it = False
        if not holds_it:
            raise _cannot_replace(task, "it does not keep its coroutine where asyncio's tasks do")

    def checkpoint(self) -> Awaitable[None]:
        return _yield_none()

    shielded_checkpoint = checkpoint


if sys.version_info >= (3, 13):
    _has_gil = sys._is_gil_enabled
else:

    def _has_gil() -> bool:
        return True


def _no_loop() -> None:
    return None


class Trio(Library):
    name = "trio"
    mark = "trio"
    holds_back_ctrl_c = True

    def __init__(self, outer_loop: Any) -> None:
        import trio

        self._lowlevel = trio.lowlevel
        self._current = trio.lowlevel.current_task
        self._context: Any = trio._core._run.GLOBAL_RUN_CONTEXT
        self._ki_protection_enabled: Callable[[Optional[types.FrameType]], bool] = (
            trio._core._ki.ki_protection_enabled
        )
        #: The asyncio loop around the Trio run, if there is one, as a weak reference.
        self._outer_loop = weakref.ref(outer_loop) if outer_loop is not None else _no_loop

    def _runner(self) -> Any:
        return getattr(self._context, "runner", None)

    def current_task(self) -> Optional[Task]:
        if running_asyncio_loop() is not self._outer_loop():
            return None  # an asyncio loop was started inside the Trio task, so it is the inner one
        try:
            return self._current()
        except RuntimeError:
            return None

    def loop(self) -> Any:
        return self  # a run ends after all of its tasks, so no two runs need to be told apart

    def loop_of(self, task: Any) -> Any:
        return self

    def is_closed(self, loop: Any) -> bool:
        return False

    def is_done(self, task: Any) -> bool:
        nursery = task.parent_nursery
        if nursery is None:  # Trio's own first task
            return task.coro.cr_frame is None
        children = getattr(nursery, "_children", None)
        # The public `child_tasks` copies the whole set.
        return task not in (nursery.child_tasks if children is None else children)

    def coroutine_of(self, task: Any) -> Coroutine[Any, Any, Any]:
        return task.coro  # type: ignore[no-any-return]

    def replace_coroutine(
        self, task: Any, old: Coroutine[Any, Any, Any], new: Coroutine[Any, Any, Any]
    ) -> None:
        if not _has_gil() and task._runner is not self._runner():
            raise _cannot_replace(task, "its Trio run is in another thread")
        task.coro = new
        # A task that is scheduled to run already holds a method of its coroutine at that time.
        promised = getattr(task, "_next_send_fn", None)
        # The methods of a `TaskCoroutine` are those of the shim inside.
        if promised is not None and getattr(promised, "__self__", None) in (
            old,
            getattr(old, "shim", old),
        ):
            task._next_send_fn = getattr(new, promised.__name__)

    def checkpoint(self) -> Awaitable[None]:
        return self._lowlevel.checkpoint()

    def shielded_checkpoint(self) -> Awaitable[None]:
        return self._lowlevel.cancel_shielded_checkpoint()

    def is_protected_from_ctrl_c(self, task: Any = None) -> bool:
        if task is None:
            # As `currently_ki_protected`, but beginning at the program's innermost frame: Trio
            # takes a microsecond per frame, and greenback's own frames say nothing.
            frame: Optional[types.FrameType] = sys._getframe(1)
            while frame is not None and frame.f_code.co_filename.startswith(FOLDER):
                frame = frame.f_back
            return self._ki_protection_enabled(frame)
        # Before Trio 0.28, the mark is on the frame of the task's coroutine, and still works there.
        return getattr(task, "_ki_protected", True)

    def interruptible(self, function: Callable[..., Any]) -> Callable[..., Any]:
        copy = _interruptible_copies.get(function)
        if copy is None:
            # Trio keeps its marks by code object, so the copy needs a code object of its own.
            copy = types.FunctionType(
                function.__code__.replace(),
                function.__globals__,
                function.__name__,
                function.__defaults__,
                function.__closure__,
            )
            marked = self._lowlevel.disable_ki_protection(copy)
            if marked.__code__ is not copy.__code__:
                trio_wrappers.add(marked.__code__)
            copy = _interruptible_copies[function] = marked
        return copy

    def uninterruptible(self, function: Callable[..., Any]) -> Callable[..., Any]:
        guarded = _uninterruptible.get(function)
        if guarded is None:
            guarded = _uninterruptible[function] = self._lowlevel.enable_ki_protection(function)
        return guarded


# These are written where they are first needed, from any thread. Writing one twice does no harm.
_interruptible_copies: Dict[Callable[..., Any], Callable[..., Any]] = {}
_uninterruptible: Dict[Callable[..., Any], Callable[..., Any]] = {}
#: The code of the function in which Trio before 0.28 wraps an interruptible one.
trio_wrappers: Set[types.CodeType] = set()
_asyncio_marked: Dict[Optional[str], Asyncio] = {}
_trio_alone: Optional[Trio] = None
_trio_inside: weakref.WeakKeyDictionary[Any, Trio] = weakref.WeakKeyDictionary()
_get_running_loop: Optional[Callable[[], Any]] = None


def current(coroutine_of: Callable[[Library, Task], Any]) -> Tuple[Library, Task]:
    """The library and the task that are running here; the inner ones if two loops are nested.

    Args:
        coroutine_of: Returns the coroutine that a task was made for, even if the task runs a shim.

    Raises:
        sniffio.AsyncLibraryNotFoundError: No library that sniffio knows is running.
        RuntimeError: A library other than asyncio or Trio is running, or no task is.
    """
    name = sniffio_thread.name
    if name is None:
        name = sniffio.current_async_library_cvar.get()
    if name is None or name == "asyncio":
        if running_asyncio_loop() is not None:
            library = running_asyncio()
            task = library.current_task()
            if task is not None:
                return library, task
        try:
            name = sniffio.current_async_library()  # most often this raises
        except sniffio.AsyncLibraryNotFoundError:
            name = None
        if name is None:  # not in the except block: the error is to have no context
            loop = running_asyncio_loop()
            raise nothing_running(loop, _is_playwright(loop))
        if name == "asyncio":
            raise RuntimeError("no asyncio task is running")
    if name != "trio":
        raise other_library(name)
    loop = running_asyncio_loop()
    trio_library = _trio(loop)
    trio_task: Any = trio_library.current_task()
    if loop is not None:
        asyncio_library = running_asyncio()
        asyncio_task = asyncio_library.current_task()
        if asyncio_task is not None and (
            trio_task is None
            or _is_inner(
                coroutine_of(asyncio_library, asyncio_task), coroutine_of(trio_library, trio_task)
            )
        ):
            return asyncio_library, asyncio_task
    if trio_task is None:
        raise RuntimeError("no Trio task is running")
    return trio_library, trio_task


def _is_playwright(loop: Any) -> bool:
    """Whether *loop* runs in a greenlet of Playwright's, and the caller runs in another one."""
    if "playwright.sync_api" not in sys.modules:
        return False
    from asyncio import BaseEventLoop

    if not isinstance(loop, BaseEventLoop):
        return False  # uvloop's functions are in C and have no frames in the stack
    code = type(loop).run_forever.__code__
    frame = sys._getframe()
    while frame is not None:
        if frame.f_code is code or frame.f_code.co_name == "run_forever":
            return False
        frame = frame.f_back  # type: ignore[assignment]
    return True


def library_of(task: Any) -> Library:
    """The library that *task* belongs to.

    Raises:
        TypeError: It is not a task of asyncio or Trio.
    """
    asyncio = sys.modules.get("asyncio")
    if asyncio is not None and isinstance(task, _asyncio_task_types(asyncio)):
        return running_asyncio()
    trio = sys.modules.get("trio")
    if trio is not None and isinstance(task, trio.lowlevel.Task):
        return _trio(running_asyncio_loop())
    raise TypeError(
        f"{task!r} is not a task of asyncio or Trio; pass asyncio.current_task(), the "
        "result of create_task(), or trio.lowlevel.current_task()"
    )


def is_loop_running() -> bool:
    """Whether this thread is inside an event loop, in a task or in a callback."""
    return sniffio_thread.name is not None or running_asyncio_loop() is not None


def start_loop(name: str, async_fn: Callable[..., Any], *args: Any) -> Any:
    """Run an async function in a new event loop of the library *name*."""
    if name == "trio":
        import trio

        return trio.run(async_fn, *args)
    import asyncio

    return asyncio.run(async_fn(*args))


def _asyncio_task_types(asyncio: Any) -> Tuple[type, ...]:
    return (asyncio.Task, asyncio.tasks._PyTask)


def running_asyncio() -> Asyncio:
    """The object for asyncio in the present surroundings (see `Library.mark`)."""
    mark = sniffio_thread.name
    library = _asyncio_marked.get(mark)
    if library is None:
        library = _asyncio_marked[mark] = Asyncio(mark)
    return library


def _trio(outer_loop: Any) -> Trio:
    """The object for Trio, inside of the given asyncio loop, or alone if that is None."""
    global _trio_alone
    if outer_loop is not None:
        library = _trio_inside.get(outer_loop)
        if library is None:
            library = _trio_inside[outer_loop] = Trio(outer_loop)
        return library
    if _trio_alone is None:
        _trio_alone = Trio(None)
    return _trio_alone


def running_asyncio_loop() -> Any:
    """The asyncio loop that is set as running in this thread; None if asyncio is not imported."""
    global _get_running_loop
    get = _get_running_loop
    if get is None:
        # The attribute is missing while another thread is in the middle of importing asyncio.
        get = getattr(sys.modules.get("asyncio"), "_get_running_loop", None)
        if get is None:
            return None
        _get_running_loop = get
    return get()


def _is_inner(first: Any, second: Any) -> bool:
    """Whether *first* is the inner one of two coroutines that both run in this thread.

    The loops of two libraries run, one started inside a task of the other. Each takes its own task
    for the running one, and only the stack shows which loop was started last. A coroutine whose
    frame is not in this greenlet's stack is further out than a coroutine whose frame is.
    """
    first_frame = getattr(first, "cr_frame", None)
    second_frame = getattr(second, "cr_frame", None)
    frame: Optional[types.FrameType] = sys._getframe()
    while frame is not None:
        if frame is first_frame:
            return True
        if frame is second_frame:
            return False
        frame = frame.f_back
    return False


def _cannot_replace(task: Any, why: str) -> RuntimeError:
    return RuntimeError(
        f"greenback cannot put a portal under {task!r}, because {why}; use "
        "'await greenback.with_portal_run(async_fn, *args)', which needs no access to the task"
    )
