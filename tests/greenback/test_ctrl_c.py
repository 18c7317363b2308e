"""Ctrl-C reaches code in a portal exactly where it would reach the same code without one.

Each program is run twice, as in test_exceptions.py: with ``await`` throughout, and with bridges.
``ASYNC def`` becomes ``async def`` or ``def``, ``AWAIT(x)`` becomes ``await (x)`` or ``await_(x)``,
``CALL(x)`` becomes ``await (x)`` or ``(x)``. ``interrupt()`` is Ctrl-C.
"""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import textwrap
import threading
from typing import Any, List

import pytest
import trio

import greenback
from greenback import await_

from .portals import in_run, in_run_sync, in_task
from .programs import compiled

pytestmark = [
    pytest.mark.skipif(sys.platform == "win32", reason="signals are another matter on Windows"),
    pytest.mark.skipif(
        threading.current_thread() is not threading.main_thread(),
        reason="Python handles signals in the main thread only",
    ),
]


def interrupt() -> None:
    signal.raise_signal(signal.SIGINT)
    for _ in range(10):  # a handler that is not called at once is called at a jump
        pass


PORTALS = [in_run_sync, in_run, in_task]


@pytest.fixture(params=PORTALS, ids=lambda portal: portal.__name__)
def portal(request: pytest.FixtureRequest) -> Any:
    """Each way to call a sync function in a portal, in turn."""
    return request.param


PROGRAMS = {
    "sync_code": """
        ASYNC def program():
            try:
                log.append("before")
                interrupt()
                log.append("not interrupted")
            except KeyboardInterrupt:
                log.append("interrupted")
            AWAIT(checkpoint())
            log.append("end")
        """,
    "after_a_bridge": """
        ASYNC def program():
            AWAIT(checkpoint())
            for _ in range(3):
                try:
                    AWAIT(checkpoint())
                    interrupt()
                    log.append("not interrupted")
                except KeyboardInterrupt:
                    log.append("interrupted")
        """,
    "not_caught": """
        ASYNC def program():
            try:
                AWAIT(checkpoint())
                interrupt()
                log.append("not interrupted")
            finally:
                log.append("finally")
        """,
    "in_a_coroutine": """
        async def interrupted():
            try:
                interrupt()
                log.append("not interrupted at first")
            except KeyboardInterrupt:
                log.append("interrupted at first")
            await checkpoint()
            try:
                interrupt()
                log.append("not interrupted later")
            except KeyboardInterrupt:
                log.append("interrupted later")

        ASYNC def program():
            try:
                AWAIT(interrupted())
            except KeyboardInterrupt:
                log.append("interrupted outside")
            log.append("end")
        """,
    "except_block": """
        ASYNC def program():
            try:
                raise LookupError
            except LookupError:
                try:
                    AWAIT(checkpoint())
                    interrupt()
                    log.append("not interrupted")
                except KeyboardInterrupt as error:
                    log.append(type(error.__context__))
        """,
}

