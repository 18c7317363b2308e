"""The public names: they can replace those of greenback 1.3.0."""

from __future__ import annotations

import inspect
import os
import pathlib
import subprocess
import sys
from typing import Any, List, Tuple

import pytest

import greenback
import greenback.instruments

# The result of inspect.signature() for greenback 1.3.0, without the annotations.
UPSTREAM = {
    "AutoPortalInstrument": "()",
    "async_context": "(cm)",
    "async_iter": "(iterable)",
    "autoawait": "(fn)",
    "await_": "(aw)",
    "bestow_portal": "(task)",
    "decorate_as_sync": "(decorator)",
    "ensure_portal": "()",
    "has_portal": "(task=None)",
    "portals_for_children": "()",
    "portals_for_tree": "()",
    "with_portal_run": "(async_fn, *args, **kwds)",
    "with_portal_run_sync": "(sync_fn, *args, **kwds)",
    "with_portal_run_tree": "(async_fn, *args, **kwds)",
}
BEYOND = {"run": "(async_fn, *args, backend='asyncio')"}
COROUTINE_FUNCTIONS = {
    "ensure_portal",
    "with_portal_run",
    "with_portal_run_sync",
    "with_portal_run_tree",
}


def parameters(thing: Any) -> str:
    drop = 0
    if isinstance(thing, type):
        # Before Python 3.9, the signature of a generic class is the one of Generic.__new__.
        thing = vars(thing).get("__init__") or thing.__new__
        drop = 1
    bare = [
        parameter.replace(annotation=inspect.Parameter.empty)
        for parameter in inspect.signature(thing).parameters.values()
    ]
    return str(inspect.Signature(bare[drop:]))


def in_a_fresh_interpreter(code: str) -> List[str]:
    root = str(pathlib.Path(greenback.__file__).parent.parent)
    code = f"import sys; sys.path.insert(0, {root!r})\n{code}"
    environment = {
        name: value for name, value in os.environ.items() if "GREENBACK_TRACE" not in name
    }
    done = subprocess.run(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, check=True, text=True, env=environment
    )
    return done.stdout.split()


class TestSignatures:
    @pytest.mark.parametrize("named", sorted({**UPSTREAM, **BEYOND}.items()))
    def test_parameters(self, named: Tuple[str, str]) -> None:
        """Every function takes the arguments of greenback 1.3.0, under the same names."""
        name, signature = named
        assert parameters(getattr(greenback, name)) == signature

    @pytest.mark.parametrize("name", sorted({**UPSTREAM, **BEYOND}))
    def test_which_are_async(self, name: str) -> None:
        """The functions that must be awaited are coroutine functions; the others are not."""
        is_async = inspect.iscoroutinefunction(getattr(greenback, name))
        assert is_async == (name in COROUTINE_FUNCTIONS)

    def test_functions_of_the_user_keep_their_keyword_arguments(self) -> None:
        """A user's function may have keyword arguments of any name."""

        async def async_fn(function: int, portal: int, kwds: int) -> Tuple[int, int, int]:
            return function, portal, kwds

        def sync_fn(function: int, portal: int, kwds: int) -> Tuple[int, int, int]:
            return function, portal, kwds

        import asyncio

        async def main() -> None:
            named = {"function": 1, "portal": 2, "kwds": 3}
            assert await greenback.with_portal_run(async_fn, **named) == (1, 2, 3)
            assert await greenback.with_portal_run_tree(async_fn, **named) == (1, 2, 3)
            assert await greenback.with_portal_run_sync(sync_fn, **named) == (1, 2, 3)

        asyncio.run(main())


class TestNames:
    def test_star_import(self) -> None:
        """``from greenback import *`` gives the documented names and nothing else."""
        names = in_a_fresh_interpreter(
            "import types\n"
            "space = {}\n"
            "exec('from greenback import *', space)\n"
            "for name, value in space.items():\n"
            "    if not name.startswith('__') and not isinstance(value, types.ModuleType):\n"
            "        print(name)\n"
        )
        assert sorted(names) == sorted({**UPSTREAM, **BEYOND, "engine": ""})

    def test_every_name_has_a_docstring(self) -> None:
        """help() has something to say about each name."""
        for name in {**UPSTREAM, **BEYOND}:
            assert inspect.getdoc(getattr(greenback, name)), name

    def test_version(self) -> None:
        """The version satisfies ``greenback~=1.0``, and is later than 1.3.0."""
        version = tuple(int(part) for part in greenback.__version__.split("."))
        assert version[0] == 1
        assert version >= (1, 4)

    def test_instruments(self) -> None:
        """``greenback.instruments`` is public and lists its names in ``__all__``."""
        assert sorted(greenback.instruments.__all__) == [
            "Bridge",
            "Instrument",
            "Portal",
            "add_instrument",
            "remove_instrument",
        ]


class TestImport:
    def test_neither_library_is_imported(self) -> None:
        """A program that uses one async library does not import the other."""
        loaded = in_a_fresh_interpreter(
            "before = set(sys.modules)\nimport greenback\nprint(*(set(sys.modules) - before))\n"
        )
        assert "greenback" in loaded
        assert not {"asyncio", "trio", "opentelemetry", "greenback_trace"} & set(loaded)

    def test_py_typed(self) -> None:
        """Type checkers read the annotations of the installed package."""
        assert pathlib.Path(greenback.__file__).with_name("py.typed").is_file()
