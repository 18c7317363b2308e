"""Whether packages are installed that tests need."""

from __future__ import annotations

import importlib.metadata
from typing import Iterable, List


def missing(names: Iterable[str]) -> List[str]:
    """The names of those distributions that are not installed."""
    found = []
    for name in names:
        try:
            importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found.append(name)
    return found
