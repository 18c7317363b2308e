"""Checks of the pages. ../conftest.py collects the examples in them."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.rst"))]
# Text that a reader takes for Python, whether Sybil's parsers do or not.
PYTHON = re.compile(
    r"^ *(?:(?:```+|~~~+) *py|\.\. (?:code-block|code|sourcecode|testcode):: *py|>>> )",
    re.MULTILINE,
)


class TestExamples:
    @pytest.mark.parametrize("page", PAGES, ids=[page.name for page in PAGES])
    def test_none_is_overlooked(self, page: Path, request: pytest.FixtureRequest) -> None:
        """All text in the documentation that looks like Python is an example that is run."""
        collect_file = request.config.hook.pytest_collect_file
        (collector,) = collect_file(file_path=page, parent=request.session)
        examples = list(collector.collect())
        assert len(examples) == len(PYTHON.findall(page.read_text(encoding="utf-8")))


class TestReferences:
    def test_every_public_name_is_in_the_reference(self) -> None:
        """Every name that greenback exports is in the API reference."""
        import greenback

        reference = (ROOT / "docs" / "api.rst").read_text(encoding="utf-8")
        exported = [
            name
            for name, value in vars(greenback).items()
            if not name.startswith("_") and getattr(value, "__module__", "").startswith("greenback")
        ]
        assert "await_" in exported
        missing = [
            name
            for name in exported
            if not re.search(rf":: greenback\.{re.escape(name)}$", reference, re.MULTILINE)
        ]
        assert missing == []

    def test_links_in_the_readme_lead_somewhere(self) -> None:
        """A relative link in the README is a file of the project."""
        text = (ROOT / "README.md").read_text(encoding="utf-8")
        targets = re.findall(r"\]\((?!https?:)([^)#]+)\)", text)
        assert targets
        assert [target for target in targets if not (ROOT / target).is_file()] == []