TRIO_PROGRAMS = {
    **PROGRAMS,
    "protected_function": """
        @trio.lowlevel.enable_ki_protection
        ASYNC def protected():
            try:
                interrupt()
                log.append("held back")
                for _ in range(3):
                    log.append("protected" if trio.lowlevel.currently_ki_protected() else "not")
            except KeyboardInterrupt:
                log.append("interrupted in protected code")

        ASYNC def program():
            try:
                CALL(protected())
                log.append("left")
                AWAIT(checkpoint())
                log.append("not interrupted")
            except KeyboardInterrupt:
                log.append("interrupted")
        """,
    "protected_around_a_bridge": """
        @trio.lowlevel.enable_ki_protection
        ASYNC def protected():
            AWAIT(checkpoint())
            interrupt()
            log.append("held back")
            try:
                AWAIT(checkpoint())
                log.append("not interrupted")
            except KeyboardInterrupt:
                log.append("interrupted in the checkpoint")
            log.append(trio.lowlevel.currently_ki_protected())

        ASYNC def program():
            CALL(protected())
            log.append(trio.lowlevel.currently_ki_protected())
            try:
                interrupt()
                log.append("not interrupted")
            except KeyboardInterrupt:
                log.append("interrupted")
        """,
    "unprotected_in_protected": """
        @trio.lowlevel.disable_ki_protection
        ASYNC def unprotected():
            AWAIT(checkpoint())
            try:
                interrupt()
                log.append("not interrupted")
            except KeyboardInterrupt:
                log.append("interrupted")

        @trio.lowlevel.enable_ki_protection
        ASYNC def protected():
            log.append(trio.lowlevel.currently_ki_protected())
            CALL(unprotected())
            log.append(trio.lowlevel.currently_ki_protected())

        ASYNC def program():
            log.append(trio.lowlevel.currently_ki_protected())
            CALL(protected())
            log.append(trio.lowlevel.currently_ki_protected())
        """,
    "protected_coroutine": """
        @trio.lowlevel.enable_ki_protection
        async def protected():
            interrupt()
            log.append("held back")
            log.append(trio.lowlevel.currently_ki_protected())

        ASYNC def program():
            try:
                AWAIT(protected())
                log.append(trio.lowlevel.currently_ki_protected())
                AWAIT(checkpoint())
                log.append("not interrupted")
            except KeyboardInterrupt:
                log.append("interrupted")
        """,
    "parked": """
        @trio.lowlevel.enable_ki_protection
        async def other():
            await checkpoint()
            interrupt()
            log.append("held back")

        async def with_other(fn):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(other)
                await fn()

        async def forever():
            try:
                await trio.sleep_forever()
            except KeyboardInterrupt:
                log.append("interrupted")
                raise trio.ClosedResourceError

        ASYNC def program():
            try:
                AWAIT(with_other(forever))
            except BaseException:
                log.append("left")
            log.append(trio.lowlevel.currently_ki_protected())
        """,
}

#: Trio delivers a Ctrl-C that was held back to the main task, which it runs at a moment of chance.
#: So in another task, only these programs are compared: those that hold nothing back, or do not
#: wait afterwards.
IN_ANOTHER_TASK = [*PROGRAMS, "unprotected_in_protected"]
IN_A_SYSTEM_TASK = ["held_back_once", "unprotected_in_protected"]
TRIO_PROGRAMS["held_back_once"] = """
    ASYNC def program():
        AWAIT(checkpoint())
        log.append(trio.lowlevel.currently_ki_protected())
        try:
            interrupt()
            log.append("not interrupted")
        except KeyboardInterrupt:
            log.append("interrupted")
    """


def results_of(backend: Any, source: str, portal: Any, call: Any) -> List[Any]:
    """The log and the exception of a program, awaited and bridged; *call* runs it."""
    results = []
    for bridged in (False, True):
        log: List[Any] = []
        program = compiled(
            source, bridged, {**globals(), "log": log, "checkpoint": backend.checkpoint}
        )

        async def main() -> Any:
            if bridged:
                return await portal(program)
            return await program()

        async def outer() -> None:
            try:
                await call(main)
            except BaseException as error:
                log.append(type(error))

        try:
            backend.run(outer)
        except BaseException as error:
            log.append(("left the loop", type(error)))
        assert log
        results.append(log)
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    return results


async def directly(async_fn: Any) -> None:
    await async_fn()


async def in_except(async_fn: Any) -> None:
    try:
        raise LookupError("around")
    except LookupError:
        await async_fn()


@trio.lowlevel.enable_ki_protection
async def protected(async_fn: Any) -> None:
    await async_fn()


@trio.lowlevel.enable_ki_protection
async def protected_in_except(async_fn: Any) -> None:
    await in_except(async_fn)


@trio.lowlevel.disable_ki_protection
async def unprotected(async_fn: Any) -> None:
    await async_fn()


@trio.lowlevel.enable_ki_protection
async def unprotected_again(async_fn: Any) -> None:
    await unprotected(async_fn)


async def in_child(async_fn: Any) -> None:
    async with trio.open_nursery() as nursery:
        nursery.start_soon(async_fn)


async def in_system_task(async_fn: Any) -> None:
    done = trio.Event()

    async def system() -> None:
        try:
            await async_fn()
        finally:
            done.set()

    trio.lowlevel.spawn_system_task(system)
    await done.wait()


