"""Tables of runs: which layer answers for which chunks. Pure arithmetic on columns, no I/O.

A table lists what a layer, or several laid over each other, say of the disk; a gap is "absent".
Laying a thousand layers over each other pairwise costs n log n in their runs, and a look-up in the
result costs the same as in one layer.
"""

from __future__ import annotations

from array import array
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from imagefs.errors import FormatError
from imagefs.format.extents import Runs
from imagefs.interfaces import State

I64 = npt.NDArray[np.int64]


#: State by its number.
_STATES = [State(number) for number in range(len(State))]


@dataclass(slots=True)
class Run:
    """``count`` chunks from ``first`` in one state; stored ones are rows ``row`` … of ``layer``.

    Not to be changed; ``frozen`` takes nearly four times as long to make.
    """

    first: int
    count: int
    state: State
    layer: int
    row: int


@dataclass(frozen=True, slots=True)
class RunTable:
    """Columns of length n, sorted by ``first``, not overlapping. ``row`` is -1 where not stored."""

    first: I64
    count: I64
    state: npt.NDArray[np.uint8]
    layer: npt.NDArray[np.int32]
    row: I64

    def __len__(self) -> int:
        return len(self.first)

    def run(self, i: int) -> Run:
        return Run(
            self.first.item(i),
            self.count.item(i),
            _STATES[self.state.item(i)],
            self.layer.item(i),
            self.row.item(i),
        )

    def find(self, chunk_no: int) -> int:
        """The number of the run that holds ``chunk_no``; -1 where the table has a gap."""
        i = int(np.searchsorted(self.first, chunk_no, "right")) - 1
        return i if i >= 0 and chunk_no < self.first[i] + self.count[i] else -1

    def between(self, first: int, end: int) -> Iterator[Run]:
        """The runs from chunk ``first`` to before ``end``, cut to that range. Gaps are left out."""
        i = max(0, int(np.searchsorted(self.first, first, "right")) - 1)
        while i < len(self) and self.first[i] < end:
            run = self.run(i)
            start, stop = max(run.first, first), min(run.first + run.count, end)
            if start < stop:
                row = run.row + start - run.first if run.state is State.STORED else -1
                yield Run(start, stop - start, run.state, run.layer, row)
            i += 1

    def chunks_in(self, state: State) -> int:
        return int(self.count[self.state == state].sum())


class RunFinder:
    """The quickest way to one run of a finished table: a plain array below, for the read path."""

    def __init__(self, table: RunTable) -> None:
        self._first: Sequence[int] = array("q", table.first.astype(np.int64).tobytes())
        self._table = table
        # Most reads fall into the run of the read before; replaced whole, so threads need no lock.
        self._last = Run(0, 0, State.ZERO, 0, -1)

    def find(self, chunk_no: int) -> Run:
        """The run that holds ``chunk_no``, which must lie in one."""
        last = self._last
        if last.first <= chunk_no < last.first + last.count:
            return last
        self._last = found = self._table.run(bisect_right(self._first, chunk_no) - 1)
        return found


def table_of(first: I64, count: I64, state: npt.NDArray[np.uint8], layer: int, row: I64) -> RunTable:
    return RunTable(first, count, state, np.full(len(first), layer, np.int32), row)


def full_table(extents: Runs, chunks: int, layer: int = 0) -> RunTable:
    """A full image's table: whatever its extents do not list is stored, rows in order."""
    ends = extents.first + extents.count
    gap_first = np.concatenate(([0], ends)).astype(np.int64)
    gap_end = np.concatenate((extents.first, [chunks])).astype(np.int64)
    keep = gap_end > gap_first
    first, count = gap_first[keep], (gap_end - gap_first)[keep]
    row = np.concatenate(([0], np.cumsum(count)[:-1])).astype(np.int64) if len(count) else first
    return _join(extents, first, count, row, layer)


