"""Byte ranges of a disk that need no capture."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt

I64 = npt.NDArray[np.int64]


class Skips:
    """Byte ranges of the disk that are not captured: ``first`` and ``end`` int64, sorted, disjoint."""

    def __init__(self, first: I64, end: I64) -> None:
        self.first, self.end = first, end

    def __len__(self) -> int:
        return len(self.first)

    @property
    def bytes(self) -> int:
        return int((self.end - self.first).sum())

    def within(self, start: int, stop: int) -> list[tuple[int, int]]:
        """The skipped (first, end) between ``start`` and ``stop``, cut to it."""
        low = int(np.searchsorted(self.end, start, "right"))
        high = int(np.searchsorted(self.first, stop, "left"))
        if low >= high:
            return []
        firsts = np.maximum(self.first[low:high], start).tolist()
        return list(zip(firsts, np.minimum(self.end[low:high], stop).tolist(), strict=True))

    def chunks(self, chunk: int, size: int) -> Iterator[tuple[int, int]]:
        """Runs (first, end) of chunks that lie wholly in skipped ranges of a disk of ``size`` bytes."""
        first = -(-self.first // chunk)
        end = np.where(self.end >= size, -(-self.end // chunk), self.end // chunk)
        keep = end > first
        yield from zip(first[keep].tolist(), end[keep].tolist(), strict=True)


NOTHING = Skips(np.zeros(0, np.int64), np.zeros(0, np.int64))


def joined(ranges: list[tuple[int, int]]) -> list[tuple[int, int]]:
    """Sorted (first, end) ranges, touching ones as one: a range may have been cut at a checkpoint."""
    found: list[tuple[int, int]] = []
    for first, end in ranges:
        if found and found[-1][1] == first:
            found[-1] = (found[-1][0], end)
        else:
            found.append((first, end))
    return found
