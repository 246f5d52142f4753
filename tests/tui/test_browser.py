"""The browser, driven by its keys over real images; what is extracted is compared with what was on the disk."""

from __future__ import annotations

import asyncio
import os
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from rich.cells import cell_len

from fixtures.past import HOSTILE, LETTER, PLAN
from imagefs.cli.browser import SetSession
from imagefs.cli.console import Console
from imagefs.errors import BrowseError, ChainError
from imagefs.tui.browser import FolderScreen
from imagefs.tui.dialogs import Text
from imagefs.tui.folder import Mark
from imagefs.tui.jobs import GivenUp
from imagefs.tui.points import PointsScreen
from imagefs.tui.rowlist import RowList
from imagefs.tui.session import Beat, Point, Taken, Wishes
from imagefs.tui.taking import TakingScreen
from imagefs.tui.versions import VersionsScreen
from imagefs.tui.viewer import ViewerScreen
from tests.tui.conftest import Driven, drive

NOTES = ("after the upgrade", "KiB", "before the move")


def words(row: str) -> list[str]:
    return row.split()


def test_from_the_points_in_time_down_to_a_folder(past: Path) -> None:
    async def script(browser: Driven) -> None:
        assert isinstance(browser.screen, PointsScreen)
        assert browser.line("title") == "backups  3 points in time"
        assert [words(row)[:2] for row in browser.rows] == [
            ["2026-11-20", "19:00"],
            ["2026-11-19", "19:00"],
            ["2026-11-18", "19:00"],
        ]
        assert [row.rstrip().endswith(note) for row, note in zip(browser.rows, NOTES, strict=True)] == [
            True
        ] * 3
        assert "full" in browser.rows[2]
        assert "id 5e7b23f0" in browser.line("details")
        await browser.press("enter")
        assert isinstance(browser.screen, FolderScreen)
        assert [words(row)[0] for row in browser.rows] == ["/p1", "/p2"]
        assert words(browser.rows[1])[-3:] == ["ext4", "home", "linux"]
        await browser.press("down", "enter")
        assert browser.names == [b"docs", b"lost+found", b"music", b"names", b"photos"]
        await browser.press("enter")
        assert browser.line("path") == "/p2/docs"
        assert browser.names[:2] == [b"budget.csv", b"empty"]
        await browser.press("backspace")
        assert browser.screen._current() == b"docs", "the cursor is on where one came from"
        await browser.press("left", "left", "t")
        assert isinstance(browser.screen, PointsScreen)

    drive(script, past)


def test_older_and_newer_in_the_same_folder(past: Path) -> None:
    async def script(browser: Driven) -> None:
        assert b"budget.csv" in browser.names
        assert b"draft.txt" not in browser.names
        await browser.press("left_square_bracket")
        assert "2026-11-19" in browser.line("title")
        assert b"budget.csv" not in browser.names
        await browser.press("left_square_bracket")
        assert b"draft.txt" in browser.names
        await browser.press("left_square_bracket")
        assert browser.notices[-1] == "this is the oldest image"
        await browser.press("right_square_bracket", "right_square_bracket")
        assert b"budget.csv" in browser.names

    drive(script, past, path=b"/p2/docs")


def test_a_folder_that_is_not_in_another_image(past: Path) -> None:
    async def script(browser: Driven) -> None:
        await browser.press("colon")
        await browser.type("/p2/docs/nowhere/at all")
        assert browser.line("path") == "/p2/docs"
        assert "is not in this image" in browser.notices[-1]
        await browser.press("colon")
        await browser.type("/p9")
        assert "the image has no volume p9" in browser.notices[-1]
        await browser.press("colon")
        await browser.type("/p2/docs/letter.txt")
        assert browser.screen._current() == b"letter.txt"
        await browser.press("colon")
        await browser.type("C:\\Windows")
        assert not any("Traceback" in each for each in browser.notices)

    drive(script, past, path=b"/p2")


