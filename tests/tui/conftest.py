"""A set with a past, built once, and a browser that is driven by its keys."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import timezone
from pathlib import Path
from typing import Any

import pytest
from textual.pilot import Pilot
from textual.widgets import Static

from fixtures.draw import at_rest
from fixtures.past import build_past
from imagefs.cli.browser import SetSession
from imagefs.cli.console import Console
from imagefs.tui.app import Browser
from imagefs.tui.rowlist import RowList


@dataclass
class Driven:
    """A browser under test. After ``press`` all that a key set off is done."""

    app: Browser
    pilot: Pilot[None]

    async def press(self, *keys: str) -> None:
        for key in keys:
            await self.pilot.press(key)
            await at_rest(self.app, self.pilot)

    async def type(self, text: str) -> None:
        """Into the field that has the focus, in the place of what is there."""
        field: Any = self.app.screen.focused
        field.value = text
        await self.press("enter")

    @property
    def screen(self) -> Any:
        return self.app.screen

    @property
    def rows(self) -> list[str]:
        """The lines of the list, as texts."""
        shown = self.screen.query_one(RowList)
        width = shown.size.width
        return ["".join(text for text, _ in shown.table.cells(at, width)) for at in range(len(shown.table))]

    @property
    def names(self) -> list[bytes]:
        """The names in the folder that is shown."""
        listed = self.screen.listed
        return [listed.rows.names[index] for index in listed.shown]

    async def put(self, name: bytes) -> None:
        """The cursor on a name."""
        self.screen.rowlist.move_to(self.names.index(name))
        await at_rest(self.app, self.pilot)

    def line(self, id: str) -> str:
        return str(self.screen.query_one(f"#{id}", Static).content)

    @property
    def notices(self) -> list[str]:
        return [each.message for each in self.app._notifications]


Script = Callable[[Driven], Awaitable[None]]


@asynccontextmanager
async def driven(
    set_: Path | str, *, path: bytes = b"/", size: tuple[int, int] = (80, 24)
) -> AsyncIterator[Driven]:
    console = Console()
    console.zone = timezone.utc  # noqa: UP017 (typed as tzinfo)
    app = Browser(SetSession(console, str(set_), path))
    async with app.run_test(size=size, notifications=True) as pilot:
        await at_rest(app, pilot)
        yield Driven(app, pilot)
        app.close()


def drive(script: Script, set_: Path | str, **options: Any) -> None:
    """Run ``script`` on a browser of ``set_``."""

    async def run() -> None:
        async with driven(set_, **options) as browser:
            await script(browser)

    asyncio.run(run())


@pytest.fixture(scope="session")
def room(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with ``disk.raw`` as it was in the end, what was put on it in ``stage``, and ``backups``."""
    room = tmp_path_factory.mktemp("past")
    build_past(room)
    return room


@pytest.fixture
def past(room: Path) -> Path:
    return room / "backups"
