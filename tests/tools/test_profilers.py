"""Profilers and code in a portal: which function gets whose time."""

from __future__ import annotations

import asyncio
import cProfile
import os
import pstats
import re
import sys
from pathlib import Path
from typing import Any, Dict, Tuple

import pytest

import greenback

from .processes import PY_SPY, PYPY, WORK, needs_py_spy, run, skip_where_refused, write

GREENBACK = os.path.dirname(str(greenback.__file__)) + os.sep

# Each of the two does a hundred units of work twice. During the bridge in between, a stranger does
# four hundred.
PROGRAM = """
    import asyncio
    from time import thread_time

    import greenback

    UNIT = 0.001


    def page(event):
        end = thread_time() + 100 * UNIT
        while thread_time() < end:
            pass
        greenback.await_(event.wait())
        end = thread_time() + 100 * UNIT
        while thread_time() < end:
            pass


    async def awaiting_page(event):
        end = thread_time() + 100 * UNIT
        while thread_time() < end:
            pass
        await event.wait()
        end = thread_time() + 100 * UNIT
        while thread_time() < end:
            pass


    async def visitor(event):
        await greenback.with_portal_run_sync(page, event)


    async def awaiting_visitor(event):
        await awaiting_page(event)


    async def stranger(event):
        end = thread_time() + 400 * UNIT
        while thread_time() < end:
            pass
        event.set()


    async def main(visitor):
        event = asyncio.Event()
        await asyncio.gather(visitor(event), stranger(event))


    if __name__ == "__main__":
        asyncio.run(main(visitor))
"""


@pytest.fixture
def program(tmp_path: Path) -> Path:
    return write(tmp_path / "program.py", PROGRAM)


class Clock:
    """A clock that stands still unless it is told to go on."""

    now = 0

    def __call__(self) -> int:
        return self.now


class TestCProfile:
    """The profiler of cProfile, which is the one of ``profiling.tracing`` from Python 3.15 on."""

    def profiled(self, bridged: bool) -> Dict[str, Tuple[float, float]]:
        """The time in each function, without and with its callees, by file, line and name."""
        clock = Clock()

        def page(event: asyncio.Event) -> None:
            clock.now += 100
            greenback.await_(event.wait())
            clock.now += 100

        async def awaiting_page(event: asyncio.Event) -> None:
            clock.now += 100
            await event.wait()
            clock.now += 100

        async def visitor(event: asyncio.Event) -> None:
            if bridged:
                await greenback.with_portal_run_sync(page, event)
            else:
                await awaiting_page(event)

        async def stranger(event: asyncio.Event) -> None:
            clock.now += 400
            event.set()

        async def main() -> None:
            event = asyncio.Event()
            await asyncio.gather(visitor(event), stranger(event))

        profile = cProfile.Profile(clock, 1)
        profile.runcall(asyncio.run, main())
        statistics = pstats.Stats(profile).stats  # type: ignore[attr-defined]
        return {
            ":".join(map(str, function)): (alone, in_all)
            for function, (_, _, alone, in_all, _) in statistics.items()
        }

    def time_in(self, function: str, times: Dict[str, Tuple[float, float]]) -> Any:
        (found,) = [
            time
            for name, time in times.items()
            if name.startswith(__file__) and name.endswith(f":{function}")
        ]
        return found

    def test_with_await(self) -> None:
        """The awaited function gets its own time, and no function more time than there was."""
        times = self.profiled(bridged=False)
        assert self.time_in("awaiting_page", times) == (200, 200)
        assert self.time_in("stranger", times) == (400, 400)
        assert max(in_all for _, in_all in times.values()) == 600

    def test_before_a_bridge(self) -> None:
        """The time that a sync function took before it waited goes to a function of greenback."""
        times = self.profiled(bridged=True)
        assert self.time_in("page", times) == (100, 100)
        assert self.time_in("stranger", times) == (400, 400)
        assert sum(alone for name, (alone, _) in times.items() if name.startswith(GREENBACK)) == 100

    def test_the_event_loop(self) -> None:
        """The event loop's functions get more time than there was."""
        times = self.profiled(bridged=True)
        assert max(in_all for _, in_all in times.values()) > 600


