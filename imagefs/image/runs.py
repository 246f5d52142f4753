"""Tables of runs: which layer answers for which chunks. Pure arithmetic on columns, no I/O.

A table lists what a layer, or several laid over each other, say of the disk; a gap is "absent".
Laying a thousand layers over each other costs n log n in their runs, and a look-up in the result costs
the same as in one layer.
"""

from __future__ import annotations

from array import array
from bisect import bisect_right
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from imagefs.errors import FormatError
from imagefs.format.extents import Runs
from imagefs.interfaces import State

I64 = npt.NDArray[np.int64]

#: Layers are painted over each other at once while that is so many times their pieces at most.
MAX_PAINT = 4

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
        at = max(0, int(np.searchsorted(self.first, first, "right")) - 1)
        last, batch = int(np.searchsorted(self.first, end)), 8
        while at < last:
            stop = min(at + batch, last)
            for number, count, state, layer, row in self._rows(at, stop):
                start, past = max(number, first), min(number + count, end)
                if start < past:
                    at_row = row + start - number if state == State.STORED else -1
                    yield Run(start, past - start, _STATES[state], layer, at_row)
            at, batch = stop, min(2 * batch, 4096)

    def _rows(self, start: int, stop: int) -> Iterator[tuple[int, int, int, int, int]]:
        """Plain numbers of the runs from number ``start`` on: many at once cost a tenth of one by one."""
        columns = (self.first, self.count, self.state, self.layer, self.row)
        return zip(*(column[start:stop].tolist() for column in columns), strict=True)

    def chunks_in(self, state: State) -> int:
        return int(self.count[self.state == state].sum())

    def length_in(self, states: Collection[State], start: int, end: int, *, shift: int) -> int:
        """How many of the bytes ``start`` to before ``end`` are in one of ``states``; a chunk has 2^shift."""
        first, past = self.first << shift, (self.first + self.count) << shift
        lengths = np.minimum(past, end) - np.maximum(first, start)
        return int(lengths[np.isin(self.state, list(states)) & (lengths > 0)].sum())


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


def overlay_all(tables: Sequence[RunTable]) -> RunTable:
    """What shows when all layers lie over each other, the first lowest.

    The disk is cut wherever a run begins or ends, and each run painted over its pieces, from the lowest
    layer up. Where layers overlap so much that this would be many times their runs, half by half.
    """
    if len(tables) == 1:
        return tables[0]
    runs = _joined(tables)
    cuts = distinct(np.concatenate((runs.first, runs.first + runs.count)))
    start = np.searchsorted(cuts, runs.first)
    pieces = np.searchsorted(cuts, runs.first + runs.count) - start
    if len(tables) > 2 and int(pieces.sum()) > MAX_PAINT * len(cuts):
        middle = len(tables) // 2
        del runs, cuts, start, pieces
        return overlay_all([overlay_all(tables[:middle]), overlay_all(tables[middle:])])
    return coalesce(_painted(runs, cuts, start, pieces))


def _joined(tables: Sequence[RunTable]) -> RunTable:
    """The runs of all tables one behind the other: no table, but its columns."""
    return RunTable(
        np.concatenate([table.first for table in tables]),
        np.concatenate([table.count for table in tables]),
        np.concatenate([table.state for table in tables]),
        np.concatenate([table.layer for table in tables]),
        np.concatenate([table.row for table in tables]),
    )


def _painted(runs: RunTable, cuts: I64, start: I64, pieces: I64) -> RunTable:
    """The pieces between ``cuts``, each with the last of the runs that cover it."""
    shown = np.full(max(0, len(cuts) - 1), -1, np.int64)
    before = np.cumsum(pieces) - pieces
    where = np.repeat(start - before, pieces)
    where += np.arange(len(where))
    np.maximum.at(shown, where, np.repeat(np.arange(len(runs)), pieces))
    del where
    covered = shown >= 0
    first, count, shown = cuts[:-1][covered], np.diff(cuts)[covered], shown[covered]
    state = runs.state[shown]
    row = np.where(state == State.STORED, runs.row[shown] + first - runs.first[shown], -1)
    return RunTable(first, count, state, runs.layer[shown], row)


def distinct(values: I64) -> I64:
    """Sorted, each once. ``np.unique`` hashes them first, which takes ten times as long here."""
    values.sort()
    keep = np.ones(len(values), np.bool_)
    np.not_equal(values[1:], values[:-1], out=keep[1:])
    return values[keep]


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


def crop(table: RunTable, chunks: int) -> RunTable:
    """The table without what lies at or past chunk ``chunks``."""
    keep = table.first < chunks
    count = np.minimum(table.count, chunks - table.first)[keep]
    return RunTable(table.first[keep], count, table.state[keep], table.layer[keep], table.row[keep])


def covers(table: RunTable, first: int, end: int) -> bool:
    """True when no chunk from ``first`` to before ``end`` is absent."""
    low = max(0, int(np.searchsorted(table.first, first, "right")) - 1)
    high = int(np.searchsorted(table.first, end))
    starts = np.maximum(table.first[low:high], first)
    ends = np.minimum(table.first[low:high] + table.count[low:high], end)
    return int(np.maximum(ends - starts, 0).sum()) == max(0, end - first)
