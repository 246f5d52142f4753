"""The MBR partition table: four primaries, and logical partitions in a chain of extended ones.

Numbers and order are those of the Linux kernel (``block/partitions/msdos.c``). BSD, Minix and
Solaris tables nested in a partition are not looked into. Must not know about GPT.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass

from imagefs.interfaces import Finding
from imagefs.volume.layout import Sectors, Span
from imagefs.volume.roles import mbr_role

EXTENDED = frozenset({0x05, 0x0F, 0x85})
PROTECTIVE = 0xEE
#: The kernel's last partition number, and how many tables without a partition it follows in a row.
MAX_NUMBER = 255
MAX_EMPTY_TABLES = 100

_TABLE = 446
_ENTRY = struct.Struct("<B3xB3xII")


@dataclass(frozen=True, slots=True)
class MbrEntry:
    """One of the four rows of a table; ``first`` counts from whatever the row is relative to."""

    slot: int
    flag: int
    type: int
    first: int
    count: int

    @property
    def extended(self) -> bool:
        return self.type in EXTENDED


def has_signature(sector: bytes) -> bool:
    return sector[510:512] == b"\x55\xaa"


def disk_id(sector: bytes) -> str:
    return f"{int.from_bytes(sector[440:444], 'little'):08x}"


def entries(sector: bytes) -> tuple[MbrEntry, ...]:
    """The rows in use (those that have sectors; like the kernel, whatever their type)."""
    rows = (MbrEntry(i + 1, *_ENTRY.unpack_from(sector, _TABLE + 16 * i)) for i in range(4))
    return tuple(row for row in rows if row.count)


def flags_valid(sector: bytes) -> bool:
    """Whether all four boot flags are 0 or 0x80: else the sector is code, not a table."""
    return all(sector[_TABLE + 16 * i] in (0, 0x80) for i in range(4))


def convincing(rows: tuple[MbrEntry, ...], sectors: Sectors) -> bool:
    """Whether the rows are beyond doubt a table: inside the disk, apart from each other, typed.

    Asked where sector 0 is at the same time the boot sector of a file system: text and code of a
    boot sector never pass for such rows, and neither does mkfs.fat's made-up partition at LBA 0.
    """
    end = 1
    for row in sorted(rows, key=lambda row: row.first):
        if row.type == 0 or row.first < end or row.first + row.count > sectors.count:
            return False
        end = row.first + row.count
    return bool(rows)


def spans(boot: bytes, sectors: Sectors) -> tuple[list[Span], list[Finding]]:
    """All partitions of the disk whose sector 0 is ``boot``; the protective row is none."""
    found: list[Span] = []
    findings: list[Finding] = []
    chain = _Chain(sectors, disk_id(boot))
    for row in entries(boot):
        if row.extended:
            chain.follow(row)
        elif row.type != PROTECTIVE:
            found.append(_span(row, row.slot, row.first, disk_id(boot)))
    return found + chain.found, findings + chain.findings


def _span(row: MbrEntry, number: int, first: int, disk: str) -> Span:
    return Span(
        number=number,
        first=first,
        count=row.count,
        type=f"0x{row.type:02x}",
        uuid=f"{disk}-{number:02x}",
        role=mbr_role(row.type),
        bootable=row.flag == 0x80,
    )


class _Chain:
    """The walk along extended partitions; logical partitions are numbered as they are met."""

    def __init__(self, sectors: Sectors, disk: str) -> None:
        self.found: list[Span] = []
        self.findings: list[Finding] = []
        self._sectors = sectors
        self._disk = disk
        self._seen: set[int] = set()
        self._next = 5

    def follow(self, outer: MbrEntry) -> None:
        """One extended partition of sector 0. Links count from its start, partitions from their table."""
        here, size, empty = outer.first, outer.count, 0
        while self._next <= MAX_NUMBER and empty < MAX_EMPTY_TABLES:
            table = self._table(here, outer)
            if table is None:
                return
            before = self._next
            self._take(table, here, size, outer)
            empty = 0 if self._next > before else empty + 1
            # Where two rows are links, the kernel takes the first.
            link = next((row for row in table if row.extended), None)
            if link is None:
                return
            here, size = outer.first + link.first, link.count
        self._warn("ebr-endless", "the chain of logical partitions is longer than Linux follows", here)

    def _table(self, here: int, outer: MbrEntry) -> tuple[MbrEntry, ...] | None:
        if here in self._seen:
            self._warn("ebr-loop", "the chain of logical partitions leads back into itself", here)
            return None
        self._seen.add(here)
        sector = self._sectors.read(here, 512)
        if sector is None:
            self._warn("ebr-unreadable", "a table of logical partitions cannot be read", here)
            return None
        if not has_signature(sector):
            # An extended partition that was never used may hold nothing at all.
            if here != outer.first or any(sector):
                self._warn("ebr-damaged", "a table of logical partitions has no signature", here)
            return None
        return entries(sector)

    def _take(self, table: tuple[MbrEntry, ...], here: int, size: int, outer: MbrEntry) -> None:
        for row in table:
            if row.extended or self._next > MAX_NUMBER:
                continue
            if row.slot > 2 and not _within(row, here, size, outer):
                continue
            self.found.append(_span(row, self._next, here + row.first, self._disk))
            self._next += 1

    def _warn(self, code: str, message: str, lba: int) -> None:
        offset = lba * self._sectors.size
        self.findings.append(Finding("warning", code, f"{message} (sector {lba})", offset=offset))


def _within(row: MbrEntry, here: int, size: int, outer: MbrEntry) -> bool:
    """Rows 3 and 4 of a chained table often hold garbage: the kernel takes them only where they fit."""
    first = here + row.first
    inside_outer = outer.first <= first and first + row.count <= outer.first + outer.count
    return inside_outer and row.first + row.count <= size
