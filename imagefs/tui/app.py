"""The application: its looks, the images that are open, what is marked, and how it ends."""

from __future__ import annotations

import asyncio
import threading
from collections import OrderedDict, defaultdict
from collections.abc import Sequence
from typing import ClassVar

from textual.app import App
from textual.binding import Binding, BindingType

from imagefs.errors import ImagefsError
from imagefs.tui.dialogs import Text, help_window
from imagefs.tui.folder import Marks, Order
from imagefs.tui.points import PointsScreen
from imagefs.tui.session import OpenPoint, Point, Session

#: Images that are open at once; each may have a worker process for every volume that was looked into.
MOST_OPEN = 4

LOOKS = """
Screen { background: $background; layout: vertical; }
#title { height: 1; background: $primary-darken-2; color: $text; text-style: bold; padding: 0 1; }
#path { height: 1; background: $surface; color: $accent; padding: 0 1; }
#status { height: 1; background: $surface; color: $text-muted; padding: 0 1; }
#details { height: 4; background: $surface; color: $text-muted; padding: 0 1; }
#main { height: 1fr; }
RowList { height: 1fr; width: 1fr; scrollbar-size-vertical: 1; }
RowList > .row--cursor { background: $primary; color: $text; }
RowList > .row--heading { color: $text-muted; background: $panel; }
RowList > .row--empty { color: $text-muted; text-style: italic; }
RowList > .row--folder { color: $accent; text-style: bold; }
RowList > .row--link { color: #56b6c2; }
RowList > .row--special { color: $warning; }
RowList > .row--deleted { color: $error; }
RowList > .row--escape { color: $warning; }
RowList > .row--dim { color: $text-muted; }
RowList > .row--mark { color: $warning; text-style: bold; }
RowList > .row--good { color: $success; }
RowList > .row--bad { color: $error; }
RowList > .row--title { text-style: bold; }
RowList > .row--warm { color: $warning; }
Pane { height: 1fr; scrollbar-size-vertical: 1; scrollbar-size-horizontal: 1; }
Pane > .pane--escape { color: $warning; }
Pane > .pane--dim { color: $text-muted; }
Pane > .pane--found { background: $primary; color: $text; }
Pane > .pane--title { color: $accent; text-style: bold; }
Pane > .pane--bad { color: $error; }
#preview { width: 45%; border-left: vkey $panel; }
Box, TakingScreen { align: center middle; background: $background 60%; }
.box { width: 72; max-width: 96%; height: auto; max-height: 96%; padding: 0 1; }
.box { border: round $primary; background: $surface; }
.box.wide { width: 84; }
.box .title { text-style: bold; width: 1fr; }
.box .hint { color: $text-muted; width: 1fr; }
.box .wrong { color: $error; }
.box VerticalScroll { height: auto; max-height: 1fr; }
.box Static { height: auto; }
.box Input { border: none; height: 1; background: $panel; padding: 0 1; margin: 1 0; }
.box Checkbox { border: none; background: transparent; padding: 0; height: 1; }
.box Checkbox > .toggle--button { color: $surface-lighten-3; background: $surface-lighten-3; }
.box Checkbox.-on > .toggle--button { color: $success; background: $surface-lighten-3; text-style: bold; }
.box RowList { height: 10; margin: 1 0 0 0; }
Footer { height: 1; }
Toast { max-width: 70; }
"""


class Browser(App[None]):
    """The browser of one set. ``ended_by`` is the signal that ended it, ``failure`` the bug that did."""

    TITLE = "imagefs"
    CSS = LOOKS
    ENABLE_COMMAND_PALETTE = False
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("question_mark,f1", "keys", "Help", key_display="?", priority=False),
        Binding("q,f10,ctrl+q,ctrl+c", "leave", "Quit", key_display="q"),
    ]

    def __init__(self, session: Session, *, signals: Sequence[int] = ()) -> None:
        super().__init__()
        self.session = session
        self.points: list[Point] = []
        self.marks: dict[str, Marks] = defaultdict(Marks)
        self.order = Order()
        self.deleted = False
        #: Where to extract to, as it was said last.
        self.dest = "."
        self.ended_by: int | None = None
        self.failure: Exception | None = None
        self._signals = signals
        self._open: OrderedDict[str, OpenPoint] = OrderedDict()
        self._lock = threading.Lock()

    def on_mount(self) -> None:
        for number in self._signals:
            asyncio.get_running_loop().add_signal_handler(number, self._end_by, number)
        self.push_screen(PointsScreen())

    def _end_by(self, number: int) -> None:
        self.ended_by = number
        self.close()
        self.exit()

    def action_keys(self) -> None:
        if not isinstance(self.screen, Text):
            self.push_screen(help_window())

    def action_leave(self) -> None:
        self.close()
        self.exit()

    # -- images -----------------------------------------------------------------------------------

    def opened(self, point: Point) -> OpenPoint:
        """An image, opened where it was not; called from threads. Raises what opening raises."""
        if point.trouble:
            raise ImagefsError(point.trouble)
        with self._lock:
            if point.id in self._open:
                self._open.move_to_end(point.id)
                return self._open[point.id]
        fresh = self.session.open(point)
        with self._lock:
            found = self._open.setdefault(point.id, fresh)
            over = [fresh] if found is not fresh else []
            while len(self._open) > MOST_OPEN:
                over.append(self._open.popitem(last=False)[1])
        for each in over:
            each.close()
        return found

    def close(self) -> None:
        """Close all images: whatever still waits for one of them ends."""
        with self._lock:
            over = list(self._open.values())
            self._open.clear()
        for each in over:
            each.close()

    # -- bugs -------------------------------------------------------------------------------------

    def _fatal_error(self) -> None:
        """Textual's own shows a traceback; ours is for the command line to say in one sentence."""
        self.failure = self._exception
        self._close_messages_no_wait()


def run(session: Session, *, signals: Sequence[int] = ()) -> int | None:
    """Show the browser until the user leaves; the number of the signal that ended it, if one did."""
    browser = Browser(session, signals=signals)
    try:
        browser.run()
    finally:
        browser.close()
        session.close()
    if browser.failure is not None:
        raise browser.failure
    return browser.ended_by
