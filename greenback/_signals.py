"""What signal handlers raise, in the middle of whatever they interrupt."""

from __future__ import annotations

import signal
import threading
from functools import partial
from types import CodeType
from typing import Any, Optional, Set

from ._work import traceback_of


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
    traceback = traceback_of(error)
    while traceback is not None:
        if traceback.tb_frame.f_code in handlers:
            return True
        traceback = traceback.tb_next
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
