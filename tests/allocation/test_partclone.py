"""Maps that partclone makes: by the experiment, and refused where a journal is pending."""

from __future__ import annotations

import os
import shutil
import struct
from pathlib import Path

import pytest

from imagefs.allocation.partclone import read_partclone
from imagefs.allocation.swap import read_swap
from imagefs.block.commands import ENVIRONMENT
from imagefs.block.views import BytesReader
from imagefs.errors import AllocationError, SourceError
from tests.allocation import experiment
from tests.support.oracles import loop_mounted, need_tool, root_only, run_tool

MAKERS = {"xfs": ["mkfs.xfs", "-q"], "btrfs": ["mkfs.btrfs", "-q"]}
CHECKERS = {"xfs": ["xfs_repair", "-n"], "btrfs": ["btrfs", "check"]}


def filled(tmp_path: Path, kind: str, *, dirty: bool = False) -> Path:
    """A file system with files in it; ``dirty``, as it is while they are being written."""
    need_tool(MAKERS[kind][0], CHECKERS[kind][0], f"partclone.{kind}", "xfs_logprint")
    path, copy = tmp_path / "fs", tmp_path / "copy"
    run_tool(["truncate", "-s", "400M", path])
    run_tool([*MAKERS[kind], path])
    place = tmp_path / "mnt"
    place.mkdir()
    run_tool(["mount", "-o", "loop", path, place])
    try:
        experiment.make_files(place)
        os.sync()
        for name in experiment.DELETED:
            (place / name).unlink()
        with (place / "more").open("wb") as out:
            out.write(b"x" * 5_000_000)
            os.fsync(out.fileno())
        run_tool(["cp", "--sparse=always", path, copy])
    finally:
        run_tool(["umount", place])
    return copy if dirty else path


def read(path: Path, kind: str, start: int = 0) -> experiment.UsedMap:
    return read_partclone(BytesReader(path.read_bytes()[start:]), str(path), start, kind)


@root_only
@pytest.mark.parametrize("kind", MAKERS)
def test_nothing_is_missed(tmp_path: Path, kind: str) -> None:
    path = filled(tmp_path, kind)
    experiment.overwrite(path, read(path, kind))
    run_tool([*CHECKERS[kind], path])
    with loop_mounted(path, tmp_path / "mnt", fs_type=kind) as folder:
        for name in set(experiment.SIZES) - experiment.DELETED:
            assert (folder / name).read_bytes() == experiment.content(name)
        assert (folder / "more").read_bytes() == b"x" * 5_000_000


@root_only
@pytest.mark.parametrize("kind", MAKERS)
def test_what_is_not_unmounted_is_refused(tmp_path: Path, kind: str) -> None:
    """partclone itself would map it without a word, and leave out what the journal still holds."""
    with pytest.raises(AllocationError, match="replayed"):
        read(filled(tmp_path, kind, dirty=True), kind)


@root_only
def test_a_partition_of_a_disk(tmp_path: Path) -> None:
    path = filled(tmp_path, "xfs")
    disk = tmp_path / "disk"
    with disk.open("wb") as out:
        out.write(bytes(2**20))
        with path.open("rb") as giver:
            shutil.copyfileobj(giver, out)
    alone, inside = read(path, "xfs"), read(disk, "xfs", 2**20)
    assert alone.first.tolist() == inside.first.tolist()
    assert alone.end.tolist() == inside.end.tolist()


def test_f2fs_beside_its_own_fsck(tmp_path: Path) -> None:
    need_tool("mkfs.f2fs", "sload.f2fs", "dump.f2fs", "fsck.f2fs", "partclone.f2fs")
    path, files = tmp_path / "fs", experiment.make_files(tmp_path / "in")
    run_tool(["truncate", "-s", "200M", path])
    run_tool(["mkfs.f2fs", "-q", path])
    run_tool(["sload.f2fs", "-f", files, path])
    data = bytearray(path.read_bytes())
    pack = 4096 * struct.unpack_from("<I", data, 1024 + 76)[0]
    for place in (pack, pack + 512 * 4096):
        data[place + 132] &= 0xFE
    with pytest.raises(AllocationError, match="cleanly"):
        read_partclone(BytesReader(bytes(data)), str(path), 0, "f2fs")
    experiment.overwrite(path, read(path, "f2fs"))
    told = run_tool(["fsck.f2fs", "--dry-run", path], ok=(0, 1)).stdout.decode()
    assert "[FAIL]" not in told.upper()
    assert told.count("[Ok..]") > 5


def test_without_its_tools(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "fs"
    path.write_bytes(bytes(8192))
    monkeypatch.setitem(ENVIRONMENT, "PATH", str(tmp_path))
    monkeypatch.setattr("os.environ", {**os.environ, "PATH": str(tmp_path)})
    with pytest.raises(SourceError, match="xfs_logprint is not installed"):
        read(path, "xfs")


def test_swap(tmp_path: Path) -> None:
    need_tool("mkswap")
    path = tmp_path / "swap"
    path.write_bytes(b"\xa5" * 2**20 + bytes(1000))
    run_tool(["mkswap", path])
    found = read_swap(BytesReader(path.read_bytes()))
    assert found.first.tolist() == [0, 2**20]
    assert found.end.tolist() == [4096, 2**20 + 1000]
    experiment.overwrite(path, found)
    assert b"SWAPSPACE2" in path.read_bytes()[:4096]
    for data in (path.read_bytes()[: 2**19], b"\0" * 4086 + b"S1SUSPEND\0" + bytes(65536)):
        with pytest.raises(AllocationError):
            read_swap(BytesReader(data))
