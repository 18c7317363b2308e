"""``greenback-trace export``: traces -> one of the formats."""

from __future__ import annotations

from typing import Callable, Dict, List, Sequence

from ..planning.plan import make_plan
from ..read.load import load
from .flames import WEIGHTS
from .folded import folded
from .html import html
from .perfetto import perfetto
from .speedscope import speedscope
from .timeline import lanes, read

__all__ = ["FORMATS", "WEIGHTS", "export"]


def export(paths: List[str], kind: str, by: str, roots: Sequence[str] = ()) -> bytes:
    """Write traces in another format.

    Args:
        paths: The files of the traces.
        kind: The format, one of `FORMATS`.
        by: The weight of a function in a flame graph, one of `WEIGHTS`.
        roots: Directories of the user's own code, for the plan in a page.

    Returns:
        The content of the file.

    Raises:
        NothingToReportError: A file cannot be read, or the files lack what the format needs.
    """
    if kind == "html":
        return _html(paths, by, roots)
    return _WRITERS[kind](paths, by)


def _speedscope(paths: List[str], by: str) -> bytes:
    return speedscope(load(paths), by).encode()


def _folded(paths: List[str], by: str) -> bytes:
    return folded(load(paths), by).encode()


def _perfetto(paths: List[str], by: str) -> bytes:
    _, spans = read(paths)
    return b"".join(perfetto(lanes(spans)))


def _html(paths: List[str], by: str, roots: Sequence[str]) -> bytes:
    trace, spans = read(paths)
    plan = make_plan(trace, by, roots)
    return html(trace, lanes(spans) if spans else [], plan, by).encode()


_WRITERS: Dict[str, Callable[[List[str], str], bytes]] = {
    "speedscope": _speedscope,
    "perfetto": _perfetto,
    "folded": _folded,
}
FORMATS = (*_WRITERS, "html")
