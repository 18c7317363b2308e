"""Support for the package `stackscope`, so that it shows the stacks of tasks with portals."""

from __future__ import annotations

import sys
import types
from typing import Any, List

from . import _portals
from ._adapters import async_context
from ._engine import bridge, work
from ._engine.bridge import drive
from ._engine.choice import compiled
from ._engine.chosen import await_
from ._frames import is_own, portal_frames, portal_of_drive, stack_of, work_ahead
from ._shims import shims
from ._shims.lookalike import for_each_lookalike
from ._shims.shims import Steps, TaskCoroutine
from ._tasks.libraries import _trio


def __getattr__(name: str) -> Any:
    # stackscope's own support for upstream reads this name while stackscope is imported, before
    # `install_glue` is called.
    if name != "_greenback_shim":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    if not isinstance(await_, types.FunctionType):
        _give_code_to_await()
    return drive


def _give_code_to_await() -> None:
    """Have stackscope take the code of `await_` in Python for that of the one in C.

    The next thing that its support for upstream does is to ask for that code. Without an answer,
    stackscope could not be imported.
    """
    dispatch: Any = sys.modules["stackscope._code_dispatch"]
    get_code = dispatch.get_code

    def get_code_also_of_await(thing: Any, *nested: str) -> types.CodeType:
        code: types.CodeType = get_code(bridge.await_ if thing is await_ else thing, *nested)
        return code

    dispatch.get_code = get_code_also_of_await


def install_glue() -> None:
    """Make stackscope follow a shim into its portal, and hide greenback's own frames."""
    from stackscope import (  # pyright: ignore[reportMissingImports]
        customize,
        elaborate_frame,
        unwrap_context,
        unwrap_stackitem,
    )

    ours: List[Any] = [
        function
        for module in (bridge, _portals, shims, work)
        for function in vars(module).values()
        if getattr(function, "__module__", None) == module.__name__
        and isinstance(function, types.FunctionType)
    ]
    if "trio" in sys.modules:
        # Under Trio, copies of these functions run. stackscope takes them for other functions.
        runs = (work.run_function, work.run_coroutine, work.run_while_handling)
        ours += [_trio(None).interruptible(run) for run in runs]
    for function in ours:
        customize(function, hide=True)

    def elaborate_drive(frame: Any, next_inner: object) -> Any:
        frame.hide = True
        portal = portal_of_drive(frame.pyframe)
        if portal is None or isinstance(next_inner, type(frame)) or portal.resume is None:
            return None  # the portal's work is running: stackscope has the frames below already
        return [item for item in portal_frames(portal) if item is not None and not is_own(item)]

    def unwrap_drive_in_c(drive: Any) -> Any:
        if drive.gi_running:
            return []
        ahead = work_ahead(drive)
        if ahead is not None:
            return ahead
        if drive.portal is None:
            return []
        return [each for each in portal_frames(drive.portal) if each and not is_own(each)]

    def elaborate_lookalike(frame: Any, next_inner: object) -> Any:
        frame.hide = True
        return work_ahead(frame.origin)

    elaborate_frame.register(drive)(elaborate_drive)
    for_each_lookalike(lambda lookalike: elaborate_frame.register(lookalike)(elaborate_lookalike))
    if compiled is not None:
        unwrap_stackitem.register(compiled.drive)(unwrap_drive_in_c)
    unwrap_stackitem.register(Steps)(lambda steps: steps.shim)
    unwrap_stackitem.register(TaskCoroutine)(stack_of)
    unwrap_context.register(async_context)(lambda manager, context: manager._cm)
