"""What tests need that may not be there."""

from __future__ import annotations

import importlib.metadata
from typing import Iterable, List


def missing(names: Iterable[str]) -> List[str]:
    """The distributions among these that are not installed."""
    found = []
    for name in names:
        try:
            importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found.append(name)
    return found
