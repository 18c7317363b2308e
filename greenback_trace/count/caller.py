"""A function of a sync chain, with the line of its call: for all that counts, writes and reads."""

from __future__ import annotations


class Caller:
    """A place in the source that called something.

    Attributes:
        module: Empty where it is not known apart from the function's name, as in a trace of
            version 1.
        qualname: The name of the function in the module.
        file: The file name that the code object has; empty if it is not known.
        line: The line of the call; 0 if it is not known.
    """

    # Only what others hold anyway: a string of its own for the function would be a tenth of what
    # a site takes.
    __slots__ = ("file", "line", "module", "qualname")

    def __init__(self, module: str, qualname: str, file: str, line: int) -> None:
        self.module = module
        self.qualname = qualname
        self.file = file
        self.line = line

    @property
    def function(self) -> str:
        """``module.qualname``, as ``code.function.name`` has it."""
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
        """As ``greenback.sync_chain`` has it."""
        return f"{self.function} ({self.file}:{self.line})" if self.file else self.function

    def __repr__(self) -> str:
        return f"Caller({self.module!r}, {self.qualname!r}, {self.file!r}, {self.line})"
