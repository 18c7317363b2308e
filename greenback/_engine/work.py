"""What runs in a worker greenlet: the work of portals, one after another."""

from __future__ import annotations

import sys
import types
from typing import Any, Callable, List, Optional

import greenlet

from .state import Portal

CoroutineType = types.CoroutineType

# What the event loop's greenlet sends into a portal instead of an answer when it throws: the
# exception is in `Portal.error`. Throwing it into the greenlet would raise it inside `await_`,
# which could then resume the awaitable only from inside an `except` block, and that changes the
# `__context__` of whatever is raised there.
ERROR = object()

# What `drive` returns when it is to be called again: the task waits at another line.
MOVED = object()


def work(first: List[Any]) -> None:
    """What a worker runs: the work of one portal after another.

    The first one comes in a list and is taken out of it: greenlet keeps the arguments of a run
    until that ends.
    """
    portal = first.pop()
    while True:
        try:
            run = portal.run
            if run is None:
                # A call with ** makes a dictionary, so it is worth a look.
                if portal.kwds:
                    portal.result = portal.function(*portal.args, **portal.kwds)
                else:
                    portal.result = portal.function(*portal.args)
            else:
                portal.result = run(portal)
        except BaseException as error:
            if portal.abandoned:
                raise
            set_traceback(error, without_own_frames(traceback_of(error)))
            is_again = portal.error is not None and issubclass(
                type(error), (RecursionError, MemoryError)
            )
            portal.error = error
            if is_unfinished(portal.coroutine) and not is_again:
                # A signal handler has raised it, before the coroutine could be given its answer.
                portal.result = ERROR
                continue
        portal.resume = run = None
        if portal.abandoned:
            return  # killed, and the work has caught the GreenletExit
        # A debugger that stepped out of the work would go on to step through a stranger's.
        if sys._getframe().f_trace is not None:
            portal.worker.poolable = False
            return
        # While it is parked, this frame must keep nothing alive, and not itself either: the
        # garbage collector cannot look into the stack of a greenlet.
        outside = portal.greenlet
        # Two references. When a thread ends, greenlet gives up its outermost greenlet if a single
        # one is left, to be found nowhere; a collection that is under way hides what it looks at.
        also = outside  # noqa: F841
        portal = None
        portal = outside.switch()
        while type(portal) is not Portal:
            # A greenlet that the work of an earlier portal has started, and whose parent this
            # worker is, has ended: pass its result on, as a dead one would.
            parent: Any = greenlet.getcurrent().parent
            portal = parent.switch(portal)
            parent = None


def run_function(portal: Portal) -> Any:
    """The work of a `with_portal_run_sync` that needs a frame of its own."""
    return portal.function(*portal.args, **portal.kwds)


def run_coroutine(portal: Portal) -> Any:
    """The work of all other portals: what an event loop does with a coroutine, trap by trap."""
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
                answer = None  # Trio's may hold an exception, and so what raised it
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
                # A signal handler has raised it, in here, while the coroutine waits.
                hide_this_frame(error)
                portal.error = error
                answer = ERROR
                trap = handled = None
                continue
            portal.awaits = None
            leave_handler(error, handled)
            raise


def run_while_handling(portal: Portal) -> Any:
    """Work that was started inside an `except` block, with that exception being handled.

    A greenlet starts with none, and then what is raised in it would lack its `__context__`.
    """
    return _call_while_handling(portal, portal.inner, portal)


def run_eagerly(portal: Portal) -> Any:
    """The work of a task that takes its first step where another exception is being handled.

    As that of a coroutine, only the first step knows of it.
    """
    portal.run = portal.inner  # what goes on after an interruption
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
            raise  # it was raised by a signal handler, right there
        set_context(handled, context)
        set_traceback(handled, traceback)
        del handled, context, traceback, caught
        return function(argument)


def is_killed_here(error: BaseException) -> bool:
    """Whether *error* was raised by the caller's own switch: its greenlet is being killed."""
    traceback = traceback_of(error)
    return (
        issubclass(type(error), greenlet.GreenletExit)
        and traceback is not None
        and traceback.tb_next is None
    )


def is_unfinished(coroutine: Any) -> bool:
    """Whether something can be thrown into it. Says no of what is not the interpreter's own."""
    if type(coroutine) is CoroutineType:
        return coroutine.cr_frame is not None and not coroutine.cr_running
    if type(coroutine) is types.GeneratorType:
        return coroutine.gi_frame is not None and not coroutine.gi_running
    return False


async def awaited(aw: Any) -> Any:
    return await aw


# What a traceback from a worker begins with is of this file, and so are the copies that a library
# makes of these functions. Nothing in it is called by the program.
_THIS_FILE = work.__code__.co_filename

if sys.version_info >= (3, 11):
    handled_exception = sys.exception
else:

    def handled_exception() -> Optional[BaseException]:
        return sys.exc_info()[1]


def without_own_frames(traceback: Optional[types.TracebackType]) -> Optional[types.TracebackType]:
    while traceback is not None and traceback.tb_frame.f_code.co_filename == _THIS_FILE:
        traceback = traceback.tb_next
    return traceback


def without_frames_of(
    directory: str, traceback: Optional[types.TracebackType]
) -> Optional[types.TracebackType]:
    while traceback is not None and traceback.tb_frame.f_code.co_filename.startswith(directory):
        traceback = traceback.tb_next
    return traceback


# An exception's class may forbid setting attributes, or shadow these. Context and traceback are
# the interpreter's business, which does not ask the class either.
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
    """Do what CPython 3.9 and later do to what leaves a coroutine that it was thrown into.

    Where it passes a coroutine that is handling an exception, that becomes its context. Sync code
    is no coroutine, so it is done here. (PyPy does it by itself.)
    """
    if handled is not None and error is not handled and _THROW_CHAINS:
        set_context(error, handled)


_THROW_CHAINS = sys.implementation.name == "cpython" and sys.version_info >= (3, 9)


def take_error(portal: Portal) -> BaseException:
    error = portal.error
    assert error is not None
    portal.error = None
    return error


def hide_this_frame(error: BaseException) -> None:
    """Take the caller's frame, the outermost so far, out of the traceback."""
    traceback = traceback_of(error)
    if traceback is not None:  # the interpreter may have no memory for one
        set_traceback(error, traceback.tb_next)
