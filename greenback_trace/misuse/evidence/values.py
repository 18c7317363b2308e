"""What code a call of a value leads to, found without running any."""

from __future__ import annotations

import functools
import sys
import types
from types import CodeType, FrameType
from typing import Any, Callable, Iterator, List, Tuple

from ...count.frames import locals_of

_IS_CPYTHON = sys.implementation.name == "cpython"
GENERATORS = (types.GeneratorType, types.CoroutineType, types.AsyncGeneratorType)
#: Functions and methods in C. On PyPy they are of the type of those in Python, or of methods.
IN_C: Tuple[type, ...] = (
    type(len),
    type([].append),
    type([].__len__),
    type(str.join),
    type("".join),
)


def takes_arguments(code: CodeType) -> bool:
    """Whether a function has positional parameters."""
    return bool(code.co_argcount or code.co_flags & 0x04)  # CO_VARARGS


def arguments_of(frame: FrameType) -> List[Any]:
    """The values of a frame's positional parameters that are still bound."""
    code = frame.f_code
    values = locals_of(frame)
    found = [values[name] for name in code.co_varnames[: code.co_argcount] if name in values]
    if code.co_flags & 0x04:  # CO_VARARGS
        rest = values.get(code.co_varnames[code.co_argcount + code.co_kwonlyargcount])
        if type(rest) is tuple:
            found += rest
    return found


def code_of(value: Any, depth: int = 5) -> Iterator[CodeType]:
    """The code of all Python functions that a call of *value* would certainly lead to.

    A value is a function, method, partial, callable object, descriptor, or the wrapper of a
    decorator that uses `functools.wraps`.
    """
    while depth:
        depth -= 1
        code = getattr_static(value, "__code__")
        if type(code) is CodeType:
            yield code
        if not _IS_CPYTHON and type(value) is functools.partial:
            yield PARTIAL_CALL
        for kind, inside in _WRAPPERS:
            if issubclass(type(value), kind):  # isinstance() may run code of the value
                value = inside(value)
                break
        else:
            wrapped = getattr_static(value, "__wrapped__")
            if wrapped is None:
                wrapped = class_attribute(type(value), "__call__")
                if type(wrapped) is not types.FunctionType or wrapped is value:
                    return
            value = wrapped


# On PyPy, partials are written in Python.
PARTIAL_CALL: Any = getattr(functools.partial.__call__, "__code__", None)
_WRAPPERS: Tuple[Tuple[Any, Callable[[Any], Any]], ...] = (
    (types.MethodType, lambda value: value.__func__),
    (functools.partial, lambda value: value.func),
    (functools.partialmethod, lambda value: value.func),
    ((staticmethod, classmethod), lambda value: value.__func__),
    (property, lambda value: value.fget),
)


def getattr_static(value: Any, name: str) -> Any:
    """An attribute of a function, or one in an instance's dictionary. Runs no code."""
    # No isinstance() here and below: it asks objects for their class, and a dead proxy raises.
    if type(value) is types.FunctionType:
        return value.__code__ if name == "__code__" else value.__dict__.get(name)
    try:
        found = object.__getattribute__(value, "__dict__")
    except (AttributeError, TypeError):
        return None
    return found.get(name) if type(found) is dict else None


def class_attribute(kind: type, name: str) -> Any:
    for each in type.__dict__["__mro__"].__get__(kind):
        if name in vars(each):
            return vars(each)[name]
    return None


def leads_to(code: CodeType) -> Callable[[Any], bool]:
    """A function that says whether calling a value runs *code*."""
    return lambda value: any(each is code for each in code_of(value))


def attributes_with(kind: type, code: CodeType) -> Iterator[Tuple[str, Any]]:
    """The attributes of a class and its bases that lead to *code*."""
    for each in type.__dict__["__mro__"].__get__(kind):
        for name, value in vars(each).copy().items():
            if any(found is code for found in code_of(value)):
                yield name, value
