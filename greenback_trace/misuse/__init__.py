"""Misuse of bridges, found while it happens: debug mode."""

from .policy import MisuseError as MisuseError
from .policy import MisuseWarning as MisuseWarning
from .policy import allow as allow
from .wording import Misuse as Misuse
