"""What only the kernel reads: through a private mount of it when root, a plain sentence otherwise."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from imagefs.block.views import BytesReader, SliceReader
from imagefs.browse.opening import open_filesystem
from imagefs.browse.walk import walk
from imagefs.cli.wiring import open_by_kernel
from imagefs.errors import BrowseError, NotAFileSystem
from imagefs.interfaces import EntryType, FileSystem, Reader
from mounter import mounttable
from tests.browse.disks import MIB, BreakingReader, FileReader, pattern
from tests.support.kernelview import fails, same_as_kernel
from tests.support.oracles import loop_mounted, need_tool, root_only, run_tool, unpacked_corpus_file


def opened(reader: Reader) -> FileSystem:
    """As a command opens a volume."""
    try:
        return open_filesystem(reader)
    except NotAFileSystem as error:
        return open_by_kernel(reader, error)


def stage(root: Path) -> Path:
    (root / "folder").mkdir(parents=True)
    (root / "folder" / "file").write_bytes(pattern(3_000_000))
    os.link(root / "folder" / "file", root / "hard")
    (root / "link").symlink_to("/etc/passwd")
    os.mknod(root / "dev", 0o60640, os.makedev(8, 17))
    os.mkfifo(root / "fifo")
    os.close(os.open(os.path.join(os.fsencode(root), b"latin \xff"), os.O_CREAT | os.O_WRONLY))
    os.setxattr(root / "folder", "user.a", b"\0b")
    os.setxattr(root / "folder" / "file", "user.long", b"v" * 200)
    os.chown(root / "folder", 70_000, 80_000)
    os.utime(root / "folder", ns=(1_234_567_890_123_456_789, 1_600_000_000_987_654_321))
    return root


def make_btrfs(path: Path, room: Path) -> Path:
    """With subvolumes, one of which is to be mounted by default."""
    need_tool("mkfs.btrfs", "btrfs")
    with open(path, "wb") as file:
        file.truncate(160 * MIB)
    run_tool(["mkfs.btrfs", "-q", "-L", "btrfslabel", path])
    room.mkdir()
    run_tool(["mount", "-o", "loop", path, room])
    try:
        stage(room / "top")
        run_tool(["btrfs", "subvolume", "create", room / "sub"])
        (room / "sub" / "inside").write_bytes(b"in a subvolume")
        run_tool(["btrfs", "subvolume", "snapshot", "-r", room / "sub", room / "top" / "snapshot"])
        with open(room / "sparse", "wb") as file:
            os.pwrite(file.fileno(), b"x", 1 << 30)
        run_tool(["btrfs", "subvolume", "set-default", room / "sub"])
    finally:
        run_tool(["umount", room])
    return path


@pytest.fixture(scope="module")
def btrfs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    room = tmp_path_factory.mktemp("btrfs")
    return make_btrfs(room / "btrfs", room / "mnt")


def left_behind(helper: str) -> list[str]:
    """What there still is of a helper, by its process id and the loop device over its file."""
    loops = [file for file in Path("/sys/block").glob("loop*/loop/backing_file") if text(file) == "/disk.raw"]
    others = [path for path in Path("/proc").glob("[0-9]*/cmdline") if b"mounter.kernelhelper" in raw(path)]
    running = [path.parent.name for path in others]
    return [
        *(["process"] if helper in running else []),
        *map(str, loops if len(loops) > len(running) else []),
    ]


def helper_of(pid: int) -> str:
    """The process id of the one helper that a process has."""
    children = [path.parent.name for path in Path("/proc").glob("[0-9]*/cmdline") if parent(path) == str(pid)]
    (helper,) = [
        child for child in children if b"mounter.kernelhelper" in raw(Path("/proc", child, "cmdline"))
    ]
    return helper


def parent(cmdline: Path) -> str:
    found = [
        line.split()[1] for line in text(cmdline.parent / "status").splitlines() if line.startswith("PPid")
    ]
    return found[0] if found else ""


def text(path: Path) -> str:
    return raw(path).decode("utf-8", "replace").strip()


def raw(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError:  # gone in between
        return b""


def soon(true: Callable[[], bool]) -> bool:
    deadline = time.monotonic() + 300
    while not true() and time.monotonic() < deadline:
        time.sleep(0.05)
    return true()


@root_only
def test_btrfs_with_its_subvolumes_as_the_kernel_shows_it(btrfs: Path, tmp_path: Path) -> None:
    with contextlib.closing(opened(FileReader(btrfs))) as fs:
        assert (fs.kind, fs.label) == ("btrfs", "btrfslabel")
        seen = [mounted.directory for mounted in mounttable.mounts()]
        assert not [
            directory
            for directory in seen
            if "/imagefs-" in directory and directory.endswith(("raw", "tree"))
        ]
        entries = list(walk(fs, fs.root(), onerror=fails))
        folders = [entry.inode for entry in entries if entry.type is EntryType.DIRECTORY]
        assert len(folders) == len(set(folders)) == 4
        assert fs.open(fs.lookup(b"/top/snapshot/inside")).read_at(0, 99) == b"in a subvolume"
        assert 0 < (fs.used_bytes or 0) < 160 * MIB
        other = tmp_path / "other"  # two mounts of one Btrfs would be one: this has an identity of its own
        run_tool(["cp", "--sparse=always", btrfs, other])
        need_tool("btrfstune")
        run_tool(["btrfstune", "-f", "-u", other])
        options = "ro,rescue=nologreplay,subvolid=5"
        with loop_mounted(other, tmp_path / "mnt", fs_type="btrfs", options=options) as root:
            assert same_as_kernel(fs, root, inodes=False) == 13


@root_only
@pytest.mark.parametrize("kind", ["squashfs", "erofs", "f2fs", "xfs"])
def test_other_kinds(kind: str, tmp_path: Path) -> None:
    """squashfs and EROFS are made from a folder; for XFS the kernel is asked although we can read it."""
    if kind not in kernel_drivers():
        with pytest.raises(NotAFileSystem, match="no driver for f2fs"):
            opened(FileReader(made(kind, tmp_path)))
        return
    path = made(kind, tmp_path)
    reader = FileReader(path)
    with contextlib.closing(open_by_kernel(reader, NotAFileSystem("not for us"))) as fs:
        assert fs.kind == kind
        options = "ro,norecovery,nouuid" if kind == "xfs" else "ro"
        if kind == "xfs":
            ours = open_filesystem(reader)
            entry, same = fs.lookup(b"/file"), ours.lookup(b"/file")
            assert entry == same._replace(crtime_ns=None)
            assert fs.open(entry).read_at(0, 9) == pattern(9)
            return
        with loop_mounted(path, tmp_path / "mnt", fs_type=kind, options=options) as root:
            assert same_as_kernel(fs, root) == 7


def kernel_drivers() -> list[str]:
    return Path("/proc/filesystems").read_text().split()


def made(kind: str, room: Path) -> Path:
    path = room / "volume"
    content = stage(room / "content")
    if kind == "xfs":
        (room / "proto").write_text(f"/\n0 0\nd--755 0 0\nfile ---644 1 2 {content}/hard\n$\n$\n")
        with open(path, "wb") as file:
            file.truncate(320 * MIB)
        run_tool(["mkfs.xfs", "-q", "-p", str(room / "proto"), path])
    elif kind == "f2fs":
        with open(path, "wb") as file:
            file.truncate(64 * MIB)
        run_tool(["mkfs.f2fs", "-q", path])
    elif kind == "squashfs":
        run_tool(["mksquashfs", content, path, "-quiet", "-no-progress"])
    else:
        run_tool(["mkfs.erofs", "--quiet", path, content])
    return path


def test_without_root_it_says_what_is_needed(btrfs_head: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    with pytest.raises(NotAFileSystem, match="only root") as caught:
        opened(BytesReader(btrfs_head))
    assert caught.value.hint == "run it with sudo"


@pytest.fixture
def btrfs_head(tmp_path: Path) -> bytes:
    need_tool("mkfs.btrfs")
    path = tmp_path / "head"
    with open(path, "wb") as file:
        file.truncate(160 * MIB)
    run_tool(["mkfs.btrfs", "-q", path])
    with open(path, "rb") as file:
        return file.read(1 * MIB)


def test_one_of_several_devices_is_refused(btrfs_head: bytes) -> None:
    several = btrfs_head[:0x10088] + b"\2" + btrfs_head[0x10089:]
    with pytest.raises(NotAFileSystem, match="one of 2 devices of a Btrfs"):
        opened(BytesReader(several))


def test_what_the_kernel_is_not_asked_for_stays_refused() -> None:
    refused = NotAFileSystem("the volume seems to be empty")
    with pytest.raises(NotAFileSystem) as caught:
        open_by_kernel(BytesReader(bytes(1 << 20)), refused)
    assert caught.value is refused


@root_only
def test_what_the_kernel_refuses_is_told_and_leaves_nothing(btrfs: Path) -> None:
    with pytest.raises(NotAFileSystem, match=r"seems to be Btrfs.*nor does the kernel read it"):
        opened(SliceReader(FileReader(btrfs), 0, 1 * MIB))
    assert soon(lambda: not left_behind(""))


@root_only
def test_bad_bytes_of_the_image_are_an_error_that_names_them(btrfs: Path) -> None:
    reader = BreakingReader(FileReader(btrfs), 0, btrfs.stat().st_size, broken=False)
    with contextlib.closing(opened(reader)) as fs:
        helper = helper_of(os.getpid())
        content = fs.open(fs.lookup(b"/top/folder/file"))
        reader.broken = True
        with pytest.raises(BrowseError, match=r"/top/folder/file.*chunk 17 fails its check"):
            content.read_at(0, 3_000_000)
        content.close()
    assert soon(lambda: not left_behind(helper))


@root_only
def test_a_helper_that_is_killed_is_an_error_and_leaves_nothing(btrfs: Path) -> None:
    with contextlib.closing(opened(FileReader(btrfs))) as fs:
        content = fs.open(fs.lookup(b"/top/folder/file"))
        helper = helper_of(os.getpid())
        os.kill(int(helper), signal.SIGKILL)
        with pytest.raises(BrowseError, match="the kernel says"):
            content.read_at(0, 3_000_000)
        content.close()
    assert soon(lambda: not left_behind(helper))


@root_only
def test_other_mounts_do_not_stay_busy(btrfs: Path, tmp_path: Path) -> None:
    """The helper's namespace began as a copy of ours, with everything that was mounted."""
    other, folder = tmp_path / "other", tmp_path / "mnt"
    content = tmp_path / "content"
    content.mkdir()
    run_tool(["mksquashfs", content, other, "-quiet", "-no-progress"])
    folder.mkdir()
    run_tool(["mount", "-o", "loop,ro", other, folder])
    try:
        fs = opened(FileReader(btrfs))
    finally:
        run_tool(["umount", folder])
    with contextlib.closing(fs):
        loops = Path("/sys/block")
        assert soon(lambda: str(other) not in {text(f) for f in loops.glob("loop*/loop/backing_file")})


@root_only
def test_a_command_that_is_killed_leaves_nothing(btrfs: Path) -> None:
    program = (
        "import sys, time; from pathlib import Path; from tests.mounter.test_kernel import *\n"
        "fs = opened(FileReader(Path(sys.argv[1]))); print(fs.root().type, flush=True); time.sleep(100)"
    )
    with subprocess.Popen([sys.executable, "-c", program, btrfs], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"directory\n"
        helper = helper_of(process.pid)
        process.kill()
    assert soon(lambda: not left_behind(helper))


@root_only
def test_the_disk_of_debian_has_its_btrfs_too(tmp_path: Path) -> None:
    """Published of it: both files are on each of its four file systems."""
    path = unpacked_corpus_file("debian-forensics-samples/fs.multiple.xz", tmp_path)
    with contextlib.closing(opened(FileReader(path, 2048 * 512, (227_328 - 2048) * 512))) as fs:
        sizes = {entry.name: entry.size for entry in walk(fs, fs.root(), onerror=fails)}
    assert sizes[b"debian_logo.jpg"] == 36885
    assert sizes[b"test.txt"] == 26
