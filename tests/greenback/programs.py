"""Programs that are written once, and run both with `await` and with bridges."""

from __future__ import annotations

import textwrap
from typing import Any, Dict


def compiled(source: str, bridged: bool, names: Dict[str, Any]) -> Any:
    """The function ``program`` of a text, awaited or bridged.

    Args:
        source: The text. ``ASYNC def`` stands for a function that is sync if bridged, ``CALL(``
            for a call of such a function, and ``AWAIT(`` for `await` or `greenback.await_`.
        bridged: Whether to bridge.
        names: The globals of the text.
    """
    words = (
        ("ASYNC def", "def" if bridged else "async def"),
        ("CALL(", "(" if bridged else "await ("),
        ("AWAIT(", "await_(" if bridged else "await ("),
    )
    source = textwrap.dedent(source)
    for word, meaning in words:
        source = source.replace(word, meaning)
    space = dict(names)
    exec(compile(source, "<program>", "exec"), space)
    return space["program"]
