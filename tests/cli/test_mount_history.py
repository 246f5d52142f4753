"""``imagefs mount SET DIR --history`` from end to end."""

from __future__ import annotations

import filecmp
import json
import os
import shutil
import subprocess
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from fixtures.tools import run_tool
from imagefs.cli.points import point_specs
from imagefs.image.catalog import ImageInfo, scan
from imagefs.store import LocalStore, MemoryStore
from mounter.points import OpenedPoint
from tests.cli.mounts import Room
from tests.mounter.conftest import is_mounted, need, wait_until
from tests.support.images import capture_bytes, noise

pytestmark = pytest.mark.timeout(1200)


def _make(folder: Path) -> Room:
    """Three images of an ext4: at first, with a file more, and with a file less."""
    room = Room(folder)
    files = folder / "files"
    (files / "sub").mkdir(parents=True)
    (files / "report.txt").write_text("the report\n")
    (files / "sub/big").write_bytes(noise(3 << 20))
    (files / "link").symlink_to("sub/big")
    run_tool(["truncate", "-s", "24M", folder / "disk.raw"])
    run_tool(["mke2fs", "-q", "-F", "-t", "ext4", "-d", files, folder / "disk.raw"])
    room.run("capture", "disk.raw", "set")
    for command in (f"write {folder}/files/report.txt new.txt", "rm report.txt"):
        second_over(room)
        run_tool(["debugfs", "-w", "-R", command, folder / "disk.raw"])
        room.run("capture", "disk.raw", "set")
    return room


def second_over(room: Room) -> None:
    """Wait until an image of now is not of the same second as the newest."""
    newest = images(room)[-1].name[:16]
    wait_until(lambda: time.strftime("%Y%m%dT%H%M%SZ", time.gmtime()) > newest)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("made")
    _make(folder)
    return folder


@pytest.fixture
def room(made: Path, tmp_path: Path) -> Iterator[Room]:
    """A copy of the set, to be added to and taken from; unmounted whatever happens."""
    need(os.path.exists("/dev/fuse"), "/dev/fuse")
    shutil.copytree(made / "set", tmp_path / "set")
    room = Room(tmp_path)
    yield room
    if is_mounted(tmp_path / "mnt"):
        room.clear()


def points(room: Room) -> list[str]:
    return sorted(os.listdir(room / "mnt"))


def images(room: Room) -> list[Path]:
    return sorted((room / "set").glob("*.imagefs"))


def wait_for_points(room: Room, count: int) -> list[str]:
    wait_until(lambda: len(points(room)) == count)
    return points(room)


def test_each_point_shows_what_a_mount_of_it_alone_shows(room: Room) -> None:
    said = json.loads(room.run("mount", "set", "mnt", "--history", "--json"))
    assert said["history"] is True
    assert said["image"] == str(room / "set")
    first, second, third, latest = points(room)
    assert [first, second, third] == [path.name[:16] for path in images(room)]
    assert latest == "latest"
    assert os.readlink(room / "mnt/latest") == third
    room.run("mount", "set@latest~1", "alone")
    try:
        run_tool(
            ["diff", "-r", "--no-dereference", "-x", "image.json", room / "alone", room / "mnt" / second]
        )
        for name in ("", "p0/sub", "p0/link", "disk.raw"):
            one, other = os.lstat(room / "alone" / name), os.lstat(room / "mnt" / second / name)
            assert (one.st_mode, one.st_size, one.st_uid, one.st_mtime_ns) == (
                *(other.st_mode, other.st_size, other.st_uid, other.st_mtime_ns),
            )
    finally:
        room.run("umount", "alone")
    found = subprocess.run(
        ["diff", "-rq", room / "mnt" / first / "p0", room / "mnt/latest/p0"], capture_output=True, text=True
    )
    assert found.stdout.splitlines() == [
        f"Only in {room.folder}/mnt/latest/p0: new.txt",
        f"Only in {room.folder}/mnt/{first}/p0: report.txt",
    ]
    assert (room / "mnt" / first / "p0/report.txt").read_text() == "the report\n"
    assert (room / "mnt/latest/p0/new.txt").read_text() == "the report\n"
    assert "report.txt" in os.listdir(room / "mnt/latest/deleted/p0")
    (row,) = room.mounts()
    assert row["image"] == "set@history"
    assert row["errors"] == 0
    assert "set@history" in room.run("mount")
    room.run("umount", "mnt")
    assert not (room / "mnt").exists()


def test_inodes_are_distinct_and_stay(room: Room) -> None:
    def numbers() -> dict[str, int]:
        room.run("mount", "set", "mnt", "--history")
        found = {
            str(path): path.lstat().st_ino
            for path in [room / "mnt", *(room / "mnt").rglob("*")]
            if "deleted" not in str(path)
        }
        room.run("umount", "mnt")
        return found

    seen = numbers()
    assert len(seen) > 3 * 8
    assert len(set(seen.values())) == len(seen)
    assert numbers() == seen


def test_new_images_appear_and_deleted_ones_vanish(room: Room, made: Path) -> None:
    taken = images(room)[-1]
    aside = room / "aside.imagefs"
    taken.rename(aside)
    room.run("mount", "set", "mnt", "--history")
    first, second, _ = points(room)
    assert os.readlink(room / "mnt/latest") == second
    aside.rename(taken)
    names = wait_for_points(room, 4)
    wait_until(lambda: os.readlink(room / "mnt/latest") == names[2])
    with open(room / "mnt" / names[2] / "p0/new.txt") as file:
        room.run("delete", "set@latest")
        assert wait_for_points(room, 3) == [first, second, "latest"]
        assert file.read() == "the report\n"  # which is open, and of which nothing was read before
        wait_until(lambda: not (room / "mnt" / names[2]).exists())
    assert (room / "mnt/latest/p0/report.txt").exists()
    (row,) = room.mounts()
    assert row["errors"] == 0


