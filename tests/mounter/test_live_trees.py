"""Real file systems and holes through a real mount, against tools we did not write."""

from __future__ import annotations

import os
import shutil
import stat
import subprocess
from pathlib import Path

import pytest

from tests.mounter.conftest import Mount, need
from tests.mounter.fakes import noise, sparse_reader


def make_tree(folder: Path) -> None:
    (folder / "etc" / "deep" / "er").mkdir(parents=True)
    (folder / "etc" / "big").write_bytes(noise(3_000_001))
    (folder / "etc" / "empty").write_bytes(b"")
    (folder / "etc" / "deep" / "er" / "link").symlink_to("../../big")
    os.link(folder / "etc" / "big", folder / "hard")
    os.chmod(folder / "etc" / "big", 0o4751)
    os.mkfifo(folder / "pipe")
    (folder / os.fsdecode(b"caf\xe9")).write_bytes(b"latin")
    (folder / ("n" * 255)).write_bytes(b"long")
    (folder / "many").mkdir()
    for at in range(700):
        (folder / "many" / f"file {at}").write_bytes(b"%d" % at)


def facts(folder: Path) -> dict[str, tuple[object, ...]]:
    """Everything below ``folder``: type and mode, size, links, seconds of change, target or content."""
    found: dict[str, tuple[object, ...]] = {}
    for parent, folders, files in os.walk(folder):
        for name in folders + files:
            path = Path(parent, name)
            status = path.lstat()
            size = 0 if stat.S_ISDIR(status.st_mode) else status.st_size
            content: object = None
            if path.is_symlink():
                content = os.readlink(path)
            elif stat.S_ISREG(status.st_mode):
                content = path.read_bytes()
            times = int(status.st_mtime)
            found[str(path.relative_to(folder))] = (status.st_mode, size, status.st_nlink, times, content)
    return found


def test_an_ext4_tree_is_the_tree_it_was_made_from(mount: Mount, tmp_path: Path) -> None:
    need(shutil.which("mke2fs"), "mke2fs")
    source, image = tmp_path / "source", tmp_path / "ext4"
    source.mkdir()
    make_tree(source)
    command = ["mke2fs", "-q", "-t", "ext4", "-d", source, image, "24M"]
    subprocess.run(command, check=True, timeout=60, capture_output=True)
    live = mount("ext4", path=str(image))
    shown = facts(live.directory / "p1")
    shown.pop("lost+found")
    assert shown == facts(source)
    tree = live.directory / "p1"
    assert (tree / "hard").stat().st_ino == (tree / "etc/big").stat().st_ino
    assert (tree / "hard").stat().st_ino & (1 << 48) - 1 == _debugfs_inode(image, "/hard")


def _debugfs_inode(image: Path, path: str) -> int:
    done = subprocess.run(
        ["debugfs", "-R", f"stat {path}", image], capture_output=True, text=True, timeout=20, check=True
    )
    return int(done.stdout.split("Inode:")[1].split()[0])


def test_holes_are_found_and_need_not_be_read(mount: Mount, tmp_path: Path) -> None:
    live = mount("sparse")
    disk, reader = live.directory / "disk.raw", sparse_reader()
    with open(disk, "rb") as file:
        if os.lseek(file.fileno(), 0, os.SEEK_HOLE) != 0:
            pytest.skip("needs libfuse 3 with lseek")
        assert os.lseek(file.fileno(), 0, os.SEEK_DATA) == 1 << 20
        assert os.lseek(file.fileno(), 1 << 20, os.SEEK_HOLE) == (1 << 20) + 4096
        with pytest.raises(OSError):
            os.lseek(file.fileno(), reader.size, os.SEEK_DATA)
    subprocess.run(["cp", "--sparse=auto", disk, tmp_path / "copy"], check=True, timeout=60)
    assert (tmp_path / "copy").read_bytes() == reader.read_at(0, reader.size)
    assert (tmp_path / "copy").stat().st_blocks * 512 < 1 << 20
