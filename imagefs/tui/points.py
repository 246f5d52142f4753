"""The first screen: the points in time of a set, and the choice of one."""

from __future__ import annotations

from typing import ClassVar

from textual.app import ComposeResult
from textual.binding import Binding, BindingType

from imagefs.cli.text import size_text, time_text
from imagefs.errors import ImagefsError
from imagefs.tui.frame import FrameScreen
from imagefs.tui.jobs import Job
from imagefs.tui.names import plain
from imagefs.tui.rowlist import RowList
from imagefs.tui.session import Point
from imagefs.tui.tables import PointTable, count_words


class PointsScreen(FrameScreen):
    """All images of the set, newest first. It stays below the others; ``t`` comes back to it."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("o,enter", "open", "Open", key_display="Enter"),
        Binding("right,l", "open", show=False),
        Binding("i", "facts", "Facts", show=False),
        Binding("ctrl+r", "again", "Read again"),
        Binding("escape,t", "back", show=False),
    ]

    above = ("title",)
    below = ("details",)

    def main(self) -> ComposeResult:
        yield RowList(empty="no images yet; make one with `imagefs capture SOURCE SET`", id="list")

    def on_mount(self) -> None:
        self.write("title", f"{self.browser.session.title}  reading the set …")
        self.rowlist.focus()
        self.action_again()

    def action_again(self) -> None:
        self.start("points", self._read)

    def _read(self, job: Job) -> None:
        points = self.browser.session.points()
        job.tell(self._have, points)

    def _have(self, points: list[Point]) -> None:
        browser = self.browser
        at = self.rowlist.at
        chosen = browser.points[at].name if at is not None and at < len(browser.points) else ""
        first = not browser.points
        browser.points = points
        names = [each.name for each in points]
        table = PointTable(points, zone=browser.session.zone, now=browser.session.now())
        self.rowlist.show(table, cursor=names.index(chosen) if chosen in names else 0)
        good = sum(not each.trouble for each in points)
        count = count_words(good, "point in time", "points in time")
        self.write("title", f"{browser.session.title}  {count}")
        start = browser.session.start
        if first and start is not None:
            for number, each in enumerate(points):
                if each.id == start[0]:
                    self.rowlist.move_to(number)
                    self._show(each, start[1])

    def on_row_list_moved(self) -> None:
        at = self.rowlist.at
        lines = self._details(self.browser.points[at]) if at is not None else ""
        self.write("details", lines)

    def _details(self, point: Point) -> str:
        if point.trouble:
            return f"{plain(point.name.encode())}\n{point.trouble}"
        zone = self.browser.session.zone
        sizes = f"{size_text(point.stored)} stored of a disk of {size_text(point.disk_size)}"
        lines = [
            f"{time_text(point.created, zone)}   {point.kind}, {sizes}",
            f"id {point.id}   consistency {point.consistency or '-'}",
            f"needs {point.parent[:8]}" if point.parent else "needs no other image",
        ]
        lines[2] += f"   note: {plain(point.note.encode())}" if point.note else ""
        return "\n".join([*lines, plain(point.name.encode())])

    def on_row_list_chosen(self) -> None:
        self.action_open()

    def action_open(self) -> None:
        at = self.rowlist.at
        if at is None:
            return
        point = self.browser.points[at]
        if point.trouble:
            self.complain(ImagefsError(point.trouble))
        else:
            self._show(point, b"/")

    def _show(self, point: Point, path: bytes) -> None:
        from imagefs.tui.browser import FolderScreen

        self.app.push_screen(FolderScreen(point, path))

    def action_facts(self) -> None:
        from imagefs.tui.dialogs import Text

        at = self.rowlist.at
        if at is not None:
            self.app.push_screen(Text("Image", self._details(self.browser.points[at])))
