"""Traces of a real program, mutated at random, through every command of ``greenback-trace``."""

from __future__ import annotations

import gzip
import json
import os
import re
import subprocess
import sys
import unicodedata
from collections import Counter
from pathlib import Path
from random import Random
from typing import Any, Callable, Dict, Iterator, List, Sequence, Tuple
from typing import Counter as Counted

from click.testing import CliRunner

from greenback_trace.cli import main
from greenback_trace.report.export.export import WEIGHTS
from greenback_trace.report.export.perfetto import _messages
from greenback_trace.report.planning.plan import WEIGHTS as PLAN_WEIGHTS
from greenback_trace.report.read import otlp
from greenback_trace.report.read.checked import NewerTraceError, check
from greenback_trace.report.read.inputs import Input, NothingToReportError
from greenback_trace.report.show.choice import SORTS
from greenback_trace.report.top.live import follow

REPOSITORY = Path(__file__).resolve().parents[2]
#: Mutated traces for each command and seed.
TRACES = 40

PROGRAM = """
import asyncio
import threading
import time
import weakref

import greenback
import trio
from greenback import await_


async def refuse(item):
    raise LookupError(item)


async def compute():
    end = time.perf_counter() + 0.003
    while time.perf_counter() < end:
        pass


class Closing:
    def __del__(self):
        await_(asyncio.sleep(0))


def fetch(item):
    await_(asyncio.sleep(0))


def bill():
    for item in ("tea", "cake"):
        fetch(item)
    Closing()
    with threading.Lock():
        fetch("milk")
    try:
        await_(refuse("sugar"))
    except LookupError:
        pass
    await_(compute())


def wait(started):
    started.set()
    await_(asyncio.sleep(3600))


async def day():
    await asyncio.create_task(greenback.with_portal_run_sync(bill), name="order 1")
    started = asyncio.Event()
    task = asyncio.create_task(greenback.with_portal_run_sync(wait, started), name="waiter")
    await started.wait()
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    await greenback.ensure_portal()
    await_(asyncio.sleep(0))


async def night():
    await greenback.with_portal_run_tree(trio.lowlevel.checkpoint)
    await greenback.with_portal_run_sync(lambda: await_(trio.lowlevel.checkpoint()))


asyncio.run(day())
trio.run(night)
asyncio.run(day())
"""


def make_trace(folder: Path) -> Path:
    """The trace of a program that has a bit of everything, made in *folder*."""
    program, trace = folder / "app.py", folder / "clean.jsonl"
    program.write_text(PROGRAM)
    environ = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("GREENBACK_TRACE", "OTEL_"))
    }
    environ.update(
        GREENBACK_TRACE="debug",
        GREENBACK_TRACE_FILE=str(trace),
        GREENBACK_TRACE_SITES="6",
        GREENBACK_TRACE_SLOW="0.002",
        OTEL_SERVICE_NAME="shop",
        PYTHONPATH=str(REPOSITORY),
    )
    subprocess.run(
        [sys.executable, str(program)],
        cwd=str(folder),
        env=environ,
        check=True,
        capture_output=True,
        timeout=60,
    )
    return trace


def fuzz_traces(command: str, clean: Path, seed: int) -> Counted[str]:
    """Mutate traces, run a command over each, and return the numbers of traces and of reports.

    The last mutated trace stays in the folder of *clean*.

    Args:
        command: One of `COMMANDS`.
        clean: The trace to mutate.
        seed: The seed of the mutations.

    Raises:
        AssertionError: The command did something it must not. The message names the trace.
    """
    done: Counted[str] = Counter()
    lines = clean.read_bytes().splitlines(keepends=True)
    for number in range(TRACES):
        random = Random(f"{command} {seed} {number}")
        content = mutated(random, lines)
        broken = clean.with_name(f"{command}-{seed}-{number}.jsonl")
        broken.write_bytes(content)
        try:
            status = COMMANDS[command](random, str(clean), str(broken))
        except Exception as failure:
            raise AssertionError(
                f"trace {number} of seed {seed}, {broken}: {failure!r}"
            ) from failure
        broken.unlink()
        done["traces"] += 1
        done["reported"] += status == 0
    return done


# Mutations


class _Twin(str):
    """A key of a JSON object that can be there twice."""

    __hash__ = object.__hash__

    def __eq__(self, other: object) -> bool:
        return self is other


