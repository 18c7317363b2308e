"""The values in a line of OTLP JSON -> texts, numbers and times, each checked.

Texts are Unicode that can be encoded, numbers are finite and within the ranges of OTLP, times are
years that a calendar has.
"""

from __future__ import annotations

from math import isfinite
from typing import TYPE_CHECKING, Any, Callable, Dict, List, Sequence, Tuple, cast

from .otlp import NotOTLPError

if TYPE_CHECKING:
    from .structs import Attribute, Value

LEAST, MOST = -(1 << 63), (1 << 63) - 1
#: The latest time, in nanoseconds since 1970: what 64 bits hold, the year 2554.
_LATEST = (1 << 64) - 1
#: The largest number of seconds, and the largest count. Sums of numbers below it are finite.
LARGEST = float(1 << 64)
_LINES = _PIDS = (1 << 31) - 1
#: Functions in a sync chain, at most. Greenback itself writes at most 32.
_FRAMES = 128
#: How deeply arrays may be nested.
_DEEPEST = 8
#: Characters of a number in a string, at most.
_DIGITS = 40

#: Keys and values, in the order of the file.
Attributes = List[Tuple[str, Any]]


def attributes_of(attributes: Sequence[Attribute]) -> Attributes:
    """The keys and values of attributes, each value checked by what its key requires.

    Raises:
        NotOTLPError: A value is not of the type or in the range that its key requires.
    """
    # A report spends half of its time in this loop.
    found: Attributes = []
    readers = _READERS
    for each in attributes:
        key, value = each.key, each.value
        reader: Callable[[str, Any], Any] = readers.get(key, _anything)
        text = value.stringValue
        number = value.intValue
        # Nearly all attributes are one of these two, so they cost no call.
        if reader is _text and type(text) is str and text.isascii():
            found.append((key, text))
        elif reader is _count and type(number) is str and len(number) < 19 and number.isdigit():
            found.append((key, int(number)))
        else:
            found.append((key, reader(key, value)))
    return found


def _text(key: str, value: Value) -> str:
    text = value.stringValue
    if text is None and _is_empty(value):
        return ""
    if type(text) is not str:
        raise NotOTLPError(f"{key} is no text")
    return encodable(key, text)


def _path(key: str, value: Value) -> str:
    text = _text(key, value)
    if "\0" in text:
        raise NotOTLPError(f"{key} has a NUL in it, which no path has")
    return text


def _texts(key: str, value: Value) -> Tuple[str, ...]:
    """A sync chain."""
    array = value.arrayValue
    if array is None:
        raise NotOTLPError(f"{key} is no array")
    texts: Any = tuple([each.stringValue for each in array.values])
    if len(texts) > _FRAMES:
        raise NotOTLPError(f"{key} has more than {_FRAMES} functions")
    try:
        joined = "".join(texts)
    except TypeError:
        raise NotOTLPError(f"{key} has something else than texts in it") from None
    encodable(key, joined)
    if "\0" in joined:
        raise NotOTLPError(f"{key} has a NUL in it, which no path has")
    return cast("Tuple[str, ...]", texts)


def _flag(key: str, value: Value) -> bool:
    if type(value.boolValue) is not bool:
        raise NotOTLPError(f"{key} is neither true nor false")
    return value.boolValue


def _count(key: str, value: Value) -> int:
    return checked_int(key, _number(key, value), 0, MOST)


def _line(key: str, value: Value) -> int:
    return checked_int(key, _number(key, value), 0, _LINES)


def _version(key: str, value: Value) -> int:
    return checked_int(key, _number(key, value), 1, MOST)


def _pid(key: str, value: Value) -> int:
    return checked_int(key, _number(key, value), 0, _PIDS)


def _seconds(key: str, value: Value) -> float:
    return checked_float(key, _number(key, value), 0)


def _number(key: str, value: Value) -> Any:
    number = value.doubleValue if value.intValue is None else value.intValue
    if number is None:
        raise NotOTLPError(f"{key} is no number")
    return number


def _anything(key: str, value: Value) -> Any:
    """An attribute that is not greenback's: any value that an exporter can write again."""
    if type(key) is not str:
        raise NotOTLPError("the key of an attribute is no text")
    return _plain(encodable("the key of an attribute", key), value, 0)


