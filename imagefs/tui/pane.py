"""The pane of lines: text, hex and facts, drawn as far as they are seen."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import ClassVar

from rich.cells import cell_len
from rich.segment import Segment
from textual.binding import Binding, BindingType
from textual.geometry import Size
from textual.scroll_view import ScrollView
from textual.strip import Strip

from imagefs.tui.names import text_pieces
from imagefs.tui.tables import Cell

#: Gives the cells of line ``number``.
Lines = Callable[[int], Sequence[Cell]]


def text_cells(text: str, look: str = "") -> list[Cell]:
    return [(part, "escape" if escape else look) for part, escape in text_pieces(text)]


class Pane(ScrollView, can_focus=True):
    """Lines by their number, which are made when they are seen."""

    COMPONENT_CLASSES: ClassVar[set[str]] = {
        f"pane--{each}" for each in ("escape", "dim", "found", "title", "bad")
    }
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("up,k", "by(-1)", show=False),
        Binding("down,j", "by(1)", show=False),
        Binding("pageup,ctrl+b", "pages(-1)", show=False),
        Binding("pagedown,space,ctrl+f", "pages(1)", show=False),
        Binding("home,g", "to(0)", show=False),
        Binding("end,G", "to(-1)", show=False),
        Binding("left,h", "sideways(-8)", show=False),
        Binding("right,l", "sideways(8)", show=False),
    ]

    def __init__(self, *, id: str | None = None) -> None:
        super().__init__(id=id)
        self._lines: Lines = lambda number: []
        self._count = 0
        self.lit: int | None = None

    def show(self, count: int, lines: Lines, *, width: int = 0, top: int = 0) -> None:
        """``count`` lines, the longest of ``width`` cells."""
        self._count, self._lines = count, lines
        self.lit = None
        self.virtual_size = Size(width, count)
        self.scroll_to(0, top, animate=False, force=True, immediate=True)
        self.refresh()

    @property
    def top(self) -> int:
        return self.scroll_offset.y

    def light(self, number: int) -> None:
        """Show a line that was searched for."""
        self.lit = number
        self.go_to(max(0, number - self.size.height // 3))
        self.refresh()

    def go_to(self, number: int) -> None:
        self.scroll_to(y=max(0, min(number, self._count)), animate=False, force=True, immediate=True)

    def action_by(self, lines: int) -> None:
        self.go_to(self.top + lines)

    def action_pages(self, pages: int) -> None:
        self.go_to(self.top + pages * max(1, self.size.height - 1))

    def action_to(self, number: int) -> None:
        self.go_to(self._count if number < 0 else number)

    def action_sideways(self, cells: int) -> None:
        self.scroll_to(x=max(0, self.scroll_offset.x + cells), animate=False, force=True, immediate=True)

    def render_line(self, y: int) -> Strip:
        width = self.scrollable_content_region.width
        left, top = self.scroll_offset
        number = top + y
        if number >= self._count:
            return Strip.blank(width, self.rich_style)
        base = self.get_component_rich_style("pane--found") if number == self.lit else self.rich_style
        segments = []
        for text, look in self._lines(number):
            style = base + self.get_component_rich_style(f"pane--{look}", partial=True) if look else base
            segments.append(Segment(text, style))
        return Strip(segments).crop(left, left + width).adjust_cell_length(width, base)


def widest(lines: Sequence[str]) -> int:
    """Cells of the longest line; escapes and wide characters counted for those that may be the longest."""
    longest = max(map(len, lines), default=0)
    if all(line.isascii() and line.isprintable() for line in lines):
        return longest
    return max((sum(cell_len(part) for part, _ in text_pieces(line)) for line in lines), default=0)
