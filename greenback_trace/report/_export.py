"""Exported traces -> the formats of other tools, and a page to look at."""

from __future__ import annotations

from typing import Callable, Dict, List

from ._flames import WEIGHTS
from ._folded import folded
from ._html import html
from ._load import load
from ._perfetto import perfetto
from ._plan import make_plan
from ._speedscope import speedscope
from ._timeline import lanes, read

__all__ = ["FORMATS", "WEIGHTS", "export"]


def export(paths: List[str], kind: str, by: str) -> bytes:
    """What the files say, in the format *kind*; flame graphs are weighted *by* time or bridges.

    Raises:
        NothingToReportError: A file cannot be read, or none has what the format needs.
    """
    return _WRITERS[kind](paths, by)


def _speedscope(paths: List[str], by: str) -> bytes:
    return speedscope(load(paths), by).encode()


def _folded(paths: List[str], by: str) -> bytes:
    return folded(load(paths), by).encode()


def _perfetto(paths: List[str], by: str) -> bytes:
    _, spans = read(paths)
    return b"".join(perfetto(lanes(spans)))


def _html(paths: List[str], by: str) -> bytes:
    trace, spans = read(paths)
    return html(trace, lanes(spans) if spans else [], make_plan(trace, by), by).encode()


_WRITERS: Dict[str, Callable[[List[str], str], bytes]] = {
    "speedscope": _speedscope,
    "perfetto": _perfetto,
    "folded": _folded,
    "html": _html,
}
FORMATS = tuple(_WRITERS)
