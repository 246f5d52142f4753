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
        (room / "home/other.txt").write_bytes(os.urandom(30_000))

    past.step(begin)
    doc = "home/ann/doc.txt"
    ids = [
        past.step(lambda room: (room / doc).write_text("one")),
        past.step(),
        past.step(lambda room: (room / "home/other.txt").write_bytes(os.urandom(30_000))),
        past.step(lambda room: (room / doc).write_text("two and more")),
        past.step(lambda room: (room / doc).unlink()),
        past.step(lambda room: (room / "home/other.txt").write_bytes(os.urandom(30_000))),
        past.step(lambda room: (room / doc).write_text("three")),
    ]
    found = path_history(past.catalog, 0, b"/home/ann/doc.txt")
    assert found.images == 8 and not found.notes
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
        path_history(past.catalog, 0, b"/home/ann/never.txt")
    assert found.versions[0].change is Change.FIRST
