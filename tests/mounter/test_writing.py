"""The operations of a writable mount as libfuse calls them, without FUSE."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from imagefs.block.overlay import Overlay, open_overlay
from imagefs.block.views import BytesReader, WritableSlice
from imagefs.errors import TargetError
from mounter.errnos import errno_of
from mounter.tree import MountSpec, MountTree, VolumeSpec
from mounter.writing import WritableOperations
from tests.mounter.fakes import noise, small_filesystem, spec_of, usual_spec

SIZE = 1_000_003
PUNCH, ZERO, KEEP = 0x02, 0x10, 0x01


def spec(folder: Path) -> MountSpec:
    disk = open_overlay(BytesReader(noise(SIZE)), str(folder / "o"), view=bytes(32), image=bytes(16))
    return spec_of(disk, VolumeSpec("p1", WritableSlice(disk, 4096, 400_000), small_filesystem))


@pytest.fixture
def ops(tmp_path: Path) -> Any:
    tree = MountTree(spec(tmp_path), log=lambda line: None)
    yield WritableOperations(tree, log=lambda line: None)
    tree.close()


def fails(number: int, call: Callable[..., object], *words: object) -> None:
    with pytest.raises(OSError) as caught:
        call(*words)
    assert caught.value.errno == number


def test_disk_and_volume_show_the_same_bytes(ops: WritableOperations) -> None:
    disk, part = ops.open("/disk.raw", os.O_RDWR), ops.open("/p1.raw", os.O_WRONLY)
    assert ops.write(None, b"through p1", 100, part) == 10
    assert ops.read(None, 10, 4196, disk) == b"through p1"
    assert ops.write(None, b"through the disk", 4096, disk) == 16
    assert ops.read(None, 16, 0, part) == b"through the disk"
    assert ops.fsync(None, 0, part) == ops.flush(None, disk) == 0


def test_only_the_raw_files_can_be_written(ops: WritableOperations) -> None:
    for path in ("/image.json", "/p1/etc/fstab", "/p1", "/"):
        fails(errno.EROFS, ops.open, path, os.O_RDWR)
    fails(errno.ENOENT, ops.open, "/none", os.O_RDWR)
    for name in ("disk.raw", "p1.raw"):
        assert ops.getattr(f"/{name}")["st_mode"] & 0o777 == 0o600
        assert ops.is_direct(ops.open(f"/{name}", os.O_RDONLY)), "a reader must see what others write"
    for path in ("/image.json", "/p1/etc/fstab"):
        handle = ops.open(path, os.O_RDONLY)
        assert not ops.is_direct(handle)
        fails(errno.EROFS, ops.write, None, b"x", 0, handle)
        assert ops.flush(None, handle) == ops.fsync(None, 0, handle) == 0
    for call in (ops.create, ops.mkdir, ops.unlink, ops.rename, ops.chmod, ops.utimens, ops.setxattr):
        fails(errno.EROFS, call, "/x", 1)


def test_the_end_of_the_disk_is_that_of_a_device(ops: WritableOperations) -> None:
    handle = ops.open("/disk.raw", os.O_RDWR)
    assert ops.write(None, b"12345", SIZE - 3, handle) == 3
    assert ops.read(None, 10, SIZE - 3, handle) == b"123"
    fails(errno.ENOSPC, ops.write, None, b"x", SIZE, handle)
    fails(errno.EPERM, ops.truncate, "/disk.raw", SIZE - 1)
    fails(errno.EPERM, ops.truncate, None, 0, handle)
    assert ops.truncate("/disk.raw", SIZE) == ops.truncate(None, SIZE, handle) == 0


def test_punching_and_zeroing(ops: WritableOperations) -> None:
    handle = ops.open("/p1.raw", os.O_RDWR)
    for mode, at in ((PUNCH | KEEP, 0), (ZERO, 10_000), (ZERO | KEEP, 20_000)):
        assert ops.fallocate(None, mode, at, 5000, handle) == 0
        assert ops.read(None, 5000, at, handle) == bytes(5000)
    assert ops.fallocate(None, PUNCH | KEEP, 399_999, 99, handle) == 0, "cut at the end"
    assert ops.fallocate(None, PUNCH | KEEP, 500_000, 99, handle) == 0, "nothing there"
    fails(errno.ENOSPC, ops.fallocate, None, ZERO, 399_999, 2, handle)
    for mode in (0, KEEP, 0x08, 0x20):
        fails(errno.EOPNOTSUPP, ops.fallocate, None, mode, 0, 10, handle)
    disk = ops.open("/disk.raw", os.O_RDONLY)
    assert ops.read(None, 1000, 4096 + 399_900, disk)[100:] == noise(SIZE)[404_096:404_996]


def test_holes_are_told_after_writing(ops: WritableOperations) -> None:
    handle = ops.open("/disk.raw", os.O_RDWR)
    ops.fallocate(None, PUNCH | KEEP, 0, SIZE, handle)
    ops.write(None, b"x", 500_000, handle)
    at = ops.lseek(None, 0, os.SEEK_DATA, handle)
    assert at == 500_000 // 4096 * 4096
    assert ops.lseek(None, at, os.SEEK_HOLE, handle) == at + 4096


def test_a_lack_of_room_is_told_as_such(ops: WritableOperations, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise TargetError("the overlay o cannot be written", errno=errno.ENOSPC)

    handle = ops.open("/p1.raw", os.O_RDWR)
    for name in ("write_at", "zero_at", "sync"):
        monkeypatch.setattr(Overlay, name, full)
    fails(errno.ENOSPC, ops.write, None, b"x", 0, handle)
    fails(errno.ENOSPC, ops.fallocate, None, ZERO, 0, 10, handle)
    fails(errno.ENOSPC, ops.fsync, None, 0, handle)
    assert errno_of(TargetError("x", errno=errno.EIO)) == errno_of(TargetError("x")) == errno.EIO
    monkeypatch.undo()


def test_a_tree_knows_whether_it_can_be_written(tmp_path: Path) -> None:
    for made, writable in ((usual_spec(), False), (spec(tmp_path), True)):
        tree = MountTree(made, log=lambda line: None)
        assert tree.writable is writable
        tree.close()
