"""Pages from Jinja2 templates: plain functions that know nothing of event loops.

This module is written for threads: each function returns only when it has its data. The functions
`Fetch` and `Query`, which are passed in, decide where templates and numbers come from.
"""

from __future__ import annotations

from typing import Any, Callable, List, NamedTuple, Optional, Tuple

import jinja2


class Answer(NamedTuple):
    """The answer of the template server."""

    status: int
    etag: str
    text: str


#: Takes the path to get, and the ETag of the known version.
Fetch = Callable[[str, Optional[str]], Answer]
#: Takes a statement and its parameters.
Query = Callable[..., List[Tuple[Any, ...]]]


class HTTPLoader(jinja2.BaseLoader):
    """Templates from a server. Each use asks the server whether the template has changed."""

    def __init__(self, fetch: Fetch) -> None:
        self._fetch = fetch

    def get_source(
        self, environment: jinja2.Environment, template: str
    ) -> Tuple[str, str, Callable[[], bool]]:
        answer = self._fetch(template, None)
        if answer.status != 200:
            raise jinja2.TemplateNotFound(template)

        def is_up_to_date() -> bool:
            return self._fetch(template, answer.etag).status == 304

        return answer.text, template, is_up_to_date


class PageNotFoundError(LookupError):
    """No page has this name."""


class Pages:
    """Renders the pages in a database as HTML."""

    def __init__(self, fetch: Fetch, query: Query) -> None:
        self._query = query
        self._templates = jinja2.Environment(loader=HTTPLoader(fetch), autoescape=True)
        self._templates.globals.update(
            count_view=self.count_view,
            navigation=self.navigation,
            most_read=self.most_read,
        )
        self._templates.filters.update(
            sections=self.sections,
            words=self.words,
            meaning=self.meaning,
            related=self.related,
        )

    def render(self, name: str) -> str:
        found = self._query("SELECT title, body FROM pages WHERE name = ?", name)
        if not found:
            raise PageNotFoundError(name)
        ((title, body),) = found
        return self._templates.get_template("page.html").render(name=name, title=title, body=body)

    def count_view(self, name: str) -> int:
        ((views,),) = self._query(
            "UPDATE pages SET views = views + 1 WHERE name = ? RETURNING views", name
        )
        return int(views)

    def navigation(self) -> List[Tuple[str, str]]:
        return self._query("SELECT name, title FROM pages ORDER BY position")

    def most_read(self, count: int) -> List[Tuple[str, str, int]]:
        return self._query(
            "SELECT name, title, views FROM pages ORDER BY views DESC, position LIMIT ?", count
        )

    def sections(self, name: str) -> List[Tuple[str, str]]:
        return self._query(
            "SELECT anchor, title FROM sections WHERE page = ? ORDER BY position", name
        )

    def words(self, name: str) -> List[str]:
        return [word for (word,) in self._query("SELECT word FROM uses WHERE page = ?", name)]

    def meaning(self, word: str) -> str:
        ((meaning,),) = self._query("SELECT meaning FROM words WHERE word = ?", word)
        return str(meaning)

    def related(self, name: str) -> List[Tuple[str, str]]:
        """The other pages that use the words of this page most."""
        return self._query(
            "SELECT pages.name, pages.title FROM uses AS mine"
            " JOIN uses AS theirs ON theirs.word = mine.word AND theirs.page != mine.page"
            " JOIN pages ON pages.name = theirs.page WHERE mine.page = ?"
            " GROUP BY pages.name ORDER BY sum(theirs.times) DESC, position LIMIT 3",
            name,
        )
