"""Random programs, which do the same when their sync functions bridge as when all are awaited.

A program is a tree of functions, each of them sync or async. It is interpreted twice: once with
plain ``await`` everywhere, as if all functions were async; and once with its sync functions as what
they are, which reach async ones through `greenback.await_`. Everything that can be observed from
inside goes to a log, and the logs have to be equal.
"""

from __future__ import annotations

import asyncio
import contextvars
import sys
import types
from collections import Counter
from typing import Any, Callable, Dict, List, Optional, Tuple

import trio
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st

import greenback

VARIABLES = [contextvars.ContextVar(name, default=0) for name in ("a", "b")]
EVENTS = 3
#: Steps of the partner, the other task: it sets the events and, on asyncio, may cancel.
PARTNER_STEPS = 6
#: The result of a block without a statement that returns another one.
NOTHING = object()


class Custom(Exception):
    pass


class CustomBase(BaseException):
    pass


ERRORS: Dict[str, Callable[[int], BaseException]] = {
    "Custom": Custom,
    "CustomBase": CustomBase,
    "KeyError": KeyError,
    "StopAsyncIteration": StopAsyncIteration,
    "GeneratorExit": GeneratorExit,
    "KeyboardInterrupt": KeyboardInterrupt,
}
CATCHES: Dict[str, Any] = {
    "Custom": Custom,
    "CustomBase": (CustomBase, Custom),
    "Exception": Exception,
    "BaseException": BaseException,
}


def described(error: Optional[BaseException]) -> Any:
    """A comparable description of an exception and its chains, identity included."""
    seen: Dict[int, int] = {}

    def describe(error: Optional[BaseException]) -> Any:
        if error is None:
            return None
        if id(error) in seen:
            return f"#{seen[id(error)]}"
        seen[id(error)] = len(seen)
        args = (
            error.args
            if isinstance(
                error, tuple(factory for factory in ERRORS.values() if isinstance(factory, type))
            )
            else ()
        )
        return (
            type(error).__name__,
            args,
            error.__suppress_context__,
            describe(error.__cause__),
            describe(error.__context__),
        )

    return describe(error)


class Wrapped:
    """An awaitable that is not a coroutine."""

    def __init__(self, coroutine: Any) -> None:
        self.coroutine = coroutine

    def __await__(self) -> Any:
        return self.coroutine.__await__()


@types.coroutine
def generated(coroutine: Any) -> Any:
    return (yield from coroutine)


WRAPPERS: Dict[str, Callable[[Any], Any]] = {
    "coroutine": lambda coroutine: coroutine,
    "object": Wrapped,
    "generator": generated,
    "__await__": lambda coroutine: Wrapped(Wrapped(coroutine)),
}


