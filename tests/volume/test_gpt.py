"""GPT: against sgdisk and sfdisk, in both sector sizes, whole and damaged."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from imagefs.volume import read_table
from tests.support.oracles import tool_text
from tests.volume.disks import (
    DISK_GUID,
    LINUX,
    MIB,
    Gpt,
    SparseReader,
    by_sfdisk,
    codes,
    disk_with,
    empty_disk,
    entry,
    fdisk_4096,
    in_sectors,
    row,
    sgdisk,
    table_of,
    table_sector,
    without_roles,
)

THREE = (entry(64, 127, name="one"), b"", entry(128, 255, name="three"), entry(256, 2047))


@pytest.fixture(scope="module")
def made_once(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four partitions with a gap in the slots, names beyond ASCII, one legacy bootable.

    Every run of sgdisk that writes sleeps for a second, so tests get copies.
    """
    path = empty_disk(tmp_path_factory.mktemp("gpt"), 16 * MIB)
    words = ["-n", "1:2048:+1M", "-t", "1:ef00", "-c", "1:EFI system", "-n", "2:0:+4M", "-t", "2:8300"]
    words += ["-n", "7:0:+5M", "-t", "7:0700", "-c", "7:Данные ☃ 💾", "-A", "7:set:2"]
    words += ["-n", "128:0:0", "-t", "128:8e00"]
    sgdisk(path, *words)
    return path


@pytest.fixture
def disk(made_once: Path, tmp_path: Path) -> Path:
    return shutil.copy(made_once, tmp_path / "disk.img")


def test_the_same_as_sfdisk(disk: Path) -> None:
    table = table_of(disk)
    theirs, volumes = by_sfdisk(disk)
    assert (table.scheme, table.disk_id, table.sector_size) == ("gpt", theirs["id"].lower(), 512)
    assert without_roles(table.volumes) == volumes
    assert [v.number for v in table.volumes] == [1, 2, 7, 128]
    assert [v.role for v in table.volumes] == ["esp", "linux", "windows", "lvm"]
    assert [v.bootable for v in table.volumes] == [False, False, True, False]
    assert table.findings == ()