def child_table(extents: Runs, chunk_nos: I64, chunks: int, layer: int) -> RunTable:
    """A child's table: the index rows and the extents; FormatError where they overlap."""
    if len(chunk_nos) and int(chunk_nos[-1]) >= chunks:
        raise FormatError(f"chunk {int(chunk_nos[-1])} lies past the end of the disk")
    starts = np.flatnonzero(np.diff(chunk_nos, prepend=-2) != 1).astype(np.int64)
    count = np.diff(starts, append=len(chunk_nos)).astype(np.int64)
    return _join(extents, chunk_nos[starts], count, starts, layer)


def _join(extents: Runs, first: I64, count: I64, row: I64, layer: int) -> RunTable:
    all_first = np.concatenate((extents.first, first))
    order = np.argsort(all_first, kind="stable")
    all_count = np.concatenate((extents.count, count))[order]
    stored = np.full(len(first), State.STORED, np.uint8)
    state = np.concatenate((extents.state, stored))[order]
    rows = np.concatenate((np.full(len(extents), -1, np.int64), row))[order]
    all_first = all_first[order]
    if bool((all_first[1:] - all_first[:-1] < all_count[:-1]).any()):
        raise FormatError("a chunk is both stored and listed as an extent")
    return table_of(all_first, all_count, state, layer, rows)


def overlay(base: RunTable, top: RunTable) -> RunTable:
    """What shows when ``top`` lies over ``base``."""
    if not len(top) or not len(base):
        return top if len(top) else base
    base_end, top_end = base.first + base.count, top.first + top.count
    cuts = np.unique(np.concatenate((base.first, base_end, top.first, top_end)))
    starts, lengths = cuts[:-1], np.diff(cuts)
    in_top, over = _covering(top.first, top_end, starts)
    in_base, under = _covering(base.first, base_end, starts)

    def pick(
        top_column: npt.NDArray[np.generic], base_column: npt.NDArray[np.generic]
    ) -> npt.NDArray[np.generic]:
        return np.where(in_top, top_column[over], base_column[under])

    state = pick(top.state, base.state).astype(np.uint8)
    row = np.where(
        in_top, top.row[over] + starts - top.first[over], base.row[under] + starts - base.first[under]
    )
    row = np.where(state == State.STORED, row, -1)
    layer = pick(top.layer, base.layer).astype(np.int32)
    keep = in_top | in_base
    return coalesce(RunTable(starts[keep], lengths[keep], state[keep], layer[keep], row[keep]))


def _covering(first: I64, end: I64, points: I64) -> tuple[npt.NDArray[np.bool_], I64]:
    """For each point whether a run covers it, and which."""
    found = np.searchsorted(first, points, "right") - 1
    index = np.maximum(found, 0).astype(np.int64)
    return (found >= 0) & (points < end[index]), index


def coalesce(table: RunTable) -> RunTable:
    """Join neighbours that say the same."""
    if len(table) < 2:
        return table
    end = table.first + table.count
    stored = table.state == State.STORED
    follows = (
        (table.first[1:] == end[:-1])
        & (table.state[1:] == table.state[:-1])
        & (table.layer[1:] == table.layer[:-1])
        & (~stored[1:] | (table.row[1:] == table.row[:-1] + table.count[:-1]))
    )
    starts = np.flatnonzero(np.concatenate(([True], ~follows)))
    count = np.add.reduceat(table.count, starts)
    return RunTable(table.first[starts], count, table.state[starts], table.layer[starts], table.row[starts])


def overlay_all(tables: Sequence[RunTable]) -> RunTable:
    """All layers, the first lowest, laid over each other pairwise."""
    level = list(tables)
    while len(level) > 1:
        paired = [overlay(level[i], level[i + 1]) for i in range(0, len(level) - 1, 2)]
        level = paired + level[len(paired) * 2 :]
    return level[0]


def crop(table: RunTable, chunks: int) -> RunTable:
    """The table without what lies at or past chunk ``chunks``."""
    keep = table.first < chunks
    count = np.minimum(table.count, chunks - table.first)[keep]
    return RunTable(table.first[keep], count, table.state[keep], table.layer[keep], table.row[keep])


def covers(table: RunTable, first: int, end: int) -> bool:
    """True when no chunk from ``first`` to before ``end`` is absent."""
    return sum(run.count for run in table.between(first, end)) == max(0, end - first)