class TestTrio:
    @pytest.mark.parametrize(
        ("name", "call"),
        [
            pytest.param(name, call, id=f"{name}-{call.__name__}")
            for name in TRIO_PROGRAMS
            for call in (directly, in_except, in_child)
            # A Ctrl-C that a child holds back is delivered elsewhere, some time later.
            if call is not in_child or name in IN_ANOTHER_TASK
        ],
    )
    def test_programs(self, portal: Any, name: str, call: Any) -> None:
        """Ctrl-C interrupts the same code in a portal as outside of one, and no other."""
        from_plain, from_portal = results_of(TRIO, TRIO_PROGRAMS[name], portal, call)
        assert from_portal == from_plain

    @pytest.mark.parametrize(
        "call",
        [protected, protected_in_except, unprotected_again, in_system_task],
        ids=lambda call: call.__name__,
    )
    @pytest.mark.parametrize("opener", [in_run_sync, in_run], ids=lambda fn: fn.__name__)
    def test_portal_in_protected_code(self, opener: Any, call: Any) -> None:
        """A portal opened in protected code, or in a system task, is protected, too."""
        for name in IN_A_SYSTEM_TASK if call is in_system_task else TRIO_PROGRAMS:
            if name == "parked":
                continue  # two tasks: chance decides which one is interrupted
            from_plain, from_portal = results_of(TRIO, TRIO_PROGRAMS[name], opener, call)
            assert (name, from_portal) == (name, from_plain)

    def test_system_task_portal(self) -> None:
        """A system task with ensure_portal() stays protected."""
        for name in IN_A_SYSTEM_TASK:
            from_plain, from_portal = results_of(TRIO, TRIO_PROGRAMS[name], in_task, in_system_task)
            assert (name, from_portal) == (name, from_plain)

    @pytest.mark.parametrize("name", IN_ANOTHER_TASK)
    def test_inherited_portal(self, name: str) -> None:
        """A child task with an inherited portal is interrupted like a child without one."""

        async def in_inherited(sync_fn: Any) -> None:
            assert greenback.has_portal()
            sync_fn()

        async def child_that_inherits(async_fn: Any) -> None:
            with greenback.portals_for_children():
                await in_child(async_fn)

        from_plain, from_portal = results_of(
            TRIO, TRIO_PROGRAMS[name], in_inherited, child_that_inherits
        )
        assert from_portal == from_plain

    @pytest.mark.parametrize("name", list(TRIO_PROGRAMS))
    def test_bestowed_portal(self, name: str) -> None:
        """A bestowed portal changes nothing about Ctrl-C."""

        async def bestowed(sync_fn: Any) -> None:
            greenback.bestow_portal(trio.lowlevel.current_task())
            await trio.lowlevel.checkpoint()
            sync_fn()

        from_plain, from_portal = results_of(TRIO, TRIO_PROGRAMS[name], bestowed, directly)
        assert from_portal == from_plain

    def test_next_portal(self) -> None:
        """A portal's protection does not depend on the portal before it in the same worker."""

        async def main() -> List[bool]:
            def look() -> bool:
                await_(trio.lowlevel.checkpoint())
                return trio.lowlevel.currently_ki_protected()

            @trio.lowlevel.enable_ki_protection
            async def guarded() -> bool:
                return await greenback.with_portal_run_sync(look)

            async def coroutine() -> bool:
                await trio.lowlevel.checkpoint()
                return trio.lowlevel.currently_ki_protected()

            @trio.lowlevel.enable_ki_protection
            async def guarded_run() -> bool:
                return await greenback.with_portal_run(coroutine)

            found = []
            for _ in range(2):
                found += [
                    await greenback.with_portal_run_sync(look),
                    await guarded(),
                    await greenback.with_portal_run(coroutine),
                    await guarded_run(),
                ]
            return found

        assert trio.run(main) == [False, True, False, True] * 2

    def test_function_of_the_user(self) -> None:
        """A portal leaves no mark of Trio's on the function that it has run."""

        def look() -> bool:
            return trio.lowlevel.currently_ki_protected()

        async def main() -> List[bool]:
            await greenback.with_portal_run_sync(look)

            @trio.lowlevel.enable_ki_protection
            def guarded() -> bool:
                return look()

            return [look(), guarded()]

        assert trio.run(main) == [False, True]


