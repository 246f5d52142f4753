"""Disks that nobody here made go through a capture and come out the same: bytes, tables, listings."""

from __future__ import annotations

from pathlib import Path

import pytest

from imagefs.block.devices import open_source
from imagefs.block.views import SliceReader
from imagefs.browse.opening import open_filesystem
from imagefs.browse.walk import walk
from imagefs.errors import BrowseError, ImagefsError
from imagefs.format.header import Mode
from imagefs.image.catalog import scan
from imagefs.interfaces import Reader
from imagefs.ops.capture import capture
from imagefs.ops.diskimage import DiskImage
from imagefs.ops.plan import CaptureOptions
from imagefs.ops.verify import verify_image
from imagefs.store import MemoryStore
from imagefs.volume import read_table
from tests.support.oracles import corpus_file, unpacked_corpus_file

PLAIN = [
    "plaso/test_data/tsk_volume_system.raw",
    "dfvfs/test_data/hfsplus.raw",
    "dfvfs/test_data/iso9660.raw",
    "bulk_extractor/src/tests/nps-2010-emails.100k.raw",
]
PACKED = [
    ("sleuthkit_test_data/from_brian/1-extend-part.zip", "*.dd"),
    ("sleuthkit_test_data/from_brian/7-undel-ntfs.zip", "*.dd"),
    ("sleuthkit_test_data/from_brian/9-fat-label.zip", "*.dd"),
    ("debian-forensics-samples/fs.multiple.xz", "*"),
]


def listing(reader: Reader) -> dict[str, list[tuple[bytes, str, int]]]:
    """What every volume lists; of one that cannot be opened, why."""
    found: dict[str, list[tuple[bytes, str, int]]] = {}
    for volume in read_table(reader).volumes:
        try:
            fs = open_filesystem(SliceReader(reader, volume.start, volume.length))
        except BrowseError as error:
            found[volume.id] = [(error.message.encode(), "", 0)]
            continue
        errors: list[ImagefsError] = []
        entries = list(walk(fs, fs.root(), onerror=errors.append))
        found[volume.id] = [(entry.path, entry.inode, entry.size) for entry in entries]
        fs.close()
    return found


def through_an_image(path: Path) -> None:
    source = open_source(str(path))
    store = MemoryStore()
    made = capture(source, store, CaptureOptions(chunk_size=16 * 1024, mode=Mode.ALL)).info
    catalog = scan(store)
    assert verify_image(catalog, made).ok
    with DiskImage(catalog.open_disk(made), made) as image:
        for offset in range(0, source.size, 2**20):
            assert image.read_at(offset, 2**20) == source.read_at(offset, 2**20)
        assert image.table == read_table(source)
        assert listing(image) == listing(source)
    source.close()


@pytest.mark.parametrize("name", PLAIN)
def test_a_third_party_disk_comes_out_the_same(name: str) -> None:
    through_an_image(corpus_file(name))


@pytest.mark.parametrize(("name", "member"), PACKED)
def test_a_packed_third_party_disk_comes_out_the_same(name: str, member: str, tmp_path: Path) -> None:
    through_an_image(unpacked_corpus_file(name, tmp_path, member=member))


def test_the_six_partitions_of_dftt_1_are_found(tmp_path: Path) -> None:
    source = open_source(
        str(unpacked_corpus_file("sleuthkit_test_data/from_brian/1-extend-part.zip", tmp_path, member="*.dd"))
    )
    starts = [volume.start // 512 for volume in read_table(source).volumes]
    assert starts == [63, 52416, 104832, 157311, 209727, 262143]
