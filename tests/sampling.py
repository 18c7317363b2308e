"""How much a run tests of what it could test in more ways than it has time for.

Read from the environment, since the workers of xdist have to have the same:

TESTS_EVERY
    Interruptions come at every 7th instruction by default, at all with 1.
TESTS_FIRST
    The first of these instructions. By default it is another in each run, which the run prints.
TESTS_SMALL
    Set where one Python of several runs the tests: random programs are fewer, and nothing is
    compiled a second time.
"""

from __future__ import annotations

import itertools
import os
from random import SystemRandom
from typing import Iterator

import pytest


def configure() -> None:
    every = _positive("TESTS_EVERY", 7)
    _positive("TESTS_FIRST", SystemRandom().randint(1, every))


def instructions() -> Iterator[int]:
    """The numbers of the instructions to interrupt, without an end."""
    return itertools.count(int(os.environ["TESTS_FIRST"]), int(os.environ["TESTS_EVERY"]))


def how_to_repeat() -> str:
    return "TESTS_EVERY={TESTS_EVERY} TESTS_FIRST={TESTS_FIRST}".format_map(os.environ)


def is_small() -> bool:
    return bool(os.environ.get("TESTS_SMALL"))


def _positive(name: str, default: int) -> int:
    text = os.environ.setdefault(name, str(default))
    if not text.isdecimal() or int(text) == 0:
        raise pytest.UsageError(f"{name}={text!r} must be a whole number from 1 on")
    return int(text)
