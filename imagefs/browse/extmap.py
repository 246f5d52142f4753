"""Where the bytes of an ext2/3/4 file lie: its extents or block pointers as pieces.

The Sleuth Kit can do this too, but for a file with a triple indirect block it walks every block there
could be: a sparse file of 1 GiB takes it a minute, one of 5 GiB in 4 KiB blocks hours. It also keeps
only 32 bits of a block number. What makes no sense leaves a part without a piece, and reading that
part is an error; a hole is a piece without a place. Nothing is read twice, so no loop is endless.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from itertools import pairwise
from typing import TYPE_CHECKING

from imagefs.browse.content import Piece, damaged
from imagefs.interfaces import Reader

if TYPE_CHECKING:
    import numpy as np

_EXTENT_MAGIC = 0xF30A
_MAX_DEPTH = 5
_UNWRITTEN = 32768
_DIRECT = 12
#: More pieces than this would need gigabytes; no file that was ever written has as many.
MAX_PIECES = 4_000_000

#: (first block of the file, number of blocks, first block of the volume; None for a hole)
_Run = tuple[int, int, int | None]


def map_file(
    reader: Reader, block_size: int, root: bytes, *, size: int, extents: bool, label: str
) -> list[Piece]:
    """The pieces of a file of ``size`` bytes whose inode holds ``root`` (the 60 bytes of i_block).

    ``label`` names the file in errors. Raises BrowseError when there is no telling where anything lies.
    """
    return map_with_tree(reader, block_size, root, size=size, extents=extents, label=label)[0]


def map_with_tree(
    reader: Reader, block_size: int, root: bytes, *, size: int, extents: bool, label: str
) -> tuple[list[Piece], list[int]]:
    """As ``map_file``, and the blocks that the map itself takes outside of the inode."""
    walk = _Walk(reader, block_size, limit=-(-size // block_size), label=label)
    pieces: list[Piece] = []
    for first, count, block in _joined(walk.extents(root) if extents else walk.pointers(root)):
        length = min(count * block_size, size - first * block_size)
        if length > 0:
            pieces.append(Piece(first * block_size, length, None if block is None else block * block_size))
        if len(pieces) > MAX_PIECES:
            raise damaged(label, 0, f"it is in more than {MAX_PIECES} pieces")
    return pieces, sorted(walk.seen)


def _joined(runs: Iterator[_Run]) -> Iterator[_Run]:
    """Neighbours that lie one behind the other become one; what overlaps the one before is left out."""
    first = count = 0
    at: int | None = None
    for start, length, block in runs:
        if start < first + count:
            continue
        follows = block is None if at is None else block == at + count
        if start == first + count and count and follows:
            count += length
            continue
        if count:
            yield first, count, at
        first, count, at = start, length, block
    if count:
        yield first, count, at


class _Walk:
    """One walk over the tree of a file; ``limit`` is the number of blocks its size needs."""

    def __init__(self, reader: Reader, block_size: int, *, limit: int, label: str) -> None:
        self._reader = reader
        self._label = label
        self._size = block_size
        self._blocks = reader.size // block_size
        self._limit = limit
        self.seen: set[int] = set()

    def extents(self, root: bytes) -> Iterator[_Run]:
        """The extents with the holes between and behind them."""
        end = 0
        for start, length, block in self._leaves(root, _MAX_DEPTH):
            if start > end:
                yield end, start - end, None
            yield start, length, block
            end = max(end, start + length)
        if end < self._limit:
            yield end, self._limit - end, None

    def _leaves(self, node: bytes, depth_left: int) -> Iterator[_Run]:
        magic, entries, _, depth = struct.unpack_from("<HHHH", node)
        if magic != _EXTENT_MAGIC or depth > depth_left or 12 + 12 * entries > len(node):
            raise damaged(self._label, 0, "its extent tree is damaged")
        for at in range(12, 12 + 12 * entries, 12):
            if depth:
                _, low, high = struct.unpack_from("<IIH", node, at)
                yield from self._leaves(self._read(low + (high << 32)), depth - 1)
                continue
            start, length, high, low = struct.unpack_from("<IHHI", node, at)
            unwritten = length > _UNWRITTEN
            length -= _UNWRITTEN if unwritten else 0
            yield start, length, None if unwritten else low + (high << 32)

    def pointers(self, root: bytes) -> Iterator[_Run]:
        """The runs behind twelve direct and three indirect pointers."""
        table = _pointers(root)
        yield from self._table(table[:_DIRECT], 0)
        first, span = _DIRECT, self._size // 4
        for level in range(1, 4):
            if first >= self._limit:
                return
            yield from self._indirect(int(table[_DIRECT + level - 1]), first, level)
            first += span**level

    def _indirect(self, block: int, first: int, level: int) -> Iterator[_Run]:
        per_table = self._size // 4
        span = per_table ** (level - 1)
        if not block:
            yield first, span * per_table, None
            return
        table = _pointers(self._read(block))
        if level == 1:
            yield from self._table(table, first)
            return
        for number, child in enumerate(table.tolist()):
            if first + number * span >= self._limit:
                return
            yield from self._indirect(child, first + number * span, level - 1)

    def _table(self, table: np.ndarray[tuple[int], np.dtype[np.int64]], first: int) -> Iterator[_Run]:
        """The runs of one table of pointers: consecutive blocks, or zeros, which are holes."""
        import numpy as np

        step = np.diff(table)
        holes = table == 0
        same = np.where(holes[1:], holes[:-1], ~holes[:-1] & (step == 1))
        cuts = [0, *(np.flatnonzero(~same) + 1).tolist(), len(table)]
        for start, stop in pairwise(cuts):
            block = int(table[start])
            yield first + start, stop - start, block or None

    def _read(self, block: int) -> bytes:
        if block in self.seen or not 0 < block < self._blocks:
            raise damaged(self._label, 0, f"block {block} cannot be a part of its block map")
        self.seen.add(block)
        return self._reader.read_at(block * self._size, self._size)


def _pointers(raw: bytes) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
    import numpy as np  # slow to load, and files of ext4 need none of it

    return np.frombuffer(raw, dtype="<u4").astype(np.int64)