def test_the_same_as_sgdisk_says(disk: Path) -> None:
    listed = [
        line.split()[:3]
        for line in tool_text("sgdisk", "-p", disk).splitlines()
        if line[:4].strip().isdigit()
    ]
    ours = [
        [str(v.number), str(v.start // 512), str((v.start + v.length) // 512 - 1)]
        for v in table_of(disk).volumes
    ]
    assert ours == listed
    for volume in table_of(disk).volumes:
        said = tool_text("sgdisk", "-i", str(volume.number), disk)
        assert f"Partition unique GUID: {volume.uuid.upper()}" in said
        assert f"Partition GUID code: {volume.type.upper()}" in said


def test_no_partitions_at_all(tmp_path: Path) -> None:
    path = empty_disk(tmp_path)
    sgdisk(path, "-o")
    table = table_of(path)
    assert (table.scheme, table.volumes, table.findings) == ("gpt", (), ())
    assert table.disk_id == by_sfdisk(path)[0]["id"].lower()


def test_more_entries_than_usual(tmp_path: Path) -> None:
    path = empty_disk(tmp_path)
    sgdisk(path, "-S", "512", "-n", "400:0:+1M", "-n", "512:0:+1M")
    assert without_roles(table_of(path).volumes) == by_sfdisk(path)[1]
    assert [v.id for v in table_of(path).volumes] == ["p400", "p512"]


@pytest.mark.parametrize("given", [512, 4096])
def test_sectors_of_4096_bytes(tmp_path: Path, given: int) -> None:
    path = empty_disk(tmp_path)
    fdisk_4096(path, "g\nn\n1\n\n+8M\nn\n5\n\n\nw\n")
    table = table_of(path, sector_size=given)
    assert table.sector_size == 4096
    assert codes(table) == ([] if given == 4096 else ["sector-size"])
    listed = tool_text("fdisk", "-b", "4096", "-l", "-o", "start,sectors", path).splitlines()
    theirs = [tuple(map(int, line.split())) for line in listed if line.replace(" ", "").isdigit()]
    assert [(n, *place) for n, place in zip((1, 5), theirs, strict=True)] == in_sectors(table.volumes, 4096)


def test_sectors_of_512_on_a_drive_that_claims_4096(disk: Path) -> None:
    table = table_of(disk, sector_size=4096)
    assert (table.sector_size, codes(table)) == (512, ["sector-size"])
    assert without_roles(table.volumes) == by_sfdisk(disk)[1]


def test_sectors_of_4096_by_the_backup_alone(tmp_path: Path) -> None:
    path = empty_disk(tmp_path)
    fdisk_4096(path, "g\nn\n1\n\n+8M\nw\n")
    whole = table_of(path, sector_size=4096)
    spoil(path, 4096, bytes(4096))
    table = table_of(path)
    assert table.volumes == whole.volumes
    assert codes(table) == ["sector-size", "gpt-primary-damaged"]


# -- damage ---------------------------------------------------------------------------------------


def spoil(path: Path, offset: int, data: bytes) -> None:
    with path.open("r+b") as stream:
        stream.seek(offset)
        stream.write(data)


@pytest.mark.parametrize("offset", [512, 512 + 16, 1024, 1024 + 700])
def test_a_bad_primary_falls_back_to_the_backup_as_sfdisk_does(disk: Path, offset: int) -> None:
    whole = table_of(disk)
    spoil(disk, offset, b"\xa5\x5a\xa5")
    table = table_of(disk)
    assert codes(table) == ["gpt-primary-damaged"]
    assert (table.disk_id, table.volumes) == (whole.disk_id, whole.volumes)
    assert without_roles(table.volumes) == by_sfdisk(disk)[1]


@pytest.mark.parametrize("from_end", [512, 512 - 16, 33 * 512 - 700])
def test_a_bad_backup_is_said(disk: Path, from_end: int) -> None:
    whole = table_of(disk)
    spoil(disk, disk.stat().st_size - from_end, b"\xa5\x5a\xa5")
    table = table_of(disk)
    assert codes(table) == ["gpt-backup-damaged"]
    assert table.volumes == whole.volumes


def test_every_flipped_byte_of_the_header_is_noticed() -> None:
    good = Gpt(THREE).disk()
    volumes = table_of(good).volumes
    assert in_sectors(volumes) == [(1, 64, 64), (3, 128, 128), (4, 256, 1792)]
    for position in range(512, 512 + 92):
        disk = bytearray(good)
        disk[position] ^= 0x40
        table = table_of(disk)
        assert (table.volumes, codes(table)) == (volumes, ["gpt-primary-damaged"]), position


def test_every_flipped_byte_of_the_entries_is_noticed() -> None:
    good = Gpt(THREE).disk()
    volumes = table_of(good).volumes
    for position in range(1024, 1024 + 128 * 128, 97):
        disk = bytearray(good)
        disk[position] ^= 1
        table = table_of(disk)
        assert (table.volumes, codes(table)) == (volumes, ["gpt-primary-damaged"]), position


def test_both_copies_bad_is_an_error_and_no_table() -> None:
    disk = Gpt(THREE).disk()
    disk[512 + 60] ^= 1
    disk[-512 + 60] ^= 1
    table = table_of(disk)
    assert (table.scheme, table.disk_id) == ("none", "")
    assert [(v.number, v.start, v.length) for v in table.volumes] == [(0, 0, len(disk))]
    (finding,) = table.findings
    assert (finding.severity, finding.code) == ("error", "gpt-damaged")
    assert finding.message.count("fails its checksum") == 2


def test_a_grown_disk_keeps_its_table(disk: Path) -> None:
    whole = table_of(disk)
    with disk.open("r+b") as stream:
        stream.truncate(disk.stat().st_size + MIB)
    table = table_of(disk)
    assert (table.volumes, codes(table)) == (whole.volumes, ["gpt-backup-displaced"])
    assert table.findings[0].severity == "note"


def test_a_grown_disk_with_a_bad_primary_finds_the_backup_by_the_primarys_word(disk: Path) -> None:
    whole = table_of(disk)
    with disk.open("r+b") as stream:
        stream.truncate(disk.stat().st_size + MIB)
    spoil(disk, 1024, b"\xa5")  # the entries; the header still says where the backup is
    table = table_of(disk)
    assert table.volumes == whole.volumes
    assert codes(table) == ["gpt-primary-damaged", "gpt-backup-displaced"]


def test_a_cut_disk_keeps_what_it_holds() -> None:
    disk = Gpt(THREE).disk()[: 1024 * 512 + 100]
    table = table_of(disk)
    assert in_sectors(table.volumes) == [(1, 64, 64), (3, 128, 128), (4, 256, 768)]
    assert table.volumes[-1].start + table.volumes[-1].length == len(disk)
    assert codes(table) == ["gpt-backup-damaged", "volume-truncated"]


def test_sound_copies_that_differ() -> None:
    disk, other = Gpt(THREE).disk(), Gpt(THREE[:1]).disk()
    disk[-40 * 512 :] = other[-40 * 512 :]
    table = table_of(disk)
    assert [v.number for v in table.volumes] == [1, 3, 4]
    assert codes(table) == ["gpt-copies-differ"]


def test_a_lost_sector_0(disk: Path) -> None:
    whole = table_of(disk)
    spoil(disk, 0, bytes(512))
    table = table_of(disk)
    assert (table.volumes, codes(table)) == (whole.volumes, ["gpt-unprotected"])
    spoil(disk, 512, bytes(512))
    assert table_of(disk).scheme == "none", "a backup alone may be left over from long ago"


def test_a_file_system_over_an_old_gpt_is_no_table(disk: Path) -> None:
    tool_text("mkfs.fat", "-F", "16", "-I", disk)
    table = table_of(disk)
    assert (table.scheme, [v.number for v in table.volumes]) == ("none", [0])


# -- protective and hybrid MBR --------------------------------------------------------------------


def test_in_a_hybrid_the_gpt_counts(disk: Path) -> None:
    whole = table_of(disk)
    sgdisk(disk, "-h", "1:2")
    table = table_of(disk)
    assert (table.scheme, table.volumes, codes(table)) == ("gpt", whole.volumes, ["mbr-hybrid"])


def test_of_a_hybrid_whose_gpt_is_gone_the_mbr_rows_are_left() -> None:
    sector = table_sector(row(0xEE, 1, 63), row(0x83, 64, 64), row(0x07, 128, 128))
    table = table_of(disk_with({0: sector}))
    assert (table.scheme, in_sectors(table.volumes)) == ("mbr", [(2, 64, 64), (3, 128, 128)])
    assert codes(table) == ["gpt-damaged"]


def test_without_a_protective_row_the_mbr_counts_as_on_linux() -> None:
    disk = Gpt(THREE).disk()
    disk[:512] = table_sector(row(0x83, 64, 64))
    table = table_of(disk)
    assert (table.scheme, in_sectors(table.volumes), codes(table)) == ("mbr", [(1, 64, 64)], ["gpt-ignored"])


def test_a_protective_row_from_elsewhere_counts_if_there_is_a_gpt() -> None:
    disk = Gpt(THREE).disk()
    disk[:512] = table_sector(row(0xEE, 0, 4096))
    assert [v.number for v in table_of(disk).volumes] == [1, 3, 4]
    alone = table_of(disk_with({0: table_sector(row(0xEE, 5, 90), row(0x83, 100, 9))}))
    assert (alone.scheme, in_sectors(alone.volumes), codes(alone)) == ("mbr", [(2, 100, 9)], [])


def test_code_behind_a_protective_row_is_no_hybrid() -> None:
    sector = table_sector(row(0xEE, 1, 63), row(0x83, 64, 64, flag=0x33))
    table = table_of(disk_with({0: sector}))
    assert (table.scheme, codes(table)) == ("none", ["gpt-damaged"])


def test_a_copy_in_the_wrong_place_is_no_copy() -> None:
    disk = Gpt(THREE).disk()
    disk[-512:] = disk[512:1024]
    table = table_of(disk)
    assert codes(table) == ["gpt-backup-damaged"]
    assert "belongs to sector 1" in table.findings[0].message


@pytest.mark.parametrize("alternate", [0, 1, 2, 1 << 63])
def test_the_primary_is_not_its_own_backup(alternate: int) -> None:
    gpt = Gpt(THREE)
    disk = gpt.disk()
    disk[512 : 512 + 92] = gpt.header(1, alternate, 2)
    assert codes(table_of(disk)) == [], "the backup in the last sector is there"
    disk[-512:] = bytes(512)
    assert codes(table_of(disk)) == ["gpt-backup-damaged"]


# -- nonsense with good checksums -----------------------------------------------------------------


@pytest.mark.parametrize("size", [128, 256, 512, 1024, 4096, 136])
def test_sizes_of_entries(size: int) -> None:
    table = table_of(Gpt(THREE, entry_size=size, entry_count=8).disk())
    assert [(v.number, v.name) for v in table.volumes] == [(1, "one"), (3, "three"), (4, "")]


@pytest.mark.parametrize(
    ("nonsense", "says"),
    [
        ({"entry_size": 64}, "entries of 64 bytes"),
        ({"entry_size": 0}, "entries of 0 bytes"),
        ({"entry_size": 8192}, "entries of 8192 bytes"),
        ({"entry_size": 129}, "entries of 129 bytes"),
        ({"entry_count": 0xFFFFFFFF}, "states 4294967295 entries"),
        ({"entry_count": 32768}, "past the end of the disk"),
        ({"entries_crc": 1}, "entries that fail their checksum"),
        ({"header_size": 1 << 31}, "impossible header size"),
        ({"header_size": 91}, "impossible header size"),
    ],
)
def test_impossible_headers_are_refused_by_name(nonsense: dict[str, int], says: str) -> None:
    table = table_of(Gpt(THREE).disk(**nonsense))
    assert (table.scheme, codes(table)) == ("none", ["gpt-damaged"])
    assert table.findings[0].message.count(says) == 2


def test_a_longer_header_is_checked_in_full() -> None:
    gpt = Gpt(THREE, header_size=512)
    disk = gpt.disk()
    assert codes(table_of(disk)) == []
    disk[1023] ^= 1
    assert codes(table_of(disk)) == ["gpt-primary-damaged"]


def test_partitions_that_cannot_be() -> None:
    rows = (
        entry(64, 127),
        entry(200, 150),  # ends before it begins
        entry(300, 299),  # no sectors
        entry(1 << 63, (1 << 63) + 5),  # past any disk
        entry(400, (1 << 64) - 1),  # runs past the end
        entry(100, 220),  # over p1
    )
    disk = Gpt(rows).disk()
    table = table_of(disk)
    assert in_sectors(table.volumes) == [(1, 64, 64), (5, 400, 4096 - 400), (6, 100, 121)]
    assert codes(table) == [
        "volume-empty",
        "volume-empty",
        "volume-outside",
        "volume-truncated",
        "volume-overlap",
    ]
    overlap = table.findings[-1]
    assert (overlap.offset, overlap.length) == (100 * 512, 28 * 512)
    assert overlap.message == "p1 and p6 overlap by 14336 bytes"


def test_a_partition_right_behind_the_last_sector_is_outside() -> None:
    table = table_of(Gpt((entry(4096, 4100), entry(4095, 4095))).disk())
    assert (in_sectors(table.volumes), codes(table)) == ([(2, 4095, 1)], ["volume-outside"])


def test_overlaps_are_found_along_a_row_of_partitions() -> None:
    table = table_of(Gpt((entry(100, 199), entry(150, 299), entry(250, 399), entry(400, 401))).disk())
    assert [finding.message for finding in table.findings] == [
        "p1 and p2 overlap by 25600 bytes",
        "p2 and p3 overlap by 25600 bytes",
    ]


def test_thousands_of_bad_entries_give_a_bounded_list() -> None:
    rows = tuple(entry(64, 127) for _ in range(2000))
    table = table_of(Gpt(rows, entry_count=2048).disk())
    assert len(table.volumes) == 2000
    assert len(table.findings) == 101
    assert table.findings[-1].message.startswith("1899 more")


def test_names_that_are_no_text() -> None:
    row_ = entry(64, 127) + b"\x00\xd8A\x00\x00\x00B\x00"  # a lone surrogate, a NUL, and what is behind it
    (volume,) = table_of(Gpt((row_,)).disk()).volumes
    assert volume.name == "\N{REPLACEMENT CHARACTER}A"


def test_a_disk_of_eight_exabytes() -> None:
    sectors = 1 << 54
    gpt = Gpt((entry(1 << 53, (1 << 53) + 7),), sectors=sectors)
    pieces = {
        0: table_sector(row(0xEE, 1, 0xFFFFFFFF)),
        512: gpt.header(1, sectors - 1, 2),
        1024: gpt.table(),
    }
    pieces[(sectors - 33) * 512] = gpt.table()
    pieces[(sectors - 1) * 512] = gpt.header(sectors - 1, 1, sectors - 33)
    table = read_table(SparseReader(sectors * 512, pieces))
    assert (table.disk_id, table.findings) == (DISK_GUID, ())
    assert in_sectors(table.volumes) == [(1, 1 << 53, 8)]
    assert table.volumes[0].type == LINUX


def test_the_hand_made_table_is_one_to_sgdisk(tmp_path: Path) -> None:
    path = tmp_path / "hand.img"
    path.write_bytes(Gpt(THREE).disk())
    assert "No problems found" in tool_text("sgdisk", "-v", path)
    assert without_roles(table_of(path).volumes) == by_sfdisk(path)[1]
