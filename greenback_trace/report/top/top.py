"""The hot spots of a program that runs, in a terminal."""

from __future__ import annotations

from typing import Any, ClassVar, Dict, List, Optional, Sequence, Tuple

from rich.cells import cell_len
from rich.text import Text
from textual import events
from textual.app import App, ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import VerticalScroll
from textual.coordinate import Coordinate
from textual.screen import ModalScreen
from textual.widget import Widget
from textual.widgets import DataTable, Footer, Static

from ..read.inputs import NothingToReportError
from ..show.wording import visible
from .live import Live
from .now import Now, SiteNow, TaskNow

#: Seconds between two looks.
_INTERVAL = 0.5
#: Columns of a terminal from which on there is room for all of a table's.
_WIDE = 110
#: Name, whether it is there on a narrow terminal.
_SITES = (
    ("bridges/s", True),
    ("under way", False),
    ("bridges", True),
    ("susp.", False),
    ("errors", True),
    ("total", True),
    ("waiting", False),
    ("function", True),
)
_TASKS = (
    ("parked for", True),
    ("task", True),
    ("library", False),
    ("portal", False),
    ("in", True),
)
#: Those that are not numbers.
_LEFT = ("function", "task", "library", "portal", "in")


class Top(App[None]):
    """Shows what *live* reads until the user quits."""

    CSS = """
    #summary { height: 4; padding: 0 1; }
    #sites { height: 2fr; }
    #parked { height: 1fr; min-height: 5; }
    """
    BINDINGS: ClassVar[List[BindingType]] = [
        Binding("q", "quit", "Quit"),
        Binding("r", "order('bridges_rate')", "By rate"),
        Binding("u", "order('time_rate')", "By under way"),
        Binding("t", "order('time')", "By total"),
        Binding("p", "parked", "Parked tasks"),
    ]
    ENABLE_COMMAND_PALETTE = False

    def __init__(self, live: Live) -> None:
        super().__init__()
        self._live = live
        self._order = "time_rate"
        self._now = live.now()
        self._was_idle: Optional[bool] = None
        self._stacks: Dict[str, TaskNow] = {}

    def compose(self) -> ComposeResult:
        yield _Summary(id="summary")
        yield _Table(_SITES, id="sites")
        yield _Parked(_TASKS, id="parked")
        yield Footer()

    def on_mount(self) -> None:
        self._show()
        self.set_interval(_INTERVAL, self._look)

    def on_resize(self, event: events.Resize) -> None:
        for table in self._tables():
            table.fit(event.size.width)
        self._show()

    async def on_data_table_row_selected(self, event: Any) -> None:
        task = self._stacks.get(str(event.row_key.value))
        if event.data_table.id == "parked" and task is not None:
            await self.push_screen(_Stack(task))

    def action_order(self, by: str) -> None:
        self._order = by
        self._show()

    def action_parked(self) -> None:
        # Not `focus`, which comes into force later than the next key.
        self.screen.set_focus(self.query_one("#parked", _Table))

    def _look(self) -> None:
        try:
            is_new = self._live.read()
        except NothingToReportError:
            is_new = False  # it is being replaced, or started again: the last is still shown
        now = self._live.now()
        if is_new or now.is_idle != self._was_idle:
            self._was_idle = now.is_idle
            self._now = now
            self._show()

    def _tables(self) -> Tuple[_Table, _Table]:
        # Of the main screen, be there a stack in front of it or not.
        main = self.screen_stack[0]
        return main.query_one("#sites", _Table), main.query_one("#parked", _Table)

    def _show(self) -> None:
        now = self._now
        self.screen_stack[0].query_one("#summary", _Summary).show(now)
        sites, parked = self._tables()
        ordered = sorted(now.sites, key=lambda site: -float(getattr(site, self._order)))
        sites.show([(site.function, _site_cells(site)) for site in ordered])
        self._stacks = {}
        rows = []
        for task in now.parked or ():
            key = task.name
            while key in self._stacks:  # nothing says that names are unique
                key += "'"
            self._stacks[key] = task
            rows.append((key, _task_cells(task)))
        parked.show(rows)


class _Summary(Widget):
    """Lines of a height that is given: what changes in them is painted, and nothing laid out."""

    can_focus = False

    def __init__(self, id: str) -> None:  # noqa: A002  (Textual's name for it)
        super().__init__(id=id)
        self._text = Text()

    def show(self, now: Now) -> None:
        text = _summary(now)
        if text != self._text:
            self._text = text
            self.refresh()

    def render(self) -> Text:
        return self._text


