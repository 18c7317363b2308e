"""Random programs for comparing the engines: they do more than those that are compared with
``await``, also what ``await`` does differently and what no program should do."""

from __future__ import annotations

import asyncio
import contextvars
import re
import sys
import types
from pathlib import Path
from random import Random
from typing import Any, Callable, Dict, Iterator, List, Optional, Tuple

import greenlet
import trio

import greenback

from ..greenback.random_programs import (
    ERRORS,
    NOTHING,
    PARTNER_STEPS,
    PORTALS,
    Custom,
    Interpreter,
)
from .programs import DEPTH, Block, Run, random_statement

#: How a program is given its portal. ``none`` gives it none: bridges are refused.
RICHER_PORTALS = (*PORTALS, "bestow", "none")

_ROOT = str(Path(__file__).resolve().parents[2])
_LIBRARY = str(Path(greenback.__file__).resolve().parent)
#: What the program is interpreted by. Where the event loop begins depends on the program alone.
_TESTS = str(Path(__file__).resolve().parents[1])


class OwnExit(greenlet.GreenletExit):
    pass


class Shadowed(Exception):
    """An exception whose class hides what the interpreter sets."""

    __traceback__ = property(lambda self: None)  # type: ignore[assignment]
    __context__ = property(lambda self: None)  # type: ignore[assignment]


RICHER_ERRORS: Dict[str, Callable[[int], BaseException]] = {
    "CancelledError": asyncio.CancelledError,
    "GreenletExit": greenlet.GreenletExit,
    "MemoryError": MemoryError,
    "OwnExit": OwnExit,
    "RecursionError": RecursionError,
    "RuntimeError": RuntimeError,
    "Shadowed": Shadowed,
    "StopIteration": StopIteration,
    "StopIteration of a tuple": lambda value: StopIteration((value, value)),
    "SystemExit": SystemExit,
}

# The interpreter's own attributes, where a class shadows them.
_CAUSE, _CONTEXT, _TRACEBACK = (
    BaseException.__dict__[name] for name in ("__cause__", "__context__", "__traceback__")
)


def described_wholly(error: Optional[BaseException]) -> Any:
    """A comparable description of an exception: its chains, messages and tracebacks."""
    seen: Dict[int, int] = {}

    def describe(error: Optional[BaseException]) -> Any:
        if error is None:
            return None
        if id(error) in seen:
            return f"#{seen[id(error)]}"
        seen[id(error)] = len(seen)
        described = [
            type(error).__name__,
            text_of(error),
            lines_of(_TRACEBACK.__get__(error)),
            error.__suppress_context__,
            describe(_CAUSE.__get__(error)),
            describe(_CONTEXT.__get__(error)),
        ]
        within = getattr(error, "exceptions", None)
        if isinstance(within, (list, tuple)):
            described.append([describe(each) for each in within])
        return described

    return describe(error)


def text_of(value: Any) -> str:
    """The text of a value, without what differs from process to process."""
    return re.sub(r"0x[0-9a-fA-F]+|Task-\d+|\b\d{4,}\b", "...", str(value))


def lines_of(traceback: Optional[types.TracebackType]) -> List[Any]:
    lines: List[Any] = []
    while traceback is not None:
        code = traceback.tb_frame.f_code
        lines.append(_place(code.co_filename, code.co_name, traceback.tb_lineno))
        traceback = traceback.tb_next
    return lines


def _place(file: str, name: str, line: int) -> List[Any]:
    """A place, but for the line in `await_`: the one in C shows another one than the one in Python,
    where it depends on what raised."""
    is_await = name == "await_" and file.startswith(_LIBRARY)
    return [Path(file).name, name, None if is_await else line]


