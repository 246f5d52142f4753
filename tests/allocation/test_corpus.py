"""Disks of others: what can be read of every file in them is the same when all that is skipped is overwritten."""

from __future__ import annotations

import contextlib
import hashlib
from pathlib import Path

import pytest

from imagefs.block.devices import open_source
from imagefs.block.views import SliceReader
from imagefs.browse.opening import open_filesystem
from imagefs.browse.walk import walk
from imagefs.errors import ImagefsError
from imagefs.interfaces import EntryType, Volume
from imagefs.ops.usedblocks import find_skips
from imagefs.volume import read_table
from tests.support.oracles import unpacked_corpus_file

#: (file of the corpus, the file inside, kinds of which something is left out)
DISKS = [
    ("debian-forensics-samples/fs.multiple.xz", "*", "ntfs"),
    ("dfir_ntfs/test_data/fat16_moved.raw.gz", "*", "fat16"),
    ("dfir_ntfs/test_data/fat32_loop.raw.gz", "*", "fat32"),
    ("dfir_ntfs/test_data/fat_lfn_test.raw.gz", "*", "fat32"),
    ("dfir_ntfs/test_data/fat_unusual_cluster.raw.gz", "*", "fat12"),
    ("e2fsprogs/tests/d_inline_dump/image.gz", "*", "ext4"),
    ("e2fsprogs/tests/f_16384_block/image.gz", "*", "ext2"),
    ("e2fsprogs/tests/f_convert_bmap/image.gz", "*", "ext4"),
    ("e2fsprogs/tests/f_desc_size_128/image.gz", "*", "ext4"),
    ("e2fsprogs/tests/f_ea_inode/image.gz", "*", "ext4"),
    ("e2fsprogs/tests/f_h_normal/image.gz", "*", "ext2"),
    ("exfatprogs/tests/unused-dentries/exfat.img.tar.xz", "*.img", "exfat"),
    ("go-exfat/test/assets/test.exfat", "*", "exfat"),
    ("go-ext4/assets/hierarchy_32.ext4", "*", "ext4"),
    ("go-ext4/assets/hierarchy_64.ext4", "*", "ext4"),
    ("plaso/test_data/tsk_volume_system.raw", "*", "ext2"),
    ("rust-fatfs/resources/fat12.img", "*", "fat12"),
    ("rust-fatfs/resources/fat16.img", "*", "fat16"),
    ("sleuthkit_test_data/from_brian/1-extend-part.zip", "*.dd", "fat16"),
    ("sleuthkit_test_data/from_brian/7-undel-ntfs.zip", "*.dd", "ntfs"),
    ("sleuthkit_test_data/from_brian/9-fat-label.zip", "*.dd", "fat16"),
    ("sleuthkit_test_data/nps-2009-hfsjtest1/image.gen1.zip", "*.dmg", "hfs+"),
    ("util-linux/tests/ts/blkid/images-fs/ext3.img.xz", "*", "ext3"),
    ("util-linux/tests/ts/blkid/images-fs/ntfs.img.xz", "*", "ntfs"),
]


def told_of(path: Path, volumes: tuple[Volume, ...]) -> list[str]:
    """A line for each file, folder and error of every volume, with what the file holds."""
    lines: list[str] = []
    with contextlib.closing(open_source(str(path))) as disk:
        for volume in volumes:
            with (
                contextlib.suppress(ImagefsError),
                contextlib.closing(open_filesystem(SliceReader(disk, volume.start, volume.length))) as fs,
            ):
                for entry in walk(fs, fs.root(), onerror=lambda error: lines.append(error.message)):
                    held = ""
                    if entry.type is EntryType.FILE:
                        try:
                            reader = fs.open(entry)
                            held = hashlib.sha256(reader.read_at(0, reader.size)).hexdigest()
                        except ImagefsError as error:
                            held = error.message
                    lines.append(f"{volume.id} {entry} {held}")
    return lines


@pytest.mark.parametrize(("name", "member", "kind"), DISKS, ids=[name for name, _, _ in DISKS])
def test_nothing_is_missed(tmp_path: Path, name: str, member: str, kind: str) -> None:
    path = unpacked_corpus_file(name, tmp_path, member=member)
    with contextlib.closing(open_source(str(path))) as disk:
        volumes = read_table(disk, sector_size=512).volumes
        skips, uses = find_skips(disk, sector_size=512, keep_swap=True)
    assert kind in {use.kind for use in uses if use.used_bytes < use.length}
    before = told_of(path, volumes)
    path.chmod(0o600)
    with path.open("r+b") as out:
        for first, end in zip(skips.first.tolist(), skips.end.tolist(), strict=True):
            out.seek(first)
            out.write(b"\xa5" * (end - first))
    assert before
    assert told_of(path, volumes) == before
