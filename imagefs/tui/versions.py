"""The versions of one file or folder over all images of the set."""

from __future__ import annotations

from typing import ClassVar

from textual.binding import Binding, BindingType

from imagefs.errors import ImagefsError
from imagefs.interfaces import EntryType
from imagefs.tui.folder import Mark
from imagefs.tui.frame import FrameScreen
from imagefs.tui.jobs import Job
from imagefs.tui.names import middle, plain
from imagefs.tui.reading import parent
from imagefs.tui.session import Beat, Version
from imagefs.tui.tables import VersionTable, count_words, point_words


class VersionsScreen(FrameScreen):
    """Newest first; a version is viewed, extracted or gone to like any file."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("escape,left,h,backspace,v", "leave", "Back", key_display="Esc"),
        Binding("enter,f3", "view", "View", key_display="Enter"),
        Binding("o,right,l", "open", "Go to its folder", key_display="o"),
        Binding("e,f5", "extract", "Extract", key_display="e"),
    ]

    def __init__(self, path: bytes) -> None:
        super().__init__()
        self.path = path
        self.versions: list[Version] = []
        self._notes: list[str] = []
        self._under_way = "looking into the images"

    def on_mount(self) -> None:
        self.rowlist.focus()
        self.start("versions", self._read)
        self._tell()

    def _read(self, job: Job) -> None:
        def told(beat: Beat) -> None:
            job.tell(self._have_beat, beat)

        versions, notes = self.browser.session.versions(self.path, told, job.heed)
        job.tell(self._have, versions, notes)

    def _have_beat(self, beat: Beat) -> None:
        self._under_way = f"looking into the images, {beat.done} of {beat.total or '?'}"
        self._tell()

    def _have(self, versions: list[Version], notes: list[str]) -> None:
        self.versions, self._notes = versions, notes
        self.rowlist.empty = "no image has it"
        self.rowlist.show(VersionTable(versions, zone=self.browser.session.zone))
        for note in notes[:3]:
            self.say(note, severity="warning")

    def job_failed(self, group: str, error: ImagefsError) -> None:
        self.complain(error)
        if group == "versions":
            self.dismiss()

    def job_ended(self, group: str) -> None:
        self._under_way = ""
        self._tell()

    # -- keys -------------------------------------------------------------------------------------

    def action_leave(self) -> None:
        self.dismiss()

    def on_row_list_moved(self) -> None:
        self._tell()

    def on_row_list_chosen(self) -> None:
        self.action_view()

    def _version(self) -> Version | None:
        """The version with the cursor that there is something of; else it is said why not."""
        at = self.rowlist.at
        if at is None:
            return None
        found = self.versions[at]
        if found.entry is None:
            self.say(f"it was {found.change} there: take the version before", severity="warning")
            return None
        return found

    def action_view(self) -> None:
        from imagefs.tui.viewer import ViewerScreen

        found = self._version()
        if found is None or found.entry is None:
            return
        if found.entry.type is EntryType.FILE:
            self.app.push_screen(ViewerScreen(found.point, Mark(self.path)))
        else:
            self.action_open()

    def action_open(self) -> None:
        from imagefs.tui.browser import FolderScreen

        found = self._version()
        if found is None or found.entry is None:
            return
        is_folder = found.entry.type is EntryType.DIRECTORY
        folder, name = (self.path, b"") if is_folder else (parent(self.path), self.path.rpartition(b"/")[2])
        below = self.app.screen_stack[-2]
        self.dismiss()
        if isinstance(below, FolderScreen):
            below.go(folder, name=name, point=found.point)

    def action_extract(self) -> None:
        from imagefs.tui.taking import ask_to_extract

        found = self._version()
        if found is not None:
            ask_to_extract(self, found.point, [Mark(self.path)])

    # -- what it says -----------------------------------------------------------------------------

    def _tell(self) -> None:
        width = self.app.size.width - 2
        count = count_words(len(self.versions), "version") if self.versions else ""
        title = f"{middle(self.browser.session.title, 24)}  versions over all images  {count}"
        self.write("title", title)
        self.write("path", middle(plain(self.path), width))
        told = [f"{self._under_way} …"] if self._under_way else []
        at = self.rowlist.at
        if at is not None and at < len(self.versions):
            found = self.versions[at]
            told.append(f"{found.change} in {point_words(found.point, self.browser.session.zone)}")
            told += [found.what] if found.what else []
        told += [f"{count_words(len(self._notes), 'image')} could not be looked into"] if self._notes else []
        self.write("status", middle(" · ".join(told), width))
