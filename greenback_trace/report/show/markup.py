"""A page of docs/ -> text for a terminal.

greenback does not depend on docutils. This module reads the part of reStructuredText that the pages
use: headings, paragraphs, lists, quotes, definitions, code, ``list-table``, admonitions and inline
markup. It leaves out labels, comments and other directives.
"""

from __future__ import annotations

import re
import textwrap
from typing import Dict, List, NamedTuple, Tuple, Union

from rich import box
from rich.console import Console, Group, RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text


class Heading(NamedTuple):
    text: str


class Paragraph(NamedTuple):
    text: str


class Code(NamedTuple):
    lines: Tuple[str, ...]


class Item(NamedTuple):
    """An item of a list. Without a marker, it is a quote."""

    marker: str
    blocks: Tuple[Block, ...]


class Titled(NamedTuple):
    """A definition with its term, or an admonition with its name."""

    title: str
    blocks: Tuple[Block, ...]


class ListTable(NamedTuple):
    widths: Tuple[int, ...]
    header_rows: int
    rows: Tuple[Tuple[Tuple[Block, ...], ...], ...]


Block = Union[Heading, Paragraph, Code, Item, Titled, ListTable]

_UNDERLINE = re.compile(r"([=\-~^\"'+*#])\1{2,}")
_DIRECTIVE = re.compile(r"\.\. (?P<name>[\w:-]+)::(?: +(?P<argument>.*))?")
_OPTION = re.compile(r":(?P<name>[\w-]+):(?: +(?P<value>.*))?")
_ITEM = re.compile(r"(?P<marker>[-*+•]|#\.|\d+\.) +")
_CODE = ("code-block", "code", "sourcecode", "parsed-literal")
_ADMONITIONS = ("note", "warning", "tip", "hint", "important", "caution", "danger", "attention")
_INLINE = re.compile(
    r"``(?P<literal>.+?)``(?!`)"
    r"|\*\*(?P<strong>.+?)\*\*"
    r"|(?::(?P<role>[\w:+-]+):)?`(?P<text>[^`]+)`(?P<reference>_{0,2})"
    r"|\*(?P<emphasis>[^\s*](?:[^*]*[^\s*])?)\*"
    r"|\\(?P<escaped>.)",
    re.DOTALL,
)
_TARGET = re.compile(r"(?P<title>.*?)\s*<(?P<target>[^>]*)>", re.DOTALL)


def parse(lines: List[str]) -> List[Block]:
    """The blocks of a page, or of a part of a page."""
    blocks: List[Block] = []
    number = 0
    while number < len(lines):
        line = lines[number]
        if not line.strip():
            number += 1
        elif line[0].isspace():
            end = _end_of_indented(lines, number)
            blocks.append(Item("", tuple(parse(_dedent(lines[number:end])))))
            number = end
        elif line.startswith(".. ") or line == "..":
            end = _end_of_indented(lines, number + 1)
            blocks += _explicit(line, lines[number + 1 : end])
            number = end
        elif number + 1 < len(lines) and is_heading(line, lines[number + 1]):
            blocks.append(Heading(line.strip()))
            number += 2
        elif _ITEM.match(line):
            number = _add_item(blocks, lines, number)
        elif _next_is_indented(lines, number):
            end = _end_of_indented(lines, number + 1)
            blocks.append(Titled(line.strip(), tuple(parse(_dedent(lines[number + 1 : end])))))
            number = end
        else:
            number = _add_paragraph(blocks, lines, number)
    return blocks


def is_heading(line: str, below: str) -> bool:
    """Whether *line* is a heading: the line *below* it underlines it."""
    return bool(
        line.strip()
        and not line[0].isspace()
        and _UNDERLINE.fullmatch(below.rstrip())
        and len(below.rstrip()) >= len(line.rstrip())
    )


def plain(text: str) -> str:
    """*text* in one line, without inline markup."""
    return _inline(text).plain


def show(blocks: List[Block], console: Console) -> None:
    """Print *blocks*, with an empty line between them.

    Code is not wrapped, so that it can be copied.
    """
    for place, block in enumerate(blocks):
        if place:
            console.print()
        # In a group: a text that rich prints by itself is wrapped in spite of its `no_wrap`.
        console.print(Group(_rendered(block)), crop=False)


# Reading


def _explicit(line: str, body: List[str]) -> List[Block]:
    directive = _DIRECTIVE.fullmatch(line.rstrip())
    if directive is None:
        return []  # a label, or a comment
    name, argument = directive["name"], directive["argument"] or ""
    options, content = _options(_dedent(body))
    if name in _CODE:
        return [Code(tuple(content))]
    if name in _ADMONITIONS:
        return [Titled(name.capitalize(), tuple(parse([argument, *content])))]
    if name == "list-table":
        return [_list_table(options, content)]
    if name == "image" and options.get("alt"):
        return [Paragraph(f"(Picture: {options['alt']})")]
    return []


def _options(body: List[str]) -> Tuple[Dict[str, str], List[str]]:
    options: Dict[str, str] = {}
    for number, line in enumerate(body):
        option = _OPTION.fullmatch(line.rstrip())
        if option is None:
            return options, _without_empty_ends(body[number:])
        options[option["name"]] = option["value"] or ""
    return options, []


