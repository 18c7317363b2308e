"""The text that stands for a function in a sync chain -> its parts.

Files of version 1 have only the text, and so have the exports of an application's own SDK. The name
of a function or of a file may contain anything, so taking the text apart is a guess. The loader
guesses only if no line of the files gives the parts.
"""

from __future__ import annotations

import re

from ...count.caller import Caller

_CALLER = re.compile(r"(?P<function>.*) \((?P<file>.+):(?P<line>0|[1-9][0-9]{0,8})\)", re.DOTALL)


def caller_of(text: str) -> Caller:
    """The function that *text* stands for. Its `str` is *text*. Its module is empty."""
    match = _CALLER.fullmatch(text)
    if match is None:
        return Caller("", text, "", 0)
    return Caller("", match["function"], match["file"], int(match["line"]))
