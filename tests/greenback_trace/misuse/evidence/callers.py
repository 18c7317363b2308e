"""Ways to call a function."""

from __future__ import annotations

from typing import Any, List


class Callers:
    """Calls of a function, each of which has its own name for it."""

    @staticmethod
    def plain(target: Any) -> None:
        target()

    @staticmethod
    def with_arguments(target: Any) -> None:
        target(1, *[2], key=str(3))

    @staticmethod
    def starred(target: Any) -> None:
        target(*[1, 2], key=3)

    @staticmethod
    def conditional(target: Any) -> None:
        target(1 if target else 2, key=target or 3)

    @staticmethod
    def attribute(target: Any) -> None:
        class Holder:
            pass

        Holder.target = staticmethod(target)  # type: ignore[attr-defined]
        Holder.target()  # type: ignore[attr-defined]

    @staticmethod
    def local(target: Any) -> None:
        first, second = 1, 2
        target(first, second)
        target(first, key=second)

    @staticmethod
    def two_stars(target: Any) -> None:
        named = {"key": 1}
        target(**named)
        target(*[1], **named)

    @staticmethod
    def nested(target: Any) -> None:
        target([1, 2][0], str(int("1")), {"one": 1})

    @staticmethod
    def in_comprehension(target: Any) -> None:
        [target(number) for number in (1,)]

    @staticmethod
    def in_class(target: Any) -> None:
        class Body:
            target(1)

        assert Body


CALLERS: List[Any] = [getattr(Callers, name) for name in vars(Callers) if name[0] != "_"]
