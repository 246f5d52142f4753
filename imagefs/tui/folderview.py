"""What the folder screen shows and how it comes to that: reading in threads, list, preview, the lines about it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

from textual import events
from textual.app import ComposeResult
from textual.containers import Horizontal
from textual.timer import Timer

from imagefs.cli.text import size_text
from imagefs.errors import ImagefsError
from imagefs.tui.folder import Mark, Marks, Rows, mark_of
from imagefs.tui.frame import FrameScreen
from imagefs.tui.jobs import Job
from imagefs.tui.names import middle, plain
from imagefs.tui.pane import Pane, text_cells
from imagefs.tui.places import place_of
from imagefs.tui.preview import preview_lines
from imagefs.tui.reading import Listed, nearest, read_folder
from imagefs.tui.rowlist import RowList
from imagefs.tui.session import Point, VolumeRow
from imagefs.tui.tables import FolderTable, VolumeTable, count_words, point_words

#: From so many columns on there is a preview beside the list.
WIDE = 110
#: Seconds that the cursor stays before a preview is read.
STILL = 0.12


class FolderView(FrameScreen):
    """A folder of the image at ``point``, or the list of its volumes, or what was found below a folder."""

    def __init__(self, point: Point, path: bytes) -> None:
        super().__init__()
        #: The image and folder that are shown, and the image that is being gone to.
        self.point, self.path = point, path
        self.going = point
        self.listed: Listed | None = None
        self.wanted = ""
        self.found = ""
        self._under_way = ""
        self._been: dict[bytes, bytes] = {}
        self._previews: bool | None = None
        self._previewed: Mark | None = None
        self._still: Timer | None = None

    # -- what it is made of -----------------------------------------------------------------------

    def main(self) -> ComposeResult:
        with Horizontal(id="main"):
            yield RowList(id="list")
            yield Pane(id="preview")

    @property
    def marks(self) -> Marks:
        return self.browser.marks[self.point.id]

    def on_mount(self) -> None:
        self.query_one("#preview", Pane).can_focus = False
        self._fit()
        self.rowlist.focus()
        self.go(self.path)

    def on_resize(self, event: events.Resize) -> None:
        self._fit()
        self._tell()

    def _fit(self) -> None:
        wide = self.app.size.width >= WIDE if self._previews is None else self._previews
        self.query_one("#preview", Pane).display = wide
        if wide:
            self._preview_soon()

    # -- going somewhere --------------------------------------------------------------------------

    def go(self, path: bytes, *, name: bytes = b"", point: Point | None = None) -> None:
        """Show a folder, of ``point`` or of the image that is shown, with the cursor on ``name`` in it, or on the line
        where it was when last there."""
        self._remember()
        self._under_way = "reading"
        self.going = going = point or self.point
        self.start("folder", lambda job: self._read(job, going, path, name))
        self._tell()

    def _remember(self) -> None:
        current = self._current()
        if current is not None and not self.found:
            self._been[self.path] = current

    def _read(self, job: Job, point: Point, path: bytes, name: bytes) -> None:
        opened = self.browser.opened(point)
        job.heed()
        if path == b"/":
            job.tell(self._have_volumes, point, opened.volumes(), name)
            return
        deleted = self.browser.deleted
        folder, place, inside = nearest(opened, path, deleted=deleted)
        if inside and not name:
            name = inside

        def told(rows: Rows, count: int, word: str) -> None:
            job.tell(self._have_some, point, folder, rows, count, word)

        listed = read_folder(
            opened,
            folder,
            place,
            self.browser.order,
            wanted=self.wanted if folder == self.path else "",
            deleted=deleted,
            heed=job.heed,
            told=told,
        )
        job.tell(self._have_folder, point, folder, listed, name)
        if inside and name == inside and name not in listed.rows.names:
            missing = f"'{plain(path)}' is not in this image; this is the next folder above"
            job.tell(lambda: self.say(missing, severity="warning"))

    def _have_volumes(self, point: Point, volumes: list[VolumeRow], name: bytes) -> None:
        self._arrive(point, b"/")
        self.listed = None
        names = [each.name.encode() for each in volumes]
        name = name or self._been.get(b"/", b"")
        self.rowlist.empty = "no volumes were found on this disk"
        self.rowlist.show(VolumeTable(volumes), cursor=names.index(name) if name in names else 0)
        self._tell()

    def _have_some(self, point: Point, path: bytes, rows: Rows, count: int, word: str) -> None:
        """A part of a folder that takes long, in the order it is read."""
        self._under_way = word
        if self.listed is None or self.listed.rows is not rows:
            self._arrive(point, path)
            self.listed = Listed(rows, range(count))
            self.rowlist.empty = ""
            self.rowlist.show(self._table())
        else:
            self.listed = Listed(rows, range(count))
            cast("FolderTable", self.rowlist.table).shown = range(count)
            self.rowlist.grown()
        self._tell()

    def _have_folder(self, point: Point, path: bytes, listed: Listed, name: bytes) -> None:
        moved = self.listed is not None and self.listed.rows is listed.rows and self.rowlist.cursor > 0
        here = self._current() if moved else None
        self._arrive(point, path)
        self._show(listed, name or here or self._been.get(path, b""))
        if listed.trouble is not None:
            self.complain(listed.trouble)

    def _arrive(self, point: Point, path: bytes) -> None:
        if path != self.path:
            self.wanted = ""
        self.point, self.path, self.found = point, path, ""
        self._previewed = None

    def _show(self, listed: Listed, name: bytes = b"", at: int = 0) -> None:
        """Rows in their order, the cursor on ``name`` or else on line ``at``."""
        self.listed = listed
        self._under_way = ""
        if name:
            names = listed.rows.names
            at = next((line for line, index in enumerate(listed.shown) if names[index] == name), at)
        what = (
            "nothing deleted and nothing live is in here" if self.browser.deleted else "this folder is empty"
        )
        self.rowlist.empty = "nothing of this name" if self.wanted or self.found else what
        self.rowlist.show(self._table(), cursor=at)
        self._tell()

    def _table(self) -> FolderTable:
        assert self.listed is not None
        zone = self.browser.session.zone
        return FolderTable(
            self.listed.rows, self.listed.shown, self.marks, zone=zone, whole=bool(self.listed.rows.gone)
        )

    def job_failed(self, group: str, error: ImagefsError) -> None:
        self._under_way, self.going = "", self.point
        self.complain(error)
        if group == "folder" and self.listed is None and self.path != b"/":
            self.path = b"/"
            self.go(b"/")
        self._tell()

    def job_ended(self, group: str) -> None:
        if group in ("folder", "find"):
            self._under_way = ""
            self._tell()

    # -- what the cursor is on --------------------------------------------------------------------

    @property
    def index(self) -> int | None:
        """The row with the cursor; None among volumes and in empty folders."""
        at = self.rowlist.at
        return None if at is None or self.listed is None else self.listed.shown[at]

    def _current(self) -> bytes | None:
        """The name of what the cursor is on."""
        at = self.rowlist.at
        if at is None:
            return None
        table = self.rowlist.table
        if isinstance(table, VolumeTable):
            return table.volumes[at].name.encode()
        index = self.index
        return None if index is None or self.listed is None else self.listed.rows.names[index]

    def target(self) -> Mark | None:
        """What the cursor is on, as something to be viewed or extracted."""
        index = self.index
        if index is not None and self.listed is not None:
            return mark_of(self.listed.rows, index)[0]
        current = self._current()
        return Mark(b"/" + current) if current is not None else None

    def on_row_list_moved(self) -> None:
        self._tell()
        self._preview_soon()

    def marks_changed(self) -> None:
        self.rowlist.refresh()
        self._tell()

    # -- beside and below the list ----------------------------------------------------------------

    def _preview_soon(self) -> None:
        self.stop("preview")
        if self._still is not None:
            self._still.stop()
            self._still = None
        if self.query_one("#preview", Pane).display:
            self._still = self.set_timer(STILL, self._preview)

    @property
    def waits(self) -> bool:
        """Whether a preview is to be read in a moment."""
        return self._still is not None

    def _preview(self) -> None:
        self._still = None
        target, index = self.target(), self.index
        pane = self.query_one("#preview", Pane)
        if target is None or index is None or self.listed is None or self.listed.rows.is_folder(index):
            pane.show(0, lambda number: [])
            return
        if target == self._previewed:
            return
        self.start("preview", lambda job: self._read_preview(job, target))

    def _read_preview(self, job: Job, target: Mark) -> None:
        opened = self.browser.opened(self.point)
        job.heed()
        try:
            lines: Sequence[tuple[str, str]] = preview_lines(place_of(opened, target))
        except ImagefsError as error:
            lines = [(error.message, "bad")]
        job.tell(self._have_preview, target, lines)

    def _have_preview(self, target: Mark, lines: Sequence[tuple[str, str]]) -> None:
        if target == self.target():
            self._previewed = target
            self.query_one("#preview", Pane).show(len(lines), lambda number: text_cells(*lines[number]))

    def _tell(self) -> None:
        """Title, path and status line."""
        width = self.app.size.width - 2
        marks = self.marks
        marked = f"{len(marks):,} marked: {marked_words(marks)}" if len(marks) else ""
        room = max(0, width - len(marked) - 2)
        head = (
            f"{middle(self.browser.session.title, 24)}  {point_words(self.point, self.browser.session.zone)}"
        )
        self.write("title", f"{middle(head, room):<{room}}  {marked}")
        where = f"names with '{self.found}' below " if self.found else ""
        self.write("path", where + middle(plain(self.path), width - len(where)))
        self.write("status", middle(self._status(), width))

    def _status(self) -> str:
        told = []
        table = self.rowlist.table
        if isinstance(table, VolumeTable):
            told.append(count_words(len(table), "volume"))
        if self.listed is not None:
            rows, shown = len(self.listed.rows), len(self.listed.shown)
            told.append(
                count_words(rows, "entry", "entries") if rows == shown else f"{shown:,} of {rows:,} entries"
            )
            told += [] if self.found else [self.browser.order.words]
        told += [f"only '{self.wanted}'"] if self.wanted else []
        told += ["deleted too"] if self.browser.deleted else []
        if self._under_way:
            told.append(f"{self._under_way} …")
        elif self.listed is not None and self.listed.trouble is not None:
            told.append("not all of it could be read")
        current = self._current()
        name = plain(current) if current is not None else ""
        return " · ".join(told) + (f" · {name}" if name else "")


def marked_words(marks: Marks) -> str:
    """``1.2 MiB + 2 folders``."""
    files = [size_text(marks.bytes)] if len(marks) > marks.folders else []
    return " + ".join([*files, *([count_words(marks.folders, "folder")] if marks.folders else [])])
