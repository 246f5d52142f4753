"""Where two points in time of a disk may differ: told by runs and digests, no content is read.

What two images share has the same digest, or is the same row of the same layer; a child's own layer lists all
that is not its parent's. Ranges are (first, end) in bytes of the disk, in order, joined, and cut to a part of it.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from imagefs.block.ranges import Range, joined
from imagefs.format.extents import I64
from imagefs.image.catalog import Catalog
from imagefs.image.disk import VirtualDisk
from imagefs.image.runs import Run, RunTable, distinct
from imagefs.image.tail import ImageInfo
from imagefs.interfaces import State

#: Of so many chunks the digests are held at once.
_STEP = 65_536


def is_child(old: ImageInfo, new: ImageInfo) -> bool:
    """Whether ``new`` was made from ``old``, so that what its own layer does not list is the same."""
    return new.header.parent == old.uuid and new.header.parent_seal == old.tail.seal


def changes_of_child(catalog: Catalog, old: ImageInfo, new: ImageInfo) -> list[Range]:
    """What ``new``, a child of ``old``, lists itself, zeros that were zeros before too; nothing else of the chain is
    opened. Raises FormatError, IntegrityError, StoreError."""
    reader = catalog.open_image(new)
    try:
        table, size = reader.table(0), new.header.chunk_size
    finally:
        reader.close()
    found = _ranges(table.first * size, (table.first + table.count) * size, reader.disk_size)
    return with_growth(found, old.summary.disk_size, reader.disk_size)


def changes_between(old: VirtualDisk, new: VirtualDisk) -> list[Range]:
    """Where the bytes of two disks may differ; what only one of them has is a difference. Raises as the above."""
    if old.chunk_size != new.chunk_size:
        return [(0, max(old.size, new.size))]
    shared = min(old.size, new.size)
    chunks = -(-shared // old.chunk_size)
    first, count = _pieces(old.chain.table, new.chain.table, chunks)
    first, count = _differing(old, new, first, count)
    size = old.chunk_size
    return with_growth(_ranges(first * size, (first + count) * size, shared), old.size, new.size)


def with_growth(ranges: list[Range], old_size: int, new_size: int) -> list[Range]:
    """The ranges, and what lies past the end of one of two disks."""
    low, high = sorted((old_size, new_size))
    return ranges if low == high else joined([*ranges, (low, high)])


def _ranges(first: I64, end: I64, limit: int) -> list[Range]:
    """Joined; ``first`` in order."""
    end = np.minimum(end, limit)
    keep = first < end
    first, end = first[keep], end[keep]
    if not len(first):
        return []
    starts = np.flatnonzero(np.concatenate(([True], first[1:] != end[:-1])))
    last = np.concatenate((starts[1:], [len(first)])) - 1
    return list(zip(first[starts].tolist(), end[last].tolist(), strict=True))


def _pieces(old: RunTable, new: RunTable, chunks: int) -> tuple[I64, I64]:
    """The chunks before ``chunks``, cut wherever a run of either begins: (first, count) of each piece."""
    cuts = np.concatenate((old.first, new.first, [chunks]))
    cuts = distinct(cuts[cuts <= chunks])
    return cuts[:-1], np.diff(cuts)


def _differing(old: VirtualDisk, new: VirtualDisk, first: I64, count: I64) -> tuple[I64, I64]:
    """The parts of the pieces (first, count) that may differ, in order."""
    tables = old.chain.table, new.chain.table
    at = [np.searchsorted(table.first, first, "right") - 1 for table in tables]
    state = [table.state[i] for table, i in zip(tables, at, strict=True)]
    stored = [each == State.STORED for each in state]
    lost = [each == State.UNREADABLE for each in state]
    differs = (stored[0] != stored[1]) | (lost[0] != lost[1])
    both = stored[0] & stored[1]
    for parent, child in ((0, 1), (1, 0)):  # a child's own chunks are others than its parent's
        infos = [disk.chain.infos for disk in (old, new)]
        if is_child(infos[parent][-1], infos[child][-1]):
            own = both & (tables[child].layer[at[child]] == len(infos[child]) - 1)
            differs, both = differs | own, both & ~own
    found_first, found_count = [first[differs]], [count[differs]]
    for i in np.flatnonzero(both).tolist():
        start, many = first.item(i), count.item(i)
        one, other = (
            _Rows(disk, disk.chain.table.run(k.item(i)), start)
            for disk, k in zip((old, new), at, strict=True)
        )
        if one.place != other.place:
            apart = start + _apart(one, other, many)
            found_first.append(apart)
            found_count.append(np.ones_like(apart))
    all_first, all_count = np.concatenate(found_first), np.concatenate(found_count)
    order = np.argsort(all_first)
    return all_first[order], all_count[order]


class _Rows:
    """The rows of a stored run from chunk ``start`` on."""

    def __init__(self, disk: VirtualDisk, run: Run, start: int) -> None:
        self._layers, self._layer, self._row = disk.chain.layers, run.layer, run.row + start - run.first
        self.place = disk.chain.infos[run.layer].uuid, self._row

    def digests(self, skip: int, count: int) -> npt.NDArray[np.uint8]:
        found = self._layers[self._layer].digests(self._row + skip, count)
        return np.frombuffer(found, np.uint8).reshape(-1, 32)


def _apart(one: _Rows, other: _Rows, count: int) -> I64:
    """Which of ``count`` chunks have different digests, counted from 0."""
    parts = []
    for skip in range(0, count, _STEP):
        some = min(_STEP, count - skip)
        differs = (one.digests(skip, some) != other.digests(skip, some)).any(axis=1)
        parts.append(np.flatnonzero(differs).astype(np.int64) + skip)
    return np.concatenate(parts)
