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


@pytest.hookimpl(tryfirst=True)  # before xdist looks at the groups
def pytest_collection_modifyitems(items: List[pytest.Item]) -> None:
    for item in items:
        if isinstance(item, SybilItem):
            # Sybil's filter assumes that the failure was raised in the example. A failure that
            # pytest itself raises, for an unraisable exception say, would end the whole run
            # (Sybil 10.1).
            item._traceback_filter = _Filter(item._traceback_filter)  # type: ignore[method-assign]
        # The examples of a document build on one another, so they stay together, too.
        if isinstance(item, SybilItem) or _shares_a_fixture(item):
            item.add_marker(pytest.mark.xdist_group(item.nodeid.split("::")[0]))


def _shares_a_fixture(item: pytest.Item) -> bool:
    """Whether the item has a fixture of its class, module or session that tests/ defines.

    Such a fixture runs a program or a server. Each process of xdist that needs the fixture would
    run it again.
    """
    info = getattr(item, "_fixtureinfo", None)
    return info is not None and any(
        fixtures[-1].scope != "function" and fixtures[-1].baseid.startswith("tests/")
        for fixtures in info.name2fixturedefs.values()
    )


class _Filter:
    def __init__(self, of_sybil: Any) -> None:
        self._of_sybil = of_sybil

    def __call__(self, failure: Any) -> Any:
        try:
            return self._of_sybil(failure)
        except IndexError:
            return failure.traceback
