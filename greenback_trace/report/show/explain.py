"""The name of a kind of misuse or of an alert -> the section of docs/ that explains it."""

from __future__ import annotations

import difflib
import re
from functools import lru_cache
from pathlib import Path
from typing import Dict, List, NamedTuple, Tuple

from rich.console import Console
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

import greenback_trace

from ...misuse.explained import anchor_of
from ...misuse.finding import SEVERITY
from ...misuse.wording import WHERE
from .markup import Block, Heading, Paragraph, is_heading, parse, plain, show

#: The wheel has the two pages here; a checkout has them in docs/.
_PACKAGE = Path(greenback_trace.__file__).resolve().parent
_PACKAGED = _PACKAGE / "report" / "pages"
_SOURCE = _PACKAGE.parent / "docs"
_LABEL = re.compile(r"\.\. _(?P<name>[^:]+):")
_FIRST_LABEL = re.compile(r"\*\*[^*]+\*\*\s*")
_SENTENCE = re.compile(r".*?[.!?](?=\s|$)", re.DOTALL)
#: An alert is named so, and found without it, too.
_PREFIX = "greenback"


class NoSuchSectionError(ValueError):
    """Nothing of such a name is explained. The message says what is."""


class Section(NamedTuple):
    """What is known of a kind of misuse, or of an alert.

    Attributes:
        name: Its name, as reports and Prometheus have it.
        is_alert: Which of the two it is.
        about: What it is, in one phrase.
        blocks: The section of the page, which begins with its heading.
    """

    name: str
    is_alert: bool
    about: str
    blocks: List[Block]


@lru_cache(maxsize=None)
def sections() -> Dict[str, Section]:
    """All there are by name: kinds of misuse, then alerts, in the order of the pages."""
    found = {}
    kinds = {anchor_of(kind): kind for kind in SEVERITY}
    for label, lines in _parts("safe"):
        kind = kinds.get(label)
        if kind is not None:
            found[kind] = Section(kind, False, WHERE[kind], parse(lines))
    for label, lines in _parts("alerts"):
        if label.startswith(_PREFIX):
            blocks = parse(lines)
            name = blocks[0].text if isinstance(blocks[0], Heading) else label
            found[name] = Section(name, True, _first_sentence(blocks), blocks)
    return found


def find(name: str) -> Section:
    """The section of that name. Case, ``-`` and ``_`` make no difference.

    Raises:
        NoSuchSectionError: There is none.
    """
    known = {_folded(each): section for each, section in sections().items()}
    for short in [each for each in known if each.startswith(_PREFIX)]:
        known.setdefault(short[len(_PREFIX) :], known[short])
    asked = _folded(name)
    section = known.get(asked)
    if section is not None:
        return section
    close = difflib.get_close_matches(asked, known, n=3, cutoff=0.5)
    names = list(dict.fromkeys(known[each].name for each in close))
    nearest = f" The closest: {', '.join(names)}." if names else ""
    raise NoSuchSectionError(
        f"{name!r} is neither a kind of misuse nor an alert.{nearest} "
        "To list all of them: greenback-trace explain"
    )


def show_section(section: Section, console: Console) -> None:
    """Print what is known of it."""
    what = "Alert" if section.is_alert else f"Misuse ({SEVERITY[section.name]}): {section.about}"
    console.print(Text.assemble((section.name, "bold"), f"\n{what}"))
    console.print()
    show(section.blocks[1:], console)


def show_sections(console: Console) -> None:
    """Print the names of all there are, with what each is about."""
    for title, is_alert in (("Kinds of misuse", False), ("Alerts", True)):
        grid = Table.grid(padding=(0, 2, 0, 0))
        grid.add_column(no_wrap=True, style="cyan")
        grid.add_column(overflow="fold")
        for section in sections().values():
            if section.is_alert == is_alert:
                grid.add_row(Text(section.name), Text(section.about))
        console.print(Text(title, style="bold"))
        console.print(Padding(grid, (0, 0, 1, 2)))
    console.print(Text("To read about one of them: greenback-trace explain KIND"))


def _parts(page: str) -> List[Tuple[str, List[str]]]:
    """The label of each section of a page, and its lines from the heading on."""
    lines = _read(page).splitlines()
    starts = [
        number
        for number, line in enumerate(lines[:-1])
        if is_heading(line, lines[number + 1]) and lines[number + 1][0] in "-="
    ]
    parts = []
    for start, end in zip(starts, [*starts[1:], len(lines)]):
        label = anchor_of(lines[start].strip())
        for before in (lines[start - 1 : start], lines[start - 2 : start - 1]):
            found = _LABEL.fullmatch(before[0].strip()) if before else None
            label = label if found is None else found["name"]
        part = lines[start:end]
        # The label of the next section is before its heading.
        while part and (not part[-1].strip() or _LABEL.fullmatch(part[-1].strip())):
            part.pop()
        parts.append((label, part))
    return parts


def _read(page: str) -> str:
    name = f"{page}.rst"
    path = _PACKAGED / name
    return (path if path.is_file() else _SOURCE / name).read_text(encoding="utf-8")


def _first_sentence(blocks: List[Block]) -> str:
    for block in blocks:
        if isinstance(block, Paragraph):
            text = plain(_FIRST_LABEL.sub("", block.text, count=1))
            sentence = _SENTENCE.match(text)
            return text if sentence is None else sentence[0]
    return ""


def _folded(name: str) -> str:
    return re.sub(r"[\s_-]", "", name).casefold()
