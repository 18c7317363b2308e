"""coverage sees the code of a portal if its tracer knows of greenlets."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any, List

import pytest

from .processes import PYPY, lines_of, run, write

coverage = pytest.importorskip("coverage")

try:
    import coverage.tracer
except ImportError:
    coverage.tracer = None

needs_c_tracer = pytest.mark.skipif(
    coverage.tracer is None, reason="this coverage has no C tracer, which alone knows of greenlets"
)

PROGRAM = """
    import asyncio
    import threading

    import greenback
    from greenback import await_


    async def fetch(item):
        await asyncio.sleep(0)
        if item == "tea":
            return 3
        return 4


    def total(items):
        amount = 0
        for item in items:
            price = await_(fetch(item))
            if price > 3:
                amount += 1
            if price > 4:
                amount += 1  # never
            amount += price
        return amount


    async def ensured():
        await greenback.ensure_portal()
        first = total(["tea"])
        second = total(["tea", "cake"])
        await asyncio.sleep(0)
        return first + second


    async def main():
        return await asyncio.gather(
            ensured(), ensured(), greenback.with_portal_run_sync(total, ["tea"])
        )


    def in_thread():
        return asyncio.run(main())


    thread = threading.Thread(target=in_thread)
    thread.start()
    thread.join()
    assert asyncio.run(main()) == [11, 11, 3]
"""


@pytest.fixture
def program(tmp_path: Path) -> Path:
    return write(tmp_path / "program.py", PROGRAM)


class Measured:
    """The result of coverage for a program, after it ran."""

    def __init__(self, program: Path, *options: str, **variables: str) -> None:
        python = (sys.executable, "-m", "coverage")
        cwd = program.parent
        answer = run(*python, "run", *options, program.name, cwd=cwd, **variables)
        assert answer.returncode == 0, answer.stdout
        self.said = answer.stdout
        report = run(
            *python, "json", "-q", "-o", "report.json", f"--include={program.name}", cwd=cwd
        )
        assert report.returncode == 0, report.stdout
        ((_, found),) = json.loads((cwd / "report.json").read_text())["files"].items()
        self.missing: List[int] = found["missing_lines"]
        self.missing_branches: Any = found.get("missing_branches")
        data = coverage.CoverageData(basename=str(cwd / ".coverage"))
        data.read()
        (name,) = [name for name in data.measured_files() if Path(name).name == program.name]
        # Includes numbers of lines that the file does not have. Reports leave them out.
        self.executed = set(data.lines(name))


def is_exact(measured: Measured, program: Path) -> bool:
    return measured.missing == lines_of(program, "# never")


class TestCTracer:
    @needs_c_tracer
    @pytest.mark.parametrize("branch", [False, True])
    def test_with_the_setting(self, program: Path, branch: bool) -> None:
        """With ``concurrency = thread,greenlet``, the lines and branches that ran are seen."""
        write(program.parent / ".coveragerc", "[run]\nconcurrency = thread,greenlet\n")
        measured = Measured(program, *["--branch"] * branch, COVERAGE_CORE="ctrace")
        assert is_exact(measured, program)
        if branch:
            (never,) = lines_of(program, "# never")
            assert measured.missing_branches == [[never - 1, never]]

    @needs_c_tracer
    def test_without_the_setting(self, program: Path) -> None:
        """Without it, lines that ran are missing, and other files' lines are taken for its own."""
        measured = Measured(program, COVERAGE_CORE="ctrace")
        assert not is_exact(measured, program)
        assert set(measured.missing) > set(lines_of(program, "# never"))
        assert set(lines_of(program, "amount += price")) <= set(measured.missing)
        assert max(measured.executed) > len(program.read_text().splitlines())

    @needs_c_tracer
    def test_threads_are_to_be_named_too(self, program: Path) -> None:
        """With ``concurrency = greenlet`` alone, threads are not measured."""
        measured = Measured(program, "--concurrency=greenlet", COVERAGE_CORE="ctrace")
        assert set(measured.missing) == {
            *lines_of(program, "# never"),
            *lines_of(program, "    return asyncio.run(main())"),
        }


@pytest.mark.skipif(sys.version_info < (3, 12) or PYPY, reason="sys.monitoring is of CPython 3.12")
class TestSysmon:
    @pytest.mark.parametrize("branch", [False, True])
    def test_no_setting(self, program: Path, branch: bool) -> None:
        """The sysmon core sees the code that ran, in any greenlet."""
        if branch and sys.version_info < (3, 14):
            pytest.skip("this core measures branches from Python 3.14 on")
        measured = Measured(program, *["--branch"] * branch, COVERAGE_CORE="sysmon")
        assert "Can't use core=sysmon" not in measured.said
        assert is_exact(measured, program)
        if branch:
            (never,) = lines_of(program, "# never")
            assert measured.missing_branches == [[never - 1, never]]

    @pytest.mark.skipif(
        sys.version_info < (3, 14) or coverage.version_info < (7, 9, 1),
        reason="the default is another core",
    )
    def test_it_is_the_default(self, program: Path) -> None:
        """On Python 3.14 and later, nothing needs to be set."""
        assert is_exact(Measured(program), program)

    @needs_c_tracer
    @pytest.mark.skipif(sys.version_info < (3, 14), reason="sysmon is not the default")
    def test_with_the_setting(self, program: Path) -> None:
        """With the setting, coverage takes the C tracer, and says so if sysmon was asked for."""
        setting = "--concurrency=thread,greenlet"
        assert is_exact(Measured(program, setting), program)
        measured = Measured(program, setting, COVERAGE_CORE="sysmon")
        assert "Can't use core=sysmon: it doesn't support concurrency=greenlet" in measured.said
        assert is_exact(measured, program)


@pytest.mark.skipif(coverage.tracer is not None, reason="there is a C tracer")
class TestPythonTracer:
    def test_the_setting_is_refused(self, program: Path) -> None:
        """Without its C tracer, as on PyPy, coverage refuses the setting, ..."""
        answer = run(
            *(sys.executable, "-m", "coverage", "run", "--concurrency=thread,greenlet"),
            program.name,
            cwd=program.parent,
        )
        assert answer.returncode != 0
        assert "only threads are supported" in answer.stdout

    def test_lines_are_missing(self, program: Path) -> None:
        """... and misses lines that ran."""
        assert set(lines_of(program, "amount += price")) <= set(Measured(program).missing)
