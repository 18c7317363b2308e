"""``greenback.engine``: which engine runs, and why."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import greenback

PROGRAM = """
import asyncio
import greenback

async def fetch():
    await asyncio.sleep(0)
    return greenback.engine

async def main():
    await greenback.ensure_portal()
    return greenback.await_(fetch())

print(asyncio.run(main()))
"""

IMPORTED_TWICE = """
import asyncio
import sys

def use(greenback):
    def bridge():
        return greenback.await_(asyncio.sleep(0, "bridged"))

    async def main():
        return [await greenback.with_portal_run_sync(bridge) for _ in range(3)]

    assert asyncio.run(main()) == ["bridged"] * 3

import greenback as first
use(first)
for name in [name for name in sys.modules if name.partition(".")[0] == "greenback"]:
    del sys.modules[name]
import greenback as second
assert first is not second
for _ in range(2):
    use(second)
    use(first)
"""

STACK_IS_FULL = """
import asyncio
import sys
import threading
import traceback
import greenback

def dive():
    async def deeper():
        dive()

    greenback.await_(deeper())

async def main():
    await greenback.ensure_portal()
    try:
        dive()
    except RecursionError as error:
        frames = traceback.extract_tb(error.__traceback__)
    print(frames[-1].name, greenback.await_(asyncio.sleep(0, "and on")))

sys.setrecursionlimit(100_000)
threading.stack_size(512 * 1024)
thread = threading.Thread(target=lambda: asyncio.run(main()))
thread.start()
thread.join()
"""


def run(place: Path, program: str = PROGRAM, **variables: str) -> subprocess.CompletedProcess[str]:
    environ = {name: value for name, value in os.environ.items() if "GREENBACK" not in name}
    return subprocess.run(
        [sys.executable, "-W", "always", "-c", program],
        cwd=str(place),
        env={**environ, **variables},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


@pytest.fixture
def pure(tmp_path: Path) -> Path:
    """A copy of the package that has no extension modules."""
    ignored = shutil.ignore_patterns("_compiled.*", "__pycache__")
    here = os.path.dirname(os.path.abspath(greenback.__file__))
    shutil.copytree(here, str(tmp_path / "greenback"), ignore=ignored)
    return tmp_path


class TestChoice:
    @pytest.mark.parametrize("value", ["1", "yes"])
    def test_pure(self, value: str) -> None:
        """GREENBACK_PURE takes the engine in Python, and it works."""
        done = run(Path(greenback.__file__).parent.parent, GREENBACK_PURE=value)
        assert (done.stdout, done.stderr) == ("python\n", "")

    def test_not_pure(self) -> None:
        """Without GREENBACK_PURE, or with 0, an engine in C that is there is taken."""
        place = Path(greenback.__file__).parent.parent
        found = [run(place, **each).stdout for each in ({}, {"GREENBACK_PURE": "0"})]
        is_there = any((place / "greenback" / "_engine").glob(f"_compiled.{suffix()}"))
        assert found == ["c\n" if is_there else "python\n"] * 2

    def test_missing(self, pure: Path) -> None:
        """An installation without the engine in C runs the one in Python, without a word."""
        done = run(pure)
        assert (done.stdout, done.stderr) == ("python\n", "")

    def test_cannot_be_loaded(self, pure: Path) -> None:
        """An engine in C that cannot be loaded is a warning, and the one in Python runs."""
        module = pure / "greenback" / "_engine" / f"_compiled.{suffix()}"
        module.write_bytes(b"of another machine")
        done = run(pure)
        assert done.stdout == "python\n"
        assert "RuntimeWarning: greenback runs its engine in Python, since" in done.stderr


def test_imported_twice() -> None:
    """A second copy of the package in a process shares no state with the first one."""
    done = run(Path(greenback.__file__).parent.parent, IMPORTED_TWICE)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.skipif(greenback.engine != "c", reason="in Python, the recursion limit is the bound")
def test_stack_is_full() -> None:
    """A bridge for which the C stack has no room is a RecursionError, raised in `await_`."""
    done = run(Path(greenback.__file__).parent.parent, STACK_IS_FULL)
    assert (done.stdout, done.stderr) == ("await_ and on\n", "")


def suffix() -> str:
    """The end of the names of this Python's extension modules."""
    import importlib.machinery

    return importlib.machinery.EXTENSION_SUFFIXES[0].lstrip(".")


PORTAL = """
from greenback._engine.state import NOWHERE, Portal

portal = Portal("task", NOWHERE.library)
# In Python, these have no value until they are needed.
unset = {"args", "function", "handled", "inner", "kwds", "outer"}
names = {name for name in dir(portal) if not name.startswith("_")} | unset
values = {name: getattr(portal, name, None) for name in names - {"current_task", "library"}}
print(sorted((name, list(value) if name in ("bridges", "scopes") else value)
             for name, value in values.items()))
"""


@pytest.mark.skipif(greenback.engine != "c", reason="there is one class of portals")
def test_attributes_of_portals() -> None:
    """A new portal has the same attributes in both engines, with the same values."""
    place = Path(greenback.__file__).parent.parent
    in_c, in_python = run(place, PORTAL), run(place, PORTAL, GREENBACK_PURE="1")
    assert "('kind', 'task')" in in_c.stdout, in_c.stderr
    assert in_c.stdout == in_python.stdout
