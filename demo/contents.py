"""This project's documentation -> the database of the web site.

docutils reads the pages in docs/, and markdown-it-py reads the pages in Markdown. Sphinx's own
directives and roles are reduced to a link, or to the first paragraph of a docstring.
"""

from __future__ import annotations

import importlib
import inspect
import re
import sqlite3
from pathlib import Path
from typing import Any, Dict, Iterator, List, NamedTuple, Tuple

import docutils.core
from docutils import nodes
from docutils.parsers.rst import Directive, directives, roles
from docutils.writers import html5_polyglot
from markdown_it import MarkdownIt

ROOT = Path(__file__).resolve().parent.parent
MARKDOWN = ("README", "CHANGELOG", "CONTRIBUTING")

SCHEMA = """
PRAGMA journal_mode = WAL;
CREATE TABLE pages (
    name TEXT PRIMARY KEY, position INTEGER, title TEXT, body TEXT, views INTEGER DEFAULT 0
);
CREATE TABLE sections (page TEXT, position INTEGER, anchor TEXT, title TEXT);
CREATE TABLE words (word TEXT PRIMARY KEY, meaning TEXT);
CREATE TABLE uses (page TEXT, word TEXT, times INTEGER, PRIMARY KEY (page, word));
"""

SETTINGS = {
    "halt_level": 4,
    "report_level": 4,
    "initial_header_level": 2,
    "syntax_highlight": "short",
    "embed_stylesheet": False,
    "stylesheet_path": None,
    "smart_quotes": False,
}


class Page(NamedTuple):
    name: str
    title: str
    body: str
    text: str
    #: Anchor and title of each section.
    sections: List[Tuple[str, str]]


def fill(path: str) -> None:
    """Make the database at *path*."""
    sources = sorted(
        (ROOT / "docs").glob("*.rst"), key=lambda path: (path.stem != "index", path.stem)
    )
    _teach_docutils(sources)
    pages = [_page_of_rst(source) for source in sources]
    pages += [_page_of_markdown(ROOT / f"{name}.md") for name in MARKDOWN]
    words = dict(_words(sources[0]))
    database = sqlite3.connect(path)
    database.executescript(SCHEMA)
    with database:
        database.executemany("INSERT INTO words VALUES (?, ?)", words.items())
        for position, page in enumerate(pages):
            database.execute(
                "INSERT INTO pages (name, position, title, body) VALUES (?, ?, ?, ?)",
                (page.name, position, page.title, page.body),
            )
            database.executemany(
                "INSERT INTO sections VALUES (?, ?, ?, ?)",
                [(page.name, number, *section) for number, section in enumerate(page.sections)],
            )
            for word in words:
                times = len(re.findall(rf"\b{word}(?:s|es)?\b", page.text, re.IGNORECASE))
                if times:
                    database.execute("INSERT INTO uses VALUES (?, ?, ?)", (page.name, word, times))
    database.close()


def _page_of_rst(source: Path) -> Page:
    text = source.read_text(encoding="utf-8")
    document = _document(text)
    parts = docutils.core.publish_parts(
        _with_default_role(text), writer=html5_polyglot.Writer(), settings_overrides=SETTINGS
    )
    sections = [
        (section["ids"][0], section[0].astext())
        for section in document.children
        if isinstance(section, nodes.section)
    ]
    return Page(source.stem, parts["title"], parts["body"], document.astext(), sections)


def _document(text: str) -> Any:
    return docutils.core.publish_doctree(_with_default_role(text), settings_overrides=SETTINGS)


def _with_default_role(text: str) -> str:
    # Sphinx makes `name` a link to what it names.
    return f".. default-role:: literal\n\n{text}"


def _words(index: Path) -> Iterator[Tuple[str, str]]:
    """The words of this project and their meanings, from the first table of the front page."""
    table = next(iter(_document(index.read_text(encoding="utf-8")).findall(nodes.table)))
    for row in table.findall(nodes.row):
        word, meaning = (entry.astext() for entry in row.children)
        yield word, meaning.replace("\n", " ")


