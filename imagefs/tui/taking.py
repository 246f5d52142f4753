"""Extracting: where to and how, how far it is, and what came of it."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, ClassVar, cast

from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Vertical
from textual.content import Content
from textual.screen import ModalScreen
from textual.widgets import Checkbox, Input, Label, Static

from imagefs.cli.text import duration_text, size_text
from imagefs.errors import ImagefsError
from imagefs.tui.dialogs import Box
from imagefs.tui.folder import Mark
from imagefs.tui.folderview import FolderView
from imagefs.tui.jobs import GivenUp, Job, JobScreen
from imagefs.tui.names import middle, plain, text_pieces
from imagefs.tui.rowlist import RowList
from imagefs.tui.session import Beat, Point, Taken, Wishes
from imagefs.tui.tables import FindingTable, count_words

if TYPE_CHECKING:
    from imagefs.tui.app import Browser

#: Cells of the bar.
_BAR = 40
Order = tuple[str, Wishes]


class AskWhere(Box):
    """DEST and the options of `imagefs get` that matter here."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("down", "app.focus_next", show=False),
        Binding("up", "app.focus_previous", show=False),
    ]

    def __init__(self, marks: Sequence[Mark]) -> None:
        super().__init__()
        self._marks = marks

    @property
    def browser(self) -> Browser:
        return cast("Browser", self.app)

    def compose(self) -> ComposeResult:
        what = plain(self._marks[0].path) if len(self._marks) == 1 else f"{len(self._marks):,} marked"
        with Vertical(classes="box"):
            yield Label(f"Extract {middle(what, 58)} to", classes="title", markup=False)
            yield Input(self.browser.dest)
            yield Checkbox("replace what is there", id="overwrite", compact=True)
            yield Checkbox("streams and resource forks too, as NAME:STREAM", id="streams", compact=True)
            yield Checkbox("read back what was written, and compare", id="verify", compact=True)
            yield Label("Enter begins   Tab to the choices, Space changes one   Esc cancels", classes="hint")

    def on_input_submitted(self, event: Input.Submitted) -> None:
        self.browser.dest = event.value  # to be offered next time
        chosen = {each.id or "": each.value for each in self.query(Checkbox)}
        self.dismiss((event.value, Wishes(**chosen)))


class TakingScreen(JobScreen, ModalScreen[Any]):
    """Under way, and then what came of it."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("escape,c,ctrl+c", "cancel", "Cancel", key_display="Esc"),
        Binding("enter,q", "close", "Close", show=False),
    ]

    AUTO_FOCUS = ""

    def __init__(self, point: Point, marks: Sequence[Mark], order: Order) -> None:
        super().__init__()
        self._point, self._marks = point, marks
        self._dest, self._wishes = order
        self.taken: Taken | None = None
        self.error: ImagefsError | None = None
        self._beat: Beat | None = None
        self._cancelled = False
        self._cancel = threading.Event()

    def compose(self) -> ComposeResult:
        with Vertical(classes="box wide", id="taking"):
            yield Label(f"Extracting to {middle(self._dest, 60)}", classes="title", markup=False)
            yield Static("counting …", id="beat", markup=False)
            yield RowList(id="list")
            yield Label("Esc cancels; what was taken stays", classes="hint")

    def on_mount(self) -> None:
        self.query_one(RowList).display = False
        self.start("extract", self._take)

    def _take(self, job: Job) -> None:
        opened = cast("Browser", self.app).opened(self._point)

        def told(beat: Beat) -> None:
            job.tell(self._have_beat, beat)

        def heed() -> None:
            job.heed()
            if self._cancel.is_set():
                raise GivenUp

        try:
            taken = opened.extract(self._marks, self._dest, self._wishes, told, heed)
        except GivenUp:
            job.tell(self._have_cancelled)
        else:
            job.tell(self._have, taken)

    def _have_cancelled(self) -> None:
        self._cancelled = True
        self._end("cancelled; what was taken before stays, each file of it whole")

    def _have_beat(self, beat: Beat) -> None:
        self._beat = beat
        self._say(beat_words(beat))

    def _have(self, taken: Taken) -> None:
        self.taken = taken
        self._end(taken.words)
        if taken.findings:
            found = self.query_one(RowList)
            found.display = True
            found.show(FindingTable(taken.findings, taken.more))
            found.focus()

    def job_failed(self, group: str, error: ImagefsError) -> None:
        self.error = error
        self._end(f"{error.message}; {error.hint}" if error.hint else error.message, wrong=True)

    def _end(self, text: str, *, wrong: bool = False) -> None:
        self._say("".join(part for part, _ in text_pieces(text)))
        self.query_one("#beat", Static).set_class(wrong, "wrong")
        self.query_one(".hint", Label).update("Esc or Enter closes")

    def _say(self, text: str) -> None:
        self.query_one("#beat", Static).update(Content(text))

    @property
    def done(self) -> bool:
        return self.taken is not None or self.error is not None or self._cancelled

    def action_cancel(self) -> None:
        """Give it up when it is under way, else close."""
        if self.done:
            self.dismiss(self.taken)
            return
        self._cancel.set()
        self.query_one(".hint", Label).update("ending …")

    def action_close(self) -> None:
        if self.done:
            self.dismiss(self.taken)

    def on_row_list_chosen(self) -> None:
        self.action_close()


def beat_words(beat: Beat) -> str:
    """A bar, how much of how much, rate and time left."""
    rate = f"{size_text(int(beat.rate))}/s"
    if not beat.total:
        return f"{beat.label} …" if not beat.done else f"{size_text(beat.done)}   {rate}"
    share = min(1.0, beat.done / beat.total)
    full = int(share * _BAR)
    left = f"   {duration_text(beat.eta)} left" if beat.eta is not None else ""
    bar = f"{'█' * full}{'░' * (_BAR - full)} {share:4.0%}"
    return f"{bar}\n{size_text(beat.done)} of {size_text(beat.total)}   {rate}{left}"


def ask_to_extract(screen: JobScreen, point: Point, marks: Sequence[Mark]) -> None:
    """Ask where to, then do it."""

    def asked(order: Order | None) -> None:
        if order is not None:
            screen.app.push_screen(TakingScreen(point, marks, order), ended)

    def ended(taken: Taken | None) -> None:
        if taken is not None:
            more = (
                f"; {count_words(len(taken.findings) + taken.more, 'thing')} to note"
                if taken.findings
                else ""
            )
            screen.say(taken.words + more)
            browser = cast("Browser", screen.app)
            browser.marks[point.id].drop(marks)
            if isinstance(screen, FolderView):
                screen.marks_changed()

    screen.app.push_screen(AskWhere(marks), asked)