class TestYappi:
    SCRIPT = """
        import asyncio
        import sys

        import yappi

        import program

        visitor, backend = sys.argv[1:]
        yappi.set_clock_type("cpu")
        yappi.set_context_backend(backend)
        yappi.start()
        asyncio.run(program.main(getattr(program, visitor)))
        yappi.stop()
        for function in yappi.get_func_stats():
            if function.name in ("page", "awaiting_page", "visitor", "stranger"):
                print(function.name, function.ttot / program.UNIT)
    """

    def units(self, program: Path, visitor: str, backend: str) -> Dict[str, float]:
        """The units of CPU time that functions got, with their callees."""
        pytest.importorskip("yappi")
        script = write(program.parent / "script.py", self.SCRIPT)
        answer = run(sys.executable, script.name, visitor, backend, cwd=program.parent)
        assert answer.returncode == 0, answer.stdout
        lines = [line.split() for line in answer.stdout.splitlines()]
        return {name: float(units) for name, units in lines}

    # However busy the machine is, no function gets less CPU time than it has used. So 200 units
    # are found to be there or not.
    def test_with_await(self, program: Path) -> None:
        """The awaited function gets all of its own time."""
        units = self.units(program, "awaiting_visitor", "native_thread")
        assert units["awaiting_page"] >= 200
        assert units["stranger"] >= 400

    def test_by_thread(self, program: Path) -> None:
        """A function loses the time before its bridge. With the engine in Python, its async caller
        gets a stranger's."""
        units = self.units(program, "visitor", "native_thread")
        assert units["page"] < 200
        assert (units["visitor"] >= 600) == bool(WORK)

    def test_by_greenlet(self, program: Path) -> None:
        """With the greenlet backend, a sync function gets its time, and its async caller none."""
        units = self.units(program, "visitor", "greenlet")
        assert units["page"] >= 200
        assert units["stranger"] >= 400
        assert units.get("visitor", 0) < 200


@needs_py_spy
class TestPySpyRecord:
    def test_stacks(self, program: Path) -> None:
        """Sync code is found, on a stack of its own, and the event loop's tasks on theirs."""
        found = program.parent / "stacks.txt"
        command = (str(PY_SPY), "record", "--rate", "200", "--format", "raw", "--output")
        answer = run(
            *(*command, found.name, "--", sys.executable, program.name), cwd=program.parent
        )
        if not found.exists():
            skip_where_refused(answer.stdout)
        lines = found.read_text().splitlines()
        stacks = [re.findall(r"(?:^|;)(\S+) \(", line) for line in lines]
        assert [*WORK, "page"] in stacks
        assert any(stack[:1] == ["<module>"] and stack[-1] == "stranger" for stack in stacks)


@pytest.mark.skipif(sys.version_info < (3, 15) or PYPY, reason="it is new in Python 3.15")
class TestSampling:
    """``python -m profiling.sampling``"""

    def functions(self, program: Path, *options: str) -> Any:
        found = program.parent / "stacks.txt"
        answer = run(
            *(sys.executable, "-m", "profiling.sampling", "run", "--collapsed", "-o", found.name),
            *options,
            program.name,
            cwd=program.parent,
        )
        if not found.exists():
            skip_where_refused(answer.stdout)
        frames = found.read_text().replace(" ", ";").split(";")
        return {frame.split(":")[1] for frame in frames if frame.startswith(program.name)}

    def test_by_thread(self, program: Path) -> None:
        """Samples that are taken while a portal's code runs are lost."""
        functions = self.functions(program)
        assert "stranger" in functions
        assert "page" not in functions

    def test_by_task(self, program: Path) -> None:
        """With ``--async-aware``, they are not."""
        functions = self.functions(program, "--async-aware")
        assert {"page", "stranger"} <= functions
