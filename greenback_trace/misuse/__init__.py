"""Misuse of bridges, found while it happens: debug mode."""

from .report import Misuse as Misuse
from .report import MisuseError as MisuseError
from .report import MisuseWarning as MisuseWarning
from .report import allow as allow