def test_a_broken_chain_and_a_damaged_image_hurt_no_other(room: Room) -> None:
    first, second, third = images(room)
    second.rename(room / "aside.imagefs")
    (room / "set/bad.imagefs").write_bytes(first.read_bytes()[:-9])
    room.run("mount", "set", "mnt", "--history")
    newest = third.name[:16]
    assert points(room) == [first.name[:16], newest, "bad.imagefs.txt", "latest"]
    assert os.listdir(room / "mnt" / newest) == ["image.txt"]
    said = (room / "mnt/latest/image.txt").read_text()
    assert said.startswith("this image cannot be shown: the parent ")
    assert "bad.imagefs cannot be read: " in (room / "mnt/bad.imagefs.txt").read_text()
    assert (room / "mnt" / first.name[:16] / "p0/report.txt").read_text() == "the report\n"
    (room / "aside.imagefs").rename(second)
    wait_until(lambda: (room / "mnt/latest/p0/new.txt").exists())


def test_what_goes_with_a_whole_set(room: Room) -> None:
    room.run("mount", "set", "mnt", "--history", "--overlay", "changes", code=2)
    room.run("mount", "set", "mnt", "--history", "--native", "p0", "there", code=2)
    assert "one image" in room.run("mount", "set@latest", "mnt", "--history", code=2)
    one = images(room)[0]
    assert "one image" in room.run("mount", one, "mnt", "--history", code=2)
    room.run("mount", "nowhere", "mnt", "--history", code=30)
    assert not (room / "mnt").exists()


def test_opening_is_left_to_who_enters(room: Room) -> None:
    """The processes that parse file systems tell of it: none for a listing, one for each point entered."""
    room.run("mount", "set", "mnt", "--history")
    run_tool(["ls", "-l", room / "mnt"])
    run_tool(["find", room / "mnt", "-maxdepth", "1", "-ls"])
    first, *_ = points(room)
    workers = [_workers(room.server())]
    os.listdir(room / "mnt" / first)
    workers.append(_workers(room.server()))
    os.listdir(room / "mnt/latest/p0")
    workers.append(_workers(room.server()))
    assert workers == [0, 1, 2]


def _workers(pid: int) -> int:
    """How many child processes a process has."""
    found = 0
    for task in Path(f"/proc/{pid}/task").iterdir():
        found += len((task / "children").read_text().split())
    return found


@pytest.mark.parametrize("libfuse2", [True, False], ids=["libfuse2", "ours"])
def test_whichever_loop_serves_it(room: Room, libfuse2: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if libfuse2:
        monkeypatch.setenv("FUSE_LIBRARY_PATH", "libfuse.so.2")
    taken = images(room)[-1]
    aside = room / "aside.imagefs"
    taken.rename(aside)
    room.run("mount", "set", "mnt", "--history", "--allow-other", "--unreadable", "eio")
    assert len(points(room)) == 3
    assert not (room / "mnt" / taken.name[:16]).exists()
    aside.rename(taken)
    wait_until(lambda: (room / "mnt" / taken.name[:16] / "p0/new.txt").exists())
    assert filecmp.cmp(room / "mnt/latest/p0.raw", room / "mnt/latest/disk.raw", shallow=False)
    room.run("umount", "mnt")


# -- names -------------------------------------------------------------------------------------------


@pytest.fixture
def infos(tmp_path: Path) -> list[ImageInfo]:
    store = MemoryStore()
    for seed in (1, 2, 3):
        capture_bytes(store, noise(50_000, seed), tmp_path / "disk")
    return list(scan(store).images)


def _names(infos: list[ImageInfo]) -> list[tuple[bytes, tuple[bytes, ...]]]:
    catalog = replace(scan(MemoryStore()), images=tuple(infos))
    return [(spec.name, spec.aliases) for spec in point_specs(catalog, _never)]


def _never(*_: Any) -> OpenedPoint:
    raise AssertionError("nothing is opened for a name")


def _at(info: ImageInfo, created: int, **more: Any) -> ImageInfo:
    header = replace(info.tail.header, created=created, **more)
    return replace(info, tail=replace(info.tail, header=header))


def test_images_of_one_second_carry_their_ids(infos: list[ImageInfo]) -> None:
    second = 1_795_000_000 * 10**9
    one, two, three = (_at(info, second + at) for at, info in zip((1, 2, 10**9), infos, strict=True))
    plain = b"20261118T110640Z"
    assert _names([one, two, three]) == [
        (plain + b"~" + one.id[:8].encode(), (plain,)),
        (plain + b"~" + two.id[:8].encode(), ()),
        (b"20261118T110641Z", ()),
    ]
    assert _names([one, replace(one, name="a copy.imagefs")]) == [(plain, ())]
    near = _at(two, second, image=type(one.uuid)(int=one.uuid.int ^ 1))  # the same first digits
    assert [name for name, _ in _names([near, one])] == [
        plain + b"~" + near.id.encode(),
        plain + b"~" + one.id.encode(),
    ]


def test_a_listing_that_did_not_change_is_not_read_again(made: Path) -> None:
    from imagefs.cli.points import Points

    points = Points(LocalStore(made / "set", suffix=".imagefs"))
    seen = points()
    assert points() is seen
    assert points.shared.opened == 0