#: JSON that no object of Python stands for, by the placeholder that the text replaces.
_RAW = {
    "@arrays@": "[" * 20_000 + "]" * 20_000,
    "@objects@": '{"value":' * 5_000 + "1" + "}" * 5_000,
    "@digits@": "9" * 6_000,
    "@exponent@": "1e999",
    "@half@": '"\\ud800"',
    "@escape@": '"\\x"',
    "@nothing@": "",
}
_TEXTS = (
    "", " ", "0", "-1", "NaN", "Infinity", "1e400", "\ud800", "a\udfffb", "\0", "\ufeff", "²", "٣",
    "\x1b[31mred\x1b[0m", "\x1b]0;title\x07", "a\rb", "a\nb", "a\tb", "\u202e\u2066", "\x85\u2028",
    "</script><script>alert(1)</script>", "<!--", "[red]", "[/]", "{}", "%s", ";", "a;b 7", "?",
    "/", "..", "/dev/zero", "/dev/stdin", "~", "C:\\x", "<string>", "greenback", "x" * 5_000,
    "é" * 200, "a.b.<locals>.c (/srv/x.py:1)", "(:)", "f (x.py:99999999999999999999)", "_OTHER",
    "\U0010ffff",
)  # fmt: skip
_NUMBERS = (
    0, -1, 1, 2, 31, 2**31 - 1, 2**31, 2**53 + 1, 2**63 - 1, 2**63, 2**64 - 1, 2**64, 10**18,
    10**30, -(2**63), -(10**30), 0.5, -0.0, 1e-320, 1e18, 1.8e308, -1e300, float("nan"),
    float("inf"), float("-inf"),
)  # fmt: skip
#: An array or an object, and the index or the key of a value in it.
_Node = Tuple[Any, Any]


def mutated(random: Random, lines: List[bytes]) -> bytes:
    """A trace with some mutations."""
    lines = list(lines)
    for _ in range(random.choice((0, 0, 0, 1, 1, 2))):
        random.choice(_OF_LINES)(random, lines)
    if lines:
        numbers = random.choice([range(len(lines)), [random.randrange(len(lines))]])
        _change(random, lines, numbers)
    content = b"".join(lines)
    for _ in range(random.choice((0, 0, 0, 0, 1, 3))):
        content = random.choice(_OF_BYTES)(random, content)
    return content


def _change(random: Random, lines: List[bytes], numbers: Sequence[int]) -> None:
    """Change some values in the lines that are JSON and not nested deeply."""
    contents: Dict[int, Any] = {}
    # All kinds of places are equally likely, however often each kind is there.
    places: Dict[str, List[_Node]] = {}
    for number in numbers:
        try:
            contents[number] = json.loads(lines[number])
            for place, node in _nodes(contents[number], ""):
                places.setdefault(place, []).append(node)
        except (ValueError, RecursionError):
            contents.pop(number, None)
    for _ in range(random.choice((1, 2, 3, 8))):
        if places:
            # Texts that the commands print most.
            kind = random.choice((".stringValue", "Value", ".as", ""))
            chosen = [each for each in sorted(places) if kind in each]
            nodes = places[random.choice(chosen or sorted(places))]
            change = random.choice(_CHANGES)
            # Often change all values of a kind alike: in a sum, a single one changes little.
            seed = random.random()
            for parent, key in nodes if random.random() < 0.6 else [random.choice(nodes)]:
                try:
                    change(Random(seed), parent, key, nodes)
                except LookupError:  # another change has dropped the place
                    pass
    for number, content in contents.items():
        try:
            text = json.dumps(content)
        except (RecursionError, ValueError):  # the value is nested too deeply, or contains itself
            continue
        for mark, raw in _RAW.items():
            text = text.replace(f'"{mark}"', raw)
        lines[number] = text.encode() + b"\n"


def _nodes(content: Any, place: str) -> Iterator[Tuple[str, _Node]]:
    """All values in a line, each with its place: the innermost name, and the path below that."""
    if isinstance(content, dict):
        name = content.get("key", content.get("name"))
        place = name if isinstance(name, str) else place
        for key, value in content.items():
            yield f"{place}.{key}", (content, key)
            yield from _nodes(value, f"{place}.{key}")
    elif isinstance(content, list):
        for index, value in enumerate(content):
            yield f"{place}*", (content, index)
            yield from _nodes(value, f"{place}*")


def _replace(random: Random, parent: Any, key: Any, nodes: List[_Node]) -> None:
    before = parent[key]
    if isinstance(before, str) and before.lstrip("-").isdigit():
        value: Any = str(random.choice(_NUMBERS))
    elif isinstance(before, str):
        value = "".join(random.choices(_TEXTS, k=random.choice((1, 1, 3))))
    elif isinstance(before, (int, float)):
        value = random.choice(_NUMBERS)
    else:
        value = _anything(random)
    parent[key] = value


def _replace_by_anything(random: Random, parent: Any, key: Any, nodes: List[_Node]) -> None:
    parent[key] = _anything(random)


