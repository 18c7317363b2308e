"""Shared by the tests of tools: processes that are killed at the end."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Callable, Iterator, List

import pytest

from .processes import Process


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[..., Process]]:
    """Starts processes in a directory of the test's own."""
    processes: List[Process] = []

    def start(*command: str, **variables: Any) -> Process:
        processes.append(Process(*command, cwd=tmp_path, **variables))
        return processes[-1]

    yield start
    for process in processes:
        process.kill()
