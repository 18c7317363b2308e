"""Large source files: only a part is parsed on the event loop, and calls are still recognised."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any, Callable

import pytest

from greenback_trace.misuse.evidence import source
from greenback_trace.misuse.evidence.calls import Origin, how_called

pytest.importorskip("executing", reason="these tests need greenback[debug]")

FILLING = (
    'def other_{0}(one):\n    """\n@{0}\n    """\n    return [one for each in range({0})]\n\n\n'
)

#: Places in a file of a function that makes a function in C call another one, `{}`.
PLACES = {
    "function": "def caller(target):\n    return sorted([1], key=target)\n",
    "headers over lines": (
        "def decorate(it):\n    return it\n\n@decorate\n@decorate\ndef caller(\n    target,\n"
        "    more=(\n1,\n),\n):\n    # one\n# two\n    return sorted([1], key=target)\n"
    ),
    "inner": (
        "def outer():\n    def caller(target):\n        return sorted(\n            [1],\n"
        "            key=target,\n        )\n    return caller\ncaller = outer()\n"
    ),
    "in a long class": (
        "class Shop:\n    __private = 5\n{filling}    def caller(self, target):\n"
        "        self.__it = [super()]\n        try:\n            return sorted([1], key=target)\n"
        "        except LookupError:\n            raise\n\n{filling}\ncaller = Shop().caller\n"
    ),
    "lambda": "caller = lambda target: sorted([1], key=target)\n",
}


def made(tmp_path: Path, text: str) -> Callable[..., Any]:
    """The function `caller` of a module in a large file."""
    path = tmp_path / "large.py"
    many = "".join(map(FILLING.format, range(500)))
    methods = "".join(
        f"    def method_{number}(self):\n        return {number}\n\n" for number in range(500)
    )
    path.write_text(many + text.replace("{filling}", methods) + "\n\n" + many)
    names: Any = {"__name__": "large"}
    exec(compile(path.read_text(), str(path), "exec"), names)
    caller: Callable[..., Any] = names["caller"]
    return caller


class Parsed:
    """The lengths of the parsed texts. An audit hook stays: this one is switched off."""

    def __init__(self) -> None:
        self.lengths: Any = []
        self._is_on = True
        sys.addaudithook(self._hear)

    def _hear(self, event: str, arguments: Any) -> None:
        if self._is_on and event == "compile" and isinstance(arguments[0], (str, bytes)):
            self.lengths.append(len(arguments[0].strip()))

    def end(self) -> None:
        self._is_on = False


def origin_in(caller: Callable[..., Any]) -> Origin:
    """How the function that *caller* calls came to be called. Checks how much was parsed."""
    origins = []

    def target(item: int) -> int:
        frame = sys._getframe()
        assert frame.f_back is not None
        origins.append(how_called(frame, frame.f_back))
        return item

    parsed = Parsed()
    try:
        caller(target)
    finally:
        parsed.end()
    assert all(length <= source.LIMIT for length in parsed.lengths)
    (origin,) = origins
    return origin


@pytest.mark.parametrize("place", list(PLACES))
def test_large_file(tmp_path: Path, place: str) -> None:
    """A call in a large file is recognised as in a small one, and little is parsed."""
    origin = origin_in(made(tmp_path, PLACES[place]))
    assert origin.explicit is not None, origin.evidence


def test_long_function(tmp_path: Path) -> None:
    """A function over the limit is not parsed, and its calls are unknown."""
    long = "    target = target\n" * 2_000
    caller = made(tmp_path, f"def caller(target):\n{long}    return sorted([1], key=target)\n")
    assert origin_in(caller).explicit is None


_PROGRAM = """
import asyncio, large, greenback, greenback_trace
def key(item):
    greenback.await_(asyncio.sleep(0))
    return item
def work():
    large.caller(key)
asyncio.run(greenback.with_portal_run_sync(work))
print(greenback_trace.snapshot().slow_steps)
"""


def test_own_time(tmp_path: Path, python: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """The time to look for misuse does not count as a slow step of the program."""
    made(tmp_path, PLACES["function"])
    slowly = (
        "import time\nfrom greenback_trace.misuse.evidence import source as _source\n"
        "_source.linecache.getlines = lambda *_: time.sleep(2.5) or []\n"
    )
    done = python(
        "-c",
        f"import sys; sys.path.insert(0, {str(tmp_path)!r})\n{slowly}{_PROGRAM}",
        GREENBACK_TRACE="debug",
        GREENBACK_TRACE_SLOW="2",
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "{}"
    assert "greenback.slow_step" not in done.stderr
