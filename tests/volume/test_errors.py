"""Readers that fail: sector 0 must come through, everything else is damage to work round."""

from __future__ import annotations

import pytest

from imagefs.errors import SourceError
from imagefs.volume import probe, read_table
from tests.volume.disks import FailingReader, Gpt, codes, disk_with, entry, in_sectors, row, table_sector

GPT = bytes(Gpt((entry(64, 127), entry(128, 255))).disk())


def sectors(first: int, count: int = 1) -> range:
    return range(first * 512, (first + count) * 512)


def test_sector_0_comes_through() -> None:
    with pytest.raises(SourceError):
        read_table(FailingReader(GPT, sectors(0)))


def test_a_closed_reader_comes_through() -> None:
    reader = FailingReader(GPT)
    reader.close()
    with pytest.raises(SourceError):
        read_table(reader)


@pytest.mark.parametrize("bad", [sectors(1), sectors(2), sectors(33), sectors(1, 33)])
def test_an_unreadable_primary_is_a_damaged_one(bad: range) -> None:
    table = read_table(FailingReader(GPT, bad))
    assert in_sectors(table.volumes) == [(1, 64, 64), (2, 128, 128)]
    assert codes(table) == ["gpt-primary-damaged"]
    assert "cannot be read" in table.findings[0].message


def test_an_unreadable_backup_is_a_damaged_one() -> None:
    table = read_table(FailingReader(GPT, sectors(4095)))
    assert in_sectors(table.volumes) == [(1, 64, 64), (2, 128, 128)]
    assert codes(table) == ["gpt-backup-damaged"]


def test_both_unreadable() -> None:
    table = read_table(FailingReader(GPT, sectors(1), sectors(4095)))
    assert (table.scheme, codes(table)) == ("none", ["gpt-damaged"])


def test_an_unreadable_link_ends_the_chain() -> None:
    tables = {
        0: table_sector(row(0x83, 50, 10), row(0x05, 100, 1000)),
        100: table_sector(row(0x83, 1, 10), row(0x05, 200, 10)),
        300: table_sector(row(0x83, 1, 10)),
    }
    table = read_table(FailingReader(bytes(disk_with(tables)), sectors(300)))
    assert in_sectors(table.volumes) == [(1, 50, 10), (5, 101, 10)]
    assert codes(table) == ["ebr-unreadable"]


def test_bad_sectors_in_partitions_do_not_hide_the_table() -> None:
    disk = bytes(disk_with({0: table_sector(row(0x83, 64, 64), row(0x83, 128, 64))}))
    table = read_table(FailingReader(disk, sectors(64), sectors(130)))
    assert in_sectors(table.volumes) == [(1, 64, 64), (2, 128, 64)]


def test_what_cannot_be_looked_at_is_taken_for_a_file_system() -> None:
    """Without sector 5 nobody knows what is on the disk: it must not be called empty."""
    table = read_table(FailingReader(bytes(disk_with({0: table_sector()})), sectors(5)))
    assert (table.scheme, [v.number for v in table.volumes]) == ("none", [0])


def test_a_probe_lets_errors_through() -> None:
    with pytest.raises(SourceError):
        probe(FailingReader(bytes(1 << 20), sectors(2)))