class _Table(DataTable[Any]):
    """A table that changes those cells only that are different."""

    def __init__(self, columns: Sequence[Tuple[str, bool]], id: str) -> None:  # noqa: A002
        super().__init__(id=id, cursor_type="row", zebra_stripes=True)
        self._all = columns
        self._shown: List[int] = []
        self._widths: List[int] = []
        self._rows_shown: List[Tuple[str, List[str]]] = []
        self.fit(0)

    def fit(self, width: int) -> None:
        shown = [
            number for number, (_, is_narrow) in enumerate(self._all) if is_narrow or width >= _WIDE
        ]
        if shown != self._shown:
            self._shown = shown
            self._widths = [cell_len(self._all[number][0]) for number in shown]
            self._fill(self._rows_shown)

    def show(self, rows: List[Tuple[str, List[str]]]) -> None:
        before = self._rows_shown
        has_these_rows = [key for key, _ in before] == [key for key, _ in rows]
        if not has_these_rows or self._widths_for(rows) != self._widths:
            self._fill(rows)
            return
        self._rows_shown = rows
        for row, ((_, old), (_, new)) in enumerate(zip(before, rows)):
            for column, number in enumerate(self._shown):
                if old[number] != new[number]:
                    self.update_cell_at(Coordinate(row, column), self._cell(number, new))

    def _widths_for(self, rows: List[Tuple[str, List[str]]]) -> List[int]:
        """That of each column that is shown. They do not shrink, lest they dance."""
        return [
            max([width, *(cell_len(cells[number]) for _, cells in rows)])
            for width, number in zip(self._widths, self._shown)
        ]

    def _fill(self, rows: List[Tuple[str, List[str]]]) -> None:
        before = self._rows_shown
        under_cursor = before[self.cursor_row][0] if self.cursor_row < len(before) else None
        self._rows_shown = rows
        self._widths = self._widths_for(rows)
        self.clear(columns=True)
        # Widths that the table finds itself come after it may have been painted, and what it has
        # painted too narrow it keeps: a function would stay cut off until its row changes.
        for number, width in zip(self._shown, self._widths):
            name = self._all[number][0]
            label = Text(name, justify="left" if name in _LEFT else "right")
            self.add_column(label, width=width)
        for key, cells in rows:
            self.add_row(*(self._cell(number, cells) for number in self._shown), key=key)
        for row, (key, _) in enumerate(rows):
            if key == under_cursor:
                self.move_cursor(row=row)

    def _cell(self, number: int, cells: List[str]) -> Text:
        is_text = self._all[number][0] in _LEFT
        return Text(cells[number], justify="left" if is_text else "right", no_wrap=True)


class _Parked(_Table):
    # The same key as that of any table, whose footer says nothing of it.
    BINDINGS: ClassVar[List[BindingType]] = [Binding("enter", "select_cursor", "Stack")]


class _Stack(ModalScreen[None]):
    """The stack of a task, as it was when it was asked for."""

    CSS = """
    _Stack { align: center middle; }
    #frame { width: 95%; height: 90%; border: round $primary; padding: 0 1; background: $surface; }
    """
    BINDINGS: ClassVar[List[BindingType]] = [
        Binding("escape,enter,q", "dismiss", "Back", priority=True)
    ]

    def __init__(self, task: TaskNow) -> None:
        super().__init__()
        self._task_now = task

    def compose(self) -> ComposeResult:
        with VerticalScroll(id="frame"):
            lines = self._task_now.stack.split("\n")
            yield Static(Text("\n".join(map(visible, lines))))
        yield Footer()


def _summary(now: Now) -> Text:
    processes = "1 process" if now.processes == 1 else f"{now.processes} processes"
    text = Text(f"{visible(now.who) or processes}  ", no_wrap=True, overflow="ellipsis")
    text.append(f"{now.bridges_rate:,.1f} bridges/s", style="bold")
    text.append(f"  {now.under_way:,.0f} under way  ")
    if now.stalled:
        text.append(f"event loop stalled for {_seconds(now.stalled)}", style="bold white on red")
    else:
        text.append(f"event loop held {now.held:.0%} of the time", style="bold")
    portals = [
        f"{visible(kind)} {active:,.0f} open of {opened:,.0f}"
        for kind, (active, opened) in sorted(now.portals.items())
    ]
    text.append("\nportals: " + (", ".join(portals) or "none yet"))
    text.append("\n")
    text.append(*_holder(now))
    slow = sorted(now.slow_steps.items(), key=lambda item: (-item[1][1], -item[1][0]))
    text.append("\nslow steps: ")
    who = [f"{visible(function)} {count:,.0f}" for function, (count, _) in slow[:3]]
    text.append(", ".join(who) or "none", style="red" if who else "")
    return text


def _holder(now: Now) -> Tuple[str, str]:
    """Who holds the event loop, and in what style."""
    if now.is_idle:
        if now.holding is None:
            return "nothing was written lately", "yellow"
        return "the program has ended, or answers no more", "yellow"
    if now.holding is None:
        return "who holds the loop, and what is parked, a GREENBACK_TRACE_SOCKET tells", "dim"
    if not now.holding:
        return f"right now no portal holds the loop, {now.parked_count:,} tasks are parked", ""
    first = now.holding[0]
    others = f", and {len(now.holding) - 1} more" if len(now.holding) > 1 else ""
    who = f"{first.name} holds the loop{_since(first)}: {first.where}{others}"
    return visible(who), "bold yellow"


def _since(task: TaskNow) -> str:
    return "" if task.seconds is None else f" for {_seconds(task.seconds)}"


def _seconds(seconds: float) -> str:
    return f"{seconds * 1e3:,.1f} ms" if seconds < 1 else f"{seconds:,.1f} s"


def _site_cells(site: SiteNow) -> List[str]:
    return [
        f"{site.bridges_rate:,.1f}",
        f"{site.time_rate:,.2f}",
        f"{site.bridges:,.0f}",
        f"{site.suspended:,.0f}",
        f"{site.errors:,.0f}",
        f"{site.time:,.2f} s",
        f"{site.waiting:,.2f} s",
        visible(site.function),
    ]


def _task_cells(task: TaskNow) -> List[str]:
    since = "?" if task.seconds is None else _seconds(task.seconds)
    return [since, *map(visible, (task.name, task.library, task.portal, task.where))]
