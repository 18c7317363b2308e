"""The engine that runs: `await_`, `begin` and `drive`, each in C or in Python.

Both engines work on the same portals, workers and homes, so that a bridge can begin in one and be
driven by the other. The one in C handles the common case, and calls the function in Python of the
same name for everything else. Nothing is decided in C that is not decided in Python.
"""

from __future__ import annotations

import sys
from types import CodeType
from typing import TYPE_CHECKING, Any, Callable, Dict, Optional

from .._tasks.libraries import Library
from . import bridge, work
from .choice import compiled, has_compiled
from .state import POOL_SIZE, Home, Raised, Worker, this_home


def _code_for_tracebacks() -> CodeType:
    """The code of the frame that a bridge in C adds to tracebacks.

    It shows the line of `bridge.await_` in which that waits, and no columns.
    """
    line = bridge.await_.__code__.co_firstlineno + bridge.LINE_OF_STEPS
    source = "\n" * (line - 1) + "def await_(aw): pass"
    namespace: Dict[str, Any] = {}
    exec(compile(source, bridge.await_.__code__.co_filename, "exec"), namespace)
    code: CodeType = namespace["await_"].__code__
    if sys.version_info >= (3, 11):
        units = len(code.co_code) // 2
        # The format is that of Objects/locations.md in CPython: 13 is "no column", for 8 units at
        # most, and then the difference of lines.
        lengths = [8] * (units // 8) + ([units % 8] if units % 8 else [])
        table = b"".join(bytes([0x80 | 13 << 3 | length - 1, 0]) for length in lengths)
        code = code.replace(co_linetable=table)
    return code


if compiled is not None:
    compiled.connect(
        Worker,
        Home,
        POOL_SIZE,
        ERROR=work.ERROR,
        MOVED=work.MOVED,
        NO_NEED=bridge.NO_NEED,
        Begun=bridge.Begun,
        Raised=Raised,
        await_=bridge.await_,
        await_code=_code_for_tracebacks(),
        awaited=work.awaited,
        awaited_steps=work.awaited_steps,
        begin=bridge.begin,
        discard=bridge.discard,
        finish=bridge.finish,
        first_step=bridge.first_step,
        interrupt=bridge.interrupt,
        is_unfinished=work.is_unfinished,
        observed_switch=bridge.observed_switch,
        register_once=bridge.register_once,
        run_coroutine=work.run_coroutine,
        take_worker=bridge.take_worker,
        takes=bridge.takes,
        drives=has_compiled("drive"),
        serves=has_compiled("work"),
        this_home=this_home,
        with_frame=work.with_frame,
        without_own_frames=work.hide_own_frames,
    )

await_ = bridge.await_
begin = bridge.begin
drive: Callable[..., Any] = bridge.drive


def open_for_running_task(kind: str) -> Optional[Library]:
    """Open a portal for the running task in the common case, and return the task's library.

    None if it is another case, for which nothing has been done.
    """
    return None


if not TYPE_CHECKING:
    if has_compiled("await_"):
        await_ = compiled.await_
    if has_compiled("begin"):
        begin = compiled.begin
    if has_compiled("drive"):
        drive = compiled.drive
        open_for_running_task = compiled.open_for_running_task


def drive_of(library: Library) -> Callable[..., Any]:
    """`drive` for the tasks of *library*.

    Trio holds Ctrl-C back by marks on frames, and code in C has none.
    """
    return library.uninterruptible(bridge.drive) if library.holds_back_ctrl_c else drive
