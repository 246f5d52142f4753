"""XFS: entry by entry against the kernel, and against libfsxfs where that can read it; damage."""

from __future__ import annotations

import contextlib
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pyfsxfs
import pytest

from imagefs.browse.opening import open_filesystem
from imagefs.browse.walk import walk
from imagefs.browse.xfs import open_xfs
from imagefs.interfaces import EntryType, State
from tests.browse.disks import MIB, FileReader, pattern
from tests.support.kernelview import fails, same_as_kernel
from tests.support.oracles import (
    loop_mounted,
    need_tool,
    root_only,
    run_tool,
    tool_text,
    unpacked_corpus_file,
)
from tests.support.reader_contract import check_reader

#: What mkfs.xfs can be told, and what it changes: the width of times and counts, names of 64 KiB blocks,
#: inodes with much or little room, blocks that are as small or as large as they can be.
VARIANTS = {
    "default": ["-m", "bigtime=1,reflink=1,rmapbt=1", "-i", "nrext64=1"],
    "small times and counts": ["-m", "bigtime=0,reflink=0", "-i", "nrext64=0"],
    "blocks of 1 KiB": ["-b", "size=1024"],
    "names in 64 KiB": ["-n", "size=65536"],
    "large inodes": ["-i", "size=2048"],
    "sectors of 4 KiB": ["-s", "size=4096"],
}


def make_xfs(path: Path, *words: str, size: int = 320 * MIB) -> Path:
    need_tool("mkfs.xfs")
    with open(path, "wb") as file:
        file.truncate(size)
    run_tool(["mkfs.xfs", "-q", "-f", "-L", "xfslabel", *words, path])
    return path


def fill(root: Path, *, many: int) -> None:
    """Of everything XFS can hold something, in every form it has for it."""
    top = os.fsencode(root)
    (root / "a.txt").write_bytes(b"hello\n")
    os.link(root / "a.txt", root / "hard")
    (root / "empty").touch()
    (root / "random").write_bytes(pattern(3_000_000))
    (root / "link").symlink_to("a.txt")
    (root / "long link").symlink_to("x/" * 500)
    os.mknod(root / "block", 0o60640, os.makedev(8, 17))
    os.mknod(root / "char", 0o20600, os.makedev(300, 70_000))
    os.mkfifo(root / "fifo")
    os.mknod(root / "socket", 0o140755)
    (root / "folder").mkdir(mode=0o1777)
    for name in (b"latin \xff\xe9", b"\xc3\x9cml", b"new\nline", b"n" * 255):
        os.close(os.open(os.path.join(top, name), os.O_CREAT | os.O_WRONLY))
    _directories(root, many)
    _sparse_and_fragmented(root)
    _attributes(root)
    os.chown(root / "folder", 70_000, 4_000_000_000)
    os.chmod(root / "empty", 0o6751)
    os.utime(root / "empty", ns=(-86_400 * 10**9 - 1, -1))
    os.utime(root / "random", ns=(2_000_000_000_123_456_789, 1_234_567_890_123_456_789))


def _directories(root: Path, many: int) -> None:
    """In the inode, one block, a leaf, nodes, and with names taken away again in between."""
    for folder, count in (("short", 3), ("one block", 40), ("leaf", 400), ("nodes", many)):
        (root / folder).mkdir()
        for number in range(count):
            os.mknod(root / folder / f"{number:05}-{'n' * (number % 60)}", 0o100600)
    for number in range(0, 400, 3):
        (root / "leaf" / f"{number:05}-{'n' * (number % 60)}").unlink()


def _sparse_and_fragmented(root: Path) -> None:
    with open(root / "sparse", "wb") as file:
        os.pwrite(file.fileno(), b"middle", 600 << 30)
        os.truncate(file.fileno(), 1 << 40)
    for name, pieces in (("fragments", 60), ("tree of fragments", 3_000)):
        with open(root / name, "wb") as file:
            for number in range(pieces):
                os.pwrite(file.fileno(), bytes([number % 255 + 1]) * 4096, number * 8192)
    with open(root / "prealloc", "wb") as file:
        file.write(b"written")
        file.flush()
        os.fsync(file.fileno())
        os.posix_fallocate(file.fileno(), 0, 1 << 20)
        subprocess.run(["fallocate", "-n", "-o", "2M", "-l", "1M", root / "prealloc"], check=True)


def _attributes(root: Path) -> None:
    for name, value in (("user.small", b"v"), ("trusted.t", b""), ("security.s", b"\0\xff")):
        os.setxattr(root / "a.txt", name, value)
    os.setxattr(root / "link", "trusted.on-a-link", b"yes", follow_symlinks=False)
    os.setxattr(root / "folder", "user.large", pattern(60_000))
    for number in range(600):
        os.setxattr(
            root / "random", f"user.{number}-{'a' * (number % 50)}", bytes([number % 256]) * (number % 90)
        )
    need_tool("setfacl")
    run_tool(["setfacl", "-m", "u:1234:rw,g:55:r,m:rw", root / "a.txt"])
    run_tool(["setfacl", "-d", "-m", "u:7:rwx", root / "folder"])


