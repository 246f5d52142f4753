"""Unfinished images: finding their last checkpoint, proving what it describes, and going on from it.

A checkpoint is synced before the capture goes on, so whatever a checkpoint but the last describes is
on the disk; the frames that only the last one describes are looked at one by one (FORMAT.md, 8 and 10).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from imagefs.errors import FormatError, ImagefsError, IntegrityError
from imagefs.format.checkpoint import (
    CHECKPOINT,
    CHECKPOINT_HEADER,
    CHECKPOINT_MAGIC,
    Checkpoint,
    decode_checkpoint,
)
from imagefs.format.codec import FRAME_SIZE, decode_frame_header, decompress, digest_of
from imagefs.format.extents import Runs, make_runs
from imagefs.format.fields import check
from imagefs.format.header import PREAMBLE, Header, decode_header, header_length
from imagefs.format.index import DirectoryEntry, Rows, decode_block, make_rows
from imagefs.image.disk import VirtualDisk
from imagefs.image.runs import RunTable, child_table
from imagefs.image.writer import FIRST_CHECKPOINT, ImageWriter, Told
from imagefs.interfaces import ObjectWriter, Reader, State

_WINDOW = 4 * 1024 * 1024
#: Digests taken from the parent at once.
_STEP = 65_536


@dataclass(frozen=True, slots=True)
class Partial:
    """An unfinished image up to its last sound checkpoint, which ends at byte ``end`` of the object."""

    reader: Reader
    name: str
    header: Header
    points: tuple[Checkpoint, ...]
    offset: int
    end: int

    @property
    def next_chunk(self) -> int:
        return self.points[-1].next_chunk

    def blocks(self) -> Iterator[Rows]:
        """All index rows in order, block by block; the last rows are in no block yet."""
        for point in self.points:
            for entry in point.blocks:
                yield _block(self.reader, entry)
        yield self._pending()

    def _pending(self) -> Rows:
        parts: list[Rows] = []
        for point in self.points:
            parts = [point.rows] if point.blocks else [*parts, point.rows]
        return _concatenated(parts)

    def runs(self) -> Runs:
        """The zero, skipped and unreadable chunks."""
        return _all_runs([point.runs for point in self.points])

    def ranges(self) -> Runs:
        """The skipped and unreadable bytes."""
        return _all_runs([point.ranges for point in self.points])

    def plain(self, rows: Rows, i: int, length: int) -> bytes:
        """The bytes of the chunk in row ``i``, checked. Raises IntegrityError."""
        chunk_no = rows.chunk_no.item(i)
        frame = memoryview(self.reader.read_at(rows.offset.item(i), FRAME_SIZE + rows.stored_length.item(i)))
        try:
            decode_frame_header(frame)
            plain = decompress(rows.codec.item(i), frame[FRAME_SIZE:], length)
        except FormatError as error:
            raise IntegrityError(f"{self.name}: chunk {chunk_no} is damaged: {error.message}") from error
        if digest_of(plain) != rows.digest[i].tobytes():
            raise IntegrityError(f"{self.name}: chunk {chunk_no} is damaged: its digest does not match")
        return plain

    def close(self) -> None:
        self.reader.close()


def read_partial(reader: Reader, name: str, *, disk_size: int | None = None) -> Partial:
    """The unfinished image in ``reader``, which it owns from now on.

    ``disk_size`` is that of the source where it is not in the header. Raises FormatError when there is
    nothing to go on from.
    """
    header = _header(reader)
    source = header.facts.get("source")
    told = source.get("size") if isinstance(source, dict) else None
    size = told if isinstance(told, int) else disk_size or 0
    offset = reader.size
    while (found := _last_point(reader, offset)) is not None:
        offset, point, end = found
        try:
            partial = Partial(reader, name, header, _all_points(reader, offset, point), offset, end)
            _check_newest(partial, size)
        except ImagefsError:
            continue
        return partial
    raise FormatError(
        f"{name} holds no checkpoint to resume from", hint="remove it with `imagefs list --clean-partials`"
    )


def has_checkpoint(reader: Reader) -> bool:
    """Whether there may be something to go on from. Looks only into a small object: of a larger one
    the writer has made checkpoints, and finding the last could mean reading a gibibyte."""
    return reader.size > 2 * FIRST_CHECKPOINT or _last_point(reader, reader.size) is not None


def resumed_writer(partial: Partial, out: ObjectWriter, parent: VirtualDisk | None) -> ImageWriter:
    """A writer that goes on behind the last checkpoint of ``partial``; ``out`` ends there."""
    writer = ImageWriter(out, partial.header, fresh=False)
    writer.take_up(partial.points, _told(partial, parent), offset=partial.offset)
    return writer


def stretches(partial: Partial) -> Iterator[tuple[State, int, int, Rows | None]]:
    """What the layer holds, in disk order: (state, first, count, the rows of stored chunks)."""
    table = child_table(partial.runs(), np.zeros(0, np.int64), partial.next_chunk, 0)
    position = 0
    for rows in partial.blocks():
        numbers = rows.chunk_no.astype(np.int64)
        starts = np.flatnonzero(np.diff(numbers, prepend=-2) != 1).tolist()
        for start, stop in pairwise([*starts, len(rows)] if starts else ()):
            first, end = int(numbers[start]), int(numbers[stop - 1]) + 1
            yield from _unstored(table, position, first)
            yield State.STORED, first, end - first, _cut(rows, start, stop)
            position = end
    yield from _unstored(table, position, partial.next_chunk)


def _unstored(table: RunTable, position: int, end: int) -> Iterator[tuple[State, int, int, None]]:
    """Runs of the layer from ``position`` to before ``end``, and what is absent between them."""
    for run in table.between(position, end):
        if run.first > position:
            yield State.ABSENT, position, run.first - position, None
        yield run.state, run.first, run.count, None
        position = run.first + run.count
    if position < end:
        yield State.ABSENT, position, end - position, None


def _told(partial: Partial, parent: VirtualDisk | None) -> Iterator[Told]:
    for state, first, count, rows in stretches(partial):
        if rows is not None:
            size = int(rows.stored_length.sum()) + FRAME_SIZE * len(rows)
            yield Told(state, state, first, count, rows.digest.tobytes(), size)
        elif state is not State.ABSENT:
            yield Told(state, state, first, count)
        elif parent is None:
            raise IntegrityError(f"{partial.name}: chunks {first} to {first + count - 1} were never written")
        else:
            yield from _inherited(parent, first, first + count)


def _inherited(parent: VirtualDisk, first: int, end: int) -> Iterator[Told]:
    for run in parent.runs(first, end):
        stored = run.state is State.STORED
        step = _STEP if stored else run.count
        for start in range(0, run.count, step):
            count = min(step, run.count - start)
            digests = parent.chain.layers[run.layer].digests(run.row + start, count) if stored else b""
            yield Told(State.ABSENT, run.state, run.first + start, count, digests)


# -- finding checkpoints --------------------------------------------------------------------------


def _header(reader: Reader) -> Header:
    length = header_length(reader.read_at(0, PREAMBLE.size))
    return decode_header(reader.read_at(0, length))


def _last_point(reader: Reader, before: int) -> tuple[int, Checkpoint, int] | None:
    """(offset, checkpoint, its end) of the last one that begins before ``before``."""
    stop = before
    while stop > 0:
        start = max(0, stop - _WINDOW)
        # A magic may lie across the border of two windows.
        data = reader.read_at(start, min(stop + len(CHECKPOINT_MAGIC) - 1, reader.size) - start)
        at = len(data)
        while (at := data.rfind(CHECKPOINT_MAGIC, 0, at + len(CHECKPOINT_MAGIC) - 1)) >= 0:
            if start + at < before and (point := _point_at(reader, start + at)) is not None:
                return start + at, *point
            if at == 0:
                break
        stop = start
    return None


def _point_at(reader: Reader, offset: int) -> tuple[Checkpoint, int] | None:
    head = reader.read_at(offset, CHECKPOINT_HEADER)
    if len(head) < CHECKPOINT_HEADER:
        return None
    length = CHECKPOINT.unpack_from(head)[4]
    if length > reader.size - offset - CHECKPOINT_HEADER:
        return None
    try:
        return decode_checkpoint(
            reader.read_at(offset, CHECKPOINT_HEADER + length), offset=offset
        ), offset + CHECKPOINT_HEADER + length
    except ImagefsError:
        return None


def _all_points(reader: Reader, offset: int, last: Checkpoint) -> tuple[Checkpoint, ...]:
    """The checkpoints from the first to ``last``. Raises FormatError where the way back is broken."""
    points = [last]
    while points[-1].previous:
        previous = points[-1].previous
        check(previous < offset, "checkpoints do not lie in order")
        offset = previous
        found = _point_at(reader, offset)
        check(found is not None, "a checkpoint is missing")
        assert found is not None
        fits = found[0].number == points[-1].number - 1 and found[0].next_chunk <= points[-1].next_chunk
        check(fits, "checkpoints do not follow each other")
        points.append(found[0])
    check(points[-1].number == 1, "the first checkpoint is missing")
    return tuple(points[::-1])


def _check_newest(partial: Partial, disk_size: int) -> None:
    """Every frame that only the last checkpoint describes decodes. Raises IntegrityError."""
    point, chunk = partial.points[-1], partial.header.chunk_size
    known = partial.points[-2].next_chunk if len(partial.points) > 1 else 0
    for rows in (*(_block(partial.reader, entry) for entry in point.blocks), point.rows):
        for i in range(len(rows)):
            number = rows.chunk_no.item(i)
            if number >= known:
                partial.plain(rows, i, min(chunk, disk_size - number * chunk))


def _block(reader: Reader, entry: DirectoryEntry) -> Rows:
    check(entry.offset + entry.length <= reader.size, "an index block lies past the end")
    return decode_block(reader.read_at(entry.offset, entry.length), entry)


def _cut(rows: Rows, start: int, stop: int) -> Rows:
    return Rows(
        rows.chunk_no[start:stop],
        rows.offset[start:stop],
        rows.stored_length[start:stop],
        rows.codec[start:stop],
        rows.digest[start:stop],
    )


def _concatenated(parts: list[Rows]) -> Rows:
    if not parts:
        return make_rows([], [], [], b"", b"")
    return Rows(
        np.concatenate([rows.chunk_no for rows in parts]),
        np.concatenate([rows.offset for rows in parts]),
        np.concatenate([rows.stored_length for rows in parts]),
        np.concatenate([rows.codec for rows in parts]),
        np.concatenate([rows.digest for rows in parts]),
    )


def _all_runs(parts: list[Runs]) -> Runs:
    if not parts:
        return make_runs([])
    return Runs(
        np.concatenate([runs.first for runs in parts]),
        np.concatenate([runs.count for runs in parts]),
        np.concatenate([runs.state for runs in parts]),
    )