def _list_table(options: Dict[str, str], content: List[str]) -> ListTable:
    rows = []
    for row in parse(content):
        cells = row.blocks if isinstance(row, Item) else ()
        rows.append(tuple(cell.blocks for cell in cells if isinstance(cell, Item)))
    widths = options.get("widths", "").replace(",", " ").split()
    return ListTable(
        tuple(map(int, widths)) if all(each.isdigit() for each in widths) else (),
        int(options.get("header-rows") or 0),
        tuple(rows),
    )


def _add_item(blocks: List[Block], lines: List[str], number: int) -> int:
    found = _ITEM.match(lines[number])
    assert found is not None
    end = _end_of_indented(lines, number + 1)
    first = " " * found.end() + lines[number][found.end() :]
    marker = found["marker"]
    if marker[0] in "#0123456789":
        before = blocks[-1] if blocks else None
        is_next = isinstance(before, Item) and before.marker[:-1].isdigit()
        marker = f"{int(before.marker[:-1]) + 1 if is_next else 1}."  # type: ignore[union-attr]
    blocks.append(Item(marker, tuple(parse(_dedent([first, *lines[number + 1 : end]])))))
    return end


def _add_paragraph(blocks: List[Block], lines: List[str], number: int) -> int:
    end = number
    while end < len(lines) and lines[end].strip():
        end += 1
    text = " ".join(line.strip() for line in lines[number:end])
    if not text.endswith("::"):
        blocks.append(Paragraph(text))
        return end
    text = text[:-2].rstrip() if text.endswith(" ::") else text[:-1]
    if text != ":":
        blocks.append(Paragraph(text))
    number, end = end, _end_of_indented(lines, end)
    blocks.append(Code(tuple(_without_empty_ends(_dedent(lines[number:end])))))
    return end


def _next_is_indented(lines: List[str], number: int) -> bool:
    below = lines[number + 1 : number + 2]
    return bool(below and below[0].strip() and below[0][0].isspace())


def _end_of_indented(lines: List[str], number: int) -> int:
    while number < len(lines) and (not lines[number].strip() or lines[number][0].isspace()):
        number += 1
    return number


def _dedent(lines: List[str]) -> List[str]:
    return textwrap.dedent("\n".join(lines)).split("\n") if lines else []


def _without_empty_ends(lines: List[str]) -> List[str]:
    kept = [number for number, line in enumerate(lines) if line.strip()]
    return lines[kept[0] : kept[-1] + 1] if kept else []


# Showing


def _rendered(block: Block) -> RenderableType:
    if isinstance(block, Heading):
        return Text(plain(block.text), style="bold underline")
    if isinstance(block, Paragraph):
        return _inline(block.text)
    if isinstance(block, Code):
        return Text(
            "\n".join(f"    {line}".rstrip() for line in block.lines),
            style="cyan",
            no_wrap=True,
            overflow="ignore",
        )
    if isinstance(block, ListTable):
        return _table(block)
    content = _stacked(block.blocks)
    if isinstance(block, Titled):
        return Group(_inline(block.title), Padding(content, (0, 0, 0, 4), expand=False))
    if not block.marker:
        return Padding(content, (0, 0, 0, 4), expand=False)
    grid = Table.grid(padding=(0, 1, 0, 0))
    grid.add_column(no_wrap=True)
    grid.add_column(overflow="fold")
    grid.add_row("-" if len(block.marker) == 1 else block.marker, content)
    return grid


def _stacked(blocks: Tuple[Block, ...]) -> RenderableType:
    parts: List[RenderableType] = []
    for block in blocks:
        parts += ["", _rendered(block)] if parts else [_rendered(block)]
    return Group(*parts)


def _table(block: ListTable) -> Table:
    table = Table(
        box=box.SIMPLE_HEAD, pad_edge=False, show_header=bool(block.header_rows), leading=1
    )
    header = block.rows[0] if block.header_rows else ()
    for number in range(max(map(len, block.rows), default=0)):
        ratio = block.widths[number] if number < len(block.widths) else None
        title = _stacked(header[number]) if number < len(header) else ""
        table.add_column(title, ratio=ratio, overflow="fold")
    for row in block.rows[block.header_rows :]:
        table.add_row(*map(_stacked, row))
    return table


def _inline(text: str) -> Text:
    """*text*, with styles in place of inline markup."""
    text = " ".join(text.split())
    made = Text()
    place = 0
    for found in _INLINE.finditer(text):
        made.append(text[place : found.start()])
        place = found.end()
        if found["literal"] is not None:
            made.append(found["literal"], style="cyan")
        elif found["strong"] is not None:
            made.append(found["strong"].replace("``", ""), style="bold")
        elif found["emphasis"] is not None:
            made.append(found["emphasis"], style="italic")
        elif found["escaped"] is not None:
            made.append(found["escaped"].strip())
        else:
            _append_reference(made, found["role"], found["text"], found["reference"])
    made.append(text[place:])
    return made


def _append_reference(made: Text, role: Union[str, None], text: str, reference: str) -> None:
    """Append a link as its words and, if it has one, its address: a terminal has no links."""
    titled = _TARGET.fullmatch(text)
    if titled is not None:
        made.append(titled["title"])
        if reference:
            made.append(f" ({titled['target']})")
    elif reference:
        made.append(text)
    elif role == "doc":
        made.append(f'the page "{text.rpartition("/")[2]}"')
    else:
        name = text[1:].rpartition(".")[2] if text.startswith("~") else text
        made.append(name, style="cyan")