class RudeIterator:
    """What an ``__await__()`` may return: an iterator whose other methods do as they like."""

    def __init__(self, backend: Any, name: str) -> None:
        self.left = 2
        self.name = name
        self.steps = backend.checkpoint().__await__()

    def __iter__(self) -> Any:
        return self

    def __next__(self) -> Any:
        if self.name == "raises":
            raise Custom(7)
        if self.name == "returns a tuple":
            raise StopIteration((1, 2))
        if self.name == "returns an error":
            raise StopIteration(Custom(8))
        return next(self.steps)

    def __getattr__(self, name: str) -> Any:
        if name == "throw" and self.name in ("throw raises", "throw returns", "throw fails"):
            if self.name == "throw fails":
                raise Custom(9)
            return self._throw
        if name == "close" and self.name in ("close raises", "close fails"):
            if self.name == "close fails":
                raise Custom(10)
            return self._close
        raise AttributeError(name)

    def _throw(self, *error: Any) -> Any:
        if self.name == "throw raises":
            raise Custom(11)
        raise StopIteration(12)

    def _close(self) -> None:
        raise Custom(13)


class Awaited:
    """An awaitable whose ``__await__()`` returns what it is given, whatever that is."""

    def __init__(self, steps: Any) -> None:
        self.steps = steps

    def __await__(self) -> Any:
        if isinstance(self.steps, BaseException):
            raise self.steps
        return self.steps


RUDE = (
    "polite",
    "raises",
    "returns a tuple",
    "returns an error",
    "throw raises",
    "throw returns",
    "throw fails",
    "close raises",
    "close fails",
)
AWAITABLES = (
    *(f"iterator: {name}" for name in RUDE),
    "5",
    "asend",
    "athrow",
    "aclose",
    "bad steps",
    "coroutine as steps",
    "empty iterator",
    "failing __await__",
    "future",
    "future in time",
    "future that fails",
    "future that is cancelled",
    "generator",
    "native generator",
    "over",
    "shared future",
    "started",
    "task",
    "wait_for",
)


