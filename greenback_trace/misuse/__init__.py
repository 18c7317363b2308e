"""Misuse of bridges, found while it happens: debug mode."""

from .policy import Misuse as Misuse
from .policy import MisuseError as MisuseError
from .policy import MisuseWarning as MisuseWarning
from .policy import allow as allow