def _anything(random: Random) -> Any:
    return random.choice(
        (
            None,
            True,
            False,
            random.choice(_TEXTS),
            random.choice(_NUMBERS),
            [],
            {},
            [random.choice(_NUMBERS)],
            {"stringValue": random.choice(_TEXTS)},
            {"intValue": str(random.choice(_NUMBERS))},
            {"kvlistValue": {"values": []}},
            {"arrayValue": {"values": [{"stringValue": each} for each in _TEXTS[:200:9]]}},
            *_RAW,
        )
    )


def _drop(random: Random, parent: Any, key: Any, nodes: List[_Node]) -> None:
    if isinstance(parent, dict):
        parent.pop(key, None)
    elif parent:
        parent.pop()


def _double(random: Random, parent: Any, key: Any, nodes: List[_Node]) -> None:
    if isinstance(parent, dict):
        parent[_Twin(key)] = random.choice((parent.get(key), _anything(random)))
    else:
        parent[:0] = [parent[key]] * random.choice((1, 1, 200))


def _rename(random: Random, parent: Any, key: Any, nodes: List[_Node]) -> None:
    if isinstance(parent, dict) and key in parent:
        other = random.choice((*parent, "asInt", "asDouble", "intValue", random.choice(_TEXTS)))
        parent[other] = parent.pop(key)


def _nest(random: Random, parent: Any, key: Any, nodes: List[_Node]) -> None:
    value = parent.get(key) if isinstance(parent, dict) else parent[key]
    for _ in range(random.choice((1, 2, 50))):
        value = {"arrayValue": {"values": [value]}} if random.random() < 0.5 else [value]
    parent[key] = value


def _take_of_another(random: Random, parent: Any, key: Any, nodes: List[_Node]) -> None:
    other, index = random.choice(nodes)
    parent[key] = other[index]


_CHANGES: List[Callable[[Random, Any, Any, List[_Node]], None]] = [
    _replace,
    _replace,
    _replace,
    _replace,
    _replace,
    _replace,
    _replace_by_anything,
    _drop,
    _double,
    _rename,
    _nest,
    _take_of_another,
]


def _shuffle(random: Random, lines: List[bytes]) -> None:
    random.shuffle(lines)


def _repeat(random: Random, lines: List[bytes]) -> None:
    lines += random.choices(lines, k=2)


def _leave_out(random: Random, lines: List[bytes]) -> None:
    lines.pop(random.randrange(len(lines)))


def _one_signal(random: Random, lines: List[bytes]) -> None:
    signal = random.choice((b'"resourceMetrics"', b'"resourceSpans"'))
    lines[:] = [line for line in lines if signal in line] or lines


def _insert(random: Random, lines: List[bytes]) -> None:
    garbage = (
        b"\n", b"\0\n", b"null\n", b"[]\n", b"{}\n", b'"\xff"\n', b"7\n",
        b"\xef\xbb\xbf" + lines[0],
        b'{"resourceSpans": null}\n', b'{"resourceMetrics": [null]}\n', b'{"resourceLogs": [7]}\n',
    )  # fmt: skip
    lines.insert(random.randrange(len(lines) + 1), random.choice(garbage))


_OF_LINES: List[Callable[[Random, List[bytes]], None]] = [
    _shuffle,
    _repeat,
    _leave_out,
    _one_signal,
    _insert,
]


def _flip(random: Random, content: bytes) -> bytes:
    flipped = bytearray(content)
    for _ in range(random.choice((1, 1, 8))):
        if flipped:
            flipped[random.randrange(len(flipped))] ^= 1 << random.randrange(8)
    return bytes(flipped)


def _cut(random: Random, content: bytes) -> bytes:
    begin, end = sorted(random.randrange(len(content) + 1) for _ in range(2))
    return random.choice((content[:end], content[begin:], content[:begin] + content[end:]))


def _compress(random: Random, content: bytes) -> bytes:
    return gzip.compress(content)


def _join_lines(random: Random, content: bytes) -> bytes:
    return content.replace(b"\n", random.choice((b"", b"\r\n", b"\r", b"\0")))


def _encode_otherwise(random: Random, content: bytes) -> bytes:
    return content.decode("latin-1").encode(random.choice(("utf-16", "utf-32", "utf-8-sig")))


_OF_BYTES: List[Callable[[Random, bytes], bytes]] = [
    _flip,
    _flip,
    _cut,
    _compress,
    _join_lines,
    _encode_otherwise,
]

# Checks of the results


def _run(*arguments: str) -> Tuple[int, bytes]:
    """The exit status of a command, 0 or 2, and its standard output."""
    result = CliRunner().invoke(main, arguments)
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    assert result.exit_code in (0, 2), f"{arguments[0]} ended with {result.exit_code}"
    assert "Traceback (most recent call last)" not in result.output
    if result.exit_code:
        assert result.output.startswith("greenback-trace: "), result.output[:200]
        _assert_harmless(result.output)
    return result.exit_code, result.stdout_bytes


