"""Failures of listeners and instruments, and exceptions of signal handlers told apart from them.

A failure of a listener or an instrument is logged, and the program does not notice it. An
exception of a signal handler belongs to the program, and is raised again.
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
    """Log *error*, with its traceback if that can be shown.

    Does not raise, even if a logger or an exception's class of the program fails. Only an exception
    of a signal handler is raised again.

    Args:
        message: Says what happened, and ends with a ``%s`` for the error.
        arguments: Values for the placeholders before that.
        error: The failure.
        level: The level of the log record.
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
    """Whether a signal handler raised *error*, so that *error* belongs to the program.

    A signal handler runs between two instructions of the main thread, and its exception (a time
    limit, say) is raised there: in an instrument as well as in the code that the instrument
    watches. The traceback of *error* shows it, as long as the handler is still set.
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
    """Raise *error* again if a signal handler raised it. Call this before dropping *error*."""
    try:
        if is_from_signal_handler(error):
            raise error
    finally:
        del error  # its traceback has this frame


def _code_of(handler: Any) -> Optional[CodeType]:
    """The code object of a handler. None if it is written in C, or no handler is set."""
    while isinstance(handler, partial):
        handler = handler.func
    code = getattr(handler, "__code__", None)  # a method has one, too
    if code is None:
        code = getattr(type(handler).__call__, "__code__", None)
    return code if isinstance(code, CodeType) else None
