"""History, differences and growth of volumes inside volumes, held against kernel mounts of their bytes, and against the
same file system captured as a disk of its own."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from imagefs.format.header import Mode
from imagefs.image.catalog import SUFFIX, scan
from imagefs.image.changes import changes_between
from imagefs.ops.diff import Kind, VolumeDiff, diff
from imagefs.ops.diskimage import DiskImage
from imagefs.ops.growth import growth
from imagefs.ops.history import History, path_history
from imagefs.store import LocalStore
from tests.ops import test_growth
from tests.ops.test_diff import as_diff_tells, by_diff, change, check_facts, facts_of, fill
from tests.support.images import capture_file
from tests.support.insidepast import InsidePast, LuksPast, LvmPast, MirrorPast
from tests.support.oracles import run_tool, unpacked_corpus_file
from tests.support.past import Past

PASTS: dict[str, Callable[[Path], InsidePast]] = {"lvm": LvmPast, "luks": LuksPast, "mirror": MirrorPast}


def compared(past: InsidePast, old: int = 0, new: int = -1, *, locked: bool = False) -> dict[str, VolumeDiff]:
    images, secrets = past.catalog.images, {} if locked else past.secrets()
    one, other = (DiskImage(past.catalog.open_disk(images[at]), images[at]) for at in (old, new))
    for each in (one, other):
        each.unlock(secrets, lenient=True)
    with one, other:
        found = diff(one, other, changes_between(one.disk, other.disk))
        return {each.volume: each for each in found}


@pytest.mark.parametrize("kind", ["lvm", "luks"])
def test_as_two_mounts_differ(tmp_path: Path, kind: str) -> None:
    past = PASTS[kind](tmp_path)
    past.step(fill)
    shutil.copy(past.volume, tmp_path / "before")
    past.step(change)
    volumes = compared(past)
    found = volumes[past.name]
    assert (found.way, found.why, found.notes) == ("records", "", [])
    with (
        past.mounted(options="ro", volume=tmp_path / "before") as one,
        past.mounted(options="ro", room=tmp_path / "second") as other,
    ):
        assert as_diff_tells(found) == by_diff(one, other)
        check_facts(found, facts_of(one, modes=True), facts_of(other, modes=True))
    assert sum(each.kind is Kind.RENAMED for each in found.differences) >= 6
    ways = {name: each.way for name, each in volumes.items()}
    outer = past.name.partition(".")[0]
    assert ways.pop(outer) == "container"
    assert ways.pop(past.name) == "records"
    if kind == "lvm":  # what cannot be read may lie anywhere on the disk
        assert {name for name, way in ways.items() if way == "unreadable"} == {"p1.6", "p1.7"}
        assert {ways[name] for name in ("p1.2", "p1.3", "p1.4", "p1.5", "p3", "p4")} == {"unchanged"}


def begin(room: Path) -> None:
    (room / "home").mkdir()
    (room / "home/doc.txt").write_text("one")
    (room / "away").mkdir()
    (room / "away/other").write_bytes(os.urandom(50_000))


#: After the first: nothing to do with the file, three versions of it, gone, nothing, back.
STEPS: list[Callable[[Path], object]] = [
    lambda room: (room / "away/unrelated").write_bytes(os.urandom(200_000)),
    lambda room: (room / "home/doc.txt").write_text("the second one"),
    lambda room: (room / "home/doc.txt").rename(room / "home/renamed.txt"),
    lambda room: (room / "away/unrelated").unlink(),
    lambda room: (room / "home/doc.txt").write_text("again"),
]


def history(past: InsidePast, path: bytes, volume: str = "") -> History:
    secrets = past.secrets()

    def opened(info: object) -> DiskImage:
        image = DiskImage(past.catalog.open_disk(info), info)  # type: ignore[arg-type]
        image.unlock(secrets, lenient=True)
        return image

    return path_history(past.catalog, volume or past.name, path, opener=opened)


@pytest.mark.parametrize("kind", list(PASTS))
def test_every_version(tmp_path: Path, kind: str) -> None:
    past = PASTS[kind](tmp_path)
    ids = [past.step(begin), *(past.step(each) for each in STEPS)]
    found = history(past, b"/home/doc.txt")
    assert found.notes == []
    assert [(str(each.change), each.what, each.image.id) for each in found.versions] == [
        ("first seen", (), ids[0]),
        ("changed", ("content", "size", "mtime"), ids[2]),
        ("renamed", (), ids[3]),
        ("back again", (), ids[5]),
    ]
    assert found.versions[2].other == b"/home/renamed.txt"
    assert {each.volume for each in found.versions} == {past.name}
    assert [each.entry and each.entry.size for each in found.versions] == [3, 14, None, 5]
    assert found.images == 6
    assert found.opened <= 4  # where no byte changed that it depends on, no file system is opened
    folder = history(past, b"/home")
    assert [(each.added, each.removed) for each in folder.versions] == [
        ((), ()),
        ((b"renamed.txt",), (b"doc.txt",)),
        ((b"doc.txt",), ()),
    ]


@pytest.mark.parametrize("kind", ["lvm", "luks"])
def test_who_accounts_for_an_image(tmp_path: Path, kind: str) -> None:
    """The files, folders and metadata that do when the same file system is captured as a disk of its own."""
    past, plain = PASTS[kind](tmp_path), Past.__new__(Past)
    (tmp_path / "plain").mkdir()
    plain.store = LocalStore(tmp_path / "plain", suffix=SUFFIX)
    for step in (fill, change):
        past.step(step)
        capture_file(plain.store, past.volume, mode=Mode.ALL)
    expected, _ = test_growth.grown(plain.catalog)
    info, before = past.catalog.images[-1], past.catalog.images[-2]
    with DiskImage(past.catalog.open_disk(info), info) as image:
        image.unlock(past.secrets())
        found = growth(image, past.catalog.open_disk(before))
    assert sum(share for _, share, _ in found.shares) + found.overhead == info.tail.size
    assert found.notes == []
    mine = {(owner.kind, owner.name) for owner, _, _ in found.shares if owner.volume == past.name}
    assert mine == {(owner.kind, owner.name) for owner, _, _ in expected.shares}
    assert {owner.volume for owner, _, _ in found.shares} == {past.name}


def test_growth_of_what_is_locked_and_of_what_holds_volumes(tmp_path: Path) -> None:
    past = LvmPast(tmp_path)
    past.step(fill)
    info = past.catalog.images[-1]
    with DiskImage(past.catalog.open_disk(info), info) as image:
        found = growth(image, None)
    assert sum(share for _, share, _ in found.shares) + found.overhead == info.tail.size
    owners = {(owner.volume, owner.kind) for owner, _, _ in found.shares}
    assert {
        ("p1", "metadata"),
        ("p2", "metadata"),
        ("p4", "closed"),
        ("p1.3", "file"),
        ("p1.5", "file"),
    } <= owners
    assert not any(owner == ("p4.1", "file") for owner in owners)
    assert [note.partition(" (")[0] for note in found.notes if "p4" in note] == ["p4 is locked"]


def test_shadow_copies_are_compared_and_followed_where_they_are_named(tmp_path: Path) -> None:
    """plaso's disk, captured again after the volume itself was written to: its shadow copies are as they were."""
    packed = unpacked_corpus_file("plaso/test_data/vsstest.qcow2", tmp_path)
    run_tool(["qemu-img", "convert", "-O", "raw", packed, tmp_path / "disk"])
    (tmp_path / "plain").mkdir()
    store = LocalStore(tmp_path / "plain", suffix=SUFFIX)
    capture_file(store, tmp_path / "disk", mode=Mode.ALL)
    with (tmp_path / "disk").open("r+b") as disk:
        disk.seek(300)  # in the code that boots
        disk.write(b"other code")
    capture_file(store, tmp_path / "disk", mode=Mode.ALL)
    catalog, copy = scan(store), "p0@20131203T063509Z"
    found = path_history(catalog, copy, b"/syslog")
    assert [(str(each.change), each.images) for each in found.versions] == [("first seen", 2)]
    one, other = (DiskImage(catalog.open_disk(info), info) for info in catalog.images)
    with one, other:
        changes = changes_between(one.disk, other.disk)
        (row,) = diff(one, other, changes, only=copy)
        assert (row.way, row.differences, row.notes) == ("records", [], [])
        assert [each.volume for each in diff(one, other, changes)] == ["p0"]