def test_hostile_names_keep_their_lines_and_can_be_taken(past: Path, tmp_path: Path) -> None:
    async def script(browser: Driven) -> None:
        assert set(browser.names) == set(HOSTILE)
        width = browser.screen.query_one(RowList).size.width
        assert all(row.isprintable() for row in browser.rows)
        assert {cell_len(row) for row in browser.rows} == {width - 1}
        shown = "\n".join(browser.rows)
        for part in (
            "[bold red]markup",
            "\\x07",
            "\\x1b[31m",
            "\\u202e",
            "\\nbreak",
            "\\xff\\xfe",
            "space␠",
            "日本語",
        ):
            assert part in shown
        await browser.press("asterisk", "e")
        await browser.type(str(tmp_path))
        await browser.press("escape")

    drive(script, past, path=b"/p2/names")
    made = {name: (Path(os.fsdecode(os.fsencode(tmp_path) + b"/" + name))).read_bytes() for name in HOSTILE}
    assert made == {name: b"content of " + name for name in HOSTILE}


def test_marked_files_and_folders_are_extracted_as_they_were(room: Path, tmp_path: Path) -> None:
    async def script(browser: Driven) -> None:
        await browser.put(b"photos")
        await browser.press("space")
        await browser.put(b"docs")
        await browser.press("enter")
        await browser.put(b"letter.txt")
        await browser.press("insert")
        assert "2 marked: 46 B + 1 folder" in browser.line("title")
        assert browser.rows[browser.names.index(b"letter.txt")].startswith("* ")
        await browser.press("e")
        await browser.type(str(tmp_path))
        assert isinstance(browser.screen, TakingScreen)
        assert browser.screen.taken.words == "3 files, 176.3 KiB"
        await browser.press("enter")
        assert "marked" not in browser.line("title"), "what was extracted is marked no longer"

    drive(script, room / "backups", path=b"/p2")
    stage = room / "stage/home"
    for name in ("photos/harbour.jpg", "photos/logo.png"):
        assert (tmp_path / name).read_bytes() == (stage / name).read_bytes()
    assert (tmp_path / "letter.txt").read_text("cp1252") == LETTER
    assert (tmp_path / "letter.txt").stat().st_mtime > 1_790_000_000, "times are kept"
    assert sorted(os.listdir(tmp_path)) == ["letter.txt", "photos"]


def test_what_is_there_is_not_overwritten_unless_asked(past: Path, tmp_path: Path) -> None:
    (tmp_path / "plan.md").write_text("mine")

    async def script(browser: Driven) -> None:
        await browser.press("e")
        await browser.type(str(tmp_path))
        taken = browser.screen.taken
        assert taken.words == "0 files, 0 B"
        assert "exists already" in taken.findings[0].message
        assert "is left out" in browser.rows[0]
        assert (tmp_path / "plan.md").read_text() == "mine"
        await browser.press("escape", "e")
        await browser.press("tab", "space")
        browser.screen.query_one("Input").focus()
        await browser.press("enter")
        assert browser.screen.taken.words == "1 file, 57 B"

    drive(script, past, path=b"/p2/docs/plan.md")
    assert (tmp_path / "plan.md").read_text().startswith("Plan\n====")


def test_a_destination_that_cannot_be_is_one_sentence(past: Path, tmp_path: Path) -> None:
    async def script(browser: Driven) -> None:
        await browser.press("space", "space", "e")
        await browser.type(str(tmp_path / "not there"))
        assert "need an existing folder as DEST" in browser.line("beat")
        await browser.press("escape")
        assert isinstance(browser.screen, FolderScreen)

    drive(script, past, path=b"/p2/docs")


def test_deleted_files_with_how_whole_they_are(room: Path, tmp_path: Path) -> None:
    async def script(browser: Driven) -> None:
        assert browser.names == []
        assert "this folder is empty" in browser.screen.query_one(RowList).empty
        await browser.press("d")
        assert browser.names == [b"song.bin"]
        assert "intact" in browser.rows[0]
        assert "deleted too" in browser.line("status")
        await browser.press("i")
        assert isinstance(browser.screen, Text)
        await browser.press("escape", "e")
        await browser.type(str(tmp_path))
        assert browser.screen.taken.words == "1 file, 878.9 KiB"
        await browser.press("escape", "d")
        assert browser.names == []

    drive(script, room / "backups", path=b"/p2/music")
    assert (tmp_path / "song.bin").read_bytes() == (room / "stage/home/music/song.bin").read_bytes()


