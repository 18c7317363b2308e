"""Call async code from sync code, in a task that has opened a portal."""

import os as _os

try:
    import greenlet as _greenlet  # noqa: F401
except ImportError as _refused:
    # CPython raises this for an extension module that does not support several GILs in a process.
    if "subinterpreter" not in str(_refused):
        raise
    raise ImportError(
        "greenback cannot be used in this subinterpreter, since greenlet cannot be loaded in one "
        "that has a GIL of its own, nor, on builds without the GIL, in any; use greenback in the "
        "main interpreter, or in one that shares the main one's GIL"
    ) from _refused

# If stackscope is imported after greenback, it looks here for upstream's module `_impl`.
from . import _stackscope as _impl  # noqa: F401
from ._adapters import async_context as async_context
from ._adapters import async_iter as async_iter
from ._adapters import autoawait as autoawait
from ._adapters import decorate_as_sync as decorate_as_sync
from ._engine.choice import engine as engine
from ._engine.chosen import await_ as await_
from ._portals import bestow_portal as bestow_portal
from ._portals import ensure_portal as ensure_portal
from ._portals import has_portal as has_portal
from ._portals import run as run
from ._portals import with_portal_run as with_portal_run
from ._portals import with_portal_run_sync as with_portal_run_sync
from ._stackscope import install_glue as _stackscope_install_glue_  # noqa: F401
from ._tree.scopes import AutoPortalInstrument as AutoPortalInstrument
from ._tree.scopes import portals_for_children as portals_for_children
from ._tree.scopes import portals_for_tree as portals_for_tree
from ._tree.scopes import with_portal_run_tree as with_portal_run_tree

__version__ = "1.4.0"

# The only place where the runtime imports greenback_trace.
if _os.environ.get("GREENBACK_TRACE"):
    from greenback_trace import _activate

    _activate.from_environment()
