"""MBR: against sfdisk and fdisk, extended chains sane and insane, and what only looks like a table."""

from __future__ import annotations

from pathlib import Path

import pytest

from imagefs.block.views import BytesReader
from imagefs.volume import mbr, read_table
from imagefs.volume.layout import Sectors
from tests.support.oracles import tool_text
from tests.volume.disks import (
    MIB,
    CountingReader,
    by_sfdisk,
    codes,
    disk_with,
    empty_disk,
    fdisk_4096,
    in_sectors,
    row,
    sfdisk,
    sgdisk,
    table_of,
    table_sector,
    without_roles,
)

SCRIPTS = {
    "four primaries": "label: dos\n2048,4096,0c,*\n8192,4096,83\n16384,2048,82\n32768,,07\n",
    "gaps in the slots": "label: dos\n3 : start=2048,size=4096,type=83\n",
    "not in the order of the disk": "label: dos\n32768,4096,83\n2048,4096,07\n8192,1024,ef\n",
    "extended last": "label: dos\n2048,4096,7\n8192,,5\n10240,2048,83\n16384,2048,82\n32768,,8e\n",
    "extended first": "label: dos\n2048,65536,f\n69632,,83\n4096,2048,83\n8192,1024,fd\n",
    "extended in between": "label: dos\n2048,2048,b\n4096,40960,85\n47104,2048,27\n49152,,af\n6144,1024,83\n",
    "extended and empty": "label: dos\n2048,4096,83\n8192,8192,5\n",
    "no partitions": "label: dos\nlabel-id: 0x0badcafe\n",
}


@pytest.mark.parametrize("script", SCRIPTS.values(), ids=SCRIPTS.keys())
def test_the_same_as_sfdisk(tmp_path: Path, script: str) -> None:
    path = empty_disk(tmp_path)
    sfdisk(path, script)
    table = table_of(path)
    theirs, volumes = by_sfdisk(path)
    assert (table.scheme, table.disk_id) == ("mbr", theirs["id"].removeprefix("0x"))
    assert without_roles(table.volumes) == sorted(volumes, key=lambda volume: volume.number)
    assert table.findings == ()


def test_roles_and_the_active_flag(tmp_path: Path) -> None:
    path = empty_disk(tmp_path)
    sfdisk(path, SCRIPTS["four primaries"])
    volumes = table_of(path).volumes
    assert [v.role for v in volumes] == ["fat", "linux", "swap", "windows"]
    assert [v.bootable for v in volumes] == [True, False, False, False]
    assert [v.id for v in volumes] == ["p1", "p2", "p3", "p4"]


def test_many_logical_partitions(tmp_path: Path) -> None:
    path = empty_disk(tmp_path)
    logical = "".join(f"{5 + i} : start={4096 + i * 4096},size=1024,type=83\n" for i in range(30))
    sfdisk(path, f"label: dos\n1 : start=2048,size=129024,type=5\n{logical}")
    table = table_of(path)
    assert without_roles(table.volumes) == by_sfdisk(path)[1]
    assert [v.number for v in table.volumes] == list(range(5, 35))


def test_a_disk_that_was_cut(tmp_path: Path) -> None:
    path = empty_disk(tmp_path)
    sfdisk(path, SCRIPTS["extended last"])
    with path.open("r+b") as stream:
        stream.truncate(17000 * 512 + 77)
    table = table_of(path)
    assert in_sectors(table.volumes) == [(1, 2048, 4096), (5, 10240, 2048), (6, 16384, 616)]
    assert table.volumes[-1].length == 616 * 512 + 77
    assert codes(table) == ["ebr-unreadable", "volume-truncated"]


# -- sectors of 4,096 bytes, of which an MBR says nothing ------------------------------------------


def test_sectors_of_4096_by_the_word_of_the_device(tmp_path: Path) -> None:
    path = empty_disk(tmp_path)
    fdisk_4096(path, "o\nn\np\n1\n256\n511\nn\ne\n2\n512\n\nn\n1024\n1279\nn\n2048\n\nw\n")
    table = table_of(path, sector_size=4096)
    listed = tool_text("fdisk", "-b", "4096", "-l", "-o", "start,sectors", path).splitlines()
    theirs = [tuple(map(int, line.split())) for line in listed if line.replace(" ", "").isdigit()]
    assert in_sectors(table.volumes, 4096) == [(1, *theirs[0]), (5, *theirs[2]), (6, *theirs[3])]
    assert table.findings == ()


