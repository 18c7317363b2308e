"""What a worker runs: the work of portals, one after another.

Also what the engine needs for exceptions that pass through it: tracebacks and contexts.
"""

from __future__ import annotations

import sys
import types
from typing import Any, Callable, List, Optional

import greenlet

from .._tasks.libraries import trio_wrappers
from .choice import compiled, has_compiled
from .state import Portal

CoroutineType = types.CoroutineType

# When the event loop throws an exception, `drive` puts it into `Portal.error` and sends this marker
# into the portal. Throwing into the greenlet instead would raise the exception inside `await_`.
# `await_` could then resume the awaitable only from inside an `except` block, and that would change
# the `__context__` of every exception that is raised there.
ERROR = object()

# The result of `drive` when the task waits at another line: the caller must call `drive` again.
MOVED = object()


def work(first: List[Any]) -> None:
    """Run the work of one portal after another.

    The first portal comes in a list, and is taken out of it: greenlet keeps the arguments of
    `work` alive until `work` ends.
    """
    portal = first.pop()
    while True:
        try:
            run = portal.run
            if run is None:
                # A call with ** makes a dictionary. This check avoids it.
                if portal.kwds:
                    portal.result = portal.function(*portal.args, **portal.kwds)
                else:
                    portal.result = portal.function(*portal.args)
            else:
                portal.result = run(portal)
        except BaseException as error:
            if portal.abandoned:
                raise  # the worker is being killed
            hide_own_frames(error)
            # Throwing an error into the coroutine raised this one, and would raise it again.
            is_again = portal.error is not None and issubclass(
                type(error), (RecursionError, MemoryError)
            )
            portal.error = error
            if is_unfinished(portal.coroutine) and not is_again:
                # A signal handler raised the error before the coroutine got its answer: throw it
                # into the coroutine.
                portal.result = ERROR
                continue
        portal.resume = run = None
        if portal.abandoned:
            return  # the worker was killed, and the work has caught the GreenletExit
        # A debugger has stepped out of the work. In a reused worker, it would go on to step through
        # the work of another portal.
        if sys._getframe().f_trace is not None:
            portal.worker.poolable = False
            return
        # While the worker is parked, this frame must keep nothing alive, not even the worker: the
        # garbage collector cannot look into the stack of a greenlet.
        outside = portal.greenlet
        # Two references. When a thread ends, greenlet drops the thread's main greenlet if only one
        # reference to it is left and the garbage collector finds no owner of that one. During a
        # collection it finds none, since the collector hides the objects that it examines.
        also = outside  # noqa: F841
        portal = None
        portal = outside.switch()
        while type(portal) is not Portal:
            # The value is no portal: a greenlet that earlier work had started has ended, and this
            # worker is its parent. Pass its result on to this worker's own parent, as a dead
            # greenlet would.
            parent: Any = greenlet.getcurrent().parent
            portal = parent.switch(portal)
            parent = None


#: What a new worker runs.
new_work = compiled.serve if has_compiled("work") else work


def with_frame(function: Callable[..., Any], *args: Any, **kwds: Any) -> Any:
    """Call *function* from this frame, where a worker in C has none."""
    return function(*args, **kwds)


def no_caller() -> types.FrameType:
    """A frame that stands for the caller of `await_` where a greenlet runs `await_` itself.

    It is made in a greenlet, since a frame keeps the frames of its callers, and their variables.
    """
    return greenlet.greenlet(with_frame).switch(sys._getframe)  # type: ignore[no-any-return]


def run_function(portal: Portal) -> Any:
    """The work of a `with_portal_run_sync` that needs a frame of its own."""
    return portal.function(*portal.args, **portal.kwds)


def run_coroutine(portal: Portal) -> Any:
    """The work of all other portals: step a coroutine as an event loop does, trap by trap."""
    coroutine = answer = handled = None
    while True:
        try:
            if coroutine is None:
                coroutine = portal.coroutine
                if coroutine is None:
                    coroutine = portal.function(*portal.args, **portal.kwds)
                    if type(coroutine) is not CoroutineType or coroutine.cr_await is not None:
                        coroutine = awaited(coroutine)
                answer, portal.result = portal.result, None
            while True:
                if answer is ERROR:
                    handled = handled_exception()
                    trap = coroutine.throw(take_error(portal))
                    handled = None
                else:
                    trap = coroutine.send(answer)
                # An answer of Trio's may hold an exception. Its traceback would keep the frames
                # alive that raised it.
                answer = None
                portal.awaits = coroutine
                portal.resume = portal.worker
                answer = portal.greenlet.switch(trap)
                trap = None
        except StopIteration as stop:
            return stop.value
        except BaseException as error:
            if is_killed_here(error):
                portal.abandoned = True
            elif is_unfinished(coroutine):
                # A signal handler raised *error* in this frame, while the coroutine waits.
                hide_this_frame(error)
                portal.error = error
                answer = ERROR
                trap = handled = None
                continue
            portal.awaits = None
            leave_handler(error, handled)
            raise


def run_while_handling(portal: Portal) -> Any:
    """The work of a portal that was opened inside an `except` block.

    A new greenlet handles no exception, so an exception raised in it would lack its `__context__`.
    So the exception of that `except` block is handled in here, too.
    """
    return _call_while_handling(portal, portal.inner, portal)


