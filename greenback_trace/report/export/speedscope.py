"""A trace -> the file format of https://www.speedscope.app."""

from __future__ import annotations

import json
from typing import Any, Dict, List

from ..read.trace import Trace
from .flames import Frame, stacks

#: By the weight: name, unit, attribute of `Numbers`. The first one is shown at first.
_PROFILES = {
    "time": [
        ("time in bridges", "seconds", "time"),
        ("time waiting for the event loop", "seconds", "suspended_time"),
        ("number of bridges", "none", "bridges"),
    ],
}
_PROFILES["bridges"] = _PROFILES["time"][::-1]


def speedscope(trace: Trace, by: str) -> str:
    """JSON with a profile for each weight: the time, the time spent waiting, and the bridges."""
    indexes: Dict[Frame, int] = {}
    found = stacks(trace)
    samples = [
        [indexes.setdefault(frame, len(indexes)) for frame in stack.frames] for stack in found
    ]
    profiles: List[Dict[str, Any]] = []
    for name, unit, attribute in _PROFILES[by]:
        weights = [getattr(stack.numbers, attribute) for stack in found]
        profiles.append(
            {
                "type": "sampled",
                "name": name,
                "unit": unit,
                "startValue": 0,
                "endValue": sum(weights),
                "samples": samples,
                "weights": weights,
            }
        )
    return json.dumps(
        {
            "$schema": "https://www.speedscope.app/file-format-schema.json",
            "name": "greenback",
            "exporter": "greenback-trace",
            "activeProfileIndex": 0,
            "profiles": profiles,
            "shared": {"frames": [_frame(frame) for frame in indexes]},
        }
    )


def _frame(frame: Frame) -> Dict[str, str]:
    fields = {"name": frame.function}
    if frame.file:
        fields["file"] = frame.file
    return fields
