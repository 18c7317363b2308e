"""Coroutines and sync code that Cython has compiled."""

from __future__ import annotations

import asyncio
import importlib.util
import os
import shutil
import subprocess
import sys
import sysconfig
import types
from typing import Any, List

import pytest

import greenback
from greenback import await_
from tests.sampling import is_small

from .awaitables import both_ways

PYPY = sys.implementation.name == "pypy"


CYTHON_SOURCE = """
# cython: language_level=3

async def immediate(value):
    return value

async def through(awaitable):
    return await awaitable

async def cleans_up(awaitable, log):
    try:
        return await awaitable
    except BaseException as error:
        log.append(type(error))
        raise
    finally:
        log.append("finally")

async def fails(error):
    raise error
"""


@pytest.fixture(scope="module")
def compiled(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A module of coroutine functions that Cython has compiled."""
    if PYPY:
        pytest.skip("Cython's C code is compiled for CPython here")
    if is_small():
        pytest.skip("another Python compiles it")
    if importlib.util.find_spec("Cython") is None:
        pytest.skip("Cython is not installed")
    if importlib.util.find_spec("setuptools") is None:
        pytest.skip("setuptools, with which Cython compiles, is not installed")
    compiler = (sysconfig.get_config_var("CC") or "cc").split()[0]
    if shutil.which(compiler) is None:
        pytest.skip(f"there is no C compiler {compiler}")
    folder = tmp_path_factory.mktemp("cython")
    (folder / "compiled_coroutines.pyx").write_text(CYTHON_SOURCE)
    done = subprocess.run(
        # From 3.12 on, distutils comes with setuptools.
        [
            sys.executable,
            "-c",
            "import setuptools; from Cython.Build.Cythonize import main; "
            "main(['-i', '-3', 'compiled_coroutines.pyx'])",
        ],
        cwd=str(folder),
        capture_output=True,
        text=True,
        env={**os.environ, "CFLAGS": "-O0"},
        check=False,
    )
    assert done.returncode == 0, done.stderr
    built = next(path for path in folder.iterdir() if path.suffix in (".so", ".pyd"))
    spec = importlib.util.spec_from_file_location("compiled_coroutines", str(built))
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


class TestCython:
    def test_value(self, backend: Any, portal: Any, compiled: Any) -> None:
        """A coroutine compiled by Cython gives its value, whether or not it waits."""

        async def give() -> str:
            await backend.checkpoint()
            return "given"

        def use() -> Any:
            return (
                await_(compiled.immediate(None)),
                await_(compiled.immediate("x")),
                await_(compiled.through(give())),
                await_(compiled.through(compiled.immediate(1))),
            )

        probe = compiled.immediate(1)
        probe.close()
        assert type(probe) is not types.CoroutineType
        assert backend.run(portal, use) == (None, "x", "given", 1)

    def test_exception(self, backend: Any, portal: Any, compiled: Any) -> None:
        """A coroutine compiled by Cython raises its exception in the caller."""
        for error in (ValueError("x"), KeyboardInterrupt(), GeneratorExit(), StopIteration(1)):
            awaited, bridged = both_ways(backend, portal, lambda: compiled.fails(error))
            assert bridged == awaited

    def test_cancellation(self, asyncio_backend: Any, portal: Any, compiled: Any) -> None:
        """A coroutine compiled by Cython can be cancelled while it waits in a bridge."""
        log: List[Any] = []

        async def main() -> None:
            forever = asyncio.get_running_loop().create_future()
            task = asyncio.get_running_loop().create_task(
                portal(lambda: await_(compiled.cleans_up(forever, log)))
            )
            await asyncio.sleep(0)
            await asyncio.sleep(0)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task

        asyncio_backend.run(main)
        assert log == [asyncio.CancelledError, "finally"]

    def test_closed_without_portal(self, backend: Any, compiled: Any) -> None:
        """Without a portal, a coroutine compiled by Cython is closed, too."""

        async def main() -> None:
            coroutine = compiled.immediate(1)
            with pytest.raises(RuntimeError, match="create a greenback portal"):
                await_(coroutine)
            with pytest.raises(RuntimeError, match="cannot reuse already awaited coroutine"):
                await coroutine

        backend.run(main)

    def test_sync_function(self, backend: Any, portal: Any, compiled: Any) -> None:
        """Code compiled by Cython works between a portal and a bridge."""

        async def pages() -> Any:
            await backend.checkpoint()
            return await compiled.through(greenback.with_portal_run_sync(read))

        def read() -> Any:
            return await_(compiled.through(backend.checkpoint())), "read"

        assert backend.run(portal, lambda: await_(pages())) == (None, "read")
