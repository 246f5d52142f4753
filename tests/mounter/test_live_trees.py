"""Real file systems and holes through a real mount, against tools we did not write."""

from __future__ import annotations

import contextlib
import os
import shutil
import stat
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.mounter.conftest import Mount, need, need_root
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
    subprocess.run(command, check=True, timeout=600, capture_output=True)
    live = mount("ext4", path=str(image))
    shown = facts(live.directory / "p1")
    shown.pop("lost+found")
    assert shown == facts(source)
    tree = live.directory / "p1"
    assert (tree / "hard").stat().st_ino == (tree / "etc/big").stat().st_ino
    assert (tree / "hard").stat().st_ino & (1 << 48) - 1 == _debugfs_inode(image, "/hard")


def _debugfs_inode(image: Path, path: str) -> int:
    done = subprocess.run(
        ["debugfs", "-R", f"stat {path}", image], capture_output=True, text=True, timeout=600, check=True
    )
    return int(done.stdout.split("Inode:")[1].split()[0])


def make_wide_tree(folder: Path, *, symlinks: bool = True) -> None:
    """Folders enough that the mount changes to listing names only, with links between them."""
    for at in range(40):
        (folder / f"d{at}" / "in").mkdir(parents=True)
        for number in range(6):
            (folder / f"d{at}" / f"file {number}").write_bytes(b"%d" % number * at)
        os.link(folder / f"d{at}" / "file 0", folder / f"d{at // 2}" / "in" / f"link {at}")
        if symlinks:
            os.symlink("file 1", folder / f"d{at}" / "symlink")


def numbers(folder: Path) -> dict[str, tuple[int, int, int, int]]:
    """Inode, links, mode and size of everything below; the numbers of the listing must be those of stat."""
    found = {}
    for parent, _, _ in os.walk(folder):
        for each in os.scandir(parent):
            status = each.stat(follow_symlinks=False)
            assert each.inode() == status.st_ino
            size = 0 if each.is_dir(follow_symlinks=False) else status.st_size
            place = os.path.relpath(each.path, folder)
            found[place] = (status.st_ino, status.st_nlink, status.st_mode, size)
    return found


def test_numbers_and_links_stay_from_mount_to_mount(mount: Mount, tmp_path: Path) -> None:
    need(shutil.which("mke2fs"), "mke2fs")
    source, image = tmp_path / "source", tmp_path / "ext4"
    source.mkdir()
    make_wide_tree(source)
    subprocess.run(
        ["mke2fs", "-q", "-t", "ext4", "-d", source, image, "24M"],
        check=True,
        timeout=600,
        capture_output=True,
    )
    first = mount("ext4", path=str(image))
    found = numbers(first.directory / "p1")
    first.end()
    second = mount("ext4", path=str(image))
    subprocess.run(["find", second.directory], check=True, timeout=600, capture_output=True)
    assert numbers(second.directory / "p1") == found, "also after a walk that asked for names only"
    for at in range(40):
        assert found[f"d{at}/file 0"] == found[f"d{at // 2}/in/link {at}"]
        assert found[f"d{at}/file 0"][1] == 2


def test_ext4_is_what_the_kernel_shows_of_it(mount: Mount, tmp_path: Path) -> None:
    need(shutil.which("mke2fs"), "mke2fs")
    need_root()
    source, image, kernel = tmp_path / "source", tmp_path / "ext4", tmp_path / "kernel"
    source.mkdir()
    kernel.mkdir()
    make_wide_tree(source)
    command = ["mke2fs", "-q", "-t", "ext4", "-d", source, image, "24M"]
    subprocess.run(command, check=True, timeout=600, capture_output=True)
    with mounted(["mount", "-o", "loop,ro,noload", image, kernel], kernel):
        theirs = numbers(kernel)
    compare(numbers(mount("ext4", path=str(image)).directory / "p1"), theirs)


def test_ntfs_is_what_ntfs_3g_shows_of_it(mount: Mount, tmp_path: Path) -> None:
    need(shutil.which("mkntfs") and shutil.which("ntfs-3g"), "ntfs-3g")
    need_root()
    image, driver = tmp_path / "ntfs", tmp_path / "driver"
    driver.mkdir()
    with image.open("wb") as stream:
        stream.truncate(24 << 20)
    subprocess.run(["mkntfs", "-q", "-F", "-Q", image], check=True, timeout=600, capture_output=True)
    with mounted(["ntfs-3g", image, driver], driver):
        make_wide_tree(driver, symlinks=False)  # it writes them as files that only it takes for links
        (driver / "many").mkdir()
        for at in range(3000):
            (driver / "many" / f"a name of some length {at}").touch()
    with mounted(["ntfs-3g", "-o", "ro,show_sys_files", image, driver], driver):
        theirs = numbers(driver)
    ours = numbers(mount("ext4", path=str(image)).directory / "p1")
    shared = {name for name in ours.keys() | theirs.keys() if not name.startswith("$")}
    compare({n: ours[n] for n in shared}, {n: theirs[n] for n in shared}, modes=False)


def compare(
    ours: dict[str, tuple[int, ...]], theirs: dict[str, tuple[int, ...]], *, modes: bool = True
) -> None:
    """The same names, numbers, links, types and sizes; a directory's links are each driver's own."""
    assert ours.keys() == theirs.keys()
    for name, (inode, links, mode, size) in theirs.items():
        mine = ours[name]
        assert mine[0] & (1 << 48) - 1 == inode
        assert stat.S_ISDIR(mode) or mine[1] == links
        assert mine[2] == mode if modes else stat.S_IFMT(mine[2]) == stat.S_IFMT(mode)
        assert mine[3] == size


@contextlib.contextmanager
def mounted(command: list[str | Path], folder: Path) -> Iterator[None]:
    subprocess.run(command, check=True, timeout=600, capture_output=True)
    try:
        yield
    finally:
        subprocess.run(["umount", folder], check=True, timeout=600)


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
    subprocess.run(["cp", "--sparse=auto", disk, tmp_path / "copy"], check=True, timeout=600)
    assert (tmp_path / "copy").read_bytes() == reader.read_at(0, reader.size)
    assert (tmp_path / "copy").stat().st_blocks * 512 < 1 << 20
