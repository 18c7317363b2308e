"""Collects the examples in README.md and docs/ as tests, through Sybil."""

from __future__ import annotations

from typing import Any, List

import pytest
from sybil import Sybil
from sybil.integration.pytest import SybilItem
from sybil.parsers import markdown, rest

# So that a failing assert in modules that tests share shows its values, as in a test.
pytest.register_assert_rewrite("tests")

_readme = Sybil([markdown.PythonCodeBlockParser()], filenames=["README.md"], path=".")
_pages = Sybil([rest.PythonCodeBlockParser()], patterns=["*.rst"], path="docs")

pytest_collect_file = (_readme + _pages).pytest()


def pytest_collection_modifyitems(items: List[pytest.Item]) -> None:
    # Sybil's filter assumes that the failure was raised in the example. A failure that pytest
    # itself raises, for an unraisable exception say, would end the whole run (Sybil 10.1).
    for item in items:
        if isinstance(item, SybilItem):
            item._traceback_filter = _Filter(item._traceback_filter)  # type: ignore[method-assign]


class _Filter:
    def __init__(self, of_sybil: Any) -> None:
        self._of_sybil = of_sybil

    def __call__(self, failure: Any) -> Any:
        try:
            return self._of_sybil(failure)
        except IndexError:
            return failure.traceback
