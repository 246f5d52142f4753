"""A list with a cursor that draws only the lines that are seen, so that its length does not matter."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar, Protocol

from rich.segment import Segment
from rich.style import Style
from textual import events
from textual.binding import Binding, BindingType
from textual.geometry import Size
from textual.message import Message
from textual.reactive import reactive
from textual.scroll_view import ScrollView
from textual.strip import Strip

from imagefs.tui.names import Piece

#: A text and the word for how it looks, one of LOOKS or empty.
Cell = tuple[str, str]
LOOKS = ("folder", "link", "special", "deleted", "escape", "dim", "mark", "good", "bad", "title", "warm")


class Table(Protocol):
    """What a list shows: a line of headings, and lines by their number, exactly ``width`` cells each."""

    def __len__(self) -> int: ...

    def heading(self, width: int, /) -> str: ...

    def cells(self, number: int, width: int, /) -> Sequence[Cell]: ...


def looking(found: list[Piece], look: str) -> list[Cell]:
    """Pieces of a name as cells: escapes look like escapes."""
    return [(text, "escape" if escape else look) for text, escape in found]


class Nothing:
    """The Table before there is one."""

    def __len__(self) -> int:
        return 0

    def heading(self, width: int, /) -> str:
        return ""

    def cells(self, number: int, width: int, /) -> Sequence[Cell]:
        return []


class RowList(ScrollView, can_focus=True):
    """A Table on the screen. The heading stays where it is."""

    COMPONENT_CLASSES: ClassVar[set[str]] = {
        f"row--{each}" for each in (*LOOKS, "cursor", "heading", "empty")
    }
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("up,k", "move(-1)", "Up", show=False),
        Binding("down,j", "move(1)", "Down", show=False),
        Binding("pageup,ctrl+b", "page(-1)", "Page up", show=False),
        Binding("pagedown,ctrl+f", "page(1)", "Page down", show=False),
        Binding("home,g", "to(0)", "First", show=False),
        Binding("end,G", "to(-1)", "Last", show=False),
        Binding("enter", "choose", "Open", show=False),
    ]
    cursor: reactive[int] = reactive(0, repaint=False)

    class Moved(Message):
        """The cursor is on another line."""

    class Chosen(Message):
        """The line with the cursor was chosen."""

    def __init__(self, *, empty: str = "", id: str | None = None) -> None:
        super().__init__(id=id)
        self.table: Table = Nothing()
        self.empty = empty
        self._looks: dict[str, Style] = {}

    def show(self, table: Table, *, cursor: int = 0) -> None:
        """Another table, or another state of it."""
        self.table = table
        self.virtual_size = Size(0, len(table) + 1)
        self.cursor = self._clamped(cursor)
        self._reveal()
        self.refresh()
        self.post_message(self.Moved())

    def grown(self) -> None:
        """The table has more lines than before."""
        self.virtual_size = Size(0, len(self.table) + 1)
        self.refresh()

    def move_to(self, number: int) -> None:
        number = self._clamped(number)
        if number != self.cursor:
            self.cursor = number
            self.refresh()
            self.post_message(self.Moved())
        self._reveal()

    @property
    def at(self) -> int | None:
        """The line with the cursor; None in an empty table."""
        return self.cursor if len(self.table) else None

    # -- keys and mouse ---------------------------------------------------------------------------

    def action_move(self, step: int) -> None:
        self.move_to(self.cursor + step)

    def action_page(self, pages: int) -> None:
        self.move_to(self.cursor + pages * max(1, self._lines - 1))

    def action_to(self, number: int) -> None:
        self.move_to(number if number >= 0 else len(self.table) + number)

    def action_choose(self) -> None:
        if len(self.table):
            self.post_message(self.Chosen())

    def on_click(self, event: events.Click) -> None:
        if event.y < 1:
            return
        number = event.y - 1 + self.scroll_offset.y
        if number < len(self.table):
            again = number == self.cursor and event.chain > 1
            self.move_to(number)
            if again:
                self.action_choose()

    # -- drawing ----------------------------------------------------------------------------------

    @property
    def _lines(self) -> int:
        """Lines for rows: the heading takes one."""
        return max(1, self.scrollable_content_region.height - 1)

    def _clamped(self, number: int) -> int:
        return max(0, min(number, len(self.table) - 1))

    def _reveal(self) -> None:
        top = self.scroll_offset.y
        if self.cursor < top:
            self.scroll_to(y=self.cursor, animate=False, force=True, immediate=True)
        elif self.cursor >= top + self._lines:
            self.scroll_to(y=self.cursor - self._lines + 1, animate=False, force=True, immediate=True)

    def on_resize(self) -> None:
        self._looks.clear()
        self._reveal()

    def notify_style_update(self) -> None:
        super().notify_style_update()
        self._looks.clear()

    def render_line(self, y: int) -> Strip:
        width = self.scrollable_content_region.width
        number = self.scroll_offset.y + y - 1
        if y == 0:
            return self._strip([(self.table.heading(width), "")], width, "heading")
        if number < len(self.table):
            return self._strip(
                self.table.cells(number, width), width, "cursor" if number == self.cursor else ""
            )
        if y == 2 and not len(self.table):
            return self._strip([(f"  {self.empty}", "")], width, "empty")
        return Strip.blank(width, self.rich_style)

    def _strip(self, cells: Sequence[Cell], width: int, line: str) -> Strip:
        base = self._look(line) if line else self.rich_style
        lit = line == "cursor" and self.has_focus
        segments = []
        for text, look in cells:
            style = base
            if look:
                found = self._look(look)
                style = base + Style(bold=found.bold, strike=found.strike, color=None if lit else found.color)
            segments.append(Segment(text, style))
        return Strip(segments).adjust_cell_length(width, base)

    def _look(self, name: str) -> Style:
        if name == "cursor" and not self.has_focus:
            return self.rich_style + Style(reverse=False, bold=True)
        if name not in self._looks:
            self._looks[name] = self.get_component_rich_style(f"row--{name}")
        return self._looks[name]
