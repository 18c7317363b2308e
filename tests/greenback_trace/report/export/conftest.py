"""Fixtures of the tests in this folder."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from .exporting import PROGRAM


@pytest.fixture(scope="session")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("export")
    program, trace = directory / "shop.py", directory / "trace.jsonl"
    program.write_text(PROGRAM)
    environ = {
        **{
            name: value
            for name, value in os.environ.items()
            if not name.startswith("GREENBACK_TRACE")
        },
        "GREENBACK_TRACE": "1",
        "GREENBACK_TRACE_FILE": str(trace),
        # Shorter than the sleep in bill(), so that its step is slow.
        "GREENBACK_TRACE_SLOW": "0.015",
    }
    subprocess.run([sys.executable, str(program)], env=environ, check=True, timeout=60)
    return trace