class Interpreter:
    #: How the log describes exceptions.
    described = staticmethod(described)

    def __init__(self, backend: Any, bridged: bool, counts_traps: bool) -> None:
        self.backend = backend
        self.bridged = bridged
        self.counts_traps = counts_traps
        self.log: List[Any] = []
        self.events = [backend.event() for _ in range(EVENTS)]
        self.tokens: List[Tuple[contextvars.ContextVar[int], contextvars.Token[int]]] = []
        self.cancel: Callable[[], Any] = lambda: None
        #: An exception was thrown into the task while it was handling another.
        self.thrown_at_while_handling = False
        #: Bridges by ``("bridge", functions in its sync chain, outcome)``; those that were
        #: ``("suspended",)``; and their traps, each of which takes a ``("switch",)`` to the loop.
        self.counts: Counter[Tuple[Any, ...]] = Counter()
        #: For each bridge that is under way, the number of its traps.
        self.under_way: List[int] = []

    def simple(self, statement: Tuple[Any, ...]) -> Any:
        """The statements that are the same in sync and in async code."""
        kind, *operands = statement
        if kind == "log":
            self.log.append(operands)
        elif kind == "return":
            return operands[0]
        elif kind == "raise":
            name, value = operands
            raise ERRORS[name](value)
        elif kind == "raise from":
            cause, name, value = operands
            raise ERRORS[name](value) from ERRORS[cause](value)
        elif kind == "reraise":
            if self.thrown_at_while_handling:
                raise KeyError  # the handled exception differs, see `assert_same`
            raise  # noqa: PLE0704  (of what is being handled where this is called)
        elif kind == "handled":
            self.log.append(("handled", self.described(sys.exc_info()[1])))
        elif kind == "set":
            index, value = operands
            self.tokens.append((VARIABLES[index], VARIABLES[index].set(value)))
        elif kind == "reset":
            if self.tokens:
                variable, token = self.tokens.pop()
                variable.reset(token)
        elif kind == "get":
            self.log.append([variable.get() for variable in VARIABLES])
        elif kind == "cancel":
            self.cancel()
        else:
            raise AssertionError(kind)
        return NOTHING

    def thrown_at(self, handled: Optional[BaseException]) -> None:
        """Note which exception was being handled when a suspension raised a cancellation."""
        if self.backend.is_trio:
            return
        # A task that is written in Python, as PyPy's are, is stepped in an `except` block.
        if handled is not None or asyncio.Task is asyncio.tasks._PyTask:  # type: ignore[attr-defined]
            self.thrown_at_while_handling = True

    def suspension(self, statement: Tuple[Any, ...]) -> Any:
        """The awaitable of a statement that may suspend."""
        if statement[0] == "checkpoint":
            coroutine = self.backend.checkpoint()
        else:
            coroutine = self.events[statement[1]].wait()
        return self.counting_traps(coroutine) if self.counts_traps else coroutine

    @types.coroutine
    def counting_traps(self, coroutine: Any) -> Any:
        error: Optional[BaseException] = None
        answer = None
        while True:
            try:
                trap = coroutine.send(answer) if error is None else coroutine.throw(error)
            except StopIteration as stop:
                return stop.value
            if self.under_way:
                self.under_way[-1] += 1
            error = None
            try:
                answer = yield trap
            except BaseException as reason:
                error = reason

    def bridge(self, awaitable: Any) -> Any:
        """Await it in a bridge, and count the bridge."""
        self.under_way.append(0)
        outcome = "ok"
        try:
            return greenback.await_(awaitable)
        except BaseException as error:
            outcome = "cancelled" if isinstance(error, self.backend.cancelled) else "error"
            raise
        finally:
            traps = self.under_way.pop()
            depth = 1
            caller = sys._getframe(1)
            while caller is not None and caller.f_code is Interpreter.synchronous.__code__:
                depth += 1
                caller = caller.f_back
            self.counts["bridge", depth, outcome] += 1
            self.counts["suspended",] += traps > 0
            self.counts["switch",] += traps

    async def asynchronous(self, block: Tuple[Any, ...]) -> Any:
        for statement in block:
            kind = statement[0]
            if kind == "call":
                _, is_sync, wrapper, callee = statement
                if is_sync and self.bridged:
                    value = self.synchronous(callee)
                elif is_sync:
                    value = await self.asynchronous(callee)
                else:
                    value = await WRAPPERS[wrapper](self.asynchronous(callee))
                self.log.append(("returned", value if value is not NOTHING else None))
            elif kind == "try":
                _, body, catch, handler, otherwise, final = statement
                try:
                    try:
                        value = await self.asynchronous(body)
                    except CATCHES[catch] as error:
                        self.log.append(("caught", self.described(error)))
                        value = await self.asynchronous(handler)
                    else:
                        if value is NOTHING:
                            value = await self.asynchronous(otherwise)
                except BaseException:
                    last = await self.asynchronous(final)
                    if last is NOTHING:
                        raise
                else:
                    last = await self.asynchronous(final)
                # As a `return` in `finally`, of which Python 3.14 warns (PEP 765).
                if last is not NOTHING:
                    return last
                if value is not NOTHING:
                    return value
            elif kind in ("checkpoint", "wait"):
                handled = sys.exc_info()[1]
                try:
                    await self.suspension(statement)
                except BaseException:
                    self.thrown_at(handled)
                    raise
                self.log.append("resumed")
            else:
                value = self.simple(statement)
                if value is not NOTHING:
                    return value
        return NOTHING

    def synchronous(self, block: Tuple[Any, ...]) -> Any:
        for statement in block:
            kind = statement[0]
            if kind == "call":
                _, is_sync, wrapper, callee = statement
                if is_sync:
                    value = self.synchronous(callee)
                else:
                    value = self.bridge(WRAPPERS[wrapper](self.asynchronous(callee)))
                self.log.append(("returned", value if value is not NOTHING else None))
            elif kind == "try":
                _, body, catch, handler, otherwise, final = statement
                try:
                    try:
                        value = self.synchronous(body)
                    except CATCHES[catch] as error:
                        self.log.append(("caught", self.described(error)))
                        value = self.synchronous(handler)
                    else:
                        if value is NOTHING:
                            value = self.synchronous(otherwise)
                except BaseException:
                    last = self.synchronous(final)
                    if last is NOTHING:
                        raise
                else:
                    last = self.synchronous(final)
                # As a `return` in `finally`, of which Python 3.14 warns (PEP 765).
                if last is not NOTHING:
                    return last
                if value is not NOTHING:
                    return value
            elif kind in ("checkpoint", "wait"):
                handled = sys.exc_info()[1]
                try:
                    self.bridge(self.suspension(statement))
                except BaseException:
                    self.thrown_at(handled)
                    raise
                self.log.append("resumed")
            else:
                value = self.simple(statement)
                if value is not NOTHING:
                    return value
        return NOTHING

    async def whole(self, program: Tuple[Any, ...], portal: str) -> None:
        """Run the program; the log has all that it does."""
        try:
            if self.bridged and portal == "run":
                value = await greenback.with_portal_run(self.asynchronous, program)
            elif self.bridged and portal == "run_sync":
                value = await greenback.with_portal_run_sync(self.synchronous, program)
            elif self.bridged and portal == "run_tree":
                value = await greenback.with_portal_run_tree(self.asynchronous, program)
            elif self.bridged and portal == "sync in task":
                value = self.synchronous(program)
            else:
                value = await self.asynchronous(program)
        except BaseException as error:
            self.log.append(("raised", self.described(error)))
        else:
            self.log.append(("result", value if value is not NOTHING else None))
        self.log.append([variable.get() for variable in VARIABLES])

    async def on_asyncio(self, program: Any, portal: str, cancel_at: Optional[int]) -> None:
        async def partner(task: Any) -> None:
            for step in range(PARTNER_STEPS):
                # asyncio runs tasks in the order in which they became ready, so that even the
                # order of the steps of two tasks has to be the same.
                self.log.append(("partner", step))
                if step < EVENTS:
                    self.events[step].set()
                if step == cancel_at:
                    task.cancel()
                await asyncio.sleep(0)

        async def main() -> None:
            if self.bridged and portal in ("task", "sync in task"):
                await greenback.ensure_portal()
            task = asyncio.current_task()
            assert task is not None
            self.cancel = task.cancel
            others.append(asyncio.ensure_future(partner(task)))
            await self.whole(program, portal)

        others: List[Any] = []
        tasks = [asyncio.ensure_future(main())]
        await asyncio.wait(tasks)
        await asyncio.wait(others)

    async def on_trio(self, program: Any, portal: str) -> None:
        async def partner() -> None:
            for event in self.events:
                event.set()
                await trio.lowlevel.checkpoint()

        if self.bridged and portal in ("task", "sync in task"):
            await greenback.ensure_portal()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(partner)
            with trio.CancelScope() as scope:
                self.cancel = scope.cancel
                await self.whole(program, portal)


