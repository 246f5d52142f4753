"""Allocation maps of ext2/3/4 beside dumpe2fs, partclone and e2fsck, and by the decisive experiment:
whatever the map calls unallocated is overwritten, and nothing is missed."""

from __future__ import annotations

import contextlib
import re
import struct
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from imagefs.allocation.ext import read_ext
from imagefs.block.devices import open_source
from imagefs.block.views import BytesReader
from imagefs.errors import AllocationError, ImagefsError
from tests.allocation import experiment
from tests.support.images import noise
from tests.support.oracles import need_tool, run_tool, tool_text

#: Checksums of descriptors alone; meta_bg and inodes kept for growth exclude each other.
OLD_SUMS = "^metadata_csum,uninit_bg,^resize_inode"
KINDS = {
    "ext4": ["-t", "ext4", "-b", "4096"],
    "ext4-1k": ["-t", "ext4", "-b", "1024"],
    "ext4-32bit": ["-t", "ext4", "-O", "^64bit"],
    "no-flex": ["-t", "ext4", "-O", "^flex_bg", "-b", "1024"],
    "uninit": ["-t", "ext4", "-O", "^metadata_csum,uninit_bg", "-b", "1024"],
    "super2": ["-t", "ext4", "-O", "sparse_super2,^resize_inode", "-b", "1024"],
    "small-groups": ["-t", "ext4", "-g", "1024", "-b", "2048"],
    "meta": ["-t", "ext4", "-O", "meta_bg,^resize_inode", "-b", "1024", "-g", "256"],
    "meta-uninit": ["-t", "ext4", "-O", f"meta_bg,{OLD_SUMS},^64bit,^flex_bg", "-b", "1024", "-g", "512"],
    "meta-dense": ["-t", "ext2", "-O", "meta_bg,^resize_inode,^sparse_super", "-b", "1024", "-g", "256"],
    "bigalloc": ["-t", "ext4", "-O", "bigalloc", "-b", "4096", "-C", "16384"],
    "bigalloc-1k": ["-t", "ext4", "-O", f"bigalloc,{OLD_SUMS}", "-b", "1024", "-C", "8192", "-g", "8192"],
    "bigalloc-meta": ["-t", "ext4", "-O", f"bigalloc,meta_bg,{OLD_SUMS}", "-b", "1024", "-C", "2048"],
    "ext3": ["-t", "ext3", "-b", "1024"],
    "ext2": ["-t", "ext2", "-b", "1024"],
    "ext2-dense": ["-t", "ext2", "-b", "1024", "-O", "^sparse_super,^resize_inode"],
}


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("files")
    for number in range(40):
        (folder / f"f{number}").write_bytes(noise(number * 9_001, number + 1))
    (folder / "deep").mkdir()
    (folder / "deep" / "big").write_bytes(noise(7_000_000))
    return folder


def make(path: Path, files: Path, words: list[str], size: str = "60M") -> Path:
    need_tool("mke2fs", "debugfs")
    run_tool(["truncate", "-s", size, path])
    run_tool(["mke2fs", "-q", "-F", "-d", files, *words, path])
    for number in range(0, 40, 3):
        run_tool(["debugfs", "-w", "-R", f"rm f{number}", path])
    run_tool(["e2fsck", "-fy", path], ok=(0, 1))
    return path


