"""greenback from compiled files alone, in another place than they were compiled in."""

from __future__ import annotations

import compileall
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import greenback

PROGRAM = """
import trio
import greenback

async def waits():
    await trio.sleep_forever()

def sync():
    greenback.await_(waits())

async def child():
    await greenback.ensure_portal()
    sync()

async def main():
    async with trio.open_nursery() as nursery:
        nursery.start_soon(child)
        await trio.testing.wait_all_tasks_blocked()
        (task,) = nursery.child_tasks
        print([frame.f_code.co_name for frame, _ in task.iter_await_frames()][:4])
        nursery.cancel_scope.cancel()

import trio.testing
trio.run(main)
print(greenback.__file__)
"""


@pytest.mark.skipif(
    sys.implementation.name != "cpython", reason="PyPy imports no module without its source"
)
def test_own_frames(tmp_path: Path) -> None:
    """A stack has none of greenback's frames, wherever its files were compiled."""
    here = Path(os.path.abspath(greenback.__file__)).parent
    compiled = tmp_path / "compiled" / "greenback"
    shutil.copytree(str(here), str(compiled), ignore=shutil.ignore_patterns("__pycache__"))
    assert compileall.compile_dir(str(compiled), quiet=1, legacy=True)
    moved = tmp_path / "moved"
    shutil.copytree(str(compiled), str(moved / "greenback"), ignore=shutil.ignore_patterns("*.py"))
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM],
        cwd=str(moved),
        env={**os.environ, "PYTHONPATH": str(moved)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    names, file = done.stdout.splitlines()
    assert Path(file) == moved / "greenback" / "__init__.pyc"
    assert names == "['child', 'sync', 'waits', 'sleep_forever']"