def test_versions_of_a_file_are_viewed_and_taken(room: Path, tmp_path: Path) -> None:
    async def script(browser: Driven) -> None:
        await browser.press("v")
        assert isinstance(browser.screen, VersionsScreen)
        assert [row.split()[3] for row in browser.rows] == ["changed", "changed", "first"]
        await browser.press("down", "enter")
        assert isinstance(browser.screen, ViewerScreen)
        assert browser.screen.lines[0] == "Report, second draft"
        await browser.press("escape", "down", "e")
        await browser.type(str(tmp_path / "first.txt"))
        await browser.press("escape", "o")
        assert isinstance(browser.screen, FolderScreen)
        assert "2026-11-18" in browser.line("title")
        assert browser.screen._current() == b"report.txt"

    drive(script, room / "backups", path=b"/p2/docs/report.txt")
    assert (tmp_path / "first.txt").read_text() == "Report, first draft\n" * 40


def test_a_version_that_was_not_there(past: Path) -> None:
    async def script(browser: Driven) -> None:
        for _ in range(2):
            await browser.press("left_square_bracket")
        await browser.put(b"draft.txt")
        await browser.press("v")
        assert [row.split()[3] for row in browser.rows] == ["deleted", "first"]
        await browser.press("enter")
        assert "it was deleted there" in browser.notices[-1]

    drive(script, past, path=b"/p2/docs")


def test_texts_in_their_encodings_and_hex(past: Path) -> None:
    async def script(browser: Driven) -> None:
        for name, encoding, line in (
            (b"letter.txt", "cp1252", "Liebe Grüße aus Köln,"),
            (b"notes.txt", "utf-16-le", "Notizen für später"),
            (b"plan.md", "utf-8", "Plan"),
        ):
            await browser.put(name)
            await browser.press("enter")
            assert browser.screen.encoding == encoding
            assert browser.screen.lines[0] == line
            await browser.press("x")
            assert "hex" in browser.line("status")
            await browser.press("x", "c")
            assert browser.screen.encoding != encoding
            await browser.press("escape")
        await browser.put(b"empty")
        await browser.press("f3")
        assert browser.line("status").startswith("0 B")

    drive(script, past, path=b"/p2/docs")


def test_searching_in_a_text_and_in_hex(past: Path) -> None:
    async def script(browser: Driven) -> None:
        await browser.press("enter", "slash")
        await browser.type("CUT")
        assert browser.screen.pane.lit == 4
        await browser.press("n")
        assert browser.screen.pane.lit == 4, "round the end, to the only one"
        await browser.press("slash")
        await browser.type("nowhere")
        assert "is not in this text" in browser.notices[-1]
        await browser.press("x", "slash")
        await browser.type("0x637574")
        assert browser.screen.pane.lit == PLAN.index("cut") // 16
        await browser.press("colon")
        await browser.type("0x20")
        assert browser.screen.pane.top <= 2

    drive(script, past, path=b"/p2/docs/plan.md")


def test_pictures_tell_their_facts(past: Path) -> None:
    async def script(browser: Driven) -> None:
        await browser.press("enter")
        assert "JPEG 4032 × 3024" in browser.line("status")
        await browser.press("i")
        text = str(browser.screen._text)
        for fact in ("4032 × 3024", "Example X100", "2026:11:03 10:15:00", "53.54587, 9.96667", "inode"):
            assert fact in text

    drive(script, past, path=b"/p2/photos/harbour.jpg")


def test_filter_find_sort_and_links(past: Path) -> None:
    async def script(browser: Driven) -> None:
        await browser.press("slash")
        await browser.type("*.TXT")
        assert browser.names == [b"letter.txt", b"notes.txt", b"report.txt"]
        await browser.press("ctrl+r")
        assert len(browser.names) == 3, "a filter stays while the folder does"
        await browser.press("s")
        assert browser.names == [b"report.txt", b"letter.txt", b"notes.txt"]
        await browser.press("r")
        assert "smallest first" in browser.line("status")
        assert browser.names == [b"notes.txt", b"letter.txt", b"report.txt"]
        await browser.press("escape")
        assert len(browser.names) == 8 - 1
        await browser.put(b"latest")
        await browser.press("enter")
        assert browser.screen._current() == b"report.txt", "a link is followed within its volume"
        await browser.press("left", "f")
        await browser.type("*o.*")
        assert browser.names == [b"photos/logo.png"]
        await browser.press("enter")
        assert browser.line("path") == "/p2/photos"
        assert browser.screen._current() == b"logo.png"
        await browser.press("left", "f")
        await browser.type("no such name")
        assert browser.names == []
        await browser.press("escape")
        assert b"docs" in browser.names

    drive(script, past, path=b"/p2/docs")