class Richer(Interpreter):
    """An interpreter of more statements."""

    described = staticmethod(described_wholly)

    def __init__(self, backend: Any) -> None:
        super().__init__(backend, bridged=True, counts_traps=False)
        self.tasks: List[Any] = []
        self.shared: Any = None
        self.nursery: Any = None

    def note_error(self, error: BaseException) -> None:
        self.log.append(("caught", described_wholly(error)))

    # Statements that call blocks, or await something of their own

    async def asynchronous(self, block: Block) -> Any:
        for statement in block:
            more = getattr(self, f"await_{statement[0].replace(' ', '_')}", None)
            if more is not None:
                value = await more(*statement[1:])
            elif statement[0] in _SYNCHRONOUS:
                value = self.bridged_alone(statement)
            else:
                value = await super().asynchronous((statement,))
            if value is not NOTHING:
                return value
        return NOTHING

    def synchronous(self, block: Block) -> Any:
        for statement in block:
            more = getattr(self, f"await_{statement[0].replace(' ', '_')}", None)
            if statement[0] == "caught":
                try:
                    value = self.synchronous(statement[1])
                except BaseException as error:
                    self.note_error(error)
                    value = NOTHING
            elif statement[0] == "await":
                value = self.noted(greenback.await_(self.awaitable(statement[1])))
            elif more is not None:
                value = greenback.await_(more(*statement[1:]))
            elif statement[0] in _SYNCHRONOUS:
                value = self.bridged_alone(statement)
            else:
                value = super().synchronous((statement,))
            if value is not NOTHING:
                return value
        return NOTHING

    def noted(self, value: Any) -> Any:
        self.log.append(("awaited", text_of(value)))
        return NOTHING

    async def await_await(self, what: str) -> Any:
        return self.noted(await self.awaitable(what))

    async def await_caught(self, block: Block) -> Any:
        """What the block raises ends here, whole in the log."""
        try:
            return await self.asynchronous(block)
        except BaseException as error:
            self.note_error(error)
            return NOTHING

    async def await_portal(self, kind: str, block: Block) -> Any:
        if kind == "run_sync":
            return await greenback.with_portal_run_sync(self.synchronous, block)
        if kind == "run":
            return await greenback.with_portal_run(self.asynchronous, block)
        if kind == "run_tree":
            return await greenback.with_portal_run_tree(self.asynchronous, block)
        await greenback.ensure_portal()
        return self.synchronous(block)

    async def await_task(self, portal: str, waits: bool, block: Block) -> Any:
        async def child() -> None:
            if portal == "ensure":
                await greenback.ensure_portal()
            try:
                self.log.append(("child ends", text_of(await self.asynchronous(block))))
            except Exception as error:
                self.note_error(error)

        if self.backend.is_trio:
            tasks = set(self.nursery.child_tasks)
            self.nursery.start_soon(child)
            (task,) = set(self.nursery.child_tasks) - tasks
        else:
            task = asyncio.ensure_future(child())
            self.tasks.append(task)
        if portal == "bestow":
            greenback.bestow_portal(task)
        if waits:
            if self.backend.is_trio:
                for _ in range(4):
                    await trio.lowlevel.checkpoint()
            else:
                await asyncio.wait([task])
        return NOTHING

    async def await_by_hand(self, kind: str, end: str, block: Block) -> Any:
        """Step a portal function by hand, as far as its first checkpoint, and end it."""
        block = (("checkpoint",), *_without_waits(block))
        if kind == "run_sync":
            steps: Any = greenback.with_portal_run_sync(self.synchronous, block)
        elif kind == "run":
            steps = greenback.with_portal_run(self.asynchronous, block)
        else:
            steps = self.asynchronous(block)
        self.log.append(("by hand", end))
        try:
            if end == "never begun":
                steps.close()
                return NOTHING
            if end == "thrown before":
                steps.throw(Custom(20))
            steps.send(None)
            if end == "dropped":
                del steps
            elif end == "closed":
                steps.close()
            elif end == "sent":
                steps.send(5)
            else:
                steps.throw(ERRORS[end](21) if end in ERRORS else RICHER_ERRORS[end](21))
        except BaseException as error:
            self.note_error(error)
        steps = None
        self.log.append(("by hand is over", end))
        return NOTHING

    async def await_iterate(self, is_sync: bool, end: str, block: Block) -> Any:
        async def items() -> Any:
            try:
                for number in range(3):
                    if number == 1:
                        await self.asynchronous(block)
                    yield number
            except BaseException as error:
                self.note_error(error)
                raise
            finally:
                self.log.append("no more items")

        generator = items()
        try:
            if is_sync:
                for item in greenback.async_iter(generator):
                    self.log.append(("item", item))
                    if item == 1 and end == "break":
                        break
                    if item == 1 and end == "raise":
                        raise Custom(30)
            else:
                async for item in generator:
                    self.log.append(("item", item))
                    if item == 1 and end == "break":
                        break
                    if item == 1 and end == "raise":
                        raise Custom(30)
        finally:
            if is_sync:
                greenback.await_(generator.aclose())
            else:
                await generator.aclose()
        return NOTHING

    async def await_manage(self, suppresses: bool, enter: Block, block: Block, leave: Block) -> Any:
        interpreter = self

        class Managed:
            async def __aenter__(self) -> int:
                await interpreter.asynchronous(enter)
                return 40

            async def __aexit__(self, *error: object) -> bool:
                interpreter.log.append(("leaving", described_wholly(error[1])))
                await interpreter.asynchronous(leave)
                return suppresses

        with greenback.async_context(Managed()) as value:
            self.log.append(("entered", value))
            return self.synchronous(block)
        return NOTHING

    # Statements of sync code

    def bridged_alone(self, statement: Tuple[Any, ...]) -> Any:
        return getattr(self, statement[0])(*statement[1:])

    def generator(self, end: str, block: Block) -> Any:
        def items() -> Iterator[int]:
            try:
                yield 50
                self.synchronous(block)
                yield 51
            finally:
                self.log.append("generator ends")
                self.synchronous(block)

        iterator: Any = items()
        self.log.append(("item", next(iterator)))
        if end == "closed":
            iterator.close()
        elif end == "thrown":
            iterator.throw(Custom(52))
        elif end == "dropped":
            del iterator
        else:
            self.log.append(("items", list(iterator)))
        return NOTHING

    def greenlet(self, block: Block) -> Any:
        return greenlet.greenlet(self.synchronous).switch(block)

    def in_context(self, block: Block) -> Any:
        return contextvars.copy_context().run(self.synchronous, block)

    def autoawait(self, block: Block) -> Any:
        return greenback.autoawait(self.asynchronous)(block)

    def raise_more(self, name: str, value: int, cause: Optional[str]) -> Any:
        if cause is None:
            raise RICHER_ERRORS[name](value)
        raise RICHER_ERRORS[name](value) from ERRORS[cause](value)

    def stack(self) -> Any:
        """Note the frames of the program, as far as its own greenlet goes."""
        frames = []
        frame: Any = sys._getframe(1)
        while frame is not None:
            if frame.f_code.co_filename.startswith(_TESTS):
                frames.append(
                    _place(frame.f_code.co_filename, frame.f_code.co_name, frame.f_lineno)
                )
            frame = frame.f_back
        self.log.append(("stack", frames))
        return NOTHING

    def has_portal(self) -> Any:
        self.log.append(("has_portal", greenback.has_portal()))
        return NOTHING

    # Awaitables

    def awaitable(self, what: str) -> Any:
        """Each kind of thing that is awaited, or cannot be."""
        kind, _, name = what.partition(": ")
        if kind == "iterator":
            return Awaited(RudeIterator(self.backend, name))
        if what in ("asend", "athrow", "aclose"):

            async def items() -> Any:
                await self.backend.checkpoint()
                yield 60

            generator = items()
            if what == "athrow":
                return generator.athrow(Custom(61))
            return generator.asend(None) if what == "asend" else generator.aclose()
        if what == "5":
            return 5
        if what == "bad steps":
            return Awaited(5)
        if what == "coroutine as steps":
            return Awaited(self.backend.checkpoint())
        if what == "empty iterator":
            return Awaited(iter(()))
        if what == "failing __await__":
            return Awaited(Custom(62))
        if what == "generator":
            return (number for number in ())
        if what == "native generator":
            return _native_generator(self.backend.checkpoint())
        if what == "over":
            coroutine = self.nothing()
            try:
                coroutine.send(None)
            except StopIteration:
                pass
            return coroutine
        if what == "started":
            coroutine = self.backend.checkpoint()
            coroutine.send(None)
            return coroutine
        return self.of_trio(what) if self.backend.is_trio else self.of_asyncio(what)

    async def nothing(self) -> int:
        return 63

    def of_trio(self, what: str) -> Any:
        async def waits() -> int:
            task = trio.lowlevel.current_task()
            token = trio.lowlevel.current_trio_token()
            outcome = trio.lowlevel.wait_task_rescheduled

            def reschedule() -> None:
                trio.lowlevel.reschedule(task, _outcome_of(what))

            token.run_sync_soon(reschedule)
            return await outcome(lambda _: trio.lowlevel.Abort.FAILED)

        if what in ("task", "wait_for"):

            async def limited() -> str:
                with trio.move_on_after(0) as scope:
                    await trio.sleep_forever()
                return f"cancelled: {scope.cancelled_caught}"

            return limited()
        return waits()

    def of_asyncio(self, what: str) -> Any:
        loop = asyncio.get_running_loop()
        if what == "task":
            task = asyncio.ensure_future(self.nothing())
            self.tasks.append(task)
            return task
        if what == "wait_for":
            return asyncio.wait_for(self.backend.checkpoint(), 60)
        if what == "shared future":
            if self.shared is None:
                self.shared = loop.create_future()
                loop.call_soon(_complete, self.shared, "future that fails")
            return self.shared
        future = loop.create_future()
        if what == "future":
            future.set_result(64)
        else:
            loop.call_soon(_complete, future, what)
        return future

    # The program as a whole

    async def whole(self, program: Block, portal: str) -> None:
        try:
            if portal == "bestow":
                greenback.bestow_portal(self.backend.current_task())
                await self.backend.checkpoint()
            if portal in ("bestow", "none"):
                portal = "sync in task"
            if portal == "run":
                value = await greenback.with_portal_run(self.asynchronous, program)
            elif portal == "run_sync":
                value = await greenback.with_portal_run_sync(self.synchronous, program)
            elif portal == "run_tree":
                value = await greenback.with_portal_run_tree(self.asynchronous, program)
            elif portal == "sync in task":
                value = self.synchronous(program)
            else:
                value = await self.asynchronous(program)
        except BaseException as error:
            self.log.append(("raised", described_wholly(error)))
        else:
            self.log.append(("result", text_of(value) if value is not NOTHING else None))
        self.simple(("get",))

    async def on_asyncio(self, program: Any, portal: str, cancel_at: Optional[int]) -> None:
        loop = asyncio.get_running_loop()
        loop.set_exception_handler(self.note_failure)
        await super().on_asyncio(program, portal, cancel_at)
        await asyncio.gather(*self.tasks, return_exceptions=True)

    def note_failure(self, _loop: Any, failure: Dict[str, Any]) -> None:
        error = failure.get("exception")
        self.log.append(("failure", text_of(failure["message"]), described_wholly(error)))

    async def on_trio(self, program: Any, portal: str) -> None:
        async with trio.open_nursery() as self.nursery:
            await super().on_trio(program, portal)


