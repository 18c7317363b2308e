"""Tracebacks, and `sys.exc_info`."""

from __future__ import annotations

import asyncio
import os
import sys
import traceback
from typing import Any, List, Tuple

import pytest
import trio

import greenback
from greenback import await_

from ..portals import in_run, in_run_sync
from .programs import PORTALS, PYPY, Helpers, Plain, assert_same, compiled

#: From 3.11 on, raising an exception again uses the traceback that the exception has.
SHIMS_SHOW = PYPY or sys.version_info < (3, 11)


def frames(error: BaseException) -> List[Tuple[str, Any]]:
    """The functions in a traceback, with the lines of a program."""
    return [
        (frame.name, frame.lineno if frame.filename == "<program>" else None)
        for frame in traceback.extract_tb(error.__traceback__)
    ]


HERE = os.path.join(os.path.dirname(os.path.abspath(greenback.__file__)), "")


def own_frames(error: BaseException) -> List[str]:
    """The functions of greenback in a traceback."""
    return [
        frame.name
        for frame in traceback.extract_tb(error.__traceback__)
        if os.path.abspath(frame.filename).startswith(HERE)
    ]


class TestExcInfo:
    def test_inside(self, backend: Any, portal: Any) -> None:
        """On both sides of a bridge, sys.exc_info() is that of the innermost `except` block."""
        assert_same(
            backend,
            portal,
            """
            async def look():
                log.append(chain(sys.exc_info()[1]))
                await h.checkpoint()
                log.append(chain(sys.exc_info()[1]))
                try:
                    raise LookupError("inner")
                except LookupError:
                    await h.checkpoint()
                    log.append(chain(sys.exc_info()[1]))
                await h.checkpoint()
                log.append(chain(sys.exc_info()[1]))

            ASYNC def program():
                AWAIT(look())
                try:
                    raise KeyError("outer")
                except KeyError:
                    log.append(chain(sys.exc_info()[1]))
                    AWAIT(look())
                    log.append(chain(sys.exc_info()[1]))
                log.append(chain(sys.exc_info()[1]))
                AWAIT(look())
            """,
        )

    @pytest.mark.skipif(
        sys.implementation.name == "pypy",
        reason="PyPy keeps the traceback that it had when the handler was entered",
    )
    @pytest.mark.parametrize("opener", [in_run_sync, in_run], ids=lambda fn: fn.__name__)
    def test_portal_function_in_an_except_block(self, backend: Any, opener: Any) -> None:
        """Code in a portal sees the exception of the `except` block around it, unchanged."""

        async def main() -> None:
            for waits in (False, True):
                error = KeyError("around")
                try:
                    raise error
                except KeyError:
                    context, shown = error.__context__, frames(error)

                    def look() -> None:
                        assert sys.exc_info()[1] is error
                        if waits:
                            await_(backend.checkpoint())
                            assert sys.exc_info()[1] is error

                    await opener(look)
                    assert sys.exc_info()[1] is error
                    assert error.__context__ is context
                    assert frames(error) == shown
                assert sys.exc_info() == (None, None, None)

        backend.run(main)


