"""Disks that nobody here made, with the partitions their makers published."""

from __future__ import annotations

import lzma
from pathlib import Path

import pytest

from imagefs.block.views import SliceReader
from imagefs.volume import probe
from tests.support.oracles import corpus_file, unpack, unpacked_corpus_file
from tests.volume.disks import (
    MIB,
    FileReader,
    by_sfdisk,
    codes,
    in_sectors,
    row,
    table_of,
    table_sector,
    without_roles,
)

DFIR = "dfir_ntfs/test_data"
BLKID = "util-linux/tests/ts/blkid"


def test_dftt_1_hand_made_extended_partitions(tmp_path: Path) -> None:
    """Six FAT16 partitions, one of which sfdisk does not see: a table with two of them."""
    name = "sleuthkit_test_data/from_brian/1-extend-part.zip"
    disk = unpacked_corpus_file(name, tmp_path, member="*.dd")
    table = table_of(disk)
    assert [v.start // 512 for v in table.volumes] == [63, 52416, 104832, 157311, 209727, 262143]
    assert [v.number for v in table.volumes] == [1, 2, 3, 5, 6, 7]
    assert table.findings == ()
    reader = FileReader(disk)
    assert {probe(SliceReader(reader, v.start, v.length)).kind for v in table.volumes} == {"fat16"}


@pytest.mark.parametrize(
    "name",
    [
        "gpt-512-0p.raw.gz",
        "gpt-512-3p.raw.gz",
        "mbr-512-p1e2.bin.gz",
        "mbr-512-p1e2_2.bin.gz",
        "mbr-win-512.raw.tgz",
    ],
)
def test_tables_of_dfir_ntfs_as_sfdisk_sees_them(tmp_path: Path, name: str) -> None:
    disk = unpacked_corpus_file(f"{DFIR}/{name}", tmp_path)
    table = table_of(disk)
    theirs, volumes = by_sfdisk(disk)
    assert table.disk_id == theirs["id"].lower().removeprefix("0x")
    assert without_roles(table.volumes) == volumes
    assert table.findings == ()


def test_gpt_512_3p_as_published(tmp_path: Path) -> None:
    table = table_of(unpacked_corpus_file(f"{DFIR}/gpt-512-3p.raw.gz", tmp_path))
    assert in_sectors(table.volumes) == [(1, 34, 31), (2, 65, 64), (3, 129, 1886)]


@pytest.mark.parametrize("given", [512, 4096])
@pytest.mark.parametrize(
    ("name", "volumes"),
    [("mbr-4096-p1e0.bin.gz", [(1, 1, 125)]), ("mbr-4096-p1e1.bin.gz", [(1, 3, 2), (5, 9, 2)])],
)
def test_mbr_of_a_4kn_disk(
    tmp_path: Path, name: str, volumes: list[tuple[int, int, int]], given: int
) -> None:
    """The table of logical partitions is there only in sectors of 4,096 bytes: that tells."""
    table = table_of(unpacked_corpus_file(f"{DFIR}/{name}", tmp_path), sector_size=given)
    assert table.sector_size == 4096
    assert in_sectors(table.volumes, 4096) == volumes
    assert codes(table) == ([] if given == 4096 else ["sector-size"])


def test_mbr_of_a_disk_of_which_two_sectors_are_left() -> None:
    table = table_of(corpus_file(f"{DFIR}/mbr-512-p4.bin"))
    assert in_sectors(table.volumes) == [(1, 1, 1)]
    assert codes(table) == ["volume-truncated", "volume-outside", "volume-outside", "volume-outside"]


def test_the_multiple_file_systems_of_debian(tmp_path: Path) -> None:
    disk = unpack(corpus_file("debian-forensics-samples/fs.multiple.xz"), tmp_path)
    volumes = table_of(disk).volumes
    assert [v.start // 512 for v in volumes] == [2048, 227328, 309248, 391168]
    reader = FileReader(disk)
    facts = [probe(SliceReader(reader, v.start, v.length)) for v in volumes]
    assert [fact.kind for fact in facts] == ["btrfs", "ext4", "exfat", "ntfs"]
    assert [fact.size for fact in facts][1:3] == [
        142336 * 1024,
        202752 * 512,
    ]  # more than the partitions hold


def test_a_disk_of_a_floppys_size() -> None:
    table = table_of(corpus_file("plaso/test_data/tsk_volume_system.raw"))
    assert in_sectors(table.volumes) == [(1, 1, 350), (5, 352, 2528)]


@pytest.mark.parametrize("name", ["atari-primary", "atari-xgm", "bsd", "dasd-cdl", "dasd-ldl", "sgi", "sun"])
def test_tables_of_other_worlds_are_none(tmp_path: Path, name: str) -> None:
    table = table_of(unpack(corpus_file(f"{BLKID}/images-pt/{name}.img.xz"), tmp_path))
    assert (table.scheme, table.findings, [v.number for v in table.volumes]) == ("none", (), [0])


@pytest.mark.parametrize("name", ["gpt", "dos+bsd"])
def test_tables_of_the_blkid_tests(tmp_path: Path, name: str) -> None:
    disk = unpack(corpus_file(f"{BLKID}/images-pt/{name}.img.xz"), tmp_path)
    published = [v for v in by_sfdisk(disk)[1] if v.number <= 5]
    assert without_roles(table_of(disk).volumes) == published


def test_no_file_system_of_the_blkid_tests_is_taken_for_a_table() -> None:
    """128 whole-disk file systems and RAID members, many with a boot sector."""
    folder = corpus_file(f"{BLKID}/images-fs/fat.img.xz").parent
    packed = sorted(folder.glob("*.xz"))
    assert len(packed) > 120
    for path in packed:
        with lzma.open(path) as stream:
            table = table_of(stream.read(2 * MIB))
        assert table.scheme == "none", path.name


@pytest.mark.parametrize(
    "name", ["fat16_moved", "fat32_loop", "fat32_small", "fat_dir", "fat_noloop", "fat_unusual_cluster"]
)
def test_whole_disk_fat_is_no_table(tmp_path: Path, name: str) -> None:
    assert table_of(unpacked_corpus_file(f"{DFIR}/{name}.raw.gz", tmp_path)).scheme == "none"


def test_a_hybrid_iso_is_a_disk_whose_first_partition_is_the_disc(tmp_path: Path) -> None:
    """As on Linux: partition 1 from sector 0 holds the disc, partition 2 the boot files inside it."""
    iso = unpack(corpus_file(f"{BLKID}/images-fs/iso.img.xz"), tmp_path)
    count = iso.stat().st_size // 512
    assert table_of(iso).scheme == "none"
    with iso.open("r+b") as stream:
        stream.write(table_sector(row(0x17, 0, count, flag=0x80), row(0xEF, 200, 50)))
    table = table_of(iso)
    assert (table.scheme, codes(table)) == ("mbr", ["hybrid-disc"])
    assert in_sectors(table.volumes) == [(1, 0, count), (2, 200, 50)]
    assert probe(SliceReader(FileReader(iso), 0, table.volumes[0].length)).kind == "iso9660"
