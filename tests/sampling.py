"""Samples: a run tests only some of the cases where there are too many.

The settings are in the environment, since all processes of xdist must use the same:

TESTS_EVERY
    Interrupt at every instruction with this distance: 7 by default; 1 takes all.
TESTS_FIRST
    The first of these instructions. By default each run chooses another one, and prints it.
TESTS_SMALL
    Set if this is one of several Pythons that run the tests: fewer random programs, and nothing
    is compiled a second time.
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
    """The numbers of the instructions to interrupt: an endless iterator."""
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
