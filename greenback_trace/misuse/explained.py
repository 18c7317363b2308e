"""The place that explains a kind of misuse: a page of the documentation, or a command."""

from __future__ import annotations

import re
from typing import Any, Optional

#: The valid bases of links, in words.
ALLOWED_BASES = (
    "a URL that begins with http, https or file, or the path of a directory, with no ? and no #"
)
_URL = re.compile(r"https?://[^/\s]|file:///")


def explained_at(kind: str, base: Optional[str]) -> str:
    """The link to the section about a kind of misuse.

    Args:
        kind: As in `greenback_trace.Misuse.kind`.
        base: The address of the documentation. Without one, the command that prints the section.
    """
    anchor = anchor_of(kind)
    return f"greenback-trace explain {anchor}" if base is None else f"{page_of(base)}#{anchor}"


def page_of(base: str) -> str:
    """The page about all kinds of misuse."""
    return f"{base.rstrip('/')}/safe.html"


def anchor_of(name: str) -> str:
    """The part of a link after the ``#``, for a kind of misuse or a heading."""
    return name.lower().replace("_", "-").replace(" ", "-")


def is_base(value: Any) -> bool:
    """Whether a value is a valid base of links: see `ALLOWED_BASES`."""
    if not isinstance(value, str) or not value.strip() or not value.isprintable():
        return False
    if "?" in value or "#" in value:
        return False
    return "://" not in value or _URL.match(value) is not None
