"""Which bytes of a volume its file system uses: the answer that every reader of this room gives."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from imagefs.errors import AllocationError

I64 = npt.NDArray[np.int64]
#: More runs than this are not kept apart: gaps are then closed, the smallest first (64 MB of columns).
MAX_RUNS = 4_000_000


@dataclass(frozen=True, slots=True)
class UsedMap:
    """The used stretches of a volume.

    ``first`` and ``end`` are byte offsets in the volume, int64 arrays of one length, sorted, disjoint
    and not touching each other; what lies in none of them is unallocated. ``block_size`` is that of
    the file system in bytes, ``source`` says where the map comes from (``ext4 block bitmaps``).
    """

    first: I64
    end: I64
    block_size: int
    source: str

    @property
    def used_bytes(self) -> int:
        return int((self.end - self.first).sum())


class UsedRuns:
    """Gathers used runs, in any order and overlapping, in blocks of ``block_size`` bytes.

    ``size`` is the volume's in bytes: a run past it is an AllocationError. Memory is bounded: beyond
    ``MAX_RUNS`` short gaps count as used, which only ever keeps more.
    """

    def __init__(self, size: int, block_size: int) -> None:
        self._size = size
        self._block = block_size
        self._firsts: list[I64] = []
        self._ends: list[I64] = []
        self._count = 0

    def add(self, first: int, count: int) -> None:
        """Blocks ``first`` to before ``first + count`` are used."""
        self.add_bytes(first * self._block, (first + count) * self._block)

    def add_bytes(self, first: int, end: int) -> None:
        """Bytes ``first`` to before ``end`` are used."""
        if end > first:
            self._append(np.array([first], np.int64), np.array([end], np.int64))

    def add_bits(self, bits: bytes | memoryview, count: int, *, base: int = 0, offset: int = 0) -> int:
        """``count`` bits (the lowest bit of a byte first), the first one for block ``base``; those
        that are set are used. Blocks begin ``offset`` bytes into the volume. Gives how many are set."""
        flags = np.unpackbits(np.frombuffer(bits, np.uint8), count=count, bitorder="little")
        return self.add_flags(flags, base=base, offset=offset)

    def add_flags(self, flags: npt.NDArray[np.uint8], *, base: int = 0, offset: int = 0) -> int:
        """The same for an array of zeros and ones."""
        edges = np.flatnonzero(np.diff(flags.astype(np.int8), prepend=0, append=0)).astype(np.int64)
        first = (edges[0::2] + base) * self._block + offset
        end = (edges[1::2] + base) * self._block + offset
        if len(first):
            self._append(first, end)
        return int((end - first).sum()) // self._block

    def _append(self, first: I64, end: I64) -> None:
        if int(end.max()) > self._size or int(first.min()) < 0:
            raise AllocationError(
                f"its map tells of used blocks at byte {int(end.max())}, past the end of the volume at {self._size}"
            )
        self._firsts.append(first)
        self._ends.append(end)
        self._count += len(first)
        if self._count > 2 * MAX_RUNS:
            self._merge()

    def _merge(self) -> None:
        """All runs so far as one pair of sorted columns, touching and overlapping ones joined."""
        if not self._firsts:
            return
        first, end = np.concatenate(self._firsts), np.concatenate(self._ends)
        order = np.argsort(first, kind="stable")
        first, end = first[order], np.maximum.accumulate(end[order])
        gaps = first[1:] - end[:-1]
        least = 0
        if np.count_nonzero(gaps > 0) >= MAX_RUNS:
            least = int(np.partition(gaps, len(gaps) - MAX_RUNS // 2)[len(gaps) - MAX_RUNS // 2])
        cut = np.flatnonzero(gaps > least)
        first, end = first[np.concatenate(([0], cut + 1))], end[np.concatenate((cut, [len(end) - 1]))]
        self._firsts, self._ends, self._count = [first], [end], len(first)

    def finish(self, source: str) -> UsedMap:
        self._merge()
        empty = np.zeros(0, np.int64)
        first = self._firsts[0] if self._firsts else empty
        end = self._ends[0] if self._ends else empty
        return UsedMap(first, end, self._block, source)
