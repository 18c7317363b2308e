"""``greenback-trace run``: start a program with tracing on."""

from __future__ import annotations

import os
import sys
from typing import Dict, NoReturn, Optional, Sequence


class NoSuchProgramError(Exception):
    """There is no such program. The message names the missing file."""


def run(program: str, arguments: Sequence[str], is_module: bool, file: Optional[str]) -> NoReturn:
    """Replace this process by a Python that runs *program* with tracing on.

    So ``sys.argv``, ``sys.path``, ``__main__``, signals and the exit code are those of a program
    that Python itself has started.

    Args:
        program: A file, a directory, or the name of a module.
        arguments: The arguments of the program.
        is_module: *program* is a module, as for ``python -m``.
        file: The path of the trace; None for ``GREENBACK_TRACE_FILE``.

    Raises:
        NoSuchProgramError: Neither a file nor a directory has this name.
    """
    if not is_module and not os.path.exists(program):
        raise NoSuchProgramError(
            f"there is no file {program!r}; to run a module, write: greenback-trace run -m MODULE"
        )
    # A debug mode that the environment has chosen stays.
    environ: Dict[str, str] = dict(os.environ)
    if environ.get("GREENBACK_TRACE", "").strip().lower() != "debug":
        environ["GREENBACK_TRACE"] = "1"
    if file is not None:
        environ["GREENBACK_TRACE_FILE"] = file
    # Python has no option `--`. So a file whose name begins with a dash gets a directory.
    name = program if is_module or not program.startswith("-") else os.path.join(".", program)
    command = [sys.executable, *(["-m"] if is_module else []), name, *arguments]
    sys.stdout.flush()
    sys.stderr.flush()
    if sys.platform == "win32":  # there, exec returns to the shell before the program has ended
        import subprocess

        sys.exit(subprocess.call(command, env=environ))
    os.execve(sys.executable, command, environ)
