"""Disks that are not what they seem, from capture to browsing, with the command line as users have it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest

from fixtures.build import build_superfloppy
from imagefs.block.devices import open_source
from imagefs.browse.apart import open_apart
from imagefs.browse.opening import open_filesystem
from imagefs.browse.walk import walk
from imagefs.errors import ImagefsError
from imagefs.interfaces import EntryType, FileSystem
from tests.browse.disks import MIB, debugfs, make_ext, make_fat, make_ntfs, pattern
from tests.cli.mounts import ROOT
from tests.support.oracles import (
    corpus_file,
    corpus_folder,
    need_tool,
    run_tool,
    unpack,
    unpacked_corpus_file,
)


def said(room: Path, *words: str | Path, code: int = 0) -> tuple[str, str]:
    """What a command prints and complains of; it must end with ``code``."""
    done = subprocess.run(
        [sys.executable, "-P", "-m", "imagefs", *map(str, words)],
        cwd=room, env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True, errors="replace",
        timeout=600, check=False,
    )  # fmt: skip
    assert "Traceback" not in done.stderr
    assert done.returncode == code, done.stderr
    return done.stdout, done.stderr


def captured(room: Path, disk: Path, *words: str) -> None:
    said(room, "capture", disk, "set", *words)


def test_two_terabytes_in_thirteen_kilobytes(tmp_path: Path) -> None:
    packed = corpus_file("exfatprogs/tests/2tb_disk/exfat.img.tar.xz")
    run_tool(["tar", "-xSf", packed, "-C", tmp_path])
    (disk,) = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert disk.stat().st_size >= 2 * 10**12
    captured(tmp_path, disk)
    assert sum(each.stat().st_size for each in (tmp_path / "set").iterdir()) < 20 * MIB
    out, _ = said(tmp_path, "ls", "set", "--json")
    (row,) = json.loads(out)["entries"]
    assert (row["filesystem"], row["size"]) == ("exfat", disk.stat().st_size)
    said(tmp_path, "find", "set")
    said(tmp_path, "verify", "set", "--level", "data")


def test_a_loop_of_directories(tmp_path: Path) -> None:
    captured(tmp_path, unpacked_corpus_file("dfir_ntfs/test_data/fat32_loop.raw.gz", tmp_path))
    out, complaint = said(tmp_path, "find", "set", code=3)
    assert "loop" in complaint
    assert len(out.splitlines()) < 1000
    said(tmp_path, "get", "set", "/p0", "out", code=3)


def test_a_loop_of_directories_made_by_hand(tmp_path: Path) -> None:
    """A folder of ext4 that holds its own grandparent."""
    (tmp_path / "tree/a/b/c").mkdir(parents=True)
    disk = make_ext(tmp_path / "disk.raw", tmp_path / "tree")
    inode = debugfs(disk, "stat /a").split("Inode:")[1].split()[0]
    debugfs(disk, f"link <{inode}> /a/b/c/again")
    captured(tmp_path, disk, "--mode", "all")
    out, complaint = said(tmp_path, "find", "set", code=3)
    assert complaint.count("is a loop") == 1
    assert [line for line in out.splitlines() if line.startswith("/p0/a")] == [
        "/p0/a", "/p0/a/b", "/p0/a/b/c", "/p0/a/b/c/again",
    ]  # fmt: skip


def test_a_file_system_larger_than_its_partition(tmp_path: Path) -> None:
    """What lies inside is read, what does not is an error that names the file, never zeros."""
    (tmp_path / "tree").mkdir()
    for number in range(12):
        (tmp_path / "tree" / f"file-{number:02d}").write_bytes(pattern(MIB))
    disk = make_ext(tmp_path / "disk.raw", tmp_path / "tree")
    os.truncate(disk, 8 * MIB)
    captured(tmp_path, disk)
    out, _ = said(tmp_path, "ls", "set", "/p0")
    names = [name for name in out.split() if name.startswith("file")]
    assert len(names) == 12
    _, complaint = said(tmp_path, "get", "set", "/p0", "out", code=3)
    whole = sorted(each.name for each in (tmp_path / "out").iterdir() if each.is_file())
    assert 0 < len(whole) < 12
    for name in names:
        if name in whole:
            assert (tmp_path / "out" / name).read_bytes() == pattern(MIB)
        else:
            assert name in complaint
    _, complaint = said(tmp_path, "cat", "set", f"/p0/{max(set(names) - set(whole))}", code=40)
    assert "past the end of the volume" in complaint


def test_two_file_systems_in_one_partition(tmp_path: Path) -> None:
    """mke2fs over a FAT leaves its boot sector; the later file system is the one that is shown."""
    (tmp_path / "old").mkdir()
    (tmp_path / "old/before").write_bytes(b"before")
    (tmp_path / "new").mkdir()
    (tmp_path / "new/after").write_bytes(b"after")
    disk = make_fat(tmp_path / "fat", tmp_path / "old", "-F16", "-s1", size=16 * MIB)
    boot = disk.read_bytes()[:512]
    make_ext(tmp_path / "disk.raw", tmp_path / "new")
    with open(tmp_path / "disk.raw", "r+b") as both:
        both.write(boot)
    captured(tmp_path, tmp_path / "disk.raw")
    assert said(tmp_path, "cat", "set", "/p0/after")[0] == "after"
    assert "before" not in said(tmp_path, "ls", "set", "/p0")[0]


@pytest.mark.parametrize("kind", ["FAT16", "ext4"])
def test_a_disk_without_a_partition_table(tmp_path: Path, kind: str) -> None:
    truth = build_superfloppy(tmp_path / "disk.raw", kind=kind)
    captured(tmp_path, tmp_path / "disk.raw")
    out, _ = said(tmp_path, "ls", "set")
    assert [line.split()[0] for line in out.splitlines()[1:]] == ["/p0"]
    assert kind.lower() in out
    assert truth


@pytest.mark.parametrize("given", ["512", "4096"])
def test_sectors_of_4096_bytes(tmp_path: Path, given: str) -> None:
    """A table in sectors of 4,096 bytes is found whatever the file seems to have; so is what is in it."""
    need_tool("losetup", "sgdisk")
    if os.geteuid() != 0:
        pytest.skip("needs root")
    (tmp_path / "tree").mkdir()
    (tmp_path / "tree/file").write_bytes(b"content")
    volume = make_ext(tmp_path / "volume", tmp_path / "tree", "-b", "4096", size=32 * MIB)
    disk = tmp_path / "disk.raw"
    with disk.open("wb") as stream:
        stream.truncate(64 * MIB)
    device = run_tool(["losetup", "--sector-size", "4096", "--find", "--show", disk]).stdout.decode().strip()
    try:
        run_tool(["sgdisk", "-n", "1:1024:+32M", device])
        with open(device, "r+b") as stream:
            stream.seek(1024 * 4096)
            stream.write(volume.read_bytes())
        if given == "4096":
            captured(tmp_path, Path(device))
    finally:
        run_tool(["losetup", "--detach", device])
    if given == "512":
        captured(tmp_path, disk)
    assert said(tmp_path, "cat", "set", "/p1/file")[0] == "content"


def damaged() -> list[Path]:
    """Every damaged file system of the corpus."""
    folder = Path(os.environ.get("IMAGEFS_CORPUS") or "/nowhere")
    found = [*folder.glob("e2fsprogs/tests/*/image.gz"), *folder.glob("exfatprogs/tests/*/exfat.img.tar.xz")]
    found += [*folder.glob("sleuthkit_test_data/fuzzing/*"), *folder.glob("dfir_ntfs/test_data/fat*.gz")]
    return sorted(found)


def in_workers(paths: list[Path], room: Path) -> None:
    """Open, walk and read each; only ImagefsErrors may come, and the same entries as without a worker."""
    assert paths, f"nothing damaged in {corpus_folder()}"
    for number, path in enumerate(paths):
        try:
            place = unpack(path, room / str(number))
        except tarfile.TarError:
            continue
        (disk,) = [place] if place.is_file() else [each for each in place.rglob("*") if each.is_file()]
        reader = open_source(str(disk))
        try:
            fs = open_apart(reader)
        except ImagefsError:
            continue
        try:
            visit(fs)
        finally:
            fs.close()
            reader.close()


def visit(fs: FileSystem) -> None:
    for count, entry in enumerate(walk(fs, fs.root(), onerror=lambda error: None)):
        if count > 2000:
            return
        try:
            if entry.type is EntryType.FILE:
                content = fs.open(entry)
                assert len(content.read_at(0, 65536)) == min(65536, content.size)
            elif entry.type is EntryType.SYMLINK:
                fs.readlink(entry)
        except ImagefsError:
            continue


def test_some_damaged_file_systems_in_workers(tmp_path: Path) -> None:
    in_workers([each for each in damaged() if "2tb" not in str(each)][::20], tmp_path)


@pytest.mark.slow
@pytest.mark.timeout(3000)
def test_every_damaged_file_system_in_workers(tmp_path: Path) -> None:
    in_workers([each for each in damaged() if "2tb" not in str(each)], tmp_path)


def test_a_damaged_ntfs_is_the_same_in_a_worker(tmp_path: Path) -> None:
    """One that crashed The Sleuth Kit once."""
    (path,) = corpus_folder().glob("sleuthkit_test_data/fuzzing/*ntfs*")
    reader = open_source(str(path))
    here, apart = open_filesystem(reader), open_apart(reader)
    for fs in (here, apart):
        visit(fs)
    assert list(apart.children(apart.root())) == list(here.children(here.root()))
    apart.close()
    reader.close()


def test_a_large_record_of_ntfs_costs_no_more_than_it_is(tmp_path: Path) -> None:
    """An NTFS whose boot sector claims clusters of 2 MiB is refused or read, in bounded time and memory."""
    path = make_ntfs(tmp_path / "ntfs", {"file": b"content"}, tmp_path)
    data = bytearray(path.read_bytes())
    data[13] = 0xF4
    path.write_bytes(data)
    captured(tmp_path, path, "--mode", "all")
    said(tmp_path, "ls", "set")
    _, complaint = said(tmp_path, "ls", "set", "/p0", code=40)
    assert complaint
