"""Numbers and places, as the tables for a terminal show them."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Tuple

if TYPE_CHECKING:
    from rich.console import Console


def place_of(file: str, line: int) -> str:
    """``file:line``, relative to the current directory or to where packages are installed.

    It is `visible`.
    """
    if not file:
        return ""
    here = os.getcwd().rstrip(os.sep) + os.sep
    if file.startswith(here):
        file = file[len(here) :]
    _, installed, inside = file.rpartition(f"{os.sep}site-packages{os.sep}")
    if installed:
        file = inside
    return f"{visible(file)}:{line}"


def visible(text: str) -> str:
    """*text* in one line that does nothing to a terminal: the escapes of what cannot be printed.

    Among that are control characters and those that change the direction of writing.
    """
    if text.isprintable():
        return text
    return "".join(
        each if each.isprintable() else each.encode("unicode_escape").decode() for each in text
    )


def digits(value: float) -> str:
    """A whole number, with commas."""
    return f"{value:,.0f}"


def plural(count: float, word: str) -> str:
    """*word*, in the plural unless it is one."""
    return word if count == 1 else f"{word}s"


def duration(value: float) -> str:
    """Seconds, in the unit that makes them readable."""
    if not value:
        return "0"
    for limit, factor, unit in ((1e-3, 1e6, "us"), (1.0, 1e3, "ms")):
        if value < limit:
            return f"{value * factor:.1f} {unit}"
    return f"{value:,.1f} s"


def marks(console: Console) -> Tuple[str, str, str]:
    """What bars are made of: full, empty, and the least that there is."""
    return ("#", "-", ".") if console.options.ascii_only else ("█", "░", "▏")
