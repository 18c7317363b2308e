"""greenback in subinterpreters."""

from __future__ import annotations

import subprocess
import sys
import sysconfig
import textwrap

import pytest

pytest.importorskip("_interpreters", reason="this needs the subinterpreters of CPython 3.13")


def in_subinterpreter(config: str, source: str) -> str:
    """The output of *source* in a subinterpreter of a new process, or its exception."""
    program = f"""
import _interpreters, sys

made = _interpreters.create({config!r})
source = f"import sys; sys.path[:] = {{sys.path!r}}\\n" + {textwrap.dedent(source)!r}
raised = _interpreters.run_string(made, source)
if raised is not None:
    print(raised.errdisplay)
_interpreters.destroy(made)
"""
    result = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=False
    )
    assert result.returncode == 0, result.stderr
    return result.stdout


class TestOwnGIL:
    def test_refuses(self) -> None:
        """If greenlet cannot be loaded, importing greenback says so, and what to do."""
        said = in_subinterpreter("isolated", "import greenback")
        cause, _, error = said.partition("The above exception was the direct cause")
        assert "greenlet does not support loading in subinterpreters" in cause
        last = error.strip().splitlines()[-1]
        assert last.startswith("ImportError: greenback cannot be used in this subinterpreter, ")
        assert "use greenback in the main interpreter" in last

    def test_another_reason(self) -> None:
        """If greenlet is missing, importing greenback says just that."""
        source = """
            sys.modules["greenlet"] = None
            import greenback
        """
        said = in_subinterpreter("isolated", source)
        assert "direct cause" not in said
        assert said.strip().splitlines()[-1].startswith("ModuleNotFoundError: import of greenlet")


class TestSharedGIL:
    def test_works(self) -> None:
        """If greenlet can be loaded, portals and bridges work. Without the GIL, it cannot."""
        source = """
            import asyncio, greenback

            async def nap():
                await asyncio.sleep(0)
                return "rested"

            async def main():
                await greenback.ensure_portal()
                print(greenback.await_(nap()))
                print(await greenback.with_portal_run_sync(greenback.await_, nap()))

            asyncio.run(main())
        """
        said = in_subinterpreter("legacy", source)
        if sysconfig.get_config_var("Py_GIL_DISABLED"):
            assert "ImportError: greenback cannot be used in this subinterpreter, " in said
        else:
            assert said.split() == ["rested", "rested"]