def _report(random: Random, clean: str, broken: str) -> int:
    _, output = _run("report", broken)
    _assert_harmless(output.decode())
    return _assert_json(_run("report", "--json", "--sort", random.choice(SORTS), broken))


def _parsers(random: Random, clean: str, broken: str) -> int:
    """msgspec reads the same as the parser of the standard library."""
    status = 2
    for line in Input([broken]).lines():
        content = line[2]
        if isinstance(content, bytes):
            by_default = _checked(content)
            fast, otlp._fast = otlp._fast, None
            try:
                plainly = _checked(content)
            finally:
                otlp._fast = fast
            # msgspec skips the parts that it does not read, even if they are not valid JSON.
            if plainly != _NO_JSON:
                assert by_default == plainly, f"line {line[1]} is read differently"
                status = 0
    return status


_NO_JSON = "no JSON"


def _checked(line: bytes) -> str:
    try:
        request = otlp.decode(line)
    except otlp.NotOTLPError:
        return _NO_JSON
    try:
        return repr(request and check(request))
    except otlp.NotOTLPError:
        return "refused"
    except NewerTraceError as error:
        return str(error)


def _plan(random: Random, clean: str, broken: str) -> int:
    weight = random.choice(PLAN_WEIGHTS)
    _, output = _run("plan", "--weight", weight, broken)
    _assert_harmless(output.decode())
    return _assert_json(_run("plan", "--weight", weight, "--json", broken))


def _diff(random: Random, clean: str, broken: str) -> int:
    files = random.choice([(clean, broken), (broken, clean), (broken, broken)])
    _, output = _run("diff", *files)
    _assert_harmless(output.decode())
    return _assert_json(_run("diff", "--json", *files))


def _export(random: Random, clean: str, broken: str) -> int:
    weight = random.choice(WEIGHTS)
    statuses = [_assert_json(_run("export", "--format", "speedscope", "--weight", weight, broken))]
    status, output = _run("export", "--format", "folded", "--weight", weight, broken)
    statuses.append(status)
    if not status:
        _assert_harmless(output.decode())
        for line in output.decode().splitlines():
            assert re.fullmatch(r".*\S \d+", line), ascii(line)
    status, output = _run("export", "--format", "perfetto", broken)
    statuses.append(status)
    if not status:
        _messages()["Trace"].FromString(output)
    status, output = _run("export", "--format", "html", "--weight", weight, broken)
    statuses.append(status)
    if not status:
        _assert_page(output.decode())
    return min(statuses)


def _top(random: Random, clean: str, broken: str) -> int:
    """Run top up to the point where it needs a terminal and ends."""
    from greenback_trace.report.top import top as shown

    stdin, sys.__stdin__ = sys.__stdin__, None  # type: ignore[misc]
    try:
        assert _run("top", broken)[0] == 2
    finally:
        sys.__stdin__ = stdin  # type: ignore[misc]

    live = follow(broken)
    try:
        live.read()
    except NothingToReportError as error:
        assert str(error)
        return 2
    finally:
        now = live.now()
        live.close()
    _assert_harmless(shown._summary(now).plain)
    for site in now.sites:
        for cell in shown._site_cells(site):
            _assert_harmless(cell)
    return 0


#: Characters that a terminal might obey: all control characters but newline and tab.
_HARMFUL = ("Cc", "Cs", "Zl", "Zp")
_DIRECTIONS = frozenset("\u061c\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")


def _assert_harmless(text: str) -> None:
    found = {
        letter
        for letter in set(text) - set("\n\t")
        if unicodedata.category(letter) in _HARMFUL or letter in _DIRECTIONS
    }
    assert not found, ascii(sorted(found))


def _assert_json(result: Tuple[int, bytes]) -> int:
    status, output = result
    if not status:
        json.loads(output.decode(), parse_constant=_refuse)
    return status


def _refuse(constant: str) -> Any:
    raise ValueError(f"{constant} is not JSON")


def _assert_page(page: str) -> None:
    """The data of the page are JSON, and do not end the element that has them."""
    data = re.findall(r'<script type="application/json"[^>]*>(.*?)</script>', page, re.DOTALL)
    assert data
    for each in data:
        json.loads(each, parse_constant=_refuse)
    assert "<script>alert" not in page


COMMANDS: Dict[str, Callable[[Random, str, str], int]] = {
    "report": _report,
    "parsers": _parsers,
    "plan": _plan,
    "diff": _diff,
    "export": _export,
    "top": _top,
}