class TestAsyncio:
    @pytest.mark.parametrize("call", [directly, in_except], ids=lambda call: call.__name__)
    @pytest.mark.parametrize("name", list(PROGRAMS))
    def test_programs(self, asyncio_backend: Any, portal: Any, name: str, call: Any) -> None:
        """Python's own handler interrupts code in a portal at its current line."""
        from_plain, from_portal = results_of(asyncio_backend, PROGRAMS[name], portal, call)
        assert from_portal == from_plain

    @pytest.mark.parametrize("name", list(PROGRAMS))
    def test_asyncio_run(self, portal: Any, name: str) -> None:
        """On Ctrl-C, asyncio.run() cancels its main task (since 3.11), also one with a portal."""

        class Run:
            checkpoint = staticmethod(lambda: asyncio.sleep(0))

            def run(self, async_fn: Any) -> None:
                asyncio.run(async_fn())

        from_plain, from_portal = results_of(Run(), PROGRAMS[name], portal, directly)
        assert from_portal == from_plain

    def test_parked(self, portal: Any) -> None:
        """Ctrl-C interrupts a main task that waits in a bridge, and its finally blocks run."""
        results = []
        for bridged in (False, True):
            log: List[Any] = []
            program = compiled(
                """
                ASYNC def program():
                    asyncio.get_running_loop().call_later(0.01, interrupt)
                    try:
                        AWAIT(asyncio.sleep(3600))
                    except BaseException as error:
                        log.append(type(error))
                        raise
                    finally:
                        log.append("finally")
                """,
                bridged,
                {**globals(), "log": log},
            )

            async def main() -> None:
                await (portal(program) if bridged else program())

            with pytest.raises(KeyboardInterrupt):
                asyncio.run(main())
            results.append(log)
        assert results[1] == results[0]
        assert "finally" in results[1]


class TestProcess:
    """A program in a process of its own gets a real Ctrl-C while it waits in a bridge."""

    SOURCE = """
        import asyncio, signal, sys
        import greenback

        if {trio}:
            import trio

        def work():
            if not {trio}:
                # Has signals wake the loop up, also one that comes just before it begins to wait.
                asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, print)
            try:
                print("ready", flush=True)
                greenback.await_({sleep})
            except BaseException as error:
                print(type(error).__name__, flush=True)
                raise
            finally:
                print("finally", flush=True)

        async def main():
            await {portal}
            work()

        try:
            {run}
        except BaseException as error:
            while getattr(error, "exceptions", None):
                error = error.exceptions[0]
            print("out:", type(error).__name__, flush=True)
        """

    @pytest.mark.parametrize("is_trio", [False, True], ids=["asyncio", "trio"])
    def test_signal(self, is_trio: bool) -> None:
        """The program's finally blocks run, and KeyboardInterrupt ends it."""
        source = textwrap.dedent(self.SOURCE).format(
            trio=is_trio,
            sleep="trio.sleep(3600)" if is_trio else "asyncio.sleep(3600)",
            portal="greenback.ensure_portal()",
            run="trio.run(main)" if is_trio else "asyncio.run(main())",
        )
        process = subprocess.Popen(
            [sys.executable, "-c", source],
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        )
        assert process.stdout is not None
        with process.stdout:
            assert process.stdout.readline() == "ready\n"
            process.send_signal(signal.SIGINT)
            output = process.stdout.read().split("\n")
        assert process.wait() == 0
        assert output[1:] == ["finally", "out: KeyboardInterrupt", ""]
        if is_trio:
            assert output[0] == "KeyboardInterrupt"
        elif sys.version_info >= (3, 11):
            assert output[0] == "CancelledError"
        else:  # it depends on whether the bridge had begun to wait
            assert output[0] in ("KeyboardInterrupt", "CancelledError")


class _Trio:
    name = "trio"
    checkpoint = staticmethod(trio.lowlevel.checkpoint)
    run = staticmethod(trio.run)


TRIO = _Trio()