def _page_of_markdown(source: Path) -> Page:
    markdown = MarkdownIt("commonmark").enable("table")
    tokens = markdown.parse(source.read_text(encoding="utf-8"))
    title = ""
    sections = []
    texts = []
    for token, following in zip(tokens, tokens[1:]):
        if token.type == "heading_open" and token.tag == "h1":
            title = following.content
            following.children, following.hidden = [], True  # the template shows the title
            token.hidden = True
        elif token.type == "heading_open" and token.tag == "h2":
            anchor = re.sub(r"\W+", "-", following.content.lower()).strip("-")
            token.attrSet("id", anchor)
            sections.append((anchor, following.content))
        for child in following.children or ():
            if child.type == "link_open":
                child.attrSet("href", _link(str(child.attrGet("href"))))
        texts.append(following.content)
    body = markdown.renderer.render(tokens, markdown.options, {})
    if source.stem == "README":
        title = source.stem  # the front page has the title of its own text
    return Page(source.stem.lower(), title, body, "\n".join(texts), sections)


def _link(target: str) -> str:
    """The address on the web site of a link in a Markdown file."""
    path = Path(target)
    if re.match(r"\w+:|#", target):
        return target
    if path.suffix == ".rst" or path.stem in MARKDOWN:
        return f"{path.stem.lower()}.html"
    return (ROOT / target).as_uri()


def _teach_docutils(sources: List[Path]) -> None:
    """Teach docutils the directives and roles of Sphinx that the *sources* use."""
    titles: Dict[str, Tuple[str, str]] = {}  # titles of pages and labels, with their addresses
    for source in sources:
        text = source.read_text(encoding="utf-8")
        titles[source.stem] = f"{source.stem}.html", text.partition("\n")[0]
        for label, title in re.findall(r"^\.\. _([\w-]+):\n\n(.+)\n", text, re.MULTILINE):
            titles[label] = f"{source.stem}.html#{label}", title

    def role(name: str, rawtext: str, text: str, *_: Any, **__: Any) -> Tuple[List[Any], List[Any]]:
        # A link may have its own title: title <label>.
        own_title, _, label = text.rstrip(">").rpartition(" <")
        target, title = titles[label]
        return [nodes.reference(rawtext, own_title or title, refuri=target)], []

    for name in ("doc", "ref"):
        roles.register_local_role(name, role)
    for name in ("autofunction", "autoclass", "autoexception", "automodule"):
        directives.register_directive(name, _FirstParagraph)
    for name in ("currentmodule", "toctree"):
        directives.register_directive(name, _Nothing)


class _Nothing(Directive):
    """A directive that is left out, because the templates do its work."""

    optional_arguments = 1
    has_content = True
    option_spec = {"caption": directives.unchanged, "maxdepth": directives.unchanged}  # noqa: RUF012

    def run(self) -> List[Any]:
        return []


class _FirstParagraph(Directive):
    """A name with its signature, and the first paragraph of its docstring."""

    required_arguments = 1
    option_spec = {"members": directives.unchanged}  # noqa: RUF012

    def run(self) -> List[Any]:
        name = self.arguments[0]
        module, _, attribute = name.rpartition(".")
        try:
            thing = importlib.import_module(name)
            signature = ""
        except ImportError:
            thing = getattr(importlib.import_module(module), attribute)
            signature = _signature(thing)
        paragraph = inspect.cleandoc(thing.__doc__ or "").partition("\n\n")[0]
        inline, messages = self.state.inline_text(paragraph, self.lineno)
        return [
            nodes.definition_list(
                "",
                nodes.definition_list_item(
                    "",
                    nodes.term("", "", nodes.literal(text=f"{name}{signature}")),
                    nodes.definition("", nodes.paragraph("", "", *inline), *messages),
                ),
            )
        ]


def _signature(thing: Any) -> str:
    try:
        parameters = inspect.signature(thing).parameters.values()
    except (TypeError, ValueError):
        return ""
    return f"({', '.join(str(one.replace(annotation=one.empty)) for one in parameters)})"
