"""Fixtures of the tests in this folder."""

from __future__ import annotations

import socket
from pathlib import Path
from typing import Iterator

import pytest

from greenback_trace.report.top.live_file import LiveFile
from tests.waiting import wait_until

from .service import Service


@pytest.fixture
def trace(tmp_path: Path) -> Path:
    return tmp_path / "trace.jsonl"


@pytest.fixture
def service(tmp_path: Path, trace: Path) -> Iterator[Service]:
    service = Service(tmp_path, GREENBACK_TRACE_FILE=str(trace))
    yield service
    service.end()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "top.sock"


@pytest.fixture
def served(tmp_path: Path, path: Path) -> Iterator[Service]:
    """A program with a socket, which has had its first portal."""
    if not hasattr(socket, "AF_UNIX"):
        pytest.skip("there are no Unix sockets on this system")
    service = Service(tmp_path, GREENBACK_TRACE_SOCKET=str(path))
    service.answer()
    wait_until(path.exists)
    yield service
    service.end()


@pytest.fixture
def live(trace: Path) -> Iterator[LiveFile]:
    live = LiveFile(str(trace))
    yield live
    live.close()
