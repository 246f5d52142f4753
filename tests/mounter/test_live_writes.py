"""A writable mount with either binding: two files over one disk, and what may not be changed."""

from __future__ import annotations

import errno
import os
import subprocess
from pathlib import Path

import pytest

from tests.mounter.conftest import Live, Mount, need
from tests.mounter.fakes import noise

MIB = 1 << 20
pytestmark = pytest.mark.timeout(1200)


@pytest.fixture(params=["mfusepy", "fusepy"])
def live(request: pytest.FixtureRequest, mount: Mount, tmp_path: Path) -> Live:
    if request.param == "fusepy":
        need(
            subprocess.run(["ldconfig", "-p"], capture_output=True).stdout.count(b"libfuse.so.2"), "libfuse2"
        )
    return mount("overlay", path=str(tmp_path / "changes"), binding=request.param)


def refused(number: int, call: object, *words: object) -> None:
    with pytest.raises(OSError) as caught:
        call(*words)  # type: ignore[operator]
    assert caught.value.errno == number


def test_disk_and_volume_show_each_others_writes_at_once(live: Live, tmp_path: Path) -> None:
    expected = bytearray(noise(4 * MIB))
    disk, part = (os.open(live.directory / name, os.O_RDWR) for name in ("disk.raw", "p1.raw"))
    assert os.pread(disk, 4 * MIB, 0) == expected
    assert os.pread(part, MIB, 0) == expected[MIB : MIB + 1_000_003]
    for at, length in ((0, 1), (5000, 300_000), (1_000_000, 3)):
        data = noise(length, at + 2)
        os.pwrite(part, data, at)
        expected[MIB + at : MIB + at + length] = data
        assert os.pread(disk, 4 * MIB, 0) == expected
    os.pwrite(disk, b"x" * 2 * MIB, MIB // 2)
    expected[MIB // 2 : MIB // 2 + 2 * MIB] = b"x" * 2 * MIB
    assert os.pread(part, MIB, 0) == expected[MIB : MIB + 1_000_003]
    os.fsync(part)
    os.close(disk)
    os.close(part)
    assert live.end() == 128 + 15
    assert (tmp_path / "changes").stat().st_blocks * 512 < 4 * MIB


def test_the_rest_stays_as_it_is(live: Live) -> None:
    root = live.directory
    refused(errno.EROFS, os.open, root / "image.json", os.O_WRONLY)
    refused(errno.EROFS, os.open, root / "p1/big.bin", os.O_RDWR)
    refused(errno.EROFS, os.open, root / "new", os.O_CREAT | os.O_WRONLY)
    refused(errno.EROFS, os.mkdir, root / "p1/new")
    refused(errno.EROFS, os.unlink, root / "disk.raw")
    refused(errno.EROFS, os.chmod, root / "disk.raw", 0o666)
    refused(errno.EROFS, os.utime, root / "disk.raw")
    refused(errno.EPERM, os.truncate, root / "disk.raw", 5)
    with open(root / "p1.raw", "r+b") as volume:
        refused(errno.EPERM, volume.truncate, 5)
        volume.truncate(1_000_003)
        refused(errno.ENOSPC, os.pwrite, volume.fileno(), b"x", 1_000_003)
        assert os.pwrite(volume.fileno(), b"xy", 1_000_002) == 1
    assert (root / "p1/big.bin").read_bytes() == noise(300_001, 3)
    with open(root / "disk.raw", "wb"):  # O_TRUNC, of which a device takes no notice either
        pass
    assert (root / "disk.raw").read_bytes()[: 1 << 20] == noise(4 * MIB)[: 1 << 20]


def test_a_hole_is_punched(mount: Mount, tmp_path: Path) -> None:
    """fusepy knows no fallocate; whoever asks for it then writes zeros."""
    live = mount("overlay", path=str(tmp_path / "changes"))
    words = ["fallocate", "--punch-hole", "--offset", "1M", "--length", "1M"]
    subprocess.run([*words, live.directory / "disk.raw"], check=True, timeout=600)
    assert (live.directory / "p1.raw").read_bytes() == bytes(1_000_003)
    with open(live.directory / "disk.raw", "rb") as disk:
        assert os.lseek(disk.fileno(), 0, os.SEEK_HOLE) == MIB
        assert os.lseek(disk.fileno(), MIB, os.SEEK_DATA) == 2 * MIB
