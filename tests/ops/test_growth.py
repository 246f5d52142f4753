"""Who accounts for the bytes of an incremental, held against e2fsprogs' icheck and ncheck, and TSK's ifind."""

from __future__ import annotations

import os
import re
import shutil
from pathlib import Path

import pytest

from imagefs.image.catalog import Catalog
from imagefs.ops.diskimage import DiskImage
from imagefs.ops.growth import Growth, growth
from tests.support.images import CHUNK
from tests.support.oracles import need_tool, tool_text
from tests.support.past import Past

BLOCK = 4096


def grown(catalog: Catalog) -> tuple[Growth, int]:
    """The growth of the newest image, and the bytes of its file."""
    info = catalog.images[-1]
    parent = catalog.open_disk(catalog.images[-2]) if len(catalog.images) > 1 else None
    with DiskImage(catalog.open_disk(info), info) as image:
        return growth(image, parent), info.tail.size


def fill(room: Path) -> None:
    for number in range(30):
        (room / f"folder {number}").mkdir()
        (room / f"folder {number}/file").write_bytes(os.urandom(9_000))


def change(room: Path) -> None:
    (room / "folder 3/large").write_bytes(os.urandom(400_000))
    (room / "folder 9/file").write_bytes(os.urandom(9_000))
    (room / "folder 20/file").unlink()
    for number in range(200):  # more names than the first block of a folder holds
        (room / f"folder 12/{'n' * 40} {number}").touch()


def changed_blocks(before: Path, after: Path) -> list[int]:
    old, new = before.read_bytes(), after.read_bytes()
    return [at // BLOCK for at in range(0, len(new), BLOCK) if old[at : at + BLOCK] != new[at : at + BLOCK]]


def owners_by_debugfs(volume: Path, blocks: list[int]) -> dict[int, str]:
    """Block -> path of a file, ``journal``, or nothing."""
    need_tool("debugfs")
    told = tool_text("debugfs", "-R", f"icheck {' '.join(map(str, blocks))}", volume)
    inodes = {int(block): int(inode) for block, inode in re.findall(r"^(\d+)\t(\d+)$", told, re.M)}
    numbers = sorted(set(inodes.values()) - {7, 8})
    named = tool_text("debugfs", "-R", f"ncheck {' '.join(map(str, numbers))}", volume)
    names = {
        int(inode): re.sub("^//", "/", path) for inode, path in re.findall(r"^(\d+)\t(.*)$", named, re.M)
    }
    names |= {2: "/", 8: "journal"}
    return {block: names[inode] for block, inode in inodes.items() if inode in names}


def test_of_ext4_as_debugfs_tells(tmp_path: Path) -> None:
    past = Past(tmp_path, "ext4", words=("-b", "4096"))
    past.step(fill)
    shutil.copy(past.volume, tmp_path / "before")
    past.step(change)
    found, size = grown(past.catalog)
    assert sum(share for _, share, _ in found.shares) + found.overhead == size
    assert found.notes == []
    blocks = changed_blocks(tmp_path / "before", past.volume)
    owners = owners_by_debugfs(past.volume, blocks)
    wanted = {owners.get(block, "") for block in blocks} - {""}
    named = {owner.name.decode() for owner, _, _ in found.shares if owner.kind in ("file", "directory")}
    named |= {owner.name.decode() for owner, _, _ in found.shares if owner.name == b"journal"}
    assert named == wanted
    assert {"/folder 3/large", "/folder 9/file", "/folder 12", "journal"} <= named
    metadata = {owner.name for owner, _, _ in found.shares if owner.kind == "metadata"}
    assert {b"inode tables", b"bitmaps", b"superblocks and group descriptors"} <= metadata
    shares = {owner.name: (share, chunks) for owner, share, chunks in found.shares}
    share, chunks = shares[b"/folder 3/large"]
    assert 390_000 < share < 430_000
    assert (
        len({block * BLOCK // CHUNK for block in blocks if owners.get(block) == "/folder 3/large"}) == chunks
    )
    assert found.shares[0][0].kind == "file"


@pytest.mark.parametrize("kind", ["ntfs", "xfs"])
def test_of_others(tmp_path: Path, kind: str) -> None:
    past = Past(tmp_path, kind, size=(320 if kind == "xfs" else 24) << 20)
    past.step(fill)
    past.step(change)
    found, size = grown(past.catalog)
    assert sum(share for _, share, _ in found.shares) + found.overhead == size
    shares = {owner.name: (owner.kind, share) for owner, share, _ in found.shares}
    assert shares[b"/folder 3/large"][0] == "file"
    assert 390_000 < shares[b"/folder 3/large"][1] < 440_000
    assert b"/folder 1/file" not in shares
    if kind == "ntfs":
        assert shares[b"/$MFT"][0] == "metadata"
        assert shares[b"/folder 12"][0] == "directory"


def test_of_a_full_image_all_is_told(tmp_path: Path) -> None:
    past = Past(tmp_path, "ext4", words=("-b", "4096"))
    past.step(fill)
    found, size = grown(past.catalog)
    assert sum(share for _, share, _ in found.shares) + found.overhead == size
    files = {owner.name for owner, _, _ in found.shares if owner.kind == "file"}
    assert files == {b"/folder %d/file" % number for number in range(30)}
