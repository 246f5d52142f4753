"""Extended attributes and inline data of ext, written by the kernel and held against what it reads."""

from __future__ import annotations

import os
import re
import struct
from pathlib import Path

import pytest

from fixtures.tools import run_tool
from imagefs.block.views import BytesReader
from imagefs.browse.opening import open_filesystem
from imagefs.browse.tsk import open_tsk
from imagefs.browse.walk import walk
from imagefs.errors import BrowseError, ImagefsError
from imagefs.interfaces import EntryType, FileSystem, HasXattrs
from tests.browse.disks import MIB, FileReader, debugfs, pattern, sparse_file
from tests.support.oracles import loop_mounted, need_tool, root_only

Seen = dict[bytes, tuple[dict[bytes, bytes], bytes]]


@pytest.fixture(scope="module")
def volume(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Seen]:
    need_tool("mke2fs", "setfacl", "setcap")
    room = tmp_path_factory.mktemp("xattrs")
    path = sparse_file(room / "ext4", 32 * MIB)
    run_tool(["mke2fs", "-q", "-F", "-t", "ext4", "-O", "inline_data,ea_inode", "-I", "512", path])
    (room / "mnt").mkdir()
    run_tool(["mount", "-t", "ext4", "-o", "loop", path, room / "mnt"])
    try:
        _fill(room / "mnt")
    finally:
        run_tool(["umount", room / "mnt"])
    with loop_mounted(path, room / "mnt", fs_type="ext4") as mounted:
        seen = {_inside(mounted, each): _look(each) for each in sorted(mounted.rglob("*"))}
    return path, seen


def _fill(root: Path) -> None:
    for size in (0, 1, 60, 61, 150, 300):
        file = root / f"plain-{size}"
        file.write_bytes(pattern(size))
        before = root / f"attribute-first-{size}"
        before.touch()
        os.setxattr(before, "user.before", b"q" * 60)
        before.write_bytes(pattern(size))
        os.setxattr(before, "user.behind", b"r" * 10)
    large = root / "large"
    large.write_bytes(pattern(100_000))
    os.setxattr(large, "user.empty", b"")
    os.setxattr(large, "user.inode", os.urandom(100))
    os.setxattr(large, "user.block", os.urandom(700))
    os.setxattr(large, "user.own-inode", os.urandom(20_000))
    os.setxattr(large, "trusted.t", b"\0\xff")
    run_tool(["setfacl", "-m", "u:1000:r,g:5:rw", large])
    run_tool(["setcap", "cap_net_raw+ep", large])
    os.mkfifo(root / "fifo")
    os.setxattr(root / "fifo", "trusted.of.fifo", b"1")
    os.symlink("x" * 200, root / "link")
    os.setxattr(root / "link", "trusted.of.link", b"1", follow_symlinks=False)
    for folder, names in (("few", 2), ("some", 14), ("behind", 14), ("many", 200)):
        (root / folder).mkdir()
        if folder == "behind":
            os.setxattr(root / folder, "user.before", b"q" * 60)
        for number in range(names):
            (root / folder / f"n{number}").touch()
    (root / "some" / "n3").unlink()
    run_tool(["setfacl", "-d", "-m", "u:1000:rx", root / "few"])


def _inside(root: Path, path: Path) -> bytes:
    return b"/" + os.fsencode(path.relative_to(root))


def _look(path: Path) -> tuple[dict[bytes, bytes], bytes]:
    found = {
        os.fsencode(n): os.getxattr(path, n, follow_symlinks=False)
        for n in os.listxattr(path, follow_symlinks=False)
    }
    if path.is_symlink():
        return found, os.fsencode(os.readlink(path))
    return found, path.read_bytes() if path.is_file() else b""


@pytest.fixture
def fs(volume: tuple[Path, Seen]) -> FileSystem:
    return open_filesystem(FileReader(volume[0]))


def fails(error: ImagefsError) -> None:
    raise error


@root_only
def test_all_attributes_and_content_are_those_the_kernel_gives(
    fs: FileSystem, volume: tuple[Path, Seen]
) -> None:
    assert isinstance(fs, HasXattrs)
    ours: Seen = {}
    for entry in walk(fs, fs.root(), onerror=fails):
        content = b""
        if entry.type is EntryType.FILE:
            content = fs.open(entry).read_at(0, entry.size + 1)
        elif entry.type is EntryType.SYMLINK:
            content = fs.readlink(entry)
        ours[entry.path] = fs.xattrs(entry), content
    assert ours == volume[1]
    assert len(ours[b"/large"][0]) == 7


