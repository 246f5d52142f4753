"""Whole inode tables of ext2/3/4 as columns: most files have all their extents or pointers in the inode, so a few
operations tell which of a hundred thousand have something in given places. Layout: as ``extinode.py``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress

import numpy as np
import numpy.typing as npt

from imagefs.block.ranges import Ranges
from imagefs.browse.extinode import Inode, decode_inode
from imagefs.errors import ImagefsError
from imagefs.interfaces import Holding, Reader, Table

_RESIZE = 7
_TYPE, _DIRECTORY, _REGULAR, _SYMLINK = 0xF000, 0x4000, 0x8000, 0xA000
_EXTENTS, _INLINE = 0x80000, 0x10000000
_EXTENT_MAGIC = 0xF30A
_UNWRITTEN = 32768
_DIRECT = 12
_PIECE = 1 << 20

#: Rows of inodes as bytes, (n, size of an inode).
Rows = npt.NDArray[np.uint8]
Numbers = npt.NDArray[np.int64]
#: By number and inode what the whole map of a file holds.
Mapped = Callable[[int, Inode], list[Holding]]


def holdings(
    reader: Reader, tables: Iterable[Table], ranges: Ranges, block_size: int, mapped: Mapped
) -> tuple[list[Holding], list[int]]:
    """(what of ``ranges`` belongs to inodes in use, the numbers of all directories). A map that is damaged is
    left out."""
    found: list[Holding] = []
    folders: list[int] = []
    for first, rows in _pieces(reader, tables):
        folders += _folders(first, rows)
        used = np.flatnonzero(_used(rows))
        found += _holdings_in(first + used, rows[used], ranges, block_size, mapped)
    return found, folders


def directories(reader: Reader, tables: Iterable[Table]) -> list[int]:
    """The numbers of all directories."""
    return [number for first, rows in _pieces(reader, tables) for number in _folders(first, rows)]


def _folders(first: int, rows: Rows) -> list[int]:
    is_folder = _used(rows) & (_column(rows, 0, "<u2") & _TYPE == _DIRECTORY)
    numbers: list[int] = (np.flatnonzero(is_folder) + first).tolist()
    return numbers


def _holdings_in(
    numbers: Numbers, rows: Rows, ranges: Ranges, block_size: int, mapped: Mapped
) -> Iterator[Holding]:
    flags, mode = _column(rows, 32, "<u4"), _column(rows, 0, "<u2") & _TYPE
    size = _column(rows, 4, "<u4") + (_column(rows, 108, "<u4") << 32) * (mode != _SYMLINK)
    held = np.isin(mode, (_DIRECTORY, _REGULAR, _SYMLINK)) & (flags & _INLINE == 0) & (numbers != _RESIZE)
    extents = held & (flags & _EXTENTS != 0)
    leaf = extents & (_column(rows, 40, "<u2") == _EXTENT_MAGIC) & (_column(rows, 46, "<u2") == 0)
    direct = held & ~extents & (size <= _DIRECT * block_size)
    direct &= ~((mode == _SYMLINK) & (size < 60))
    own = _column(rows, 104, "<u4") + (_column(rows, 118, "<u2") << 32)
    attributes = own[:, None], np.minimum(own, 1)[:, None]
    yield from _cut(numbers[leaf], *_leaves(rows[leaf]), ranges, block_size)
    yield from _cut(numbers[direct], *_pointers(rows[direct]), ranges, block_size)
    yield from _cut(numbers, *attributes, ranges, block_size, is_metadata=True)
    for i in np.flatnonzero(held & ~leaf & ~direct).tolist():
        with suppress(ImagefsError):
            for each in mapped(numbers.item(i), _inode(rows, i)):
                for first, end in ranges.within(each.first, each.end):
                    yield each._replace(first=first, end=end)


def _cut(
    numbers: Numbers,
    block: Numbers,
    count: Numbers,
    ranges: Ranges,
    block_size: int,
    *,
    is_metadata: bool = False,
) -> Iterator[Holding]:
    """The parts in ``ranges`` of runs (n, k) of blocks, row by row those of ``numbers``."""
    first, end = block * block_size, (block + count) * block_size
    for i, k in np.argwhere(ranges.touch(first, end)).tolist():
        for start, stop in ranges.within(first.item(i, k), end.item(i, k)):
            yield Holding(numbers.item(i), start, stop, is_metadata)


def _pieces(reader: Reader, tables: Iterable[Table]) -> Iterator[tuple[int, Rows]]:
    """(first number, rows) of every table, in pieces."""
    for table in tables:
        step = max(1, _PIECE // table.length)
        for number in range(table.first, table.end, step):
            count = min(step, table.end - number)
            raw = reader.read_at(table.offset + (number - table.first) * table.length, count * table.length)
            yield number, np.frombuffer(raw, np.uint8).reshape(-1, table.length)


def _inode(rows: Rows, i: int) -> Inode:
    return decode_inode(rows[i].tobytes(), 0, room=rows.shape[1])


def _column(rows: Rows, at: int, kind: str) -> Numbers:
    width = np.dtype(kind).itemsize
    return np.ascontiguousarray(rows[:, at : at + width]).view(kind)[:, 0].astype(np.int64)


def _used(rows: Rows) -> npt.NDArray[np.bool_]:
    """Which inodes are in use: they have a type, and a link."""
    used: npt.NDArray[np.bool_] = (_column(rows, 0, "<u2") != 0) & (_column(rows, 26, "<u2") != 0)
    return used


def _leaves(rows: Rows) -> tuple[Numbers, Numbers]:
    """(first block, count), each (n, 4), of the extents in the inodes themselves; a count of 0 is none."""
    entries = np.ascontiguousarray(rows[:, 52:100]).view("<u4").reshape(-1, 4, 3).astype(np.int64)
    count = entries[:, :, 1] & 0xFFFF
    count -= np.where(count > _UNWRITTEN, _UNWRITTEN, 0)
    count[np.arange(4) >= np.minimum(_column(rows, 42, "<u2"), 4)[:, None]] = 0
    return entries[:, :, 2] + (entries[:, :, 1] >> 16 << 32), count


def _pointers(rows: Rows) -> tuple[Numbers, Numbers]:
    """The same of the twelve direct pointers, each (n, 12)."""
    block = np.ascontiguousarray(rows[:, 40:88]).view("<u4").astype(np.int64)
    return block, np.minimum(block, 1)
