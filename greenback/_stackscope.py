"""Support for the package `stackscope`, so that it shows the stacks of tasks with portals."""

from __future__ import annotations

import sys
import types
from typing import Any, List

from . import _portals
from ._adapters import async_context
from ._engine import bridge, work
from ._engine.bridge import drive
from ._frames import is_own, portal_frames, portal_of_drive, stack_of, work_ahead
from ._shims import shims
from ._shims.lookalike import for_each_lookalike
from ._shims.shims import Steps, TaskCoroutine
from ._tasks.libraries import _trio

#: stackscope's own support for upstream reads this name while stackscope is imported, before
#: `install_glue` is called.
_greenback_shim = drive


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

    def elaborate_lookalike(frame: Any, next_inner: object) -> Any:
        frame.hide = True
        return work_ahead(frame.origin)

    elaborate_frame.register(drive)(elaborate_drive)
    for_each_lookalike(lambda lookalike: elaborate_frame.register(lookalike)(elaborate_lookalike))
    unwrap_stackitem.register(Steps)(lambda steps: steps.shim)
    unwrap_stackitem.register(TaskCoroutine)(stack_of)
    unwrap_context.register(async_context)(lambda manager, context: manager._cm)