def _plain(key: str, value: Value, depth: int) -> Any:
    if value.stringValue is not None:
        return _text(key, value)
    if value.intValue is not None:
        return checked_int(key, value.intValue, LEAST, MOST)
    if value.arrayValue is not None:
        if depth == _DEEPEST:
            raise NotOTLPError(f"{key} has arrays that are nested deeper than {_DEEPEST}")
        values = value.arrayValue.values or ()
        return tuple([_plain(key, each, depth + 1) for each in values])
    if value.boolValue is not None:
        return _flag(key, value)
    if value.doubleValue is None:
        return ""
    try:
        number = float(value.doubleValue)
    # `check` must not show this error: on PyPy its message may have half of a surrogate pair.
    except ValueError:
        raise NotOTLPError(f"{key} is no number{_shown(value.doubleValue)}") from None
    # JSON has no number for NaN. Other libraries may write it all the same, as a text.
    return number if isfinite(number) else str(number)


def _is_empty(value: Value) -> bool:
    return (
        value.intValue is None
        and value.doubleValue is None
        and value.boolValue is None
        and value.arrayValue is None
    )


def encodable(what: str, text: str) -> str:
    """*text*, if it can be encoded. JSON can have half of a surrogate pair in a text."""
    if not text.isascii():
        try:
            text.encode()
        except UnicodeEncodeError:
            raise NotOTLPError(f"{what} has half of a surrogate pair: {ascii(text)[:60]}") from None
    return text


def time_of(what: str, value: Any) -> int:
    if type(value) is str and len(value) < 20 and value.isdigit():
        return int(value)
    return checked_int(what, value, 0, _LATEST)


def checked_int(what: str, value: Any, least: int, most: int) -> int:
    number = None
    if type(value) is str:
        try:
            number = int(value) if len(value) <= _DIGITS else None
        except ValueError:
            pass
    elif type(value) is int:
        number = value
    elif type(value) is float and value.is_integer():
        number = int(value)
    if number is None:
        raise NotOTLPError(f"{what} is no whole number{_shown(value)}")
    if not least <= number <= most:
        raise NotOTLPError(f"{what} is out of range{_shown(value)}")
    return number


def checked_float(what: str, value: Any, least: float) -> float:
    if type(value) not in (float, int, str) or (type(value) is str and len(value) > _DIGITS):
        raise NotOTLPError(f"{what} is no number{_shown(value)}")
    try:
        number = float(value)
    except ValueError:
        raise NotOTLPError(f"{what} is no number{_shown(value)}") from None
    except OverflowError:
        raise NotOTLPError(f"{what} is out of range") from None
    if not least <= number <= LARGEST:  # which NaN is not
        raise NotOTLPError(f"{what} is out of range{_shown(value)}")
    return number


def _shown(value: Any) -> str:
    """A value for an error message, or nothing if the value is long."""
    if type(value) is int and not -LARGEST <= value <= LARGEST:
        return ""
    return f": {ascii(value)[:_DIGITS]}" if isinstance(value, (float, int, str)) else ""


#: How to read each attribute that a report is made from: the reader checks the type and the range.
_READERS: Dict[str, Callable[[str, Any], Any]] = {
    "code.file.path": _path,
    "code.function.name": _text,
    "code.line.number": _line,
    "error.type": _text,
    "greenback.async_library": _text,
    "greenback.awaitable": _text,
    "greenback.engine": _text,
    "greenback.function.module": _path,
    "greenback.function.qualname": _path,
    "greenback.misuse.kind": _text,
    "greenback.outcome": _text,
    "greenback.portal.bridges": _count,
    "greenback.portal.errors": _count,
    "greenback.portal.kind": _text,
    "greenback.portal.slow_steps": _count,
    "greenback.portal.suspended": _count,
    "greenback.portal.switches": _count,
    "greenback.slow_step_time": _seconds,
    "greenback.suspended": _flag,
    "greenback.suspended_time": _seconds,
    "greenback.switches": _count,
    "greenback.sync_chain": _texts,
    "greenback.sync_depth": _count,
    "greenback.task.name": _text,
    "greenback.trace.drop.reason": _text,
    "greenback.trace.item": _text,
    "greenback.trace.version": _version,
    "process.pid": _pid,
}