@pytest.mark.parametrize("kind", KINDS)
def test_block_for_block_and_nothing_is_missed(tmp_path: Path, files: Path, kind: str) -> None:
    need_tool("dumpe2fs", "e2fsck")
    path = make(tmp_path / "fs", files, KINDS[kind])
    data = bytearray(path.read_bytes())
    found = read_ext(BytesReader(bytes(data)))
    told = tool_text("dumpe2fs", path)
    block = int(re.findall(r"^Block size: +(\d+)$", told, re.M)[0])
    size = found.block_size
    ours = {unit for a, b in experiment.unused(found, len(data)) for unit in range(a // size, b // size)}
    # With bigalloc it names clusters by their first blocks.
    theirs = experiment.free_numbers(told, r"^  Free blocks: (.*)$")
    assert ours == {number * block // size for number in theirs}
    assert ours, "something is free"
    for a, b in experiment.unused(found, len(data)):
        data[a:b] = b"\xa5" * (b - a)
    path.write_bytes(data)
    run_tool(["e2fsck", "-fn", path])
    out = tmp_path / "out"
    out.mkdir()
    run_tool(["debugfs", "-R", f"rdump / {out}", path])
    for number in range(40):
        gone = number % 3 == 0
        assert (out / f"f{number}").exists() is not gone
        assert gone or (out / f"f{number}").read_bytes() == (files / f"f{number}").read_bytes()
    assert (out / "deep/big").read_bytes() == noise(7_000_000)


@pytest.mark.parametrize("kind", ["ext4", "ext3", "uninit", "meta", "super2", "small-groups"])
def test_beside_partclone(tmp_path: Path, files: Path, kind: str) -> None:
    """Everything that partclone calls used is used; the difference is what lies in no group.

    partclone 0.3.23 refuses bigalloc: it takes clusters for blocks."""
    path = make(tmp_path / "fs", files, KINDS[kind])
    mine = experiment.sectors(read_ext(BytesReader(path.read_bytes())), path.stat().st_size)
    theirs = experiment.by_partclone("partclone.extfs", path, tmp_path)
    assert not (theirs & ~mine).any()


def test_what_lies_behind_the_file_system_is_kept(tmp_path: Path, files: Path) -> None:
    path = make(tmp_path / "fs", files, KINDS["ext4"])
    data = path.read_bytes() + bytes(1_000_000)
    found = read_ext(BytesReader(data))
    assert found.end[-1] == len(data)
    assert found.end[-1] - found.first[-1] >= 1_000_000


def test_what_cannot_be_relied_on_is_refused(tmp_path: Path, files: Path) -> None:
    plain = make(tmp_path / "plain", files, ["-t", "ext4", "-O", "^metadata_csum"]).read_bytes()
    cases = {
        "replayed": experiment.patched(
            plain, 1024 + 96, struct.pack("<I", struct.unpack_from("<I", plain, 1024 + 96)[0] | 4)
        ),
        "cleanly": experiment.patched(plain, 1024 + 58, b"\0\0"),
        "errors": experiment.patched(plain, 1024 + 58, b"\3\0"),
        "not understood": experiment.patched(plain, 1024 + 96, struct.pack("<I", 0x40000042)),
        "superblock": experiment.patched(plain, 1024 + 12, b"\1\0\0\0"),
        "more than": BytesReader(plain[:-1_000_000]),
        "makes no sense": experiment.patched(plain, 1024 + 24, b"\xff"),
        "not that of": experiment.patched(plain, 1024 + 56, b"\0\0"),
    }
    for words, reader in cases.items():
        with pytest.raises(AllocationError, match=words):
            read_ext(reader)


def test_a_flipped_bit_in_a_bitmap(tmp_path: Path, files: Path) -> None:
    """With checksums and without them; two flipped bits, so that the counts still agree."""
    for words, told in ((["-O", "metadata_csum"], "checksum"), (["-O", "^metadata_csum"], "counts")):
        path = make(tmp_path / told, files, ["-t", "ext4", "-b", "4096", *words])
        data = path.read_bytes()
        line = re.search(r"Block bitmap at (\d+)", tool_text("dumpe2fs", path))
        assert line
        at = int(line[1]) * 4096 + 100
        with pytest.raises(AllocationError, match=told):
            read_ext(experiment.patched(data, at, bytes([data[at] ^ 1])))


def test_what_says_that_a_bitmap_was_never_written(tmp_path: Path, files: Path) -> None:
    """The flag is under the descriptor's checksum; where there are none, the kernel does not heed it."""
    group = 1024 * 2 + 32  # the second descriptor
    words = ["-t", "ext4", "-b", "1024", "-O"]
    data = make(tmp_path / "sums", files, [*words, "^metadata_csum,uninit_bg,^64bit"]).read_bytes()
    with pytest.raises(AllocationError, match="checksum of the descriptor of group 1"):
        read_ext(experiment.patched(data, group + 18, bytes([data[group + 18] ^ 2])))
    path = make(tmp_path / "none", files, [*words, "^metadata_csum,^uninit_bg,^64bit"])
    data = path.read_bytes()
    flagged = experiment.patched(data, group + 18, bytes([data[group + 18] | 2]))
    assert read_ext(flagged).first.tolist() == read_ext(BytesReader(data)).first.tolist()


def test_more_groups_than_memory(tmp_path: Path, small: bytes) -> None:
    """A disk of 2 TB in 2 MB that speaks of 268 million groups."""
    path = tmp_path / "hostile"
    path.write_bytes(small)
    with path.open("r+b") as out:
        for at, value in ((4, 2**31 - 8), (12, 1000), (32, 8), (36, 8)):
            out.seek(1024 + at)
            out.write(struct.pack("<I", value))
        out.truncate(2**41)
    with contextlib.closing(open_source(str(path))) as disk, pytest.raises(AllocationError, match="no sense"):
        read_ext(disk)


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    need_tool("mke2fs")
    path = tmp_path_factory.mktemp("small") / "fs"
    run_tool(["truncate", "-s", "2M", path])
    run_tool(["mke2fs", "-q", "-F", "-t", "ext4", "-O", "^metadata_csum", path])
    return path.read_bytes()


@given(st.lists(st.tuples(st.integers(1024, 4096), st.integers(0, 255)), min_size=1, max_size=6))
@settings(max_examples=300)
def test_hostile_bytes(small: bytes, changes: list[tuple[int, int]]) -> None:
    """Superblock and descriptors with anything in them: a map inside the volume, or an error of ours."""
    data = bytearray(small)
    for at, value in changes:
        data[at] = value
    try:
        found = read_ext(BytesReader(bytes(data)))
    except ImagefsError:
        return
    experiment.inside(found, len(data))
