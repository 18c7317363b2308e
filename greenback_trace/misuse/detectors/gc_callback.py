"""Bridges in the hooks that `gc.callbacks` has."""

from __future__ import annotations

import gc
from types import FrameType
from typing import Optional

from ..evidence.names import name_of_code
from ..evidence.values import arguments_of, leads_to
from ..finding import Suspicion

KIND = "gc_callback"


def suspect(frame: FrameType, caller: FrameType) -> Optional[Suspicion]:
    arguments = arguments_of(frame)
    for phase, info in zip(arguments, arguments[1:]):
        if (
            type(info) is dict
            and "generation" in info
            and type(phase) is str
            and phase in ("start", "stop")
        ):
            evidence = [f"it was handed {phase!r} and a collection's figures"]
            if any(map(leads_to(frame.f_code), gc.callbacks)):
                evidence.append("it is in gc.callbacks")
            return Suspicion(
                KIND,
                f"{name_of_code(frame)}, a hook in gc.callbacks",
                tuple(evidence),
                handed=info,
            )
    return None