def _complete(future: Any, how: str) -> None:
    if future.done():
        return
    if how == "future that fails":
        future.set_exception(Custom(65))
    elif how == "future that is cancelled":
        future.cancel()
    else:
        future.set_result((66, 67))


def _outcome_of(how: str) -> Any:
    import outcome

    return outcome.Error(Custom(65)) if how.endswith("fails") else outcome.Value((66, 67))


@types.coroutine
def _native_generator(coroutine: Any) -> Any:
    yield from coroutine
    return 68


def _without_waits(block: Block) -> Block:
    """The statements that register the task nowhere before they wait."""
    kept: List[Any] = []
    for statement in block:
        if statement[0] in ("call", "try", "checkpoint", "raise", "raise from", "handled", "log"):
            kept.append(
                tuple(
                    _without_waits(part) if isinstance(part, tuple) else part for part in statement
                )
            )
    return tuple(kept)


_SYNCHRONOUS = frozenset(
    {
        "autoawait",
        "generator",
        "greenlet",
        "has_portal",
        "in_context",
        "raise_more",
        "stack",
    }
)

_BY_HAND = (
    "never begun",
    "thrown before",
    "dropped",
    "closed",
    "sent",
    *sorted(ERRORS),
    *sorted(RICHER_ERRORS),
)


