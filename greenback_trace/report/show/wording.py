"""Numbers and places as text for a terminal."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Tuple

if TYPE_CHECKING:
    from rich.console import Console


def place_of(file: str, line: int) -> str:
    """``file:line``, made `visible`.

    The file is relative to the current directory or to the directory of installed packages.
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
    """*text* in one line that is safe to print: escapes replace characters that are not printable.

    Control characters and characters that change the direction of writing are not printable.
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
    """*word*, in the plural unless *count* is 1."""
    return word if count == 1 else f"{word}s"


def duration(value: float) -> str:
    """Seconds as us, ms or s, whichever is most readable."""
    if not value:
        return "0"
    for limit, factor, unit in ((1e-3, 1e6, "us"), (1.0, 1e3, "ms")):
        if value < limit:
            return f"{value * factor:.1f} {unit}"
    return f"{value:,.1f} s"


def marks(console: Console) -> Tuple[str, str, str]:
    """The characters of bars: full, empty, and too short to draw."""
    return ("#", "-", ".") if console.options.ascii_only else ("█", "░", "▏")
