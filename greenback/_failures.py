"""Telling of a failure that the program is not to feel."""

from __future__ import annotations

import logging
import traceback
from typing import Any

from ._signals import raise_if_from_signal_handler
from ._work import traceback_of


def tell_failure(
    message: str, *arguments: Any, error: Exception, level: int = logging.ERROR
) -> None:
    """Log *error*, with its traceback as far as that can be shown.

    Never raises: loggers, and the classes of exceptions, are the program's, and may fail. What a
    signal handler has raised meanwhile is raised again.

    Args:
        message: What happened, which ends with a ``%s`` for the error.
        arguments: What else it is formatted with, before that.
        error: What was raised.
        level: That of the log record.
    """
    kind = type(error)
    try:
        info: Any = (kind, error, traceback_of(error))
        try:
            shown = repr(error)
            traceback.format_exception(*info)
        except Exception as failure:  # a class whose __repr__ or __context__ raises, say
            raise_if_from_signal_handler(failure)
            shown, info = kind.__qualname__, None
        logging.getLogger("greenback").log(level, message, *arguments, shown, exc_info=info)
    except Exception as failure:
        raise_if_from_signal_handler(failure)
