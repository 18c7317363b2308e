"""The names of types, of tasks, and of what a portal runs."""

from __future__ import annotations

from typing import Any, Optional

from greenback._listener.failures import raise_if_from_signal_handler
from greenback.instruments import Portal

#: What a metaclass, or the class itself, may shadow.
_MODULE: Any = type.__dict__["__module__"]
_QUALNAME: Any = type.__dict__["__qualname__"]


def full_name(kind: type) -> str:
    name: str = _QUALNAME.__get__(kind)
    module = _MODULE.__get__(kind)
    if module == "builtins":
        return name
    return f"{module if type(module) is str else '?'}.{name}"


def task_name(task: Any) -> Optional[str]:
    try:
        get_name = getattr(task, "get_name", None)  # asyncio has this, Trio an attribute
        name = getattr(task, "name", None) if get_name is None else get_name()
    except Exception as error:  # a class of the program's, which cannot say it now
        raise_if_from_signal_handler(error)
        return None
    return name if issubclass(type(name), str) else None


def work_of(portal: Portal) -> str:
    """The async function that a portal's task waits in, or the function that it was made of.

    Those of the async libraries themselves only say that it waits.
    """
    coroutine = portal.coroutine
    name = None
    while coroutine is not None:
        frame = getattr(coroutine, "cr_frame", None)
        if frame is None:
            break
        module = frame.f_globals.get("__name__", "?")
        if name is None or module.partition(".")[0] not in ("asyncio", "trio", "anyio"):
            name = f"{module}.{coroutine.__qualname__}"
        coroutine = coroutine.cr_await
    if name is not None:
        return name
    # It has ended.
    work = getattr(portal, "function", None) or portal.coroutine
    name = getattr(work, "__qualname__", None) or type(work).__qualname__
    return f"{getattr(work, '__module__', None) or '?'}.{name}"
