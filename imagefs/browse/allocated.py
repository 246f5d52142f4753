"""Which blocks of a volume belong to a file now, by the file system's own map: asked for a few at a time.

``imagefs.allocation`` reads whole maps and refuses what it cannot rely on; here a deleted file is held
against the bits of its own blocks, and what a damaged map says is still the best there is.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from functools import lru_cache
from typing import Protocol

import numpy as np

from imagefs.interfaces import Reader

_PIECE, _PIECES = 64 << 10, 64
_BIGALLOC, _GDT_CSUM, _METADATA_CSUM = 0x200, 0x10, 0x400
_META_BG = 0x10
_INODE_UNINIT, _BLOCK_UNINIT = 1, 2


class Allocated(Protocol):
    """Counts what is in use. Safe in several threads."""

    def used(self, first: int, end: int) -> tuple[int, int]:
        """(how many of the units that bytes ``first`` to before ``end`` of the volume touch are in
        use, how many they touch)."""
        ...


def ones(bits: bytes, first: int, end: int) -> int:
    """How many of the bits ``first`` to before ``end`` are set, the lowest of a byte first."""
    part = int.from_bytes(bits[first // 8 : -(-end // 8)], "little") >> first % 8
    return (part & (1 << max(0, end - first)) - 1).bit_count()


class Bitmap:
    """A bitmap in one piece, as NTFS and exFAT have it: the first bit is for the unit at byte ``base``."""

    def __init__(self, bits: Reader, *, base: int, unit: int) -> None:
        self.base, self.unit = base, unit
        self._piece = lru_cache(_PIECES)(lambda number: bits.read_at(number * _PIECE, _PIECE))

    def used(self, first: int, end: int) -> tuple[int, int]:
        start, stop = (first - self.base) // self.unit, -(-(end - self.base) // self.unit)
        count, at, step = 0, max(0, start), _PIECE * 8
        while at < stop:
            upto = min(stop, (at // step + 1) * step)
            count += ones(self._piece(at // step), at % step, at % step + upto - at)
            at = upto
        return count, stop - start


class FatTable:
    """The first file allocation table: whatever is not 0 belongs to something."""

    def __init__(self, reader: Reader, kind: str) -> None:
        boot = reader.read_at(0, 512)
        sector, per_cluster, reserved, fats, roots = struct.unpack_from("<HBHBH", boot, 11)
        per_fat = struct.unpack_from("<H", boot, 22)[0] or struct.unpack_from("<I", boot, 36)[0]
        self._bits = int(kind.removeprefix("fat"))
        self.unit = max(1, sector * per_cluster)
        self.base = (reserved + fats * per_fat) * sector + -(-roots * 32 // max(1, sector)) * sector
        start: int = reserved * sector
        self._length = length = int(per_fat * sector)

        def read(number: int) -> bytes:
            return reader.read_at(start + number * _PIECE, min(_PIECE, max(0, length - number * _PIECE)))

        self._piece = lru_cache(_PIECES)(read)

    @property
    def clusters(self) -> int:
        """How many entries there is room for."""
        return self._length * 8 // self._bits

    def used(self, first: int, end: int) -> tuple[int, int]:
        start, stop = (first - self.base) // self.unit, -(-(end - self.base) // self.unit)
        count, at = 0, max(0, start)
        while at < stop:
            upto = min(stop, at + 8192)
            count += self._count(at + 2, upto + 2)
            at = upto
        return count, stop - start

    def _count(self, first: int, end: int) -> int:
        if self._bits == 12:
            raw = self._read(first * 3 // 2, -(-end * 3 // 2) + 1)
            start = first * 3 // 2
            pairs = (int.from_bytes(raw[n * 3 // 2 - start :][:2], "little") for n in range(first, end))
            return sum(bool(value >> 4 if n & 1 else value & 0xFFF) for n, value in enumerate(pairs, first))
        step = self._bits // 8
        raw = self._read(first * step, end * step)
        table = np.frombuffer(raw[: len(raw) // step * step], f"<u{step}")
        return int(np.count_nonzero(table & (0x0FFFFFFF if step == 4 else 0xFFFF)))

    def _read(self, first: int, end: int) -> bytes:
        parts = [self._piece(number) for number in range(first // _PIECE, -(-end // _PIECE))]
        lead = first // _PIECE * _PIECE
        return b"".join(parts)[first - lead : end - lead]


class ExtBitmaps:
    """Block and inode bitmaps of ext2/3/4, group by group."""

    def __init__(self, reader: Reader, read_descriptor: Callable[[int], bytes]) -> None:
        raw = reader.read_at(1024, 1024)
        self._first, log_size = struct.unpack_from("<II", raw, 20)
        self._per_group: int = struct.unpack_from("<I", raw, 32)[0]
        self.inodes_per_group: int = struct.unpack_from("<I", raw, 40)[0]
        compatible_read = struct.unpack_from("<I", raw, 100)[0]
        self._unit = 1024 << min(log_size, 6)
        self._lazy = bool(compatible_read & (_GDT_CSUM | _METADATA_CSUM))
        self._reader = reader
        self._descriptor = lru_cache(4096)(read_descriptor)
        self._bits = lru_cache(_PIECES)(self._read_bits)
        self.usable = bool(self._per_group) and not compatible_read & _BIGALLOC

    def used(self, first: int, end: int) -> tuple[int, int]:
        start, stop = first // self._unit, -(-end // self._unit)
        count, at = 0, max(start, self._first)
        while at < stop:
            group, inside = divmod(at - self._first, self._per_group)
            upto = min(stop, at + self._per_group - inside)
            count += ones(self._bits(group, 0, _BLOCK_UNINIT), inside, inside + upto - at)
            at = upto
        return count, stop - start

    def inode_used(self, number: int) -> bool:
        group, index = divmod(number - 1, self.inodes_per_group)
        return bool(ones(self.inode_bits(group), index, index + 1))

    def inode_bits(self, group: int) -> bytes:
        """One bit for each inode of a group; short where none was ever used."""
        return self._bits(group, 4, _INODE_UNINIT)

    def inodes_in(self, group: int) -> int:
        """How many inodes of a group its table was ever initialised for."""
        raw = self._descriptor(group)
        if not self._lazy or len(raw) < 32:
            return self.inodes_per_group
        unused = struct.unpack_from("<H", raw, 28)[0]
        unused += struct.unpack_from("<H", raw, 50)[0] << 16 if len(raw) >= 64 else 0
        if struct.unpack_from("<H", raw, 18)[0] & _INODE_UNINIT:
            return 0
        return max(0, self.inodes_per_group - int(unused))

    def _read_bits(self, group: int, field: int, uninitialised: int) -> bytes:
        raw = self._descriptor(group)
        if len(raw) < 32 or (self._lazy and struct.unpack_from("<H", raw, 18)[0] & uninitialised):
            return b""
        block = struct.unpack_from("<I", raw, field)[0]
        block += struct.unpack_from("<I", raw, 32 + field)[0] << 32 if len(raw) >= 64 else 0
        return self._reader.read_at(block * self._unit, self._unit)
