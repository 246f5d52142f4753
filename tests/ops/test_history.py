"""Versions of a path over the images of a set, against a script of what was done."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from imagefs.errors import BrowseError, PathNotFound
from imagefs.ops.history import Change, History, path_history
from tests.support.past import Past


def told(found: History) -> list[tuple[str, tuple[str, ...], int]]:
    return [(each.change.value, each.what, each.images) for each in found.versions]


def keep_times(path: Path, text: str) -> None:
    """Other content of the same length, all times that can be set as they were."""
    facts = path.stat()
    path.write_text(text)
    os.utime(path, ns=(facts.st_atime_ns, facts.st_mtime_ns))


@pytest.mark.parametrize("kind", ["ext4", "ntfs"])
def test_a_life(tmp_path: Path, kind: str) -> None:
    past = Past(tmp_path, kind)

    def begin(room: Path) -> None:
        (room / "home/ann").mkdir(parents=True)
        (room / "far").mkdir()
        (room / "far/other.txt").write_bytes(os.urandom(30_000))

    past.step(begin)
    doc = "home/ann/doc.txt"
    ids = [
        past.step(lambda room: (room / doc).write_text("one")),
        past.step(),
        past.step(lambda room: (room / "far/other.txt").write_bytes(os.urandom(30_000))),
        past.step(lambda room: (room / doc).write_text("two and more")),
        past.step(lambda room: (room / doc).unlink()),
        past.step(lambda room: (room / "far/other.txt").write_bytes(os.urandom(30_000))),
        past.step(lambda room: (room / doc).write_text("three")),
    ]
    found = path_history(past.catalog, "p0", b"/home/ann/doc.txt")
    assert found.images == 8
    assert not found.notes
    assert found.opened <= 6  # the others were answered from the one before
    assert told(found) == [
        ("first seen", (), 3),
        ("changed", ("content", "size", "mtime"), 1),
        ("deleted", (), 2),
        ("back again", (), 1),
    ]
    assert [each.number for each in found.versions] == [1, 2, 3, 4]
    assert [each.image.id for each in found.versions] == [ids[0], ids[3], ids[4], ids[6]]
    assert [each.last.id for each in found.versions] == [ids[2], ids[3], ids[5], ids[6]]
    assert [each.entry and each.entry.size for each in found.versions] == [3, 12, None, 5]
    assert found.version(2).image.id == ids[3]
    with pytest.raises(BrowseError, match="version 3 is where it was deleted"):
        found.version(3)
    with pytest.raises(BrowseError, match="no version 5"):
        found.version(5)
    with pytest.raises(PathNotFound):
        path_history(past.catalog, "p0", b"/home/ann/never.txt")
    assert found.versions[0].change is Change.FIRST


@pytest.mark.parametrize("kind", ["ext2", "ext4", "ntfs"])
def test_renamed_away_and_here(tmp_path: Path, kind: str) -> None:
    past = Past(tmp_path, kind)

    def begin(room: Path) -> None:
        (room / "old").mkdir()
        (room / "new place").mkdir()
        (room / "old/a.txt").write_text("what it is")

    def save_as_editors_do(room: Path) -> None:
        (room / "new place/.a.tmp").write_text("what it is, and more")
        (room / "new place/.a.tmp").replace(room / "new place/b.txt")

    past.step(begin)
    past.step(lambda room: (room / "old/a.txt").rename(room / "new place/b.txt"))
    past.step(save_as_editors_do)
    past.step(lambda room: (room / "new place").rename(room / "other place"))
    old = path_history(past.catalog, "p0", b"/old/a.txt")
    assert told(old) == [("first seen", (), 1), ("renamed", (), 3)]
    assert old.versions[1].other == b"/new place/b.txt"
    new = path_history(past.catalog, "p0", b"/new place/b.txt")
    assert [(each.change.value, each.other) for each in new.versions] == [
        ("first seen", b"/old/a.txt"),
        ("changed", None),
        ("renamed", b"/other place/b.txt"),
    ]
    assert new.versions[1].what[:2] == ("content", "size")
    assert new.versions[1].what[-1] == "replaced"
    folder = path_history(past.catalog, "p0", b"/new place")
    assert [(each.change.value, each.added, each.removed) for each in folder.versions] == [
        ("first seen", (), ()),
        ("changed", (b"b.txt",), ()),
        ("changed", (b"b.txt",), (b"b.txt",)),
        ("renamed", (), ()),
    ]


def test_content_that_changes_behind_the_file_systems_back(tmp_path: Path) -> None:
    """No time tells of it, only the chunk."""
    past = Past(tmp_path, "ext4")
    content = os.urandom(100_000)
    past.step(lambda room: (room / "data").write_bytes(content))
    at = past.volume.read_bytes().index(content[40_000:40_064])
    with past.volume.open("r+b") as volume:
        volume.seek(at)
        volume.write(b"forged")
    past.step()
    past.step(lambda room: (room / "beside it").write_bytes(os.urandom(10_000)))
    found = path_history(past.catalog, "p0", b"/data")
    assert told(found) == [("first seen", (), 1), ("changed", ("content",), 2)]