def interpreted(
    backend: Any,
    program: Any,
    portal: str,
    cancel_at: Optional[int],
    bridged: bool,
    counts_traps: bool = False,
) -> Interpreter:
    interpreters: List[Interpreter] = []

    async def main() -> None:
        interpreters.append(Interpreter(backend, bridged, counts_traps))
        if backend.is_trio:
            await interpreters[0].on_trio(program, portal)
        else:
            await interpreters[0].on_asyncio(program, portal, cancel_at)

    contextvars.Context().run(backend.run, main)
    return interpreters[0]


def without_chains(log: List[Any]) -> List[Any]:
    """A copy of the log without causes, contexts and handled exceptions."""
    return [
        (entry[0], None if entry[0] == "handled" else entry[1][:2])
        if isinstance(entry, tuple) and entry[0] in ("caught", "raised", "handled")
        else entry
        for entry in log
    ]


def blocks() -> st.SearchStrategy[Any]:
    small = st.integers(0, 3)
    error = st.sampled_from(sorted(ERRORS))
    leaf = st.one_of(
        st.just(("checkpoint",)),
        st.tuples(st.just("wait"), st.integers(0, EVENTS - 1)),
        st.tuples(st.just("log"), small),
        st.tuples(st.just("return"), small),
        st.tuples(st.just("raise"), error, small),
        st.tuples(st.just("raise from"), error, error, small),
        st.just(("reraise",)),
        st.just(("handled",)),
        st.tuples(st.just("set"), st.integers(0, len(VARIABLES) - 1), small),
        st.just(("reset",)),
        st.just(("get",)),
        st.just(("cancel",)),
    )

    def larger(statement: Any) -> Any:
        block = st.lists(statement, max_size=3).map(tuple)
        call = st.tuples(st.just("call"), st.booleans(), st.sampled_from(sorted(WRAPPERS)), block)
        attempt = st.tuples(
            st.just("try"), block, st.sampled_from(sorted(CATCHES)), block, block, block
        )
        return st.one_of(call, call, attempt)

    statement = st.recursive(leaf, larger, max_leaves=20)
    return st.lists(statement, min_size=1, max_size=4).map(tuple)


PORTALS = ["task", "sync in task", "run", "run_sync", "run_tree"]
COMMON = settings(
    derandomize=True,
    database=None,
    deadline=None,
    suppress_health_check=list(HealthCheck),
)


def check(backend: Any, program: Any, portal: str, cancel_at: Optional[int]) -> None:
    """Assert that the program does the same with bridges as with ``await``."""
    assert_same(
        interpreted(backend, program, portal, cancel_at, bridged=False),
        interpreted(backend, program, portal, cancel_at, bridged=True),
    )


def assert_same(awaited: Interpreter, bridged: Interpreter) -> None:
    before, after = awaited.log, bridged.log
    if awaited.thrown_at_while_handling:
        # When an exception is thrown into nested coroutines, CPython gives it, on its way out, the
        # context of each coroutine's innermost `except` block in turn. A sync function has no such
        # moment. Until their next step, inner coroutines see nothing of the exception that outer
        # ones are handling; a sync function does.
        # TestCancelledWhileHandling has the case of one block.
        before, after = without_chains(before), without_chains(after)
    assert after == before, f"awaited: {before}; bridged: {after}"