@root_only
@pytest.mark.parametrize("variant", VARIANTS)
def test_everything_is_as_the_kernel_shows_it(tmp_path: Path, variant: str) -> None:
    path = make_xfs(tmp_path / "xfs", *VARIANTS[variant])
    with loop_mounted_to_write(path, tmp_path / "w") as root:
        fill(root, many=6_000 if variant == "default" else 1_500)
        prealloc = (root / "prealloc").stat().st_ino
    assert poison(path, prealloc) > 100
    fs = open_filesystem(FileReader(path))
    assert (fs.kind, fs.label) == ("xfs", "xfslabel")
    with loop_mounted(path, tmp_path / "r", fs_type="xfs", options="ro,norecovery,nouuid") as root:
        assert same_as_kernel(fs, root) > 1_700
        facts = os.statvfs(root)
        assert facts.f_blocks * facts.f_frsize - (fs.used_bytes or 0) <= path.stat().st_size
        for name in (b"random", b"prealloc", b"sparse"):
            data = [
                x.offset
                for x in fs.open(fs.lookup(b"/" + name)).extents(0, 1 << 40)
                if x.state is State.STORED
            ]
            with open(os.path.join(os.fsencode(root), name), "rb") as file:
                assert data[0] == os.lseek(file.fileno(), 0, os.SEEK_DATA)


def poison(path: Path, inode: int) -> int:
    """Give the blocks of a file that were never written something to hold; how many there are."""
    block, done = int(xfs_db(path, "sb 0", "p blocksize").split()[-1]), 0
    with open(path, "r+b") as file:
        for line in xfs_db(path, f"inode {inode}", "bmap").splitlines():
            words = line.split()  # data offset 1 startblock 46 (0/46) count 255 flag 1
            number, count, flag = (int(words[words.index(w) + 1]) for w in ("startblock", "count", "flag"))
            if flag:
                file.seek(int(xfs_db(path, f"convert fsblock {number} byte").split()[-1].strip("()")))
                file.write(b"\xee" * block * count)
                done += count
    return done


@contextlib.contextmanager
def loop_mounted_to_write(path: Path, folder: Path) -> Iterator[Path]:
    folder.mkdir()
    run_tool(["mount", "-t", "xfs", "-o", "loop,nouuid", path, folder])
    try:
        yield folder
    finally:
        run_tool(["umount", folder])


@pytest.fixture(scope="module", params=["v4", "v4 without types", "v5"])
def protofile(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What mkfs.xfs itself can put there; this kernel mounts no version 4."""
    room = tmp_path_factory.mktemp("proto")
    (room / "content").write_bytes(pattern(200_000))
    lines = ["/", "0 0", "d--755 0 0", f"file ---644 1 2 {room}/content", "link l--777 3 4 some/target"]
    lines += ["dev b--640 5 6 8 17", "pipe p--600 7 8", "folder d--711 9 10"]
    lines += [f"{'n' * 40}{number:04} ---600 11 12 {room}/content" for number in range(120)]
    (room / "proto").write_text("\n".join([*lines, "$", "$", ""]))
    words = {"v4": ["-m", "crc=0"], "v4 without types": ["-m", "crc=0", "-n", "ftype=0"], "v5": []}
    return make_xfs(room / "xfs", *words[request.param], "-p", str(room / "proto"))


def test_versions_4_and_5(protofile: Path) -> None:
    fs = open_xfs(FileReader(protofile))
    entries = {entry.path: entry for entry in walk(fs, fs.root(), onerror=fails)}
    assert len(entries) == 125
    file = entries[b"/file"]
    assert (file.type, file.mode, file.uid, file.gid, file.nlink) == (EntryType.FILE, 0o644, 1, 2, 1)
    check_reader(fs.open(file), pattern(200_000))
    assert fs.readlink(entries[b"/link"]) == b"some/target"
    assert (entries[b"/dev"].rdev, entries[b"/pipe"].type) == ((8, 17), EntryType.FIFO)
    assert entries[b"/folder"].mode == 0o711
    shown = xfs_db(protofile, f"inode {file.inode}", "p core.size", "p core.mtime.nsec")
    assert shown == f"core.size = 200000\ncore.mtime.nsec = {(file.mtime_ns or 0) % 10**9}\n"
    assert all(
        fs.open(entry).read_at(0, 9) == pattern(9) for path, entry in entries.items() if b"nnn" in path
    )


def test_libfsxfs_sees_the_same(protofile: Path) -> None:
    fs, volume = open_xfs(FileReader(protofile)), pyfsxfs.volume()
    with open(protofile, "rb") as file:
        volume.open_file_object(file)
        for entry in walk(fs, fs.root(), onerror=fails):
            other = volume.get_file_entry_by_inode(int(entry.inode))
            assert (other.file_mode & 0o7777, other.owner_identifier, other.number_of_links) == (
                entry.mode,
                entry.uid,
                entry.nlink,
            )
            assert other.get_modification_time_as_integer() == entry.mtime_ns
            if entry.type is EntryType.FILE:
                other.seek(0)
                assert other.read_buffer(entry.size) == fs.open(entry).read_at(0, entry.size)
        volume.close()


def xfs_db(path: Path, *commands: str) -> str:
    words = [word for command in commands for word in ("-c", command)]
    return tool_text("xfs_db", "-r", *words, path)


@pytest.mark.parametrize("name", ["xfs", "xfs-v5"])
def test_images_of_util_linux(tmp_path: Path, name: str) -> None:
    path = unpacked_corpus_file(f"util-linux/tests/ts/blkid/images-fs/{name}.img.xz", tmp_path)
    fs = open_filesystem(FileReader(path))
    assert (fs.kind, fs.label) == ("xfs", "test-xfs" if name == "xfs" else "test-xfs-v5")
    assert list(walk(fs, fs.root(), onerror=fails)) == []
