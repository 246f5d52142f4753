"""Small windows over a screen: a question with one line to type, the keys, a text to read."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar

from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Vertical, VerticalScroll
from textual.content import Content
from textual.screen import ModalScreen
from textual.widgets import Input, Label, Static

HELP = """\
Moving
  ↑ ↓  k j           one line
  PgUp  PgDn         one page
  Home End  g G      the first, the last
  Enter  →  l        open a folder, view a file, follow a link
  Backspace  ←  h    to the folder above
  :  Ctrl+G          go to a path
  [  ]               the same folder in the next older or newer image
  t                  back to the points in time
  Esc                leave what was found, a filter, a window

Looking
  Enter  F3          view a file: text, or else hex
  i                  all facts of a file, of a picture too
  p                  preview beside the list, or not
  v                  versions of this file or folder over all images
  d                  deleted files too, and how whole each is
  /                  show only names with …
  f  F7              find names everywhere below
  s  r               sort by the next column, the other way round
  Ctrl+R             read again; among the points in time: new images

Taking out
  Space  Insert      mark or unmark
  *  +  -  U         all the other way round; mark, unmark by a glob; none
  e  F5              extract what is marked, or what the cursor is on

Viewing a file
  x  F4              hex or text
  c                  the next encoding
  w  F2              wrap long lines
  /  n               search, search on
  :                  go to a line, in hex to an offset such as 0x1000

What you see
  / folder   @ link   + device   | pipe   = socket   * marked   red: deleted
  What cannot be shown is an escape in another colour: \\x1b, \\u202e, ␠.
  A live folder is extracted with its live files, a deleted one with what
  is left of it. Nothing here ever writes to an image.

? or F1 shows this, q or F10 leaves."""


class Box(ModalScreen[Any]):
    """A window in the middle; Esc closes it with nothing."""

    BINDINGS: ClassVar[list[BindingType]] = [Binding("escape", "leave", "Close")]

    def action_leave(self) -> None:
        self.dismiss(None)


class Ask(Box):
    """A question and one line for the answer; ``check`` says why an answer will not do, or nothing."""

    def __init__(
        self,
        question: str,
        answer: str = "",
        *,
        hint: str = "",
        check: Callable[[str], str] = lambda text: "",
    ) -> None:
        super().__init__()
        self._question, self._answer, self._hint, self._check = question, answer, hint, check

    def compose(self) -> ComposeResult:
        with Vertical(classes="box"):
            yield Label(self._question, classes="title", markup=False)
            yield Input(self._answer)
            yield Label(self._hint, classes="hint", markup=False)

    def on_input_submitted(self, event: Input.Submitted) -> None:
        why_not = self._check(event.value)
        if why_not:
            self.query_one(".hint", Label).update(Content(why_not))
        else:
            self.dismiss(event.value)


class Text(Box):
    """A text to read."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("escape,q,enter,question_mark,f1,i", "leave", "Close"),
        Binding("down,j", "scroll(1)", show=False),
        Binding("up,k", "scroll(-1)", show=False),
        Binding("pagedown,space", "scroll(10)", show=False),
        Binding("pageup", "scroll(-10)", show=False),
    ]

    def __init__(self, title: str, text: Content | str) -> None:
        super().__init__()
        self._title = title
        self._text = Content(text) if isinstance(text, str) else text

    def compose(self) -> ComposeResult:
        with Vertical(classes="box wide"):
            yield Label(self._title, classes="title", markup=False)
            with VerticalScroll(can_focus=False):
                yield Static(self._text, markup=False)
            yield Label("Esc closes", classes="hint")

    def action_scroll(self, lines: int) -> None:
        self.query_one(VerticalScroll).scroll_relative(y=lines, animate=False)


def help_window() -> Text:
    return Text("Keys", HELP)