def test_marking_by_glob(past: Path) -> None:
    async def script(browser: Driven) -> None:
        await browser.press("plus")
        await browser.type("*.txt")
        assert len(browser.screen.marks) == 3
        await browser.press("minus")
        await browser.type("l*")
        assert len(browser.screen.marks) == 2
        await browser.press("asterisk")
        assert len(browser.screen.marks) == len(browser.names) - 2
        await browser.press("U")
        assert len(browser.screen.marks) == 0

    drive(script, past, path=b"/p2/docs")


@pytest.mark.parametrize("size", [(80, 24), (200, 60), (20, 5)])
def test_every_size_of_terminal(past: Path, size: tuple[int, int]) -> None:
    async def script(browser: Driven) -> None:
        for key in (
            "question_mark",
            "escape",
            "space",
            "d",
            "v",
            "escape",
            "enter",
            "x",
            "w",
            "escape",
            "e",
            "escape",
        ):
            await browser.press(key)
        assert isinstance(browser.screen, FolderScreen)
        assert browser.app.failure is None

    drive(script, past, path=b"/p2/docs/report.txt", size=size)


def test_the_preview_beside_the_list(past: Path) -> None:
    async def script(browser: Driven) -> None:
        pane = browser.screen.query_one("#preview")
        assert pane.display
        await browser.put(b"letter.txt")
        assert "".join(text for text, _ in pane._lines(0)) == "Liebe Grüße aus Köln,"
        await browser.put(b"latest")
        assert "".join(text for text, _ in pane._lines(0)) == "a link to report.txt"
        await browser.press("p")
        assert not pane.display

    drive(script, past, path=b"/p2/docs", size=(120, 30))


def test_damaged_and_unfinished_images_are_shown_and_said(past: Path, tmp_path: Path) -> None:
    broken = tmp_path / "broken"
    broken.mkdir()
    for path in past.iterdir():
        if path.name.endswith(".imagefs"):
            (broken / path.name).write_bytes(path.read_bytes())
    images = sorted(broken.iterdir())
    images[0].chmod(0o600)
    images[0].write_bytes(images[0].read_bytes()[:-50])

    async def script(browser: Driven) -> None:
        assert "2 points in time" in browser.line("title")
        assert "cannot be used" in browser.rows[2]
        await browser.press("end", "enter")
        assert isinstance(browser.screen, PointsScreen)
        assert browser.notices
        await browser.press("home", "enter")
        assert any("parent" in each for each in browser.notices)
        assert "Traceback" not in "".join(browser.notices)

    drive(script, broken)


def test_new_images_appear_when_read_again(past: Path, tmp_path: Path) -> None:
    some = tmp_path / "some"
    some.mkdir()
    images = sorted(past.glob("*.imagefs"))
    (some / images[0].name).write_bytes(images[0].read_bytes())

    async def script(browser: Driven) -> None:
        assert len(browser.rows) == 1
        (some / images[1].name).write_bytes(images[1].read_bytes())
        await browser.press("ctrl+r")
        assert len(browser.rows) == 2
        assert browser.screen.rowlist.cursor == 1, "the cursor stays on its image"

    drive(script, some)


def test_an_empty_set_says_what_to_do(tmp_path: Path) -> None:
    async def script(browser: Driven) -> None:
        assert browser.rows == []
        assert "imagefs capture" in browser.screen.query_one(RowList).empty
        await browser.press("enter", "i")

    drive(script, tmp_path)


