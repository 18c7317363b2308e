"""A program -> the same program, traced."""

from __future__ import annotations

import os
import sys
from typing import Dict, NoReturn, Optional, Sequence


class NoSuchProgramError(Exception):
    """There is nothing to run. The message says what was looked for."""


def run(program: str, arguments: Sequence[str], is_module: bool, file: Optional[str]) -> NoReturn:
    """Become a new Python that runs *program* with tracing on.

    All that a program can see of how it was started is then Python's own doing: ``sys.argv``,
    ``sys.path``, ``__main__``, signals and the exit code.

    Raises:
        NoSuchProgramError: Neither a file nor a directory has this name.
    """
    if not is_module and not os.path.exists(program):
        raise NoSuchProgramError(
            f"there is no file {program!r}; to run a module, write: greenback-trace run -m MODULE"
        )
    # Whoever has chosen the debug mode keeps it.
    environ: Dict[str, str] = dict(os.environ)
    if environ.get("GREENBACK_TRACE", "").strip().lower() != "debug":
        environ["GREENBACK_TRACE"] = "1"
    if file is not None:
        environ["GREENBACK_TRACE_FILE"] = file
    # `--` is no option of Python's; a file whose name begins with a dash needs another way.
    name = program if is_module or not program.startswith("-") else os.path.join(".", program)
    command = [sys.executable, *(["-m"] if is_module else []), name, *arguments]
    sys.stdout.flush()
    sys.stderr.flush()
    if sys.platform == "win32":  # where exec returns to the shell before the program has ended
        import subprocess

        sys.exit(subprocess.call(command, env=environ))
    os.execve(sys.executable, command, environ)
