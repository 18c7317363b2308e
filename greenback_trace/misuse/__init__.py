"""Debug mode: finds the misuse of bridges while it happens."""

from .policy import MisuseError as MisuseError
from .policy import MisuseWarning as MisuseWarning
from .policy import allow as allow
from .wording import Misuse as Misuse
