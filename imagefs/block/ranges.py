"""Ranges of bytes, for who asks about them many times."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable
from functools import cached_property
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt


#: (first, end): bytes ``first`` to before ``end``.
Range = tuple[int, int]


class Ranges:
    """Ranges, joined and in order."""

    def __init__(self, ranges: Iterable[Range]) -> None:
        self.first: list[int] = []
        self.end: list[int] = []
        for first, end in sorted(ranges):
            if self.end and first <= self.end[-1]:
                self.end[-1] = max(self.end[-1], end)
            elif end > first:
                self.first.append(first)
                self.end.append(end)

    def within(self, first: int, end: int) -> list[tuple[int, int]]:
        """The parts of the ranges between ``first`` and ``end``."""
        parts, at = [], bisect_right(self.end, first)
        while at < len(self.first) and self.first[at] < end:
            parts.append((max(first, self.first[at]), min(end, self.end[at])))
            at += 1
        return parts

    def touch(self, first: npt.NDArray[np.int64], end: npt.NDArray[np.int64]) -> npt.NDArray[np.bool_]:
        """For arrays of one shape: whether each range from ``first`` to before ``end`` has a part in these."""
        import numpy as np  # slow to load

        if not self.first:
            return np.zeros(first.shape, np.bool_)
        starts, ends = self._columns
        at = np.searchsorted(ends, first, "right")
        found: npt.NDArray[np.bool_] = (at < len(ends)) & (starts[np.minimum(at, len(ends) - 1)] < end)
        return found & (first < end)

    @cached_property
    def _columns(self) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
        import numpy as np

        return np.array(self.first, np.int64), np.array(self.end, np.int64)


def joined(ranges: Iterable[Range]) -> list[Range]:
    """The same bytes in order, each once."""
    found = Ranges(ranges)
    return list(zip(found.first, found.end, strict=True))


def overlaps(one: Iterable[Range], other: Iterable[Range]) -> list[Range]:
    """What lies in a range of ``one`` and in one of ``other``."""
    found = Ranges(other)
    return [part for first, end in one for part in found.within(first, end)]


def cut(ranges: Iterable[Range], start: int, end: int) -> list[Range]:
    """What of ``ranges`` lies from ``start`` to before ``end``, counted from ``start``."""
    return [(first - start, stop - start) for first, stop in overlaps([(start, end)], ranges)]


def without(one: Iterable[Range], other: Iterable[Range]) -> list[Range]:
    """What lies in a range of ``one`` and in none of ``other``."""
    found, taken = [], Ranges(other)
    for first, end in one:
        for start, stop in taken.within(first, end):
            if first < start:
                found.append((first, start))
            first = stop
        if first < end:
            found.append((first, end))
    return found
