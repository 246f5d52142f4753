"""The main screen: volumes and folders of one image, in which everything else begins. Its keys are here, what it shows
is in ``folderview``."""

from __future__ import annotations

from collections.abc import Callable
from typing import ClassVar

from textual.binding import Binding, BindingType

from imagefs.errors import UsageError
from imagefs.interfaces import EntryType
from imagefs.tui.dialogs import Ask, Text
from imagefs.tui.folder import PORTION, Mark, Order, Rows, arranged, mark_of, name_test
from imagefs.tui.folderview import FolderView
from imagefs.tui.jobs import Job
from imagefs.tui.names import middle, plain
from imagefs.tui.pane import Pane
from imagefs.tui.places import facts_of
from imagefs.tui.reading import Listed, join, link_target, parent, search


class FolderScreen(FolderView):
    """A folder of the image at ``point``, or the list of its volumes, or what was found below a folder."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("space,insert", "mark", "Mark", key_display="Space"),
        Binding("e,f5", "extract", "Extract", key_display="e"),
        Binding("d", "deleted", "Deleted"),
        Binding("v", "versions", "Versions"),
        Binding("slash", "filter", "Filter", key_display="/"),
        Binding("f,f7", "find", "Find", key_display="f"),
        Binding("t", "points", "Times"),
        Binding("f3", "view", show=False),
        Binding("s", "sort", show=False),
        Binding("right,l", "enter", show=False),
        Binding("left,h,backspace", "up", show=False),
        Binding("escape", "back", show=False),
        Binding("colon,ctrl+g", "go", show=False),
        Binding("r", "turn", show=False),
        Binding("i", "facts", show=False),
        Binding("p", "preview", show=False),
        Binding("asterisk", "invert", show=False),
        Binding("plus", "pattern(True)", show=False),
        Binding("minus", "pattern(False)", show=False),
        Binding("U", "unmark", show=False),
        Binding("left_square_bracket", "older(1)", show=False),
        Binding("right_square_bracket", "older(-1)", show=False),
        Binding("ctrl+r", "again", show=False),
    ]

    def on_row_list_chosen(self) -> None:
        self.action_enter()

    def action_enter(self) -> None:
        """Into a folder; to what a link leads to; anything else is viewed; what was found, where it lies."""
        target = self.target()
        if target is None:
            return
        index = self.index
        if index is None or self.listed is None:
            self.go(target.path)
        elif self.found:
            folder, _, name = target.path.rpartition(b"/")
            self.go(folder, name=name)
        elif self.listed.rows.is_folder(index):
            self.go(target.path)
        elif self.listed.rows.type(index) is EntryType.SYMLINK and not target.deleted:
            self.start("folder", lambda job: self._follow(job, target.path))
        else:
            self.action_view()

    def _follow(self, job: Job, path: bytes) -> None:
        found = link_target(self.browser.opened(self.point), path)
        job.tell(self.go, found)

    def action_up(self) -> None:
        if self.found:
            self.action_back()
        elif self.path != b"/":
            self.go(parent(self.path), name=self.path.rpartition(b"/")[2])

    def action_back(self) -> None:
        if self.busy("find"):
            self.stop("find")
            self._under_way = ""
            self._tell()
        elif self.found:
            self.go(self.path)
        elif self.wanted:
            self._filter("")

    def action_points(self) -> None:
        self.app.pop_screen()

    def action_again(self) -> None:
        self.go(self.path)

    def action_older(self, steps: int) -> None:
        """The same folder in the image before or after this one."""
        usable = [each for each in self.browser.points if not each.trouble]
        ids = [each.id for each in usable]
        at = ids.index(self.going.id) + steps if self.going.id in ids else -1
        if not 0 <= at < len(usable):
            self.say("this is the oldest image" if steps > 0 else "this is the newest image")
            return
        self.go(self.path, point=usable[at])

    def action_go(self) -> None:
        def gone(answer: str | None) -> None:
            if answer:
                path = answer.encode("utf-8", "surrogateescape")
                self.go(path if path.startswith(b"/") else join(self.path, path))

        hint = "/p2/etc, or a name from here on"
        self.app.push_screen(Ask("Go to", plain(self.path), hint=hint), gone)

    # -- order, filter, search --------------------------------------------------------------------

    def action_sort(self) -> None:
        self._sort(self.browser.order.next())

    def action_turn(self) -> None:
        order = self.browser.order
        self._sort(Order(order.by, not order.backwards))

    def _sort(self, order: Order) -> None:
        self.browser.order = order
        self._arrange()

    def action_filter(self) -> None:
        if self.listed is None:
            return

        def filtered(answer: str | None) -> None:
            if answer is not None:
                self._filter(answer)

        hint = "part of a name, or a glob such as *.txt; nothing shows all"
        self.app.push_screen(Ask("Show only names with", self.wanted, hint=hint), filtered)

    def _filter(self, wanted: str) -> None:
        self.wanted = wanted
        self._arrange()

    def _arrange(self) -> None:
        listed = self.listed
        if listed is None or self.busy("folder", "find"):
            self._tell()
            return
        current, order, wanted = self._current(), self.browser.order, self.wanted

        def work(job: Job) -> None:
            shown = arranged(listed.rows, order, wanted, heed=job.heed)
            job.tell(self._show, Listed(listed.rows, shown), current or b"")

        self.start("arrange", work)
        self._tell()

    def action_find(self) -> None:
        if self.path == b"/":
            self.say("go into a volume first: it is searched from there on")
            return

        def asked(answer: str | None) -> None:
            if answer:
                self._find(answer)

        hint = f"below {middle(plain(self.path), 40)}; part of a name, or a glob such as *.jpg"
        self.app.push_screen(Ask("Find names with", self.found, hint=hint), asked)

    def _find(self, wanted: str) -> None:
        self._remember()
        self.found, self.wanted = wanted, ""
        self._under_way = "searching"
        folder, deleted = self.path, self.browser.deleted
        self.listed = Listed(Rows(folder), [])
        self._show(self.listed)

        def told(rows: Rows, count: int, word: str) -> None:
            job.tell(self._have_hits, Listed(rows, range(count)), f"searching, {word}")

        def work(job: Job) -> None:
            opened = self.browser.opened(self.point)
            listed = search(opened, folder, wanted, deleted=deleted, heed=job.heed, told=told)
            job.tell(self._have_hits, listed, "")

        self.stop("folder")
        job = self.start("find", work)
        self._tell()

    def _have_hits(self, listed: Listed, word: str) -> None:
        at = self.rowlist.cursor
        self._show(listed, at=at)
        self._under_way = word
        self._tell()
        if listed.trouble is not None:
            self.complain(listed.trouble)

    def action_deleted(self) -> None:
        self.browser.deleted = not self.browser.deleted
        self.go(self.path)

    # -- marks ------------------------------------------------------------------------------------

    def action_mark(self) -> None:
        index = self.index
        if index is not None and self.listed is not None:
            self.marks.toggle(*mark_of(self.listed.rows, index))
        else:
            target = self.target()
            if target is None:
                return
            self.marks.toggle(target, None)
            self.say(f"{plain(target.path)} is {'marked' if target in self.marks else 'no longer marked'}")
        self.marks_changed()
        self.rowlist.action_move(1)

    def action_invert(self) -> None:
        self._mark_rows(lambda name, marked: True)

    def action_unmark(self) -> None:
        self.marks.drop(self.marks.sizes)
        self.marks_changed()

    def action_pattern(self, on: bool) -> None:
        def asked(answer: str | None) -> None:
            if answer:
                test = name_test(answer)
                self._mark_rows(lambda name, marked: marked != on and test(name))

        word = "Mark" if on else "Unmark"
        self.app.push_screen(Ask(f"{word} names with", "*", hint="part of a name, or a glob"), asked)

    def _mark_rows(self, wanted: Callable[[bytes, bool], bool]) -> None:
        """Toggle the rows that are shown and ``wanted`` (by name and whether they are marked)."""
        listed, marks = self.listed, self.marks
        if listed is None:
            return

        def work(job: Job) -> None:
            for number, index in enumerate(listed.shown):
                if number % PORTION == 0:
                    job.heed()
                mark, size = mark_of(listed.rows, index)
                if wanted(listed.rows.names[index], mark in marks):
                    marks.toggle(mark, size)
            job.tell(self.marks_changed)

        self.start("mark", work)

    # -- other screens ----------------------------------------------------------------------------

    def action_view(self) -> None:
        from imagefs.tui.viewer import ViewerScreen

        target, index = self.target(), self.index
        if target is None:
            return
        if index is None or self.listed is None or self.listed.rows.type(index) is not EntryType.FILE:
            self.action_facts()
        else:
            self.app.push_screen(ViewerScreen(self.point, target))

    def action_facts(self) -> None:
        target = self.target()
        if target is not None:
            self.start("facts", lambda job: self._read_facts(job, target))

    def _read_facts(self, job: Job, target: Mark) -> None:
        lines = facts_of(self.browser.opened(self.point), target)
        job.tell(lambda: self.app.push_screen(Text(plain(target.path), "\n".join(lines))))

    def action_versions(self) -> None:
        from imagefs.tui.versions import VersionsScreen

        target = self.target()
        if target is None:
            return
        if target.deleted:
            self.say("versions are those of live files; this one is deleted", severity="warning")
        else:
            self.app.push_screen(VersionsScreen(target.path))

    def action_extract(self) -> None:
        from imagefs.tui.taking import ask_to_extract

        target = self.target()
        marks = list(self.marks.sizes) or ([target] if target is not None else [])
        if not marks:
            self.complain(UsageError("nothing is marked, and the cursor is on nothing"))
            return
        ask_to_extract(self, self.point, marks)

    def action_preview(self) -> None:
        self._previews = not self.query_one("#preview", Pane).display
        self._fit()