def test_errors_of_a_parser_are_one_sentence(past: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Damage in a folder, a file and a bug: the browser says so and goes on."""
    from imagefs.tui import reading, viewer

    def damaged(*_: object, **__: object) -> object:
        raise BrowseError("'/docs' cannot be read: bad\x1b block", hint="look elsewhere")

    def bug(*_: object) -> object:
        raise ZeroDivisionError("really")

    async def script(browser: Driven) -> None:
        monkeypatch.setattr(viewer, "place_of", bug)
        await browser.press("enter")
        assert isinstance(browser.screen, FolderScreen)
        assert browser.notices[-1] == "this is a bug in imagefs: ZeroDivisionError: really"
        monkeypatch.setattr(reading, "arranged", damaged)
        monkeypatch.setattr("imagefs.tui.folderview.read_folder", damaged)
        await browser.press("ctrl+r")
        assert browser.notices[-1] == "'/docs' cannot be read: bad\\x1b block; look elsewhere"
        assert browser.app.failure is None

    drive(script, past, path=b"/p2/docs/plan.md")


class _Slow:
    """An extraction that goes on until it is ended, and tells how far it is."""

    def __init__(self, opened: Any) -> None:
        self._opened = opened
        self.ended = threading.Event()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._opened, name)

    def extract(self, marks: object, dest: str, wishes: object, told: Any, heed: Any) -> Taken:
        try:
            for _ in range(100_000):
                heed()
                told(Beat("extract", 3 << 20, 12 << 20, 1 << 20, 9.0))
                time.sleep(0.01)
        finally:
            self.ended.set()
        raise AssertionError("nobody ended it")


def test_progress_with_rate_and_time_left_and_an_end_to_it(
    past: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    slow: list[_Slow] = []

    async def script(browser: Driven) -> None:
        opened = browser.app.opened(browser.app.points[0])
        slow.append(_Slow(opened))
        monkeypatch.setattr(browser.app, "opened", lambda point: slow[0])
        await browser.press("e")
        await browser.pilot.press("enter")
        while "left" not in browser.line("beat"):
            await asyncio.sleep(0.01)
        bar, words = browser.line("beat").splitlines()
        assert bar == "█" * 10 + "░" * 30 + "  25%"
        assert words == "3.0 MiB of 12.0 MiB   1.0 MiB/s   00:09 left"
        await browser.pilot.press("q", "enter")
        assert isinstance(browser.screen, TakingScreen), "it is not closed while it is under way"
        await browser.press("escape")
        assert "cancelled; what was taken before stays" in browser.line("beat")
        assert slow[0].ended.is_set()
        await browser.press("escape")
        assert isinstance(browser.screen, FolderScreen)

    drive(script, past, path=b"/p2/docs/plan.md")


def test_a_real_extraction_that_is_ended_leaves_no_half_file(room: Path, tmp_path: Path) -> None:
    """By the session itself: ended after so many steps, for every number of steps until it runs through."""
    console = Console()
    session = SetSession(console, str(room / "backups"), b"/")
    opened = session.open(session.points()[0])
    whole = {path.name: path.read_bytes() for path in (room / "stage/home/photos").iterdir()}
    beats: list[Beat] = []
    try:
        for allowed in range(1000):
            left = allowed
            target = tmp_path / str(allowed)
            target.mkdir()

            def heed() -> None:
                nonlocal left
                left -= 1
                if left < 0:
                    raise GivenUp

            marks = [Mark(b"/p2/photos"), Mark(b"/p2/music/song.bin", deleted=True)]
            try:
                taken = opened.extract(marks, str(target), Wishes(), beats.append, heed)
            except GivenUp:
                made = [path for path in target.rglob("*") if path.is_file()]
                assert all(path.read_bytes() == whole.get(path.name, b"") for path in made)
                continue
            assert taken.words == "3 files, 1.0 MiB"
            break
    finally:
        opened.close()
    assert allowed > 8
    assert {beat.label for beat in beats} >= {"count", "extract"}
    assert sum(beat.total or 0 for beat in beats[-4:]) >= 900_000


def test_stepping_to_an_image_that_cannot_be_opened_stays_where_it_is(
    past: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def script(browser: Driven) -> None:
        opened = browser.app.opened

        def sometimes(point: Point) -> object:
            if point is not browser.app.points[0]:
                raise ChainError("the parent is gone", hint="find it")
            return opened(point)

        monkeypatch.setattr(browser.app, "opened", sometimes)
        await browser.press("left_square_bracket")
        assert browser.notices[-1] == "the parent is gone; find it"
        assert "2026-11-20" in browser.line("title")
        assert b"budget.csv" in browser.names
        await browser.press("enter")
        assert isinstance(browser.screen, ViewerScreen), "and what is shown is still that of this image"

    drive(script, past, path=b"/p2/docs")


def test_an_image_under_another_name(past: Path, tmp_path: Path) -> None:
    renamed = tmp_path / "monday.backup"
    renamed.write_bytes(min(past.glob("*.imagefs")).read_bytes())

    async def script(browser: Driven) -> None:
        assert b"draft.txt" in browser.names
        await browser.press("t")
        assert browser.line("title").endswith("1 point in time")

    drive(script, renamed, path=b"/p2/docs")
