"""What the full screens have in common: lines about what is shown above and below it, a list, and keys at the foot."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, cast

from textual.app import ComposeResult
from textual.content import Content
from textual.widgets import Footer, Static

from imagefs.tui.jobs import JobScreen
from imagefs.tui.rowlist import RowList

if TYPE_CHECKING:
    from imagefs.tui.app import Browser


class FrameScreen(JobScreen):
    """``above`` and ``below`` are the ids of the lines about its ``main`` part."""

    above: ClassVar[tuple[str, ...]] = ("title", "path")
    below: ClassVar[tuple[str, ...]] = ("status",)

    def compose(self) -> ComposeResult:
        for line in self.above:
            yield Static(id=line, markup=False)
        yield from self.main()
        for line in self.below:
            yield Static(id=line, markup=False)
        yield Footer(compact=True)

    def main(self) -> ComposeResult:
        yield RowList(id="list")

    @property
    def browser(self) -> Browser:
        return cast("Browser", self.app)

    @property
    def rowlist(self) -> RowList:
        return self.query_one("#list", RowList)

    def write(self, line: str, text: str) -> None:
        """Text into one of the lines, as it is."""
        self.query_one(f"#{line}", Static).update(Content(text))
