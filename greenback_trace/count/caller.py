"""One function of a sync chain with the line of its call: in counts, trace files and reports."""

from __future__ import annotations


class Caller:
    """A call in the source: a function, its file, and the line of the call.

    Attributes:
        module: The module of the function. Empty if unknown: a trace of version 1 has the module
            only as a part of the function's name.
        qualname: The qualified name of the function in the module.
        file: The file name of the code object; empty if unknown.
        line: The line of the call; 0 if unknown.
    """

    # These strings exist anyway. A further string for `function` would take a tenth of the memory
    # of a site.
    __slots__ = ("file", "line", "module", "qualname")

    def __init__(self, module: str, qualname: str, file: str, line: int) -> None:
        self.module = module
        self.qualname = qualname
        self.file = file
        self.line = line

    @property
    def function(self) -> str:
        """``module.qualname``: the value of ``code.function.name``."""
        return f"{self.module}.{self.qualname}" if self.module else self.qualname

    def __eq__(self, other: object) -> bool:
        return (
            isinstance(other, Caller)
            and self.line == other.line
            and self.qualname == other.qualname
            and self.module == other.module
            and self.file == other.file
        )

    def __hash__(self) -> int:
        return hash((self.qualname, self.line))

    def __str__(self) -> str:
        """An item of ``greenback.sync_chain``."""
        return f"{self.function} ({self.file}:{self.line})" if self.file else self.function

    def __repr__(self) -> str:
        return f"Caller({self.module!r}, {self.qualname!r}, {self.file!r}, {self.line})"
