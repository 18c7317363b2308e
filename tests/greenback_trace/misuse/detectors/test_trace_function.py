from __future__ import annotations

import functools
import sys
from typing import Any, Callable, List

import pytest

KIND = "trace_function"


def traced() -> int:
    number = len("ab")
    return number + 1


class Bridges:
    """Bridges at the first event in `traced`."""

    def __init__(self, bridge: Callable[[], None], event: str) -> None:
        self.bridge = bridge
        self.event = event
        self.done = False

    def __call__(self, frame: Any, event: str) -> None:
        if event == self.event and frame.f_code is traced.__code__ and not self.done:
            self.done = True
            self.bridge()


def shapes(act: Any) -> Any:
    """Trace functions of all shapes."""

    def function(frame: Any, event: str, argument: Any) -> Any:
        act(frame, event)
        return function

    def any_arguments(*arguments: Any) -> Any:
        act(*arguments[:2])
        return any_arguments

    def with_more(first: Any, frame: Any, event: str, argument: Any) -> Any:
        act(frame, event)
        return functools.partial(with_more, first)

    class Owner:
        def method(self, frame: Any, event: str, argument: Any) -> Any:
            act(frame, event)
            return self.method

        def __call__(self, frame: Any, event: str, argument: Any) -> Any:
            act(frame, event)
            return self

    return {
        "function": function,
        "any-arguments": any_arguments,
        "method": Owner().method,
        "object": Owner(),
        "partial": functools.partial(with_more, 1),
    }


SHAPES = sorted(shapes(lambda frame, event: None))


class TestTraceFunction:
    @pytest.mark.parametrize("shape", SHAPES)
    @pytest.mark.parametrize("event", ["call", "line", "return"])
    def test_settrace(
        self, backend: Any, looking: Any, bridge: Any, shape: str, event: str
    ) -> None:
        """A bridge in a trace function is found, for every kind of function and event."""

        def run() -> None:
            before = sys.gettrace()
            sys.settrace(shapes(Bridges(bridge, event))[shape])
            try:
                traced()
            finally:
                sys.settrace(before)

        assert "trace function" in looking.only(backend, run, KIND).subject

    @pytest.mark.parametrize("shape", SHAPES)
    @pytest.mark.parametrize("event", ["call", "c_call", "return"])
    def test_setprofile(
        self, backend: Any, looking: Any, bridge: Any, shape: str, event: str
    ) -> None:
        """A bridge in a profile function is found."""

        def run() -> None:
            before = sys.getprofile()
            sys.setprofile(shapes(Bridges(bridge, event))[shape])
            try:
                traced()
            finally:
                sys.setprofile(before)

        assert "profile function" in looking.only(backend, run, KIND).subject

    @pytest.mark.skipif(sys.version_info < (3, 12), reason="sys.monitoring is of 3.12")
    @pytest.mark.parametrize("event", ["PY_START", "LINE", "INSTRUCTION", "CALL", "PY_RETURN"])
    def test_monitoring(self, backend: Any, looking: Any, bridge: Any, event: str) -> None:
        """A bridge in a callback of sys.monitoring is found."""
        if sys.version_info < (3, 12):
            return
        monitoring = sys.monitoring
        done: List[int] = []

        def callback(code: Any, *arguments: Any) -> None:
            if not done:
                done.append(1)
                bridge()

        def run() -> None:
            monitoring.set_local_events(3, traced.__code__, number)
            traced()

        number = getattr(monitoring.events, event)
        monitoring.use_tool_id(3, "the tool of the test")
        monitoring.register_callback(3, number, callback)
        try:
            found = looking.only(backend, run, KIND)
        finally:
            monitoring.set_local_events(3, traced.__code__, 0)
            monitoring.register_callback(3, number, None)
            monitoring.free_tool_id(3)
        assert "sys.monitoring" in found.subject
        assert any("the tool of the test" in each for each in found.evidence)


class TestOrdinaryCode:
    @pytest.mark.parametrize("shape", SHAPES)
    def test_called(self, backend: Any, looking: Any, bridge: Any, shape: str) -> None:
        """A trace function that the program calls is no misuse."""
        function = shapes(lambda frame, event: bridge())[shape]

        def from_list() -> None:
            functions = [function]
            functions[0](sys._getframe(), "line", None)

        looking.none(backend, lambda: function(sys._getframe(), "line", None))
        looking.none(backend, from_list)

    def test_under_a_tracer(self, backend: Any, looking: Any, bridge: Any) -> None:
        """Code that is traced or profiled may bridge."""
        traces = shapes(lambda frame, event: None)["function"]

        def run() -> None:
            before = sys.gettrace(), sys.getprofile()
            sys.settrace(traces)
            sys.setprofile(traces)
            try:
                bridge()
            finally:
                sys.settrace(before[0])
                sys.setprofile(before[1])

        looking.none(backend, run)
