"""What was raised and caught in the middle of the program, and is not its own.

A failure of a listener's or an instrument's is logged, and the program does not feel it. What a
signal handler raises there is the program's, and is raised again.
"""

from __future__ import annotations

import logging
import signal
import threading
import traceback
from functools import partial
from types import CodeType
from typing import Any, Optional, Set

from .._engine.work import traceback_of


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


def is_from_signal_handler(error: BaseException) -> bool:
    """Whether *error* came from a signal handler, and so is the program's wherever it was raised.

    A handler is run between two instructions of the main thread, and what it raises, a time limit
    say, is raised there: in an instrument as well as in the code that the instrument watches. It
    is told by its traceback, as long as the handler is still set.
    """
    if threading.get_ident() != threading.main_thread().ident:
        return False
    handlers: Set[Optional[CodeType]] = set()
    for number in signal.valid_signals():
        handlers.add(_code_of(signal.getsignal(number)))
    entry = traceback_of(error)
    while entry is not None:
        if entry.tb_frame.f_code in handlers:
            return True
        entry = entry.tb_next
    return False


def raise_if_from_signal_handler(error: Exception) -> None:
    """For whoever has caught *error*, and is about to do away with it."""
    try:
        if is_from_signal_handler(error):
            raise error
    finally:
        del error  # its traceback has this frame


def _code_of(handler: Any) -> Optional[CodeType]:
    """The code that a handler begins with. None if it has none: it is written in C, or unset."""
    while isinstance(handler, partial):
        handler = handler.func
    code = getattr(handler, "__code__", None)  # also that of a method
    if code is None:
        code = getattr(type(handler).__call__, "__code__", None)
    return code if isinstance(code, CodeType) else None