def random_run(random: Random) -> Run:
    # An error does not end the program, which would do little else then.
    caught = [("caught", (statement,)) for statement in _block(random, 3, 8, DEPTH - 1)]
    return Run(
        tuple(caught),
        random.choice(RICHER_PORTALS),
        random.choice([None, None, None, *range(PARTNER_STEPS)]),
    )


def _block(random: Random, least: int, most: int, depth: int) -> Block:
    return tuple(_statement(random, depth) for _ in range(random.randint(least, most)))


def _statement(random: Random, depth: int) -> Block:
    def block(least: int = 1, most: int = 3) -> Block:
        return _block(random, least, most, depth - 1)

    if random.random() < (0.55 if depth else 0.75):
        return random_statement(random, depth, _block)
    if not depth or random.random() < 0.4:
        kind = random.choice(("await", "await", "await", "raise_more", "stack", "has_portal"))
        if kind == "await":
            return kind, random.choice(AWAITABLES)
        if kind == "raise_more":
            cause = random.choice((None, None, random.choice(sorted(ERRORS))))
            return kind, random.choice(sorted(RICHER_ERRORS)), random.randrange(4), cause
        return (kind,)
    kind = random.choice(tuple(_LARGER))
    return (kind, *_LARGER[kind](random, block))


_LARGER: Dict[str, Callable[[Random, Callable[..., Block]], Tuple[Any, ...]]] = {
    "autoawait": lambda _, block: (block(),),
    "by hand": lambda random, block: (
        random.choice(("run_sync", "run", "coroutine")),
        random.choice(_BY_HAND),
        block(),
    ),
    "caught": lambda _, block: (block(),),
    "generator": lambda random, block: (
        random.choice(("closed", "thrown", "dropped", "over")),
        block(),
    ),
    "greenlet": lambda _, block: (block(),),
    "in_context": lambda _, block: (block(),),
    "iterate": lambda random, block: (
        random.random() < 0.7,
        random.choice(("over", "break", "raise")),
        block(),
    ),
    "manage": lambda random, block: (random.random() < 0.5, block(0, 1), block(), block(0, 1)),
    "portal": lambda random, block: (
        random.choice(("run_sync", "run", "run_tree", "ensure")),
        block(),
    ),
    "task": lambda random, block: (
        random.choice(("none", "ensure", "bestow")),
        random.random() < 0.5,
        block(),
    ),
}
