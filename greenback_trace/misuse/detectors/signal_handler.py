"""Bridges in signal handlers that Python runs between two instructions of the main thread."""

from __future__ import annotations

import signal
import threading
from types import FrameType
from typing import Any, Optional

from greenback._frames import around_worker

from ..evidence.names import name_of_code
from ..evidence.values import arguments_of, leads_to
from ..finding import Suspicion

KIND = "signal_handler"
_SIGNALS = frozenset(int(number) for number in signal.valid_signals())


def suspect(frame: FrameType, caller: FrameType) -> Optional[Suspicion]:
    code = frame.f_code
    if code.co_argcount < 2 and not code.co_flags & 0x04:
        return None
    if threading.get_ident() != threading.main_thread().ident:
        return None  # signal handlers run in the main thread only
    arguments = arguments_of(frame)
    for number, interrupted in zip(arguments, arguments[1:]):
        if interrupted is (None if caller is around_worker else caller) and _is_signal(number):
            name = _name(number)
            evidence = [f"it was handed {number}, which is {name}, and the frame below it"]
            if leads_to(code)(signal.getsignal(number)):
                evidence.append(f"it is the handler that is set for {name}")
            return Suspicion(
                KIND,
                f"{name_of_code(frame)}, the handler of {name}",
                tuple(evidence),
                handed=caller,
            )
    return None


def _is_signal(value: Any) -> bool:
    return type(value) in (int, signal.Signals) and value in _SIGNALS


def _name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"  # a real-time signal
