"""How a function came to be called."""

from __future__ import annotations

import sys
import weakref
from typing import Any, Callable, List

import pytest

from greenback_trace.count.frames import locals_of
from greenback_trace.misuse.evidence import calls
from greenback_trace.misuse.evidence.calls import how_called

from .callers import CALLERS, Callers

IS_PYPY = sys.implementation.name == "pypy"


class TestHowCalled:
    @pytest.mark.parametrize(
        "call",
        # The frame of a class does not show the variables of the function around it.
        [call for call in CALLERS if call not in (Callers.attribute, Callers.in_class)],
        ids=lambda call: call.__name__,
    )
    def test_other_name(self, call: Any) -> None:
        """A call by another name is told by what the name stands for."""
        seen: List[Any] = []

        def other(*arguments: Any, **named: Any) -> None:
            frame = sys._getframe()
            seen.append(how_called(frame, frame.f_back))  # type: ignore[arg-type]

        call(other)
        assert seen[0].explicit
        assert "target()" in seen[0].evidence

    @pytest.mark.skipif(IS_PYPY, reason="nothing is freed when it is dropped on PyPy")
    def test_without_the_extra(
        self, backend: Any, looking: Any, bridge: Any, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Without greenback[debug], what bytecode alone shows is certain, and the rest is not."""
        monkeypatch.setattr(calls, "Source", None)

        class Thing:
            def __del__(self) -> None:
                bridge()

        def certain() -> None:
            thing = Thing()
            del thing

        def uncertain() -> None:
            things = [Thing()]
            things.clear()

        looking.only(backend, certain, "finalizer")
        (found,) = looking.in_portal(backend, uncertain)
        assert found.inconclusive
        assert any("greenback[debug]" in each for each in found.evidence)

    @pytest.mark.skipif(IS_PYPY, reason="nothing is freed when it is dropped on PyPy")
    def test_without_source(self, backend: Any, looking: Any, bridge: Any) -> None:
        """So it is where there is no source."""
        names: Any = {"bridge": bridge}
        source = (
            "class Thing:\n    def __del__(self): bridge()\n"
            "def certain():\n    thing = Thing()\n    del thing\n"
            "def uncertain():\n    things = [Thing()]\n    things.clear()\n"
        )
        exec(source, names)
        looking.only(backend, names["certain"], "finalizer")
        (found,) = looking.in_portal(backend, names["uncertain"])
        assert found.inconclusive


class TestLocals:
    @pytest.mark.skipif(IS_PYPY, reason="nothing is freed when it is dropped on PyPy")
    def test_keeps_nothing_alive(self) -> None:
        """Looking at the variables of a function does not keep their values alive."""

        class Thing:
            pass

        def function() -> bool:
            thing = Thing()
            reference = weakref.ref(thing)
            assert locals_of(sys._getframe())["thing"] is thing
            del thing
            return reference() is None

        assert function()

    def test_leaves_dictionaries_of_the_program(self) -> None:
        """A dictionary that the function has of its own variables stays as it is."""
        number = 1
        mine = locals()
        assert locals_of(sys._getframe())["number"] == number
        assert mine["number"] == 1

    def test_of_module(self) -> None:
        """The variables of a module are the module's."""
        names: Any = {"locals_of": locals_of, "sys": sys}
        exec("found = dict(locals_of(sys._getframe()))\nnumber = 1", names)
        assert names["found"]["sys"] is sys
        assert names["number"] == 1

    @pytest.mark.skipif(IS_PYPY, reason="nothing is freed when it is dropped on PyPy")
    def test_in_a_bridge(self, backend: Any, looking: Any, bridge: Callable[[], None]) -> None:
        """A suspicious frame, and its caller, free what they drop after the bridge."""
        freed: List[bool] = []

        class Thing:
            pass

        class Bridges:
            def __del__(self) -> None:
                thing = Thing()
                reference = weakref.ref(thing)
                bridge()
                del thing
                freed.append(reference() is None)

        def run() -> None:
            thing = Thing()
            reference = weakref.ref(thing)
            things = [Bridges()]
            things.clear()
            del thing
            freed.append(reference() is None)

        looking.only(backend, run, "finalizer")
        assert freed == [True, True]
