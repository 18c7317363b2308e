"""OpenTelemetry metrics and spans of greenback's portals and bridges.

Set ``GREENBACK_TRACE=1`` before the program starts, or call `enable`.
"""

# First: with GREENBACK_TRACE set, greenback itself imports modules of this package.
import greenback as _greenback  # noqa: F401

from ._activate import disable as disable
from ._activate import enable as enable
from ._activate import is_enabled as is_enabled
from ._activate import snapshot as snapshot
from ._config import Config as Config
from ._config import ConfigError as ConfigError
from .count.snapshot import Snapshot as Snapshot
from .live.stacks import format_task as format_task
from .misuse import Misuse as Misuse
from .misuse import MisuseError as MisuseError
from .misuse import MisuseWarning as MisuseWarning
from .misuse import allow as allow