@root_only
def test_damage_is_an_error_and_never_more_or_less_bytes(tmp_path: Path, volume: tuple[Path, Seen]) -> None:
    """Every word of the attributes in an inode, overwritten in turn."""
    name, copy, refused = b"/attribute-first-150", tmp_path / "copy", 0
    copy.write_bytes(volume[0].read_bytes())
    fs = open_filesystem(FileReader(copy))
    (place,) = [each for each in fs.places(fs.lookup(name)) if each.stream == b"metadata"]
    with copy.open("r+b", buffering=0) as stream:
        for at in range(place.first + 128, place.end, 4):
            before = os.pread(stream.fileno(), 4, at)
            os.pwrite(stream.fileno(), b"\xff" * 4, at)
            fresh = open_filesystem(FileReader(copy))
            try:
                fresh.xattrs(fresh.lookup(name))  # type: ignore[attr-defined]
                assert len(fresh.open(fresh.lookup(name)).read_at(0, 999)) == 150
            except BrowseError:
                refused += 1
            os.pwrite(stream.fileno(), before, at)
    assert refused > 5


@root_only
def test_a_damaged_block_of_attributes_is_told(volume: tuple[Path, Seen]) -> None:
    said = debugfs(volume[0], "stat /large")
    block = int(said.split("File ACL: ")[1].split()[0])
    raw = bytearray(volume[0].read_bytes())
    assert block
    size = 1024 << struct.unpack_from("<I", raw, 1024 + 24)[0]
    raw[block * size] ^= 1
    fs = open_filesystem(BytesReader(bytes(raw)))
    entry = fs.lookup(b"/large")
    with pytest.raises(BrowseError, match="'/large'"):
        fs.xattrs(entry)  # type: ignore[attr-defined]
    assert fs.open(entry).read_at(0, entry.size) == pattern(100_000)


def test_small_inodes_have_attributes_in_a_block(ext2: Path, tmp_path: Path) -> None:
    path = tmp_path / "ext2"
    path.write_bytes(ext2.read_bytes())
    debugfs(path, "ea_set /a.txt user.comment hello", "ea_set /d trusted.deep 1")
    fs = open_filesystem(FileReader(path))
    found = {entry.path: fs.xattrs(entry) for entry in walk(fs, fs.root(), onerror=fails)}  # type: ignore[attr-defined]
    assert {name: each for name, each in found.items() if each} == {
        b"/a.txt": {b"user.comment": b"hello"},
        b"/d/hard": {b"user.comment": b"hello"},
        b"/d": {b"trusted.deep": b"1"},
    }


META_BG = {
    "wide": ["-t", "ext4", "-O", "meta_bg,^resize_inode", "-b", "1024", "-g", "256"],
    "narrow": ["-t", "ext4", "-O", "meta_bg,^resize_inode,^64bit,^flex_bg", "-b", "1024", "-g", "512"],
    "dense": ["-t", "ext2", "-O", "meta_bg,^resize_inode,^sparse_super,ext_attr", "-b", "1024", "-g", "256"],
    "two-copies": ["-t", "ext4", "-O", "meta_bg,^resize_inode,sparse_super2", "-b", "1024", "-g", "256"],
    "4k": ["-t", "ext4", "-O", "meta_bg,^resize_inode", "-b", "4096", "-g", "256"],
}


@pytest.mark.parametrize("kind", META_BG)
def test_descriptors_among_the_groups(kind: str, tmp_path: Path) -> None:
    """meta_bg: inodes lie where debugfs finds them, so files have attributes, and deleted ones are found."""
    need_tool("mke2fs")
    (tmp_path / "room" / "d").mkdir(parents=True)
    for number in range(60):
        (tmp_path / "room" / "d" / f"{number}").write_bytes(pattern(number * 31))
    path = sparse_file(tmp_path / "ext", 128 * MIB if kind == "4k" else 48 * MIB)
    run_tool(["mke2fs", "-q", "-F", *META_BG[kind], "-I", "256", "-d", tmp_path / "room", path])
    debugfs(path, "ea_set /d/17 user.comment hello", "ea_set /d user.of.folder x")
    fs = open_tsk(FileReader(path))
    ext = fs._facts.ext
    assert ext is not None
    block = ext._super.block_size
    step = ext.last // 40
    numbers = [*range(1, 20), *range(step, ext.last + 1, step)]
    said = debugfs(path, *(f"imap <{number}>" for number in numbers))
    places = re.findall(r"located at block (\d+), offset 0x([0-9a-f]+)", said)
    assert [ext.place(number) for number in numbers] == [int(at) * block + int(off, 16) for at, off in places]
    assert len(places) == len(numbers)
    assert fs.xattrs(fs.lookup(b"/d/17")) == {b"user.comment": b"hello"}
    assert fs.xattrs(fs.lookup(b"/d")) == {b"user.of.folder": b"x"}
    assert fs.xattrs(fs.lookup(b"/d/18")) == {}
    assert fs.open(fs.lookup(b"/d/59")).read_at(0, 9999) == pattern(59 * 31)
    debugfs(path, "rm d/40")
    fs = open_tsk(FileReader(path))
    assert {entry.path: str(fs.wholeness(entry)) for entry in fs.deleted()} == {b"/d/40": "intact"}