def run_eagerly(portal: Portal) -> Any:
    """The work of an eager task whose creator handles an exception.

    Only the first step sees that exception, as in any coroutine.
    """
    portal.run = portal.inner  # after an interruption, the work goes on without the exception
    try:
        trap = _call_while_handling(portal, portal.coroutine.send, None)
    except StopIteration as stop:
        return stop.value
    portal.awaits = portal.coroutine
    portal.resume = portal.worker
    try:
        portal.result = portal.greenlet.switch(trap)
    except BaseException as error:
        portal.awaits = None
        portal.abandoned = is_killed_here(error)
        raise
    del trap
    return portal.inner(portal)


def _call_while_handling(portal: Portal, function: Callable[[Any], Any], argument: Any) -> Any:
    handled = portal.handled
    assert handled is not None
    portal.handled = None
    context, traceback = context_of(handled), traceback_of(handled)
    try:
        raise handled
    except BaseException as caught:
        if caught is not handled:
            raise  # a signal handler raised it, in the line above
        set_context(handled, context)
        set_traceback(handled, traceback)
        del handled, context, traceback, caught
        return function(argument)


def is_killed_here(error: BaseException) -> bool:
    """Whether the caller's own switch raised *error*, because its greenlet is being killed."""
    traceback = traceback_of(error)
    return (
        issubclass(type(error), greenlet.GreenletExit)
        and traceback is not None
        and traceback.tb_next is None
    )


def is_unfinished(coroutine: Any) -> bool:
    """Whether an exception can be thrown into *coroutine*. False for other types than Python's."""
    if type(coroutine) is CoroutineType:
        return coroutine.cr_frame is not None and not coroutine.cr_running
    if type(coroutine) is types.GeneratorType:
        return coroutine.gi_frame is not None and not coroutine.gi_running
    return False


async def awaited(aw: Any) -> Any:
    return await aw


def awaited_steps(aw: Any, steps: Any) -> Any:
    """`awaited`, where the ``__await__()`` of *aw* has already been called and returned *steps*."""
    kind = type(aw)
    # The interpreter's error can name the class. A class is in a cycle, so it does not hold the
    # steps: they are to go at once.
    parts = {
        "__module__": kind.__module__,
        "__qualname__": kind.__qualname__,
        "__slots__": ("steps",),
        "__await__": lambda self: self.steps,
    }
    awaitable: Any = type(kind.__name__, (), parts)()
    awaitable.steps = steps
    return awaited(awaitable)


# The outermost frames of a traceback from a worker are of this file, also where they belong to
# copies of these functions, which Trio's marks need. The program calls no function of this file.
_THIS_FILE = work.__code__.co_filename

if sys.version_info >= (3, 11):
    handled_exception = sys.exception
else:

    def handled_exception() -> Optional[BaseException]:
        return sys.exc_info()[1]


def without_own_frames(traceback: Optional[types.TracebackType]) -> Optional[types.TracebackType]:
    """*traceback* without the outermost frames that are of this file, or Trio's around these."""
    while traceback is not None:
        code = traceback.tb_frame.f_code
        if code.co_filename != _THIS_FILE and not (trio_wrappers and code in trio_wrappers):
            break
        traceback = traceback.tb_next
    return traceback


def hide_own_frames(error: BaseException) -> None:
    """Take the outermost frames of this file, or Trio's around these, out of the traceback."""
    set_traceback(error, without_own_frames(traceback_of(error)))


def without_frames_of(
    directory: str, traceback: Optional[types.TracebackType]
) -> Optional[types.TracebackType]:
    """*traceback* without the outermost frames whose code is below *directory*."""
    while traceback is not None and traceback.tb_frame.f_code.co_filename.startswith(directory):
        traceback = traceback.tb_next
    return traceback


# An exception's class may forbid setting attributes, or shadow these two. The interpreter sets
# context and traceback without asking the class, so these functions do, too.
set_traceback = BaseException.with_traceback
_CONTEXT = BaseException.__dict__["__context__"]
_TRACEBACK = BaseException.__dict__["__traceback__"]


def context_of(error: BaseException) -> Optional[BaseException]:
    return _CONTEXT.__get__(error)  # type: ignore[no-any-return]


def set_context(error: BaseException, context: Optional[BaseException]) -> None:
    _CONTEXT.__set__(error, context)


def traceback_of(error: BaseException) -> Optional[types.TracebackType]:
    return _TRACEBACK.__get__(error)  # type: ignore[no-any-return]


def leave_handler(error: BaseException, handled: Optional[BaseException]) -> None:
    """Set the context of *error* as CPython 3.9 and later do.

    There, an exception that was thrown into a coroutine and leaves it gets a new context: the
    exception that the coroutine is handling. Sync code is no coroutine, so this function does the
    same for the frame that calls it. PyPy does it by itself.

    Args:
        error: The exception that leaves the frame.
        handled: The exception that the sync code was handling when *error* was thrown in.
    """
    if handled is not None and error is not handled and _THROW_CHAINS:
        set_context(error, handled)


_THROW_CHAINS = sys.implementation.name == "cpython" and sys.version_info >= (3, 9)


def take_error(portal: Portal) -> BaseException:
    """Take the exception that belongs to `ERROR` out of the portal."""
    error = portal.error
    assert error is not None
    portal.error = None
    return error


def hide_this_frame(error: BaseException) -> None:
    """Take the caller's frame, the outermost so far, out of the traceback of *error*."""
    traceback = traceback_of(error)
    if traceback is not None:  # the interpreter may have no memory for a traceback
        set_traceback(error, traceback.tb_next)
