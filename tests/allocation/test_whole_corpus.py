"""Every disk of others, damaged ones too: what is skipped is overwritten, and neither the checker of the
file system nor The Sleuth Kit sees a difference. A sample of them; all with the slow tests."""

from __future__ import annotations

import contextlib
import os
import re
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path
from typing import Any

import pytest

from imagefs.block.devices import open_source
from imagefs.errors import ImagefsError
from imagefs.interfaces import Volume
from imagefs.ops.usedblocks import find_skips
from imagefs.volume import read_table
from tests.support.oracles import corpus_file, corpus_folder, need_tool, tool_path, unpack

CHECKERS = {
    **dict.fromkeys(("ext2", "ext3", "ext4"), ("e2fsck", "-fn")),
    **dict.fromkeys(("fat12", "fat16", "fat32"), ("fsck.fat", "-n")),
    "exfat": ("fsck.exfat", "-n"),
    "ntfs": ("ntfsfix", "-n"),
}
TOLD_OF = """
import contextlib, sys
from pathlib import Path
from imagefs.block.devices import open_source
from imagefs.volume import read_table
from tests.allocation.test_corpus import told_of
with contextlib.closing(open_source(sys.argv[1])) as disk:
    volumes = read_table(disk, sector_size=512).volumes
print("\\n".join(told_of(Path(sys.argv[1]), volumes)))
"""
#: No disks, or packed in ways of their own; these have tests elsewhere.
OTHERS = {".html", ".md", ".tsv", ".txt", ".jpg", ".xml", ".E01", ".E02", ".qcow2", ".vhd", ".vhdx", ".vmdk"}


def names() -> list[Any]:
    """Every file of the corpus that may be a disk; those for the slow tests are marked."""
    folder = Path(os.environ.get("IMAGEFS_CORPUS") or "/nowhere")
    found = sorted(path for path in folder.rglob("*") if path.is_file() and path.suffix not in OTHERS)
    found = [each for each in found if "e2fsprogs" not in each.parts or each.name.startswith("image")]
    if not found:
        return ["the corpus"]  # is looked for by the test itself, which tells where it is not
    large = {"rename_dot_entry", "large_file_invalid_clus"}
    quick = [each for each in found if "exfatprogs" in each.parts and not large & set(each.parts)]
    slow = set(found) - set(quick) - set(found[::30])
    return [
        pytest.param(str(each.relative_to(folder)), marks=[pytest.mark.slow] if each in slow else [])
        for each in found
    ]


def by_the_sleuth_kit(path: Path) -> str:
    """What can be read of it, in a process of its own; empty where that does not end or is ended."""
    try:
        done = subprocess.run(
            [sys.executable, "-c", TOLD_OF, path],
            cwd=Path(__file__).parents[2],
            capture_output=True,
            timeout=600,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return ""
    return done.stdout.decode("utf-8", "replace")


def by_its_checker(path: Path, volume: Volume, kind: str, room: Path) -> str:
    """Code and words of the file system's own checker, up to where it may crash."""
    if kind not in CHECKERS:
        return ""
    need_tool(CHECKERS[kind][0])
    part = room / "part"
    with path.open("rb") as disk, part.open("wb") as out:
        disk.seek(volume.start)
        left = volume.length
        while left and (block := disk.read(min(left, 1 << 20))):
            out.seek(len(block), os.SEEK_CUR) if not any(block) else out.write(block)
            left -= len(block)
        out.truncate(volume.length)
    words = [str(tool_path(CHECKERS[kind][0])), *CHECKERS[kind][1:], str(part)]
    try:
        done = subprocess.run(words, capture_output=True, timeout=600, check=False)
    except subprocess.TimeoutExpired:
        return ""
    told = (done.stdout + done.stderr).decode("utf-8", "replace")
    return f"{done.returncode} {re.split('Signal [(]|double free', told)[0]}"


def disks(name: str, room: Path) -> list[Path]:
    try:
        found = unpack(corpus_file(name), room)
    except (tarfile.TarError, zipfile.BadZipFile, EOFError, OSError):
        return []
    files = [found] if found.is_file() else found.rglob("*")
    return sorted(each for each in files if each.is_file() and each.stat().st_size >= 16_384)


@pytest.mark.parametrize("name", names())
def test_nothing_is_missed(tmp_path: Path, name: str) -> None:
    corpus_folder()
    for path in disks(name, tmp_path / "disk"):
        with contextlib.closing(open_source(str(path))) as disk:
            try:
                volumes = read_table(disk, sector_size=512).volumes
            except ImagefsError:
                continue
            skips, uses = find_skips(disk, sector_size=512, keep_swap=True)
        told = {use.volume: use for use in uses}
        assert all(use.used_bytes == use.length for use in uses if use.reason)
        left = [volume for volume in volumes if told[volume.id].used_bytes < volume.length]
        if not left:
            continue
        before = [by_its_checker(path, each, told[each.id].kind, tmp_path) for each in left]
        read_before = by_the_sleuth_kit(path)
        path.chmod(0o600)
        with path.open("r+b") as out:
            for first, end in zip(skips.first.tolist(), skips.end.tolist(), strict=True):
                for at in range(first, end, 1 << 20):
                    out.seek(at)
                    out.write(b"\xa5" * min(1 << 20, end - at))
        assert [by_its_checker(path, each, told[each.id].kind, tmp_path) for each in left] == before
        if read_before:
            assert by_the_sleuth_kit(path) == read_before