@pytest.mark.parametrize("given", [512, 4096])
@pytest.mark.parametrize("real", [512, 4096])
def test_a_file_system_where_the_table_points_tells_the_sector_size(
    tmp_path: Path, given: int, real: int
) -> None:
    path, small = empty_disk(tmp_path), empty_disk(tmp_path, 4 * MIB, "ext")
    tool_text("mke2fs", "-q", small)
    disk = bytearray(path.read_bytes())
    disk[:512] = table_sector(row(0x83, 256, 4 * MIB // real))
    disk[256 * real : 256 * real + 4 * MIB] = small.read_bytes()
    table = table_of(disk, sector_size=given)
    assert table.sector_size == real
    assert [(v.start, v.length) for v in table.volumes] == [(256 * real, 4 * MIB)]
    assert codes(table) == ([] if given == real else ["sector-size"])


LUKS = b"LUKS\xba\xbe\0\x02"


def test_without_evidence_the_given_sector_size_stays() -> None:
    disk = disk_with({0: table_sector(row(0x83, 64, 64))})
    assert table_of(disk).sector_size == 512
    assert table_of(disk, sector_size=4096).sector_size == 4096


def test_evidence_does_not_count_where_the_table_would_not_fit() -> None:
    disk = disk_with({0: table_sector(row(0x83, 64, 2000)), 64 * 8: LUKS})
    assert table_of(disk).sector_size == 512
    disk = disk_with({0: table_sector(row(0x83, 64, 200)), 64 * 8: LUKS})
    assert table_of(disk).sector_size == 4096


def test_code_at_the_place_of_a_logical_table_is_no_evidence() -> None:
    code, table = table_sector(row(0x83, 9, 9, flag=0x42)), table_sector(row(0x83, 9, 9))
    outer = table_sector(row(0x05, 64, 200))
    assert table_of(disk_with({0: outer, 64 * 8: code})).sector_size == 512
    assert table_of(disk_with({0: outer, 64 * 8: table})).sector_size == 4096


def test_a_partition_from_sector_0_says_nothing_of_the_sector_size() -> None:
    """A disc image is found there in any size; the second partition is where it should be in one."""
    descriptor = b"\x01CD001"
    disk = disk_with({0: table_sector(row(0x17, 0, 4096), row(0xEF, 200, 50)), 64: descriptor, 200: LUKS})
    assert table_of(disk, sector_size=4096).sector_size == 512


# -- chains of extended partitions -----------------------------------------------------------------


def chain(tables: dict[int, bytes], *outer: bytes) -> bytearray:
    return disk_with({0: table_sector(*outer), **tables})


def test_links_count_from_the_first_extended_and_partitions_from_their_table() -> None:
    disk = chain(
        {
            100: table_sector(row(0x83, 10, 20), row(0x05, 200, 100)),
            300: table_sector(row(0x82, 10, 20), row(0x05, 100, 50)),
            200: table_sector(row(0x07, 10, 20)),
        },
        row(0x83, 50, 40),
        row(0x0F, 100, 1000),
    )
    table = table_of(disk)
    assert in_sectors(table.volumes) == [(1, 50, 40), (5, 110, 20), (6, 310, 20), (7, 210, 20)]
    assert [v.uuid for v in table.volumes] == ["11223344-01", "11223344-05", "11223344-06", "11223344-07"]
    assert table.findings == ()


def test_a_link_may_come_before_the_partition_and_two_partitions_may_share_a_table() -> None:
    first = table_sector(row(0x05, 200, 100), row(0x83, 10, 20), row(0x83, 40, 20))
    disk = chain({100: first, 300: table_sector(row(0x83, 5, 5))}, row(0x05, 100, 1000))
    assert in_sectors(table_of(disk).volumes) == [(5, 110, 20), (6, 140, 20), (7, 305, 5)]


def test_the_first_of_two_links_is_taken() -> None:
    tables = {
        100: table_sector(row(0x05, 200, 100), row(0x05, 400, 100)),
        300: table_sector(row(0x83, 5, 5)),
        500: table_sector(row(0x83, 7, 7)),
    }
    assert in_sectors(table_of(chain(tables, row(0x05, 100, 1000))).volumes) == [(5, 305, 5)]


def test_rows_3_and_4_are_bounded_by_their_own_link() -> None:
    """The second table's link is 50 sectors long: a row of 60 that the outer partition could hold is not."""
    second = table_sector(row(0x83, 1, 5), row(0, 0, 0), row(0x83, 10, 60), row(0x83, 10, 40))
    disk = chain({100: table_sector(row(0x05, 200, 50)), 300: second}, row(0x05, 100, 500))
    assert in_sectors(table_of(disk).volumes) == [(5, 301, 5), (6, 310, 40)]


def test_rows_3_and_4_are_bounded_by_the_outer_partition() -> None:
    """The second table's link claims more than there is: a row inside the link, but not outside."""
    second = table_sector(row(0x83, 1, 5), row(0, 0, 0), row(0x83, 10, 600), row(0x83, 10, 40))
    disk = chain({100: table_sector(row(0x05, 200, 3000)), 300: second}, row(0x05, 100, 500))
    assert in_sectors(table_of(disk).volumes) == [(5, 301, 5), (6, 310, 40)]


def test_an_extended_partition_that_was_never_used() -> None:
    assert codes(table_of(chain({}, row(0x05, 100, 500)))) == []
    assert codes(table_of(chain({100: b"something"}, row(0x05, 100, 500)))) == ["ebr-damaged"]


def test_two_extended_partitions_count_on() -> None:
    tables = {100: table_sector(row(0x83, 1, 10)), 300: table_sector(row(0x83, 1, 10))}
    disk = chain(tables, row(0x05, 300, 100), row(0x0F, 100, 100))
    assert in_sectors(table_of(disk).volumes) == [(5, 301, 10), (6, 101, 10)]


@pytest.mark.parametrize("target", [0, 200], ids=["itself", "the one before"])
def test_loops_end(target: int) -> None:
    tables = {
        100: table_sector(row(0x83, 1, 10), row(0x05, target, 100)),
        300: table_sector(row(0x83, 1, 10), row(0x05, 0, 100)),
    }
    table = table_of(chain(tables, row(0x05, 100, 1000)))
    assert codes(table) == ["ebr-loop"]
    assert in_sectors(table.volumes) == [(5, 101, 10), (6, 301, 10)][: 1 if target == 0 else 2]


def test_a_chain_longer_than_linux_follows_is_said() -> None:
    tables = {100 + 2 * i: table_sector(row(0x83, 1, 1), row(0x05, 2 * i + 2, 2)) for i in range(400)}
    table = table_of(chain(tables, row(0x05, 100, 3000)))
    assert [v.number for v in table.volumes] == list(range(5, 256))
    assert codes(table) == ["ebr-endless"]


def test_numbers_end_at_255_in_the_middle_of_a_table_too() -> None:
    link = [table_sector(row(0x83, 1, 1), row(0x05, 3 * i + 3, 3), row(0x83, 2, 1)) for i in range(200)]
    disk = chain({100 + 3 * i: table for i, table in enumerate(link)}, row(0x05, 100, 3000))
    assert [v.number for v in table_of(disk).volumes] == list(range(5, 256))


def test_a_chain_of_empty_tables_ends() -> None:
    tables = {100 + i: table_sector(row(0x05, i + 1, 1)) for i in range(2000)}
    reader = CountingReader(bytes(chain(tables, row(0x05, 100, 3000))))
    assert codes(read_table(reader)) == ["ebr-endless"]
    assert reader.calls < 300


def test_links_to_nowhere_are_said_and_the_rest_stays() -> None:
    tables = {100: table_sector(row(0x83, 1, 10), row(0x05, 1 << 31, 100))}
    table = table_of(chain(tables, row(0x05, 100, 1000)))
    assert (in_sectors(table.volumes), codes(table)) == ([(5, 101, 10)], ["ebr-unreadable"])
    tables = {100: table_sector(row(0x83, 1, 10), row(0x05, 300, 100))}
    table = table_of(chain(tables, row(0x05, 100, 1000)))
    assert (in_sectors(table.volumes), codes(table)) == ([(5, 101, 10)], ["ebr-damaged"])
    assert table.findings[0].offset == 400 * 512


def test_numbers_stay_when_a_logical_partition_is_past_the_end() -> None:
    tables = {
        100: table_sector(row(0x83, 50_000, 10), row(0x05, 200, 100)),
        300: table_sector(row(0x83, 1, 10)),
    }
    table = table_of(chain(tables, row(0x05, 100, 60_000)))
    assert in_sectors(table.volumes) == [(6, 301, 10)]
    assert codes(table) == ["volume-outside"]


# -- is it a table at all? -------------------------------------------------------------------------


def whole(disk: bytearray | Path) -> bool:
    table = table_of(disk)
    size = disk.stat().st_size if isinstance(disk, Path) else len(disk)
    return table.scheme == "none" and [(v.number, v.start, v.length) for v in table.volumes] == [(0, 0, size)]


def test_disks_without_a_table() -> None:
    assert whole(bytearray(1 * MIB))
    assert whole(bytearray())
    assert whole(bytearray(511))
    assert whole(disk_with({0: table_sector(row(0x83, 64, 64), signature=b"\x55\xab")}))


def test_invalid_boot_flags_make_it_code() -> None:
    assert whole(disk_with({0: table_sector(row(0x83, 64, 64), row(0x83, 200, 9, flag=0x41))}))
    assert not whole(disk_with({0: table_sector(row(0x83, 64, 64), row(0x83, 200, 9, flag=0x80))}))


def test_a_row_without_a_type_is_a_partition_as_on_linux() -> None:
    (volume,) = table_of(disk_with({0: table_sector(row(0, 64, 64))})).volumes
    assert (volume.id, volume.type, volume.role) == ("p1", "0x00", "")


@pytest.mark.parametrize("kind", ["12", "16", "32"])
@pytest.mark.parametrize("fake_table", ["yes", "no"])
def test_a_stick_that_is_one_fat_file_system(tmp_path: Path, kind: str, fake_table: str) -> None:
    """``--mbr=yes`` writes a partition over the whole stick, from sector 0."""
    path = empty_disk(tmp_path, 4 * MIB if kind == "12" else 64 * MIB)
    words = ["-s", "1"] if kind == "32" else []
    tool_text("mkfs.fat", "-I", "-F", kind, *words, f"--mbr={fake_table}", path)
    assert bool(mbr.entries(path.read_bytes()[:512])) == (fake_table == "yes")
    assert whole(path)


def test_a_disk_that_is_one_ntfs_or_exfat_file_system(tmp_path: Path) -> None:
    path = empty_disk(tmp_path)
    tool_text("mkntfs", "-q", "-F", "-Q", "-s", "512", "-p", "0", "-H", "255", "-S", "63", path)
    assert whole(path)
    tool_text("mkfs.exfat", path)
    assert whole(path)


def test_boot_code_over_the_rows_of_a_fat_boot_sector(tmp_path: Path) -> None:
    """Message texts of old boot sectors reach into the table; here with flags that happen to pass."""
    path = empty_disk(tmp_path)
    tool_text("mkfs.fat", "-I", "-F", "16", path)
    disk = bytearray(path.read_bytes())
    disk[446:510] = (b"\0Remove disks.\r\n" + b"\x80or other media!") * 2
    assert mbr.flags_valid(bytes(disk[:512]))
    assert mbr.entries(bytes(disk[:512]))
    assert whole(disk)


def test_an_old_fat_boot_sector_under_a_real_table(tmp_path: Path) -> None:
    """fdisk keeps the first 440 bytes, and the kernel shows the partitions."""
    path = empty_disk(tmp_path)
    tool_text("mkfs.fat", "-I", "-F", "32", "--mbr=no", path)
    disk = bytearray(path.read_bytes())
    disk[440:512] = table_sector(row(0x83, 2048, 4096), row(0x05, 8192, 4096))[440:]
    table = table_of(disk)
    assert (table.scheme, in_sectors(table.volumes)) == ("mbr", [(1, 2048, 4096)])
    assert "mbr-boot-sector" in codes(table)


@pytest.mark.parametrize(
    "rows",
    [
        (row(0x83, 0, 100),),
        (row(0x83, 64, 5000),),
        (row(0x83, 64, 64), row(0x83, 100, 64)),
        (row(0x00, 64, 64),),
        (),
    ],
    ids=["at zero", "past the end", "overlapping", "untyped", "none"],
)
def test_what_does_not_convince(rows: tuple[bytes, ...]) -> None:
    disk = bytes(disk_with({0: table_sector(*rows)}))
    sectors = Sectors(BytesReader(disk), 512)
    assert not mbr.convincing(mbr.entries(disk), sectors)
    better = bytes(disk_with({0: table_sector(row(0x83, 64, 64), row(0x83, 128, 64))}))
    assert mbr.convincing(mbr.entries(better), sectors)


def test_a_whole_disk_ext4_with_a_boot_signature(tmp_path: Path) -> None:
    path = empty_disk(tmp_path)
    tool_text("mke2fs", "-q", "-t", "ext4", path)
    with path.open("r+b") as stream:
        stream.seek(510)
        stream.write(b"\x55\xaa")
    assert whole(path)


def test_an_empty_table_has_no_volumes() -> None:
    table = table_of(disk_with({0: table_sector()}))
    assert (table.scheme, table.disk_id, table.volumes) == ("mbr", "11223344", ())


def test_a_partition_at_sector_0_that_is_no_disc_is_shown_with_its_overlap() -> None:
    table = table_of(disk_with({0: table_sector(row(0x83, 0, 4096), row(0xEF, 64, 64))}))
    assert in_sectors(table.volumes) == [(1, 0, 4096), (2, 64, 64)]
    assert codes(table) == ["volume-overlap"]


@pytest.mark.parametrize("size", [0, 100, 513, 1000])
def test_a_sector_size_that_cannot_be_is_the_callers_mistake(size: int) -> None:
    with pytest.raises(ValueError):
        table_of(bytearray(4096), sector_size=size)


def test_a_gpt_that_became_an_mbr(tmp_path: Path) -> None:
    path = empty_disk(tmp_path)
    sgdisk(path, "-n", "1:2048:+8M", "-n", "2:0:+8M", "-m", "1:2")
    table = table_of(path)
    assert (table.scheme, [v.number for v in table.volumes]) == ("mbr", [1, 2])
    assert without_roles(table.volumes) == by_sfdisk(path)[1]
