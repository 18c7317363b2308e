"""The text that stands for a function in a sync chain -> its parts.

Files of version 1 have no more than the text. Nor has what an application's own SDK exports. The
text cannot be taken apart for certain: the name of a function, or of a file, may have anything in
it. So it is looked at only where no line says what it is made of.
"""

from __future__ import annotations

import re

from ...count.caller import Caller

_CALLER = re.compile(r"(?P<function>.*) \((?P<file>.+):(?P<line>0|[1-9][0-9]{0,8})\)", re.DOTALL)


def caller_of(text: str) -> Caller:
    """Give what *text* stands for. Its `str` is *text*, and its module is not told apart."""
    match = _CALLER.fullmatch(text)
    if match is None:
        return Caller("", text, "", 0)
    return Caller("", match["function"], match["file"], int(match["line"]))
