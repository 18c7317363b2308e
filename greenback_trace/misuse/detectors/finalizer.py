"""Bridges in finalizers: `__del__`, `weakref.finalize`, and collected generators."""

from __future__ import annotations

import dis
import gc
import sys
import types
import weakref
from functools import partial
from itertools import chain
from operator import is_, methodcaller
from types import FrameType
from typing import Any, Iterator, List, Optional, Tuple

from greenback._frames import around_worker, context_of, traceback_of

from ...count.frames import can_look_at_others, locals_of
from ..evidence.calls import Origin, how_called
from ..evidence.instructions import instruction, is_call, is_inert
from ..evidence.names import name_of_code, name_of_type
from ..evidence.values import (
    GENERATORS,
    IN_C,
    arguments_of,
    attributes_with,
    class_attribute,
    code_of,
    takes_arguments,
)
from ..finding import Finding, Suspicion

KIND = "finalizer"

_FINALIZE = weakref.finalize.__call__.__code__
_AT_EXIT = weakref.finalize._exitfunc.__func__.__code__  # type: ignore[attr-defined]
#: The code flags of generators, coroutines and asynchronous generators.
RESUMABLE = 0x20 | 0x80 | 0x200
#: The instructions at which a generator passes an exception that is thrown into it on to an inner
#: generator.
_DELEGATES: Tuple[str, ...] = ("SEND", "YIELD_FROM", "RESUME", "GET_AWAITABLE", "GET_ANEXT")
if sys.version_info >= (3, 11) and sys.implementation.name == "cpython":
    # On others, a generator at a mere ``yield`` passes nothing on. PyPy runs finalizers there.
    _DELEGATES = (*_DELEGATES, "YIELD_VALUE")

#: The instruction of an exception that was raised there, and not thrown in.
_RAISE = dis.opmap["RAISE_VARARGS"]
#: Instructions whose names begin like this may run code, but take no item from a generator.
_RESUMES_NOTHING = ("CALL_INTRINSIC", "DELETE_", "LOAD_GLOBAL", "STORE_ATTR", "STORE_NAME")


def suspect(frame: FrameType, caller: FrameType) -> Optional[Suspicion]:
    code = frame.f_code
    if code is _AT_EXIT:
        return Suspicion(
            KIND, "the weakref.finalize callbacks at exit", ("atexit runs them at this moment",)
        )
    if not takes_arguments(code):
        return None
    arguments = arguments_of(frame)
    if not arguments:
        return None
    subject = arguments[0]
    if code is _FINALIZE:
        return _of_finalize(frame, arguments)
    function = class_attribute(type(subject), "__del__")
    if function is None or not any(each is code for each in code_of(function)):
        return None
    owner = name_of_type(type(subject))
    names = tuple(name for name, _ in attributes_with(type(subject), code))
    return Suspicion(
        KIND,
        f"{name_of_code(frame)} of a {owner}",
        (f"it is what {owner} has as __del__, and its first argument is a {owner}",),
        names,
        confirm=lambda: _collected(subject),
    )


def _of_finalize(frame: FrameType, arguments: List[Any]) -> Optional[Suspicion]:
    if len(arguments) < 2 or arguments[1] is None:
        return None  # called by the program, or at exit, where `_AT_EXIT` is the suspect
    info = locals_of(frame).get("info")
    function = getattr(info, "func", None)
    codes = list(code_of(function))
    called = getattr(codes[0], "co_qualname", codes[0].co_name) if codes else repr(function)
    return Suspicion(
        KIND,
        f"the weakref.finalize callback {called}",
        ("weakref.finalize was handed a dead weak reference, as the interpreter does",),
        handed=arguments[1],
    )


def _collected(subject: Any) -> Optional[str]:
    """The evidence that the cycle collector is about to free an object, if it is.

    While the collector runs finalizers, their objects are tracked, but in none of its generations.
    (Builds without the GIL have no generations.)
    """
    if sys.implementation.name != "cpython" or not gc.is_tracked(subject):
        return None
    if not can_look_at_others():
        return None
    # This is one call of C code. No other thread runs during it, and it leaves no reference behind:
    # before 3.14, a thread that is making a tuple raises a SystemError if there is a reference to
    # the unfinished one. It goes on to the end of the list: the list contains the iterator over
    # it, which lets go of the list only when it is exhausted.
    found = sum(
        map(
            partial(is_, subject),
            chain.from_iterable(map(methodcaller("get_objects"), [gc])),
        )
    )
    if found:
        return None
    return "its object is in the hands of the cycle collector"


# Generators and coroutines


def closing_frames() -> List[FrameType]:
    """The frames into which the GeneratorExit was thrown that is being handled now.

    A GeneratorExit that the program has raised itself has nothing to do with collecting.
    """
    error = sys.exc_info()[1]
    found: List[FrameType] = []
    for each in _chain(error):
        if issubclass(type(each), GeneratorExit):
            traceback = traceback_of(each)
            frames: List[FrameType] = []
            while traceback is not None:
                frame, offset = traceback.tb_frame, traceback.tb_lasti
                if frame.f_code.co_flags & RESUMABLE:
                    frames.append(frame)
                traceback = traceback.tb_next
                if traceback is None and frame.f_code.co_code[offset] != _RAISE:
                    found += frames
    return found


def _chain(error: Optional[BaseException]) -> Iterator[BaseException]:
    seen: List[BaseException] = []
    while error is not None and not any(error is each for each in seen):
        seen.append(error)
        yield error
        error = context_of(error)


def of_generator(frame: FrameType, caller: FrameType, is_closing: bool) -> Optional[Finding]:
    """The misuse of a generator or coroutine that runs because it is being collected; or None.

    Args:
        frame: The frame of the generator or coroutine.
        caller: The ``f_back`` of *frame*; `around_worker` if it has none.
        is_closing: Whether a GeneratorExit is known to have been thrown into it.
    """
    if caller is around_worker:
        return None  # a worker steps its portal's coroutine, and nothing else
    name, _ = instruction(caller)
    if is_inert(name) or name.startswith(_RESUMES_NOTHING):
        if name in _DELEGATES or not name:
            return None
        origin = how_called(frame, caller)
    elif not is_closing or name in _DELEGATES:
        return None
    else:
        origin = how_called(frame, caller, _closes, ("close", "throw", "aclose", "athrow"))
        if not is_call(name) and origin.explicit is None:
            # Operators and loops resume generators, but never throw a GeneratorExit into one.
            origin = Origin(False, f"{caller.f_code.co_name}() was at the instruction {name}")
    if origin.explicit:
        return None
    evidence = [origin.evidence]
    if is_closing:
        evidence.insert(0, "a GeneratorExit was thrown into it")
    what = "generator" if frame.f_code.co_flags & 0x20 else "coroutine"
    if frame.f_code.co_flags & 0x200:
        what = "asynchronous generator"
    return Finding(
        KIND,
        frame,
        f"the clean-up of the {what} {name_of_code(frame)}, which is being collected",
        tuple(evidence),
        origin.explicit is None,
    )


def _closes(value: Any) -> bool:
    """Whether a value is a method that throws into a generator."""
    if type(value) not in (*IN_C, types.MethodType):
        return False
    # The object first: the method of another object gets its name from its function, which may be
    # any object of the program.
    if not issubclass(type(getattr(value, "__self__", None)), GENERATORS):
        return False
    return getattr(value, "__name__", None) in ("close", "throw", "aclose", "athrow")
