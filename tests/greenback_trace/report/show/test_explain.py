"""The command ``greenback-trace explain``."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("click", reason="the report needs greenback[report]")
pytest.importorskip("rich", reason="the report needs greenback[report]")

from click.testing import CliRunner, Result
from rich.console import Console

from greenback_trace.cli import main
from greenback_trace.misuse.finding import SEVERITY
from greenback_trace.report.show.markup import parse, show

REPOSITORY = Path(__file__).resolve().parents[4]
RULES = (REPOSITORY / "dashboards" / "prometheus" / "alerts.yaml").read_text(encoding="utf-8")
ALERTS = re.findall(r"- alert: (\w+)", RULES)
NAMES = [*SEVERITY, *ALERTS]


def explain(*arguments: str, columns: int = 80) -> Result:
    return CliRunner().invoke(main, ["explain", *arguments], env={"COLUMNS": str(columns)})


class TestSections:
    @pytest.mark.parametrize("columns", [40, 80, 200])
    @pytest.mark.parametrize("name", NAMES)
    def test_every_name_is_explained(self, name: str, columns: int) -> None:
        """Every kind of misuse and every alert has a section, printed without markup."""
        result = explain(name, columns=columns)
        assert result.exit_code == 0, result.output
        assert result.stdout.startswith(f"{name}\n")
        assert len(result.stdout.splitlines()) > 8
        assert "\x1b" not in result.stdout
        for markup in ("`", "**", "::", ".. ", ":doc:", ":ref:", "* -", "----"):
            assert markup not in result.stdout.replace("--- ", ""), markup

    @pytest.mark.parametrize(("page", "count"), [("safe", len(SEVERITY)), ("alerts", len(ALERTS))])
    def test_no_word_is_lost(self, page: str, count: int) -> None:
        """All words of a section are printed, in their order: text, code, lists and tables."""
        source = (REPOSITORY / "docs" / f"{page}.rst").read_text(encoding="utf-8")
        names = SEVERITY if page == "safe" else ALERTS
        headings = [
            *re.finditer(r"^(?:\.\. _(?P<label>[\w-]+):\n\n)?(?P<text>.+)\n-{3,}\n", source, re.M)
        ]
        markup = re.compile(r"^ *(?:\.\. .*|:[\w-]+:.*)$|:(?:doc|ref):|<[\w-]+>`", re.M)
        looked_at = 0
        for heading, after in zip(headings, [*headings[1:], None]):
            name = (heading["label"] or heading["text"]).replace("-", "_")
            if name in names:
                body = source[heading.end() : after.start() if after else None]
                printed = iter(re.findall(r"\w+", explain(name, columns=1000).stdout))
                words = re.findall(r"\w+", markup.sub("", body))
                assert [word for word in words if word not in printed] == [], name
                looked_at += 1
        assert looked_at == count

    @pytest.mark.parametrize("name", NAMES)
    def test_text_is_wrapped_and_code_is_not(self, name: str) -> None:
        """Only code is wider than the terminal, so that it can be copied."""
        for line in explain(name, columns=60).stdout.splitlines():
            assert len(line) <= 60 or line.startswith("    ")

    def test_a_section_ends_where_the_next_begins(self) -> None:
        """The command prints the whole section asked for, and no other."""
        output = explain("signal_handler").stdout
        assert "add_signal_handler" in output
        assert "assert misuses(serve) == []" in output
        assert "gc.callbacks" not in output
        assert "_gc-callback" not in output

    def test_says_what_kind_of_thing_it_is(self) -> None:
        """The first lines give the severity of a misuse, or say that it is an alert."""
        assert explain("lock_held").stdout.splitlines()[1].startswith("Misuse (warning): a bridge")
        assert explain("GreenbackLoopHeld").stdout.splitlines()[1] == "Alert"


class TestNames:
    @pytest.mark.parametrize(
        ("asked", "name"),
        [
            ("lock-held", "lock_held"),
            ("LOCK_HELD", "lock_held"),
            ("LockHeld", "lock_held"),
            ("greenbackloopstalled", "GreenbackLoopStalled"),
            ("greenback-loop-stalled", "GreenbackLoopStalled"),
            ("loop_stalled", "GreenbackLoopStalled"),
        ],
    )
    def test_are_forgiven(self, asked: str, name: str) -> None:
        """Case, hyphens, underscores and a missing prefix make no difference."""
        assert explain(asked).stdout.startswith(f"{name}\n")

    @pytest.mark.parametrize(
        ("asked", "closest"), [("lock-hold", "lock_held"), ("LopStaled", "GreenbackLoopStalled")]
    )
    def test_unknown(self, asked: str, closest: str) -> None:
        """An unknown name is an error with the closest names, and with how to list all names."""
        result = explain(asked)
        assert result.exit_code == 2
        (line,) = result.output.splitlines()
        found = re.fullmatch(
            f"greenback-trace: '{asked}' is neither a kind of misuse nor an alert. "
            r"The closest: (?P<names>.+)\. To list all of them: greenback-trace explain",
            line,
        )
        assert found is not None, line
        names = found["names"].split(", ")
        assert names[0] == closest
        assert 1 <= len(names) <= 3
        assert set(names) <= set(NAMES)

    def test_nothing_like_it(self) -> None:
        """An error without close names suggests none, and escapes what is not printable."""
        result = explain("\x1b[31mq")
        assert result.exit_code == 2
        assert "closest" not in result.output
        assert "\x1b" not in result.output


class TestList:
    def test_has_all(self) -> None:
        """Without a name, the command lists all names, with what each is about."""
        result = explain(columns=120)
        assert result.exit_code == 0
        for name in NAMES:
            assert re.search(rf"^  {name} +\w.* \w", result.stdout, re.MULTILINE)
        assert max(map(len, result.stdout.splitlines())) <= 120


class TestPages:
    def test_are_in_the_wheel(self) -> None:
        """The build puts each page where the command looks for it."""
        build = (REPOSITORY / "setup.py").read_text(encoding="utf-8")
        assert 'PAGES = ("docs/safe.rst", "docs/alerts.rst")' in build
        assert 'PACKAGED_PAGES = ("greenback_trace", "report", "pages")' in build

    def test_without_the_source(self, tmp_path: Path) -> None:
        """An installed package, without a checkout beside it, has the pages."""
        for package in ("greenback", "greenback_trace"):
            shutil.copytree(
                str(REPOSITORY / package),
                str(tmp_path / package),
                ignore=shutil.ignore_patterns("__pycache__"),
            )
        pages = tmp_path / "greenback_trace" / "report" / "pages"
        shutil.rmtree(str(pages), ignore_errors=True)
        pages.mkdir()
        for page in ("safe", "alerts"):
            shutil.copy(str(REPOSITORY / "docs" / f"{page}.rst"), str(pages))
        code = f"import sys; sys.path.insert(0, {str(tmp_path)!r}); import greenback_trace.cli as c"
        done = subprocess.run(
            [sys.executable, "-c", f"{code}; print(c.__file__); c.main(['explain', 'import'])"],
            cwd=str(tmp_path),
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        assert done.stdout.startswith(str(tmp_path))
        assert "import lock" in done.stdout


def shown(text: str, columns: int = 60) -> str:
    """The output for a page of that text, without blanks at the ends of lines."""
    console = Console(width=columns, highlight=False, file=None, color_system=None)
    with console.capture() as capture:
        show(parse(text.splitlines()), console)
    return "\n".join(line.rstrip() for line in capture.get().splitlines())


class TestMarkup:
    @pytest.mark.parametrize(
        ("text", "expected"),
        [
            ("``a_*b*`` is **bold** and *not*", "a_*b* is bold and not"),
            ("see :doc:`safe`, :doc:`the rest <safe>`", 'see the page "safe", the rest'),
            ("`greenback.await_` and `~greenback.run`", "greenback.await_ and run"),
            (":ref:`locks <lock-held>`", "locks"),
            ("`a page <https://x.org/>`__ and `The file`_", "a page (https://x.org/) and The file"),
            ("2 * 3 * 4", "2 * 3 * 4"),
            (r"a\*b", "a*b"),
            ("one\ntwo", "one two"),
        ],
    )
    def test_inline(self, text: str, expected: str) -> None:
        """Inline markup becomes words."""
        assert shown(text) == expected

    @pytest.mark.parametrize(
        ("text", "expected"),
        [
            ("Title\n-----\n\nText.", "Title\n\nText."),
            ("- one\n  more\n- two\n\n  - in it", "- one more\n\n- two\n\n  - in it"),
            ("#. one\n#. two", "1. one\n\n2. two"),
            ("1. one\n2. two", "1. one\n\n2. two"),
            ("Text::\n\n  code\n    more\n\nEnd", "Text:\n\n    code\n      more\n\nEnd"),
            (
                ".. code-block:: python\n   :emphasize-lines: 1\n\n   a = 1\n\n   b = 2",
                "    a = 1\n\n    b = 2",
            ),
            (".. note:: Look\n   here.", "Note\n    Look here."),
            (".. warning::\n\n   Do not.", "Warning\n    Do not."),
            ("term\n  What it is.", "term\n    What it is."),
            ("Said:\n\n  A quote.", "Said:\n\n    A quote."),
            (".. _label:\n\n.. a comment\n   of two lines\n\nText", "Text"),
            (".. image:: a.png\n   :alt: A house", "(Picture: A house)"),
            (".. toctree::\n   :hidden:\n\n   safe\n\nText", "Text"),
        ],
    )
    def test_blocks(self, text: str, expected: str) -> None:
        """Blocks are laid out for a terminal, without comments, labels and other directives."""
        assert shown(text) == expected

    def test_table(self) -> None:
        """A table has its header and its cells, each wrapped in its column."""
        output = shown(
            ".. list-table::\n   :header-rows: 1\n   :widths: 20 80\n\n"
            "   * - Item\n     - What to *do*\n   * - ``site``\n     - " + "Raise it " * 12,
            40,
        )
        lines = output.splitlines()
        assert any(re.fullmatch(r" ?Item +What to do", line) for line in lines)
        assert any(line.split()[:2] == ["site", "Raise"] for line in lines)
        assert max(map(len, lines)) <= 40
        assert output.count("Raise it") + len(re.findall(r"Raise\n +it", output)) == 12

    def test_names_are_no_markup_of_the_terminal_library(self) -> None:
        """Brackets are printed literally."""
        assert shown("``a[red]b[/red]`` and [bold]c") == "a[red]b[/red] and [bold]c"

    def test_styles(self) -> None:
        """A terminal shows code and emphasis in styles."""
        console: Any = Console(width=60, force_terminal=True, color_system="standard")
        with console.capture() as capture:
            show(parse(["**bold** and ``code``"]), console)
        assert "\x1b[1mbold\x1b[0m" in capture.get()
        assert "\x1b[36mcode\x1b[0m" in capture.get()
