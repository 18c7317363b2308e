"""Bridges in the callbacks of `weakref.finalize`."""

from __future__ import annotations

import weakref
from typing import Any

import pytest

from ...garbage import IS_PYPY, collect
from .finalized import KIND, by_del, refcounted


class TestFinalize:
    @refcounted
    def test_callback(self, backend: Any, looking: Any, bridge: Any) -> None:
        """A bridge in a callback of weakref.finalize is found."""

        class Thing:
            pass

        def make() -> Any:
            thing = Thing()
            weakref.finalize(thing, bridge)
            return thing

        found = looking.only(backend, lambda: by_del(make), KIND)
        assert "weakref.finalize" in found.subject
        assert "bridge" in found.subject

    def test_by_collector(self, backend: Any, looking: Any, bridge: Any) -> None:
        """A bridge in such a callback is found where the collector frees the object."""

        class Thing:
            def __init__(self) -> None:
                self.other = self

        def cycle() -> None:
            weakref.finalize(Thing(), bridge)
            collect()

        looking.only(backend, cycle, KIND)

    def test_called(self, backend: Any, looking: Any, bridge: Any) -> None:
        """A callback that the program calls is no misuse."""

        class Thing:
            pass

        thing = Thing()
        finalizer = weakref.finalize(thing, bridge)
        looking.none(backend, finalizer)
        finalizer = weakref.finalize(thing, bridge)
        looking.none(backend, lambda: finalizer())

    @pytest.mark.skipif(IS_PYPY, reason="atexit is written in Python there")
    def test_at_exit(self, python: Any) -> None:
        """A bridge in a callback that atexit runs is found."""
        done = python("-c", AT_EXIT)
        assert done.returncode == 0, done.stderr
        assert done.stdout == "finalizer False\n"


AT_EXIT = """
import asyncio, atexit, weakref
import greenback
from greenback_trace.misuse.detect import at_start

class Thing:
    pass

thing = Thing()
weakref.finalize(thing, lambda: greenback.await_(asyncio.sleep(0)))

class Looking(greenback.instruments.Instrument):
    def bridge_started(self, bridge):
        found = at_start(bridge.frame)
        print(found.kind, found.inconclusive)

greenback.instruments.add_instrument(Looking())
asyncio.run(greenback.with_portal_run_sync(atexit._run_exitfuncs))
"""
