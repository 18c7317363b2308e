"""Draws the first half of a report, hot spots and sync chains, as in a terminal.

    python demo/migrate/run.py /tmp/orders
    python docs/make_report_picture.py /tmp/orders/1.jsonl docs/_static/report.svg

The same trace gives the same picture.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

from rich.console import Console
from rich.terminal_theme import MONOKAI
from rich.text import Text

WIDTH = 84
#: The picture ends before this table, the first after the sync chains.
REST = re.compile(r"^(\x1b\[[\d;]*m)*Portals ", re.MULTILINE)
#: rich's picture loads its font from the web. The viewer's own font will do.
WEB_FONT = re.compile(r"@font-face \{.*?\}\s*", re.DOTALL)


def report(trace: Path) -> str:
    """The output of the command on a terminal of that width, with colours."""
    done = subprocess.run(
        [sys.executable, "-m", "greenback_trace", "report", "--top", "2", trace.name],
        cwd=str(trace.parent),  # so that the report shortens paths in it
        env={**os.environ, "FORCE_COLOR": "1", "COLUMNS": str(WIDTH), "PYTHONUTF8": "1"},
        check=True,
        stdout=subprocess.PIPE,
        encoding="utf-8",
    )
    return REST.split(done.stdout)[0].rstrip()


def draw(printed: str, command: str) -> str:
    with open(os.devnull, "w", encoding="utf-8") as nowhere:
        console = Console(width=WIDTH, record=True, file=nowhere, force_terminal=True)
        console.print(Text.from_ansi(printed))
        picture = console.export_svg(title=command, theme=MONOKAI, unique_id="report")
    picture = WEB_FONT.sub("", picture)
    picture = picture.replace("Fira Code", "ui-monospace, DejaVu Sans Mono")
    return "".join(f"{line.rstrip()}\n" for line in picture.splitlines())


if __name__ == "__main__":
    trace_file, picture_file = (Path(argument).resolve() for argument in sys.argv[1:])
    picture_file.write_text(
        draw(report(trace_file), f"greenback-trace report {trace_file.name}"), encoding="utf-8"
    )