class TestTracebacks:
    SOURCE = """
        async def fails():
            if WAITS:
                await backend.checkpoint()
            raise Plain

        async def passes_on():
            inner()

        ASYNC def inner():
            AWAIT(fails())

        ASYNC def program():
            AWAIT(passes_on())
        """

    @pytest.mark.parametrize("waits", [False, True])
    def test_bridges(self, backend: Any, portal: Any, waits: bool) -> None:
        """Greenback shows one frame per bridge, await_(), and one per portal function."""
        program = compiled(self.SOURCE, True, {**globals(), "backend": backend, "WAITS": waits})
        caught: List[BaseException] = []

        async def main() -> None:
            try:
                await portal(program)
            except Plain as error:
                caught.append(error)

        backend.run(main)
        assert own_frames(caught[0]) == [*PORTALS[portal], "await_", "await_"]
        names = [frame[0] for frame in frames(caught[0])]
        first = names.index("program")
        assert names[first:] == ["program", "await_", "passes_on", "inner", "await_", "fails"]

    @pytest.mark.parametrize("waits", [False, True])
    def test_sync_error(self, backend: Any, portal: Any, waits: bool) -> None:
        """An error of the portal's own sync code shows no frame of a worker or a shim."""

        def fails() -> None:
            if waits:
                await_(backend.checkpoint())
            raise Plain

        caught: List[BaseException] = []

        async def main() -> None:
            try:
                await portal(fails)
            except Plain as error:
                caught.append(error)

        backend.run(main)
        assert own_frames(caught[0]) == PORTALS[portal]
        assert frames(caught[0])[-1][0] == "fails"

    @pytest.mark.parametrize("opener", [in_run_sync, in_run], ids=lambda fn: fn.__name__)
    @pytest.mark.parametrize("waits", [False, True])
    def test_in_an_except_block(self, backend: Any, opener: Any, waits: bool) -> None:
        """A portal function in an `except` block shows one frame, like any other."""

        def fails() -> None:
            if waits:
                await_(backend.checkpoint())
            raise Plain

        async def main() -> None:
            try:
                raise KeyError
            except KeyError:
                try:
                    await opener(fails)
                except Plain as error:
                    assert own_frames(error) == PORTALS[opener]

        backend.run(main)

    @pytest.mark.parametrize("waits", [False, True])
    @pytest.mark.parametrize("kind", ["ensured", "bestowed", "inherited"])
    def test_out_of_a_task(self, backend: Any, kind: str, waits: bool) -> None:
        """An exception that leaves a task shows no shim's frame (before 3.11 and on PyPy, one)."""
        caught: List[BaseException] = []
        tasks: List[Any] = []

        async def fails() -> None:
            if kind == "ensured":
                await greenback.ensure_portal()
            elif kind == "bestowed":
                greenback.bestow_portal(backend.current_task())
                await backend.checkpoint()
            if waits:
                await_(backend.checkpoint())
            await Helpers(backend).fail(Plain())

        async def main() -> None:
            try:
                if backend.is_trio:
                    async with trio.open_nursery() as nursery:
                        nursery.start_soon(fails)
                else:
                    task = asyncio.get_running_loop().create_task(fails())
                    tasks.append(task)
                    await task
            except BaseException as error:
                if isinstance(error, Plain):
                    caught.append(error)
                else:
                    caught.extend(error.exceptions)  # type: ignore[attr-defined]

        async def outer() -> None:
            if kind == "inherited":
                with greenback.portals_for_children():
                    await main()
            else:
                await main()

        backend.run(outer)
        own = own_frames(caught[0])
        if SHIMS_SHOW:
            assert len(own) <= 1
            assert "await_" not in own
        else:
            assert own == []
        assert [frame[0] for frame in frames(caught[0])][-2:] == ["fails", "fail"]

    def test_thrown_in(self, asyncio_backend: Any, portal: Any) -> None:
        """A cancellation shows one frame of greenback per bridge, too."""
        shown: List[str] = []

        def waits() -> None:
            await_(forever())

        async def forever() -> None:
            await asyncio.get_running_loop().create_future()

        async def body() -> None:
            try:
                await portal(waits)
            except BaseException as error:
                shown.extend(own_frames(error))
                raise

        async def main() -> None:
            task = asyncio.get_running_loop().create_task(body())
            for _ in range(3):
                await asyncio.sleep(0)
            task.cancel()
            await asyncio.wait([task])

        asyncio_backend.run(main)
        assert shown == [*PORTALS[portal], "await_"]

    def test_caught_in_the_bridge(self, backend: Any, portal: Any) -> None:
        """For await_()'s caller, the traceback begins with its own frame, then await_()."""

        def catches() -> None:
            for how in ("fail", "fail_later"):
                try:
                    await_(getattr(Helpers(backend), how)(Plain()))
                except Plain as error:
                    assert [frame[0] for frame in frames(error)] == ["catches", "await_", how]

        backend.run(portal, catches)

    def test_adapters(self, backend: Any) -> None:
        """An adapter shows one frame of its own above the bridge's."""

        class Context:
            async def __aenter__(self) -> None:
                raise Plain

            async def __aexit__(self, *error: object) -> None:
                pass

        async def generator() -> Any:
            await backend.checkpoint()
            raise Plain
            yield

        @greenback.autoawait
        async def awaited() -> None:
            raise Plain

        def enter() -> None:
            with greenback.async_context(Context()):
                pass

        def use() -> None:
            calls = {
                "bridged": awaited,
                "__enter__": enter,
                "__next__": lambda: next(greenback.async_iter(generator())),
            }
            for name, call in calls.items():
                with pytest.raises(Plain) as caught:
                    call()
                assert own_frames(caught.value) == [name, "await_"]

        backend.run(greenback.with_portal_run_sync, use)

    def test_portal_inside_a_portal(self, backend: Any) -> None:
        """A portal function that uses the task's portal shows one frame, too."""

        async def main() -> None:
            await greenback.ensure_portal()
            with pytest.raises(Plain) as caught:
                await greenback.with_portal_run(Helpers(backend).fail, Plain())
            assert own_frames(caught.value) == ["with_portal_run"]
            with pytest.raises(Plain) as caught:
                await_(greenback.with_portal_run_sync(await_, Helpers(backend).fail_later(Plain())))
            assert own_frames(caught.value) == ["await_", "with_portal_run_sync", "await_"]

        backend.run(main)

    def test_not_awaitable(self, backend: Any, portal: Any) -> None:
        """The TypeError for an object that cannot be awaited has await_() as its last frame."""

        def use() -> None:
            with pytest.raises(TypeError) as caught:
                await_(42)  # type: ignore[arg-type]
            assert own_frames(caught.value) == ["await_"]

        backend.run(portal, use)

    def test_no_portal(self, backend: Any) -> None:
        """The error for a missing portal has await_() as its last frame."""

        async def main() -> None:
            with pytest.raises(RuntimeError) as caught:
                await_(backend.checkpoint())
            assert own_frames(caught.value) == ["await_"]

        backend.run(main)
